//! One value that is read, written and compared: what registers and keys have in common.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;

use super::{Expected, Model, Nature, Outlook, foreign, pair, refuse_mismatch};
use crate::datum::Datum;
use crate::error::HistoryError;
use crate::event::Function;
use crate::history::{Operation, Outcome};

/// A value of a cell by its number; nil is 0.
pub type Symbol = usize;

/// The number of nil: the value before the first write.
const NIL: Symbol = 0;

/// The values of one cell, numbered, so that they are compared and hashed as numbers.
#[derive(Clone, Debug)]
pub(super) struct Symbols {
    numbers: BTreeMap<Datum, Symbol>,
    values: Vec<Datum>,
}

impl Default for Symbols {
    fn default() -> Self {
        Self { numbers: BTreeMap::from([(Datum::Nil, NIL)]), values: vec![Datum::Nil] }
    }
}

impl Symbols {
    pub(super) fn number(&mut self, value: &Datum) -> Symbol {
        if let Some(number) = self.numbers.get(value) {
            return *number;
        }
        self.numbers.insert(value.clone(), self.values.len());
        self.values.push(value.clone());
        self.values.len() - 1
    }

    pub(super) fn describe(&self, number: Symbol) -> String {
        self.values.get(number).cloned().unwrap_or_default().to_string()
    }

    fn len(&self) -> usize {
        self.values.len()
    }
}

/// An operation on a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CellOp {
    /// A read with its result; without one if it is not known.
    Read(Option<Symbol>),
    /// A write. Deleting is writing nil.
    Write(Symbol),
    /// A `cas` that found `expected` and wrote `new`.
    Cas {
        /// The value found.
        expected: Symbol,
        /// The value written.
        new: Symbol,
    },
    /// A `cas` that found another value than this.
    Mismatch(Symbol),
}

impl CellOp {
    /// The value that it must find.
    fn needs(self) -> Option<Symbol> {
        match self {
            Self::Read(value) => value,
            Self::Cas { expected, .. } => Some(expected),
            Self::Write(_) | Self::Mismatch(_) => None,
        }
    }

    /// The value that it leaves behind.
    fn gives(self) -> Option<Symbol> {
        match self {
            Self::Write(value) => Some(value),
            Self::Cas { new, .. } => Some(new),
            Self::Read(_) | Self::Mismatch(_) => None,
        }
    }
}

/// The words of a model that is a cell.
pub trait Words: Clone + Debug + Default {
    /// The model's name.
    const NAME: &'static str;
    /// What can be done with it.
    const FUNCTIONS: &'static [Function];
}

/// A cell that is spoken to in these words. It is nil at first.
#[derive(Clone, Debug, Default)]
pub struct Cell<W> {
    symbols: Symbols,
    words: PhantomData<W>,
}

impl<W: Words> Model for Cell<W> {
    type Op = CellOp;
    type State = Symbol;
    type Outlook = CellOutlook;

    const NAME: &'static str = W::NAME;

    fn parse(&mut self, operation: &Operation) -> Result<CellOp, HistoryError> {
        if !W::FUNCTIONS.contains(&operation.function) {
            return Err(foreign::<Self>(operation));
        }
        refuse_mismatch::<Self>(operation)?;
        let symbols = &mut self.symbols;
        Ok(match operation.function {
            Function::Read => CellOp::Read(operation.result().map(|value| symbols.number(value))),
            Function::Write => CellOp::Write(symbols.number(&operation.input)),
            Function::Delete => CellOp::Write(NIL),
            Function::Cas => {
                let (expected, new) = pair(operation)?;
                let expected = symbols.number(&expected);
                match operation.outcome {
                    Outcome::Mismatch => CellOp::Mismatch(expected),
                    Outcome::Ok(_) | Outcome::Open => CellOp::Cas { expected, new: symbols.number(&new) },
                }
            }
            Function::Append | Function::Add | Function::Incr | Function::Acquire | Function::Release => {
                return Err(foreign::<Self>(operation));
            }
        })
    }

    fn initial(&self) -> Symbol {
        NIL
    }

    fn step(&self, state: &Symbol, op: &CellOp) -> Option<Symbol> {
        match *op {
            CellOp::Read(None) => Some(*state),
            CellOp::Read(Some(value)) => (value == *state).then_some(*state),
            CellOp::Write(value) => Some(value),
            CellOp::Cas { expected, new } => (expected == *state).then_some(new),
            CellOp::Mismatch(expected) => (expected != *state).then_some(*state),
        }
    }

    fn nature(&self, op: &CellOp) -> Nature {
        match op {
            CellOp::Read(_) | CellOp::Mismatch(_) => Nature::Observes,
            CellOp::Write(_) => Nature::Changes,
            CellOp::Cas { .. } => Nature::Both,
        }
    }

    /// An observation rests on the last change before it alone, so it is enough to keep every change that leaves a
    /// value which the observation accepts: whatever else lay before that one did not reach the observation, and
    /// nothing lay between.
    fn explains(&self, change: &CellOp, observation: &CellOp) -> bool {
        let Some(given) = change.gives() else { return false };
        match *observation {
            CellOp::Mismatch(expected) => given != expected,
            CellOp::Read(_) | CellOp::Cas { .. } => observation.needs() == Some(given),
            CellOp::Write(_) => false,
        }
    }

    fn outlook(&self, ops: &[Expected<'_, CellOp>]) -> CellOutlook {
        CellOutlook::new(ops, &self.symbols)
    }

    fn describe(&self, state: &Symbol) -> String {
        self.symbols.describe(*state)
    }
}

/// Which values must still be found, and which can still come.
///
/// # Invariants
///
/// - `starving` is the number of values with `wanted > 0` and `offered == 0`.
#[derive(Clone, Debug)]
pub struct CellOutlook {
    needs: Vec<Option<Symbol>>,
    gives: Vec<Option<Symbol>>,
    /// How many operations that returned, and are not placed yet, must find the value.
    wanted: Vec<usize>,
    /// How many operations not placed yet could leave it behind.
    offered: Vec<usize>,
    starving: usize,
}

impl CellOutlook {
    fn new(ops: &[Expected<'_, CellOp>], symbols: &Symbols) -> Self {
        let mut outlook = Self {
            // An open operation need not find anything: it may never take effect.
            needs: ops.iter().map(|expected| expected.op.needs().filter(|_| expected.ret.is_some())).collect(),
            gives: ops.iter().map(|expected| expected.op.gives()).collect(),
            wanted: vec![0; symbols.len()],
            offered: vec![0; symbols.len()],
            starving: 0,
        };
        for number in 0..ops.len() {
            outlook.count(number, |count| *count += 1);
        }
        outlook
    }

    fn is_starving(&self, value: Symbol) -> bool {
        self.wanted.get(value).is_some_and(|wanted| *wanted > 0) && self.offered.get(value) == Some(&0)
    }

    fn count(&mut self, number: usize, change: impl Fn(&mut usize)) {
        let need = self.needs.get(number).copied().flatten();
        let gift = self.gives.get(number).copied().flatten();
        let touched = [need, gift.filter(|gift| Some(*gift) != need)];
        let before = touched.iter().flatten().filter(|value| self.is_starving(**value)).count();
        if let Some(count) = need.and_then(|value| self.wanted.get_mut(value)) {
            change(count);
        }
        if let Some(count) = gift.and_then(|value| self.offered.get_mut(value)) {
            change(count);
        }
        let after = touched.iter().flatten().filter(|value| self.is_starving(**value)).count();
        self.starving = self.starving + after - before;
    }
}

impl Outlook<Symbol> for CellOutlook {
    fn take(&mut self, number: usize) {
        self.count(number, |count| *count -= 1);
    }

    fn put_back(&mut self, number: usize) {
        self.count(number, |count| *count += 1);
    }

    /// A value that is wanted and that nothing will leave behind any more must be the present one.
    fn hopeless(&self, state: &Symbol) -> bool {
        self.starving > usize::from(self.is_starving(*state))
    }
}
