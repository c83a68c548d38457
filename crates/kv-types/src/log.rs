//! The vocabulary of the replicated log, shared by the Raft core, the WAL and the wire.

use std::fmt;

use bytes::Bytes;

use crate::{Lamport, LogIndex, Membership, NodeId, Term};

/// Names an entry: by Log Matching, two logs that hold the same `LogId` are equal up to it (Raft paper §5.3).
/// Ordered by term, then index: the order in which logs are more up to date (Raft paper §5.4.1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LogId {
    /// The term of the leader that created the entry.
    pub term: Term,
    /// The position of the entry.
    pub index: LogIndex,
}

impl LogId {
    /// Before the first entry.
    pub const ZERO: Self = Self { term: Term::ZERO, index: LogIndex::ZERO };

    /// Names the entry of `term` at `index`.
    pub const fn new(term: Term, index: LogIndex) -> Self {
        Self { term, index }
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.term, self.index)
    }
}

impl fmt::Debug for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What an entry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Nothing: the entry a new leader appends to learn the commit index (Raft paper §8).
    Blank,
    /// A command for the state machine, opaque here; `kv-state` owns its codec.
    Command(Bytes),
    /// The whole membership from this entry on, effective when appended (Raft thesis §4.1).
    Config(Membership),
}

impl Body {
    /// The bytes that count against size limits: the command's length, 0 for the others.
    pub fn payload_bytes(&self) -> u64 {
        match self {
            Self::Command(command) => command.len() as u64,
            Self::Blank | Self::Config(_) => 0,
        }
    }
}

/// One entry of a shard's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands and who made it.
    pub id: LogId,
    /// The leader's stamp. The Raft core passes it through unread; entries the core creates carry
    /// [`Lamport::ZERO`] until the driver stamps them, which it does before it writes or sends them.
    pub stamp: Lamport,
    /// What it asks for.
    pub body: Body,
}

/// What a replica must never forget: written before any message that rests on it leaves (Raft paper, Figure 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HardState {
    /// The newest term this replica has seen.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// The longest promise ever given to a leader, in milliseconds: for so long after a sign of life of it no vote is
    /// given or asked for. A replica that starts sits it out, since it cannot know when it gave the last one.
    pub promise_ms: u32,
}

/// The point a snapshot stands for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotMeta {
    /// The last entry whose effects the snapshot holds.
    pub last: LogId,
    /// The membership in force at `last`, joint halves included.
    pub membership: Membership,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_ids_order_by_term_first() {
        let long = LogId::new(Term::new(1), LogIndex::new(9));
        let new = LogId::new(Term::new(2), LogIndex::new(3));
        assert!(long < new);
        assert_eq!(new.to_string(), "t2i3");
    }
}
