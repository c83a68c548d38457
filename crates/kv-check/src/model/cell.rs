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
            Function::Append
            | Function::Add
            | Function::Incr
            | Function::Acquire
            | Function::Release
            | Function::Txn => {
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

    fn overwrites(&self, change: &CellOp) -> bool {
        change.gives().is_some()
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
    ops: Vec<Prospect>,
    values: Vec<Demand>,
    starving: usize,
    /// How many operations to come found that the value was not some value.
    mismatches: usize,
}

/// What one operation means to the outlook.
#[derive(Clone, Copy, Debug)]
struct Prospect {
    /// The value it must find: an open operation need not find anything, for it may never take effect.
    needs: Option<Symbol>,
    /// The value it leaves behind.
    gives: Option<Symbol>,
    /// The value that makes a difference to it.
    minds: Option<Symbol>,
    is_write: bool,
    is_mismatch: bool,
}

/// What the operations to come want of one value.
#[derive(Clone, Copy, Debug, Default)]
struct Demand {
    /// How many must find it.
    wanted: usize,
    /// How many could leave it behind.
    offered: usize,
    /// To how many it makes a difference.
    minded: usize,
}

impl Demand {
    fn is_starving(self) -> bool {
        self.wanted > 0 && self.offered == 0
    }
}

impl CellOutlook {
    fn new(ops: &[Expected<'_, CellOp>], symbols: &Symbols) -> Self {
        let prospect = |expected: &Expected<'_, CellOp>| Prospect {
            needs: expected.op.needs().filter(|_| expected.ret.is_some()),
            gives: expected.op.gives(),
            minds: match *expected.op {
                CellOp::Mismatch(value) => Some(value),
                CellOp::Read(_) | CellOp::Write(_) | CellOp::Cas { .. } => expected.op.needs(),
            },
            is_write: matches!(expected.op, CellOp::Write(_)),
            is_mismatch: matches!(expected.op, CellOp::Mismatch(_)),
        };
        let mut outlook = Self {
            ops: ops.iter().map(prospect).collect(),
            values: vec![Demand::default(); symbols.len()],
            starving: 0,
            mismatches: 0,
        };
        for number in 0..ops.len() {
            outlook.put_back(number);
        }
        outlook
    }

    fn demand(&self, value: Symbol) -> Demand {
        self.values.get(value).copied().unwrap_or_default()
    }

    fn count(&mut self, value: Option<Symbol>, change: impl Fn(&mut Demand)) {
        let Some(demand) = value.and_then(|value| self.values.get_mut(value)) else { return };
        let before = usize::from(demand.is_starving());
        change(demand);
        self.starving = self.starving + usize::from(demand.is_starving()) - before;
    }
}

impl Outlook<Symbol> for CellOutlook {
    fn take(&mut self, number: usize) {
        let Some(prospect) = self.ops.get(number).copied() else { return };
        self.count(prospect.needs, |demand| demand.wanted -= 1);
        self.count(prospect.gives, |demand| demand.offered -= 1);
        self.count(prospect.minds, |demand| demand.minded -= 1);
        self.mismatches -= usize::from(prospect.is_mismatch);
    }

    fn put_back(&mut self, number: usize) {
        let Some(prospect) = self.ops.get(number).copied() else { return };
        self.count(prospect.minds, |demand| demand.minded += 1);
        self.count(prospect.gives, |demand| demand.offered += 1);
        self.count(prospect.needs, |demand| demand.wanted += 1);
        self.mismatches += usize::from(prospect.is_mismatch);
    }

    /// A value that is wanted and that nothing will leave behind any more must be the present one.
    fn hopeless(&self, state: &Symbol) -> bool {
        self.starving > usize::from(self.demand(*state).is_starving())
    }

    /// Operations compare the state with one value each.
    fn forgotten(&self, state: &Symbol) -> bool {
        self.demand(*state).minded == 0
    }

    /// A write of a value that makes no difference to anybody. Between it and the next change nothing succeeds but
    /// what was answered that the value is *not* something; without those it need not be there.
    fn settles(&self, number: usize) -> bool {
        self.mismatches == 0
            && self.ops.get(number).is_some_and(|prospect| {
                prospect.is_write && prospect.gives.is_some_and(|value| self.demand(value).minded == 0)
            })
    }
}
