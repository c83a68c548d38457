//! A number that is added to and read.

use std::collections::BTreeMap;

use super::{Expected, Model, Nature, Outlook, bad_input, bad_result, foreign, refuse_mismatch};
use crate::error::HistoryError;
use crate::event::Function;
use crate::history::Operation;

/// A number that is added to and read. It is 0 at first.
#[derive(Clone, Debug, Default)]
pub struct Counter;

/// An operation on a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CounterOp {
    /// Adds a number.
    Add {
        /// The number.
        by: i64,
        /// The sum it gave, if it told.
        sum: Option<i64>,
    },
    /// A read with its result; without one if it is not known.
    Read(Option<i64>),
}

impl CounterOp {
    /// The state in which it must find the counter.
    fn needs(self) -> Option<i64> {
        match self {
            Self::Add { by, sum } => sum?.checked_sub(by),
            Self::Read(value) => value,
        }
    }

    fn adds(self) -> i64 {
        match self {
            Self::Add { by, .. } => by,
            Self::Read(_) => 0,
        }
    }
}

impl Model for Counter {
    type Op = CounterOp;
    type State = i64;
    type Outlook = CounterOutlook;

    const NAME: &'static str = "counter";

    fn parse(&mut self, operation: &Operation) -> Result<CounterOp, HistoryError> {
        refuse_mismatch::<Self>(operation)?;
        let result = operation.result().filter(|result| !result.is_nil());
        let number = || {
            let number =
                result.map(|result| result.as_int().ok_or_else(|| bad_result(operation, "a number")));
            number.transpose()
        };
        let by = || match operation.input.as_int() {
            Some(by) => Ok(by),
            None if operation.input.is_nil() => Ok(1),
            None => Err(bad_input(operation, "a number, or nil for 1")),
        };
        match operation.function {
            // An `add` returns its own argument, as Jepsen's counters do.
            Function::Add => Ok(CounterOp::Add { by: by()?, sum: None }),
            Function::Incr => Ok(CounterOp::Add { by: by()?, sum: number()? }),
            Function::Read if operation.result().is_some_and(crate::Datum::is_nil) => {
                Err(bad_result(operation, "a number"))
            }
            Function::Read => Ok(CounterOp::Read(number()?)),
            Function::Write
            | Function::Cas
            | Function::Append
            | Function::Delete
            | Function::Acquire
            | Function::Release
            | Function::Txn => Err(foreign::<Self>(operation)),
        }
    }

    fn initial(&self) -> i64 {
        0
    }

    fn step(&self, state: &i64, op: &CounterOp) -> Option<i64> {
        match *op {
            CounterOp::Add { by, sum } => {
                let after = state.checked_add(by)?;
                sum.is_none_or(|sum| sum == after).then_some(after)
            }
            CounterOp::Read(value) => value.is_none_or(|value| value == *state).then_some(*state),
        }
    }

    fn opened(&self, op: &CounterOp) -> CounterOp {
        match *op {
            CounterOp::Add { by, sum: _ } => CounterOp::Add { by, sum: None },
            CounterOp::Read(_) => CounterOp::Read(None),
        }
    }

    fn nature(&self, op: &CounterOp) -> Nature {
        match op {
            CounterOp::Read(_) => Nature::Observes,
            CounterOp::Add { sum: None, .. } => Nature::Changes,
            CounterOp::Add { sum: Some(_), .. } => Nature::Both,
        }
    }

    /// A sum rests on everything that was added before.
    fn explains(&self, change: &CounterOp, observation: &CounterOp) -> bool {
        change.adds() != 0 && observation.needs().is_some()
    }

    fn outlook(&self, ops: &[Expected<'_, CounterOp>]) -> CounterOutlook {
        CounterOutlook::new(ops)
    }

    fn describe(&self, state: &i64) -> String {
        state.to_string()
    }
}

/// Between which numbers the counter can still come to lie, and where it must.
#[derive(Clone, Debug, Default)]
pub struct CounterOutlook {
    /// For each operation the number it must find, if it returned, and the number it adds.
    ops: Vec<(Option<i64>, i64)>,
    /// The numbers that must be found, and how often.
    wanted: BTreeMap<i64, usize>,
    /// The sum of all that is above zero and still to be added.
    up: i128,
    /// The sum of all that is below zero and still to be added.
    down: i128,
}

impl CounterOutlook {
    fn new(ops: &[Expected<'_, CounterOp>]) -> Self {
        let ops: Vec<_> = ops
            .iter()
            .map(|expected| (expected.op.needs().filter(|_| expected.ret.is_some()), expected.op.adds()))
            .collect();
        let mut outlook = Self { ops, ..Self::default() };
        for number in 0..outlook.ops.len() {
            outlook.put_back(number);
        }
        outlook
    }
}

impl Outlook<i64> for CounterOutlook {
    fn take(&mut self, number: usize) {
        let Some((need, adds)) = self.ops.get(number).copied() else { return };
        if let Some(need) = need
            && let Some(times) = self.wanted.get_mut(&need)
        {
            *times -= 1;
            if *times == 0 {
                self.wanted.remove(&need);
            }
        }
        self.up -= i128::from(adds.max(0));
        self.down -= i128::from(adds.min(0));
    }

    fn put_back(&mut self, number: usize) {
        let Some((need, adds)) = self.ops.get(number).copied() else { return };
        if let Some(need) = need {
            *self.wanted.entry(need).or_default() += 1;
        }
        self.up += i128::from(adds.max(0));
        self.down += i128::from(adds.min(0));
    }

    /// Whatever comes when, the counter stays between the state with all that lowers it and the state with all that
    /// raises it.
    fn hopeless(&self, state: &i64) -> bool {
        let ends = [self.wanted.first_key_value(), self.wanted.last_key_value()];
        ends.into_iter().flatten().any(|(wanted, _)| {
            let distance = i128::from(*wanted) - i128::from(*state);
            distance < self.down || distance > self.up
        })
    }
}
