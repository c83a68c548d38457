//! What clients of transactions saw: histories for the checkers, and sums.

use std::collections::BTreeMap;

use kv_check::{Datum, Function, MicroOperation, Operation, Transaction};
use kv_types::Key;

use crate::invariants::serialisability;
use crate::violation::{Holds, Violation};

/// What something that a client did is to the checkers, if it took effect.
#[derive(Clone, Debug, Default)]
pub(super) struct Effect {
    /// What it did to lists.
    pub(super) lists: Vec<MicroOperation>,
    /// What it did to registers.
    pub(super) registers: Vec<Register>,
    /// Counters to which it added one.
    pub(super) counts: Vec<Key>,
    /// What it has read cannot have been at one instant.
    pub(super) wrong: Option<String>,
}

/// What was done to a register.
#[derive(Clone, Debug)]
pub(super) struct Register {
    pub(super) key: String,
    pub(super) function: Function,
    pub(super) input: Datum,
    pub(super) result: Datum,
}

/// All of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    position: u64,
    /// Numbers elements and values.
    written: i64,
    process: i64,
    transactions: Vec<Transaction>,
    registers: Vec<Operation>,
    /// How much was added to each counter for certain, and how much more may have been.
    counts: BTreeMap<Key, (i64, i64)>,
}

impl Ledger {
    pub(super) fn tick(&mut self) -> u64 {
        self.position += 1;
        self.position
    }

    /// A number that nobody has written yet.
    pub(super) fn fresh(&mut self) -> i64 {
        self.written += 1;
        self.written
    }

    /// Something ended that began then: it took effect, or not, or nobody knows.
    pub(super) fn note(&mut self, effect: &Effect, begun: u64, fate: Option<bool>) -> Holds {
        let now = self.tick();
        self.process += 1;
        let process = self.process;
        if !effect.lists.is_empty() {
            let open = Transaction::open(process, effect.lists.iter().cloned(), begun);
            self.transactions.push(match fate {
                Some(true) => open.committed(now),
                Some(false) => open.failed(),
                None => open,
            });
        }
        for Register { key, function, input, result } in &effect.registers {
            let open = Operation::open(process, *function, input.clone(), begun).on(key.as_str());
            match fate {
                Some(true) => self.registers.push(open.returned(now, result.clone())),
                // That a comparison failed tells something, but not of which instant.
                Some(false) => {}
                None if *function == Function::Read => {}
                None => self.registers.push(open),
            }
        }
        for key in &effect.counts {
            let (certain, maybe) = self.counts.entry(key.clone()).or_default();
            match fate {
                Some(true) => *certain += 1,
                Some(false) => {}
                None => *maybe += 1,
            }
        }
        match (&effect.wrong, fate) {
            (Some(wrong), Some(true)) => Err(Violation::new(serialisability::NAME, wrong.clone())),
            _ => Ok(()),
        }
    }

    /// A counter at the end.
    pub(super) fn counted(&self, key: &Key, value: i64) -> Holds {
        let (certain, maybe) = self.counts.get(key).copied().unwrap_or_default();
        if (certain..=certain + maybe).contains(&value) {
            return Ok(());
        }
        let detail = format!("{key} is {value}: {certain} were acknowledged, and {maybe} more may be in it");
        Err(Violation::new(serialisability::NAME, detail))
    }

    /// Both histories, of which nothing is left.
    pub(super) fn take(&mut self) -> (Vec<Transaction>, Vec<Operation>) {
        (std::mem::take(&mut self.transactions), std::mem::take(&mut self.registers))
    }
}
