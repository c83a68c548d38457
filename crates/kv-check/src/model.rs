//! What an object does when operations come one after another.

mod append;
mod append_outlook;
mod append_words;
mod cas_register;
mod cell;
mod counter;
mod kv;
mod lock;
mod register;
mod set;

use std::fmt::Debug;
use std::hash::Hash;

use crate::datum::Datum;
use crate::error::{HistoryError, Problem};
use crate::event::Function;
use crate::history::{Operation, Outcome};

pub use append::{AppendOp, AppendState, KvAppend};
pub use append_outlook::AppendOutlook;
pub use cas_register::{CasRegister, CasRegisterWords};
pub use cell::{Cell, CellOp, CellOutlook, Symbol, Words};
pub use counter::{Counter, CounterOp, CounterOutlook};
pub use kv::{Kv, KvWords};
pub use lock::{Lock, LockOp, LockState};
pub use register::{Register, RegisterWords};
pub use set::{Elements, Set, SetOp, SetOutlook};

/// How an operation deals with the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// It tells something about the state and never changes it, whatever the state is.
    Observes,
    /// It changes the state and tells nothing about it: it is possible in every state.
    Changes,
    /// Both.
    Both,
}

impl Nature {
    /// Whether it may change the state.
    #[must_use]
    pub fn changes(self) -> bool {
        self != Self::Observes
    }

    /// Whether it tells something about the state.
    #[must_use]
    pub fn observes(self) -> bool {
        self != Self::Changes
    }
}

/// A sequential object: pure, and total but for operations that cannot have happened.
///
/// Open operations are asked for with the same [`Model::step`]: a step that cannot happen is the same as one that never
/// does.
pub trait Model {
    /// An operation with its result, in the model's own words. Equal operations can stand for each other.
    type Op: Clone + Debug + Ord;
    /// The state; cheap to clone.
    type State: Clone + Debug + Eq + Hash;
    /// What the model knows of the operations still to come.
    type Outlook: Outlook<Self::State>;

    /// The model's name.
    const NAME: &'static str;

    /// Translates an operation. The model may keep what it needs to know about its values.
    ///
    /// # Errors
    ///
    /// If the operation is none of this object, or its value makes no sense.
    fn parse(&mut self, operation: &Operation) -> Result<Self::Op, HistoryError>;

    /// The state before the first operation.
    fn initial(&self) -> Self::State;

    /// The state after the operation; none if it cannot have had its result in this state.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// The operation without what it was told when it returned.
    fn opened(&self, op: &Self::Op) -> Self::Op {
        op.clone()
    }

    /// How the operation deals with the state. [`Nature::Observes`] must hold in every state: the search rests on it.
    fn nature(&self, op: &Self::Op) -> Nature;

    /// Whether the change may be needed for the observation. The contract: leave some changes out of a history that can
    /// be explained, but none that explains an observation left in; then the rest can be explained too.
    fn explains(&self, change: &Self::Op, observation: &Self::Op) -> bool;

    /// Whether nothing that comes after the change can tell what was before it, but by what it gives itself. Of the changes
    /// that may explain an observation, those before such a one do not matter.
    fn overwrites(&self, _change: &Self::Op) -> bool {
        false
    }

    /// The outlook on these operations, before any of them.
    fn outlook(&self, ops: &[Expected<'_, Self::Op>]) -> Self::Outlook;

    /// The state in words.
    fn describe(&self, state: &Self::State) -> String;
}

/// An operation as an outlook sees it.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a, Op> {
    /// The operation.
    pub op: &'a Op,
    /// When it returned; none if it is open and may never take effect.
    pub ret: Option<u64>,
}

/// What must still come true after a state: lets the search turn back early, and not try what makes no difference.
///
/// Whatever it says must hold for every order of the operations not taken yet that places all that returned, and open
/// ones or not as it likes. An outlook that knows nothing keeps the defaults.
pub trait Outlook<State: PartialEq> {
    /// The operation with this number has been placed.
    fn take(&mut self, _number: usize) {}

    /// It has been taken back. Called in the reverse order of [`Outlook::take`].
    fn put_back(&mut self, _number: usize) {}

    /// Whether no such order exists after this state.
    fn hopeless(&self, _state: &State) -> bool {
        false
    }

    /// Whether no operation to come can tell this state from any other of which that is said too.
    fn forgotten(&self, _state: &State) -> bool {
        false
    }

    /// Whether this operation, which is still to come and returned, leaves a forgotten state forgotten; and whether no
    /// operation to come after it, up to the next change, can tell that it was there. Then it may be placed at once.
    fn settles(&self, _number: usize) -> bool {
        false
    }
}

/// The outlook of a model that knows nothing about what is to come.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoOutlook;

impl<State: PartialEq> Outlook<State> for NoOutlook {}

/// The models by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// [`Register`].
    Register,
    /// [`CasRegister`].
    CasRegister,
    /// [`Kv`].
    Kv,
    /// [`KvAppend`].
    KvAppend,
    /// [`Set`].
    Set,
    /// [`Lock`].
    Lock,
    /// [`Counter`].
    Counter,
}

impl ModelKind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Register, Self::CasRegister, Self::Kv, Self::KvAppend, Self::Set, Self::Lock, Self::Counter];

    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Register => Register::NAME,
            Self::CasRegister => CasRegister::NAME,
            Self::Kv => Kv::NAME,
            Self::KvAppend => KvAppend::NAME,
            Self::Set => Set::NAME,
            Self::Lock => Lock::NAME,
            Self::Counter => Counter::NAME,
        }
    }
}

/// The error for a function that the model does not have.
fn foreign<M: Model>(operation: &Operation) -> HistoryError {
    let problem = Problem::ForeignFunction { function: operation.function, model: M::NAME };
    HistoryError::at_function(operation.called_at, problem)
}

/// The error for an argument that makes no sense.
fn bad_input(operation: &Operation, expected: &'static str) -> HistoryError {
    let (function, value) = (operation.function, operation.input.to_string());
    HistoryError::at_value(operation.called_at, Problem::BadValue { function, value, expected })
}

/// The error for a result that makes no sense.
fn bad_result(operation: &Operation, expected: &'static str) -> HistoryError {
    let (function, value) = (operation.function, operation.result().cloned().unwrap_or_default().to_string());
    HistoryError::at_value(operation.returned_at, Problem::BadValue { function, value, expected })
}

/// Refuses an answer that only a `cas` gives.
fn refuse_mismatch<M: Model>(operation: &Operation) -> Result<(), HistoryError> {
    match operation.outcome {
        Outcome::Mismatch if operation.function != Function::Cas => Err(foreign::<M>(operation)),
        Outcome::Mismatch | Outcome::Ok(_) | Outcome::Open => Ok(()),
    }
}

/// The two values of a `cas`.
fn pair(operation: &Operation) -> Result<(Datum, Datum), HistoryError> {
    match operation.input.as_list() {
        Some([expected, new]) => Ok((expected.clone(), new.clone())),
        _ => Err(bad_input(operation, "[expected new]")),
    }
}
