//! What the WAL says about a shard besides its log: which generation of the base is current and how far it reaches.

use std::fmt;

use kv_types::{Entry, HardState, Lamport, LogId, LogIndex, ShardId, SnapshotMeta, StateHash};

/// One life of a shard's base: a new one is begun by a snapshot install or a rewrite, in a directory of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Generation(u64);

impl Generation {
    /// Wraps a raw number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The generation after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "gen-{}", self.0)
    }
}

/// What a base holds: all effects up to `meta.last`, nothing later.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BaseNote {
    /// The generation the note speaks of.
    pub generation: Generation,
    /// The last entry whose effects the base holds, and the membership in force there.
    pub meta: SnapshotMeta,
    /// The stamp of that entry.
    pub stamp: Lamport,
    /// The state hash after that entry.
    pub hash: StateHash,
}

/// A merge that was begun: until the next [`BaseNote`], the base holds `from` and any part of what leads to `to`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MergeNote {
    /// The generation being merged into.
    pub generation: Generation,
    /// The base before the merge.
    pub from: LogIndex,
    /// The base after it.
    pub to: LogIndex,
}

/// One change to one shard's part of the WAL: written whole or not at all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalOp {
    /// One `Write` of the Raft core: hard state, then truncation, then entries.
    Raft {
        /// The new hard state, if it changed.
        hard: Option<HardState>,
        /// Entries from this index on are gone.
        truncate_from: Option<LogIndex>,
        /// Entries that follow the log's end after the truncation.
        append: Vec<Entry>,
    },
    /// A snapshot became the base. The log is reset to begin after `base.meta.last`; entries above it stay if
    /// `keep_tail`.
    Install {
        /// The new hard state, if it changed.
        hard: Option<HardState>,
        /// The new base.
        base: BaseNote,
        /// Whether the local log holds `base.meta.last`, so that what follows it stays.
        keep_tail: bool,
    },
    /// A merge is about to touch the base.
    MergeBegin(MergeNote),
    /// A merge is complete and durable.
    BaseAt(BaseNote),
    /// The base was rewritten into a new generation, which is complete and durable. The log stays as it is.
    Regenerated(BaseNote),
    /// Entries up to here are no longer needed by the state machine or by a follower; the log begins after it.
    Compact(LogId),
    /// The base of this generation is damaged and must not be opened again.
    Damaged(Generation),
}

impl WalOp {
    /// Whether it carries no entries: it is short, and a full disk has a reserve for it.
    pub fn is_bare(&self) -> bool {
        match self {
            Self::Raft { append, .. } => append.is_empty(),
            Self::Install { .. }
            | Self::MergeBegin(_)
            | Self::BaseAt(_)
            | Self::Regenerated(_)
            | Self::Compact(_)
            | Self::Damaged(_) => true,
        }
    }

    /// Whether it speaks only of what the base holds, so of entries that are durable already: it says the same before the
    /// shard's next entries as behind them.
    pub fn is_of_base(&self) -> bool {
        match self {
            Self::MergeBegin(_) | Self::BaseAt(_) | Self::Regenerated(_) | Self::Compact(_) => true,
            Self::Raft { .. } | Self::Install { .. } | Self::Damaged(_) => false,
        }
    }
}

/// A [`WalOp`] and its shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalRecord {
    /// The shard.
    pub shard: ShardId,
    /// The change.
    pub op: WalOp,
}
