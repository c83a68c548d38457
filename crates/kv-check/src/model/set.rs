//! A set that grows: add and read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::cell::Symbols;
use super::{Expected, Model, Nature, Outlook, bad_result, foreign, refuse_mismatch};
use crate::error::HistoryError;
use crate::event::Function;
use crate::history::Operation;

/// A set that grows. It is empty at first.
#[derive(Clone, Debug, Default)]
pub struct Set {
    elements: Symbols,
}

/// Some elements by their numbers, as bits.
///
/// # Invariants
///
/// - The last word is not zero, so equal sets are equal words.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Elements(Arc<[u64]>);

impl Elements {
    fn of(numbers: impl IntoIterator<Item = usize>) -> Self {
        let mut words = Vec::new();
        for number in numbers {
            insert(&mut words, number);
        }
        Self(words.into())
    }

    fn with(&self, number: usize) -> Self {
        let mut words = self.0.to_vec();
        insert(&mut words, number);
        Self(words.into())
    }

    fn contains(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
    }

    fn numbers(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len() * 64).filter(|number| self.contains(*number))
    }
}

fn insert(words: &mut Vec<u64>, number: usize) {
    if words.len() <= number / 64 {
        words.resize(number / 64 + 1, 0);
    }
    words.get_mut(number / 64).into_iter().for_each(|word| *word |= 1 << (number % 64));
}

/// An operation on a set.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetOp {
    /// Adds an element, by its number.
    Add(usize),
    /// Reads all elements; without a result if it is not known.
    Read(Option<Elements>),
}

impl Model for Set {
    type Op = SetOp;
    type State = Elements;
    type Outlook = SetOutlook;

    const NAME: &'static str = "set";

    fn parse(&mut self, operation: &Operation) -> Result<SetOp, HistoryError> {
        refuse_mismatch::<Self>(operation)?;
        match operation.function {
            Function::Add => Ok(SetOp::Add(self.elements.number(&operation.input))),
            Function::Read => {
                let Some(result) = operation.result() else { return Ok(SetOp::Read(None)) };
                let items = result.as_list().ok_or_else(|| bad_result(operation, "a list of elements"))?;
                let mut numbers: BTreeSet<usize> =
                    items.iter().map(|item| self.elements.number(item)).collect();
                if numbers.len() < items.len() {
                    // A set holds nothing twice: so does one of which an element is this list, which nobody has added.
                    numbers.insert(self.elements.number(result));
                }
                Ok(SetOp::Read(Some(Elements::of(numbers))))
            }
            Function::Write
            | Function::Cas
            | Function::Append
            | Function::Delete
            | Function::Incr
            | Function::Acquire
            | Function::Release
            | Function::Txn => Err(foreign::<Self>(operation)),
        }
    }

    fn initial(&self) -> Elements {
        Elements::default()
    }

    fn step(&self, state: &Elements, op: &SetOp) -> Option<Elements> {
        match op {
            SetOp::Add(number) if state.contains(*number) => Some(state.clone()),
            SetOp::Add(number) => Some(state.with(*number)),
            SetOp::Read(None) => Some(state.clone()),
            SetOp::Read(Some(seen)) => (seen == state).then(|| state.clone()),
        }
    }

    fn nature(&self, op: &SetOp) -> Nature {
        match op {
            SetOp::Read(_) => Nature::Observes,
            SetOp::Add(_) => Nature::Changes,
        }
    }

    /// All that came before the read is in it. An element that is not in it came later and is not missed.
    fn explains(&self, change: &SetOp, observation: &SetOp) -> bool {
        match (change, observation) {
            (SetOp::Add(number), SetOp::Read(Some(seen))) => seen.contains(*number),
            _ => false,
        }
    }

    fn outlook(&self, ops: &[Expected<'_, SetOp>]) -> SetOutlook {
        SetOutlook::new(ops)
    }

    fn describe(&self, state: &Elements) -> String {
        let elements: Vec<_> = state.numbers().map(|number| self.elements.describe(number)).collect();
        format!("[{}]", elements.join(","))
    }
}

/// How many reads are looked at before a state is called hopeless.
const READS_AHEAD: usize = 4;

/// Which reads are to come, and which elements are still to be added.
#[derive(Clone, Debug, Default)]
pub struct SetOutlook {
    /// The reads that returned and are not placed yet, in the order of their returns, by their operations.
    order: BTreeSet<(u64, usize)>,
    /// The reads that returned, by their operations.
    reads: BTreeMap<usize, (u64, Elements)>,
    /// What each operation adds.
    adds: Vec<Option<usize>>,
    /// How often each element is still to be added.
    left: Vec<usize>,
    /// The elements that are still to be added, as bits.
    offered: Vec<u64>,
}

impl SetOutlook {
    fn new(ops: &[Expected<'_, SetOp>]) -> Self {
        let mut outlook = Self { adds: vec![None; ops.len()], ..Self::default() };
        for (number, expected) in ops.iter().enumerate() {
            match (expected.op, expected.ret) {
                (SetOp::Add(element), _) => {
                    outlook.adds.get_mut(number).into_iter().for_each(|slot| *slot = Some(*element));
                    if outlook.left.len() <= *element {
                        outlook.left.resize(element + 1, 0);
                    }
                    outlook.offer(*element);
                }
                (SetOp::Read(Some(seen)), Some(ret)) => {
                    outlook.order.insert((ret, number));
                    outlook.reads.insert(number, (ret, seen.clone()));
                }
                (SetOp::Read(_), _) => {}
            }
        }
        outlook
    }

    fn offer(&mut self, element: usize) {
        self.left.get_mut(element).into_iter().for_each(|left| *left += 1);
        insert(&mut self.offered, element);
    }

    fn added(&self, number: usize) -> Option<usize> {
        self.adds.get(number).copied().flatten()
    }
}

impl Outlook<Elements> for SetOutlook {
    fn take(&mut self, number: usize) {
        if let Some(element) = self.added(number) {
            let Some(left) = self.left.get_mut(element) else { return };
            *left -= 1;
            if *left == 0 {
                let word = self.offered.get_mut(element / 64);
                word.into_iter().for_each(|word| *word &= !(1 << (element % 64)));
            }
        } else if let Some((ret, _)) = self.reads.get(&number) {
            self.order.remove(&(*ret, number));
        }
    }

    fn put_back(&mut self, number: usize) {
        if let Some(element) = self.added(number) {
            self.offer(element);
        } else if let Some((ret, _)) = self.reads.get(&number) {
            self.order.insert((*ret, number));
        }
    }

    /// Nothing ever leaves the set, so a read to come must hold all that is in it; and what is not in it yet but in the
    /// read must still be added.
    fn hopeless(&self, state: &Elements) -> bool {
        let mut next = self.order.iter().take(READS_AHEAD).filter_map(|(_, number)| self.reads.get(number));
        next.any(|(_, seen)| {
            let word = |words: &[u64], at: usize| words.get(at).copied().unwrap_or_default();
            (0..seen.0.len().max(state.0.len())).any(|at| {
                let (seen, state) = (word(&seen.0, at), word(&state.0, at));
                state & !seen != 0 || seen & !state & !word(&self.offered, at) != 0
            })
        })
    }
}
