//! Linearisable reads on their way: from the request to the index that must be applied first.

use std::collections::BTreeMap;

use kv_raft::Ticket;
use kv_types::{LogIndex, NodeId};

/// Why a read got no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadFailure {
    /// No leader confirmed the read.
    #[error("no leader has confirmed the read")]
    NoLeader {
        /// Who leads, as far as known.
        hint: Option<NodeId>,
    },
}

/// Reads that wait for a confirmed index, and reads that wait until it is applied.
#[derive(Debug)]
pub(crate) struct Reads<W> {
    next: u64,
    asked: BTreeMap<u64, W>,
    confirmed: BTreeMap<LogIndex, Vec<W>>,
}

impl<W> Reads<W> {
    pub(crate) fn new() -> Self {
        Self { next: 0, asked: BTreeMap::new(), confirmed: BTreeMap::new() }
    }

    /// A ticket for a new read; tickets are never used twice in the life of a replica.
    pub(crate) fn ask(&mut self, waiter: W) -> Ticket {
        self.next += 1;
        self.asked.insert(self.next, waiter);
        Ticket::new(self.next)
    }

    /// Takes a waiter back that was refused or failed.
    pub(crate) fn refuse(&mut self, ticket: Ticket) -> Option<W> {
        self.asked.remove(&ticket.get())
    }

    /// The core has confirmed that the read may be served once `index` is applied.
    pub(crate) fn confirm(&mut self, ticket: Ticket, index: LogIndex) {
        if let Some(waiter) = self.asked.remove(&ticket.get()) {
            self.confirmed.entry(index).or_default().push(waiter);
        }
    }

    /// Everybody who may read now that `applied` is applied.
    pub(crate) fn release(&mut self, applied: LogIndex) -> Vec<W> {
        let mut ready = Vec::new();
        while let Some(first) = self.confirmed.first_entry() {
            if *first.key() > applied {
                break;
            }
            ready.append(&mut first.remove());
        }
        ready
    }

    /// Everybody, at the end of the replica.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        let asked = std::mem::take(&mut self.asked).into_values();
        let confirmed = std::mem::take(&mut self.confirmed).into_values().flatten();
        asked.chain(confirmed).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_waits_for_its_own_index() {
        let mut reads = Reads::new();
        let (early, late, refused) = (reads.ask("early"), reads.ask("late"), reads.ask("refused"));
        reads.confirm(late, LogIndex::new(9));
        reads.confirm(early, LogIndex::new(5));
        assert!(reads.release(LogIndex::new(4)).is_empty());
        assert_eq!(reads.release(LogIndex::new(5)), ["early"]);
        assert_eq!(reads.refuse(refused), Some("refused"));
        assert_eq!(reads.refuse(refused), None);
        assert_eq!(reads.drain(), ["late"]);
    }
}
