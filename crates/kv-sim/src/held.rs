//! What a replica holds, told from the records that it handed out or made durable.

use kv_storage::WalOp;
use kv_types::{HardState, LogId, LogIndex};

/// The hard state and the shape of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) hard: HardState,
    /// The entry before the first one.
    pub(crate) start: LogId,
    /// The entries after it, without a hole.
    pub(crate) ids: Vec<LogId>,
}

impl Held {
    /// Carries a record out.
    pub(crate) fn take(&mut self, op: &WalOp) {
        match op {
            WalOp::Raft { hard, truncate_from, append } => {
                self.hard = hard.unwrap_or(self.hard);
                if let Some(from) = truncate_from {
                    self.ids.truncate(self.place(*from).unwrap_or(0));
                }
                self.ids.extend(append.iter().map(|entry| entry.id));
            }
            WalOp::Install { hard, base, keep_tail } => {
                self.hard = hard.unwrap_or(self.hard);
                if !keep_tail {
                    self.ids.clear();
                }
                self.begin_after(base.meta.last);
            }
            WalOp::Compact(id) => self.begin_after(*id),
            WalOp::MergeBegin(_) | WalOp::BaseAt(_) | WalOp::Regenerated(_) | WalOp::Damaged(_) => {}
        }
    }

    fn begin_after(&mut self, start: LogId) {
        if start.index > self.start.index {
            let gone = usize::try_from(start.index.since(self.start.index)).unwrap_or(usize::MAX);
            self.ids.drain(..gone.min(self.ids.len()));
            self.start = start;
        }
    }

    /// How many entries stand before this index.
    fn place(&self, index: LogIndex) -> Option<usize> {
        usize::try_from(index.get().checked_sub(self.start.index.get() + 1)?).ok()
    }

    /// The last entry.
    pub(crate) fn last(&self) -> LogId {
        self.ids.last().copied().unwrap_or(self.start)
    }

    /// The entry at an index, if it is still there; also the one before the first.
    pub(crate) fn at(&self, index: LogIndex) -> Option<LogId> {
        if index == self.start.index {
            return Some(self.start);
        }
        self.ids.get(self.place(index)?).copied()
    }

    /// The entries from an index on.
    pub(crate) fn from(&self, index: LogIndex) -> &[LogId] {
        self.ids.get(self.place(index).unwrap_or(0)..).unwrap_or_default()
    }

    /// Whether it holds the entry, or something that rests on it.
    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.start.index >= id.index || self.at(id.index) == Some(id)
    }
}
