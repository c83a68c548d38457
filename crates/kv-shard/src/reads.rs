//! Linearisable reads on their way: from the request to the index that must be applied first.

use std::collections::BTreeMap;

use kv_raft::Ticket;
use kv_types::limits::READS_WAITING_MAX;
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
    /// Too many reads wait already.
    #[error("too many reads wait already")]
    Busy,
}

/// Reads that wait for a confirmed index, and reads that wait until it is applied.
///
/// # Invariants
/// Asserted in [`Reads::ask`]: never more than [`READS_WAITING_MAX`] wait.
#[derive(Debug)]
pub(crate) struct Reads<W> {
    next: u64,
    asked: BTreeMap<u64, W>,
    confirmed: BTreeMap<LogIndex, Vec<W>>,
    /// How many are confirmed.
    confirmed_len: usize,
}

impl<W> Reads<W> {
    pub(crate) fn new() -> Self {
        Self { next: 0, asked: BTreeMap::new(), confirmed: BTreeMap::new(), confirmed_len: 0 }
    }

    /// Whether no more reads may wait.
    pub(crate) fn is_full(&self) -> bool {
        self.waiting() >= READS_WAITING_MAX
    }

    fn waiting(&self) -> usize {
        self.asked.len() + self.confirmed_len
    }

    /// A ticket for a new read; tickets are never used twice in the life of a replica.
    ///
    /// # Panics
    /// If no more may wait.
    pub(crate) fn ask(&mut self, waiter: W) -> Ticket {
        assert!(!self.is_full(), "{} reads wait already", self.waiting());
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
            self.confirmed_len += 1;
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
        self.confirmed_len -= ready.len();
        ready
    }

    /// Everybody, at the end of the replica.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        self.confirmed_len = 0;
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

    #[test]
    fn asked_and_confirmed_reads_count_until_they_leave() {
        let mut reads = Reads::new();
        let tickets: Vec<Ticket> = (0..READS_WAITING_MAX).map(|nth| reads.ask(nth)).collect();
        assert!(reads.is_full());
        reads.confirm(tickets[0], LogIndex::new(5));
        assert!(reads.is_full(), "a confirmed read waits, too");
        assert_eq!(reads.release(LogIndex::new(5)), [0]);
        assert!(!reads.is_full());
        reads.ask(0);
        assert!(reads.is_full());
        assert_eq!(reads.refuse(tickets[1]), Some(1));
        assert!(!reads.is_full());
        reads.confirm(tickets[2], LogIndex::new(6));
        assert_eq!(reads.drain().len(), READS_WAITING_MAX - 1);
        assert_eq!(reads.waiting(), 0);
    }
}
