//! Who waits for which entry.

use std::collections::VecDeque;

use bytes::Bytes;
use kv_state::Answer;
use kv_types::limits::COMPARE_FAILED_VALUE_BYTES_MAX;
use kv_types::{Lamport, LogId, LogIndex, NodeId, Outcome, Term};

/// A write that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The entry that did it; its index is the revision.
    pub id: LogId,
    /// Its stamp.
    pub stamp: Lamport,
    /// What it answered. A row that a compare-and-set found lacks its value if that is longer than
    /// [`COMPARE_FAILED_VALUE_BYTES_MAX`]; its head still gives the length.
    pub answer: Answer,
}

/// Leaves the value out of an answer if it is too long to be kept until the answer is read.
pub(crate) fn shortened(answer: Answer) -> Answer {
    match answer {
        Answer::CompareFailed { found: Some(mut row) } => {
            if row.value.len() > COMPARE_FAILED_VALUE_BYTES_MAX {
                row.value = Bytes::new();
            }
            Answer::CompareFailed { found: Some(row) }
        }
        short @ (Answer::CompareFailed { found: None }
        | Answer::Written
        | Answer::Deleted { .. }
        | Answer::Incremented { .. }
        | Answer::IncrementFailed(_)
        | Answer::Replayed(_)
        | Answer::Refused(_)
        | Answer::Settled
        | Answer::Session(_)
        | Answer::SessionsCollected { .. }
        | Answer::Txn(_)
        | Answer::Ticked { .. }
        | Answer::Cluster(_)) => short,
    }
}

/// Why a write has no answer of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteFailure {
    /// This replica does not lead.
    #[error("this replica does not lead the shard")]
    NotLeader {
        /// Who does, as far as known.
        hint: Option<NodeId>,
    },
    /// Too much is proposed and not yet committed.
    #[error("too many bytes are proposed and not yet committed")]
    Busy,
    /// Nobody waits for it any more: its deadline passed before it was proposed.
    #[error("the deadline passed before the write was proposed")]
    Expired,
    /// Another entry was committed in its place.
    #[error("leadership was lost and another entry took the place of the write")]
    Superseded,
    /// The replica lost track of the entry.
    #[error("leadership was lost and the fate of the write is not known here")]
    Lost,
}

impl WriteFailure {
    /// What the failure knows about the write.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotLeader { .. } | Self::Busy | Self::Expired | Self::Superseded => Outcome::NotApplied,
            Self::Lost => Outcome::Unknown,
        }
    }
}

/// Waiters by log index.
///
/// # Invariants
/// Asserted in [`Proposals::push`]: indexes rise, so the front is always the next to be settled.
#[derive(Debug)]
pub(crate) struct Proposals<W> {
    waiting: VecDeque<(LogId, W)>,
}

impl<W> Proposals<W> {
    pub(crate) fn new() -> Self {
        Self { waiting: VecDeque::new() }
    }

    /// Notes who waits for the entry `id`. A waiter of an older term at the same or a later index has lost its place
    /// in this log, but not yet for certain in the group's: it stays unknown.
    pub(crate) fn push(&mut self, id: LogId, waiter: W, lost: &mut Vec<W>) {
        while self.waiting.back().is_some_and(|(last, _)| last.index >= id.index) {
            let (last, stale) = self.waiting.pop_back().expect("a back was just seen");
            assert!(last.term < id.term, "{last} and {id} are two entries of one term at one index");
            lost.push(stale);
        }
        self.waiting.push_back((id, waiter));
    }

    /// The waiter of the applied entry `id`, if one waits here. Waiters of other entries at or before this index are
    /// settled too: their place is taken for good.
    pub(crate) fn settle(&mut self, id: LogId, superseded: &mut Vec<W>) -> Option<W> {
        while let Some((front, _)) = self.waiting.front() {
            if front.index > id.index {
                return None;
            }
            let (front, waiter) = self.waiting.pop_front().expect("a front was just seen");
            if front == id {
                return Some(waiter);
            }
            superseded.push(waiter);
        }
        None
    }

    /// Everybody who waits for an entry up to `index`: a snapshot has taken their place.
    pub(crate) fn skip_to(&mut self, index: LogIndex) -> Vec<W> {
        let skipped = self.waiting.iter().take_while(|(id, _)| id.index <= index).count();
        self.waiting.drain(..skipped).map(|(_, waiter)| waiter).collect()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The oldest term in which somebody waits.
    pub(crate) fn term(&self) -> Option<Term> {
        self.waiting.front().map(|(id, _)| id.term)
    }

    /// Everybody, at the end of leadership or of the replica.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        self.waiting.drain(..).map(|(_, waiter)| waiter).collect()
    }
}

/// Names the entries that one call of the core proposed.
pub(crate) fn ids(term: Term, first: LogIndex, count: usize) -> impl Iterator<Item = LogId> {
    (0..count as u64).map(move |offset| LogId::new(term, first.plus(offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(Term::new(term), LogIndex::new(index))
    }

    #[test]
    fn a_long_value_is_left_out_of_an_answer() {
        let answer = |bytes| {
            let value = Bytes::from(vec![7; bytes]);
            let head = kv_types::RowHead { value_bytes: u32::try_from(bytes).unwrap(), ..Default::default() };
            Answer::CompareFailed { found: Some(kv_types::Row { head, value }) }
        };
        let longest = answer(COMPARE_FAILED_VALUE_BYTES_MAX);
        assert_eq!(shortened(longest.clone()), longest);
        match shortened(answer(COMPARE_FAILED_VALUE_BYTES_MAX + 1)) {
            Answer::CompareFailed { found: Some(row) } => {
                assert!(
                    row.value.is_empty() && row.head.value_bytes as usize > COMPARE_FAILED_VALUE_BYTES_MAX
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(shortened(Answer::Written), Answer::Written);
    }

    #[test]
    fn an_applied_entry_settles_its_waiter() {
        let mut proposals = Proposals::new();
        proposals.push(id(1, 4), "four", &mut Vec::new());
        proposals.push(id(1, 5), "five", &mut Vec::new());
        let mut superseded = Vec::new();
        assert_eq!(proposals.settle(id(1, 3), &mut superseded), None);
        assert_eq!(proposals.settle(id(1, 4), &mut superseded), Some("four"));
        assert_eq!(proposals.settle(id(2, 5), &mut superseded), None);
        assert_eq!(superseded, ["five"]);
    }

    #[test]
    fn a_place_taken_again_before_commit_is_unknown() {
        let mut proposals = Proposals::new();
        let mut lost = Vec::new();
        proposals.push(id(1, 4), "old four", &mut lost);
        proposals.push(id(1, 5), "old five", &mut lost);
        proposals.push(id(3, 5), "new five", &mut lost);
        assert_eq!(lost, ["old five"]);
        assert_eq!(proposals.skip_to(LogIndex::new(4)), ["old four"]);
        assert_eq!(proposals.drain(), ["new five"]);
    }
}
