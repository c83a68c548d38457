//! What the core asks its driver to do.

use std::fmt;

use kv_types::{Entry, HardState, LogId, LogIndex, MembershipError, Nanos, NodeId, SnapshotMeta, Term};

use crate::{LeaseUpdate, Message};

/// Names a write. Strictly increasing in one life of a replica.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct WriteId(u64);

impl WriteId {
    /// Before every write: what waits for it waits for nothing.
    pub const ZERO: Self = Self(0);

    /// Wraps a raw number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The write after this one.
    pub(crate) fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 writes are never made"))
    }
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{}", self.0)
    }
}

impl fmt::Debug for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Names a read. The caller chooses it; the core only hands it back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Ticket(u64);

impl Ticket {
    /// Wraps a raw number.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// One atomic change of what a replica has on disk, to be carried out in this order: hard state, reset, truncation,
/// entries. After a crash either all of it is there or nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Its name.
    pub id: WriteId,
    /// The new hard state, if it changed.
    pub hard: Option<HardState>,
    /// The received snapshot takes the place of the state machine.
    pub reset: Option<Reset>,
    /// Entries from this index on are gone.
    pub truncate_from: Option<LogIndex>,
    /// Entries that follow the log's end.
    pub append: Vec<Entry>,
}

/// A snapshot becomes the base of a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    /// The point the snapshot stands for; the log begins after it.
    pub meta: SnapshotMeta,
    /// Whether the log on disk holds that point, so that entries above it stay.
    pub keep_tail: bool,
}

/// What a replica is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Follows, or waits for, a leader. Learners and removed replicas are followers that do not campaign.
    Follower,
    /// Asks whether an election would be won; its term has not changed.
    PreCandidate,
    /// Stands for election.
    Candidate,
    /// Leads its term.
    Leader,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Follower => "follower",
            Self::PreCandidate => "pre-candidate",
            Self::Candidate => "candidate",
            Self::Leader => "leader",
        })
    }
}

/// The newest role, if role, term or leader changed since the last `take`. Changes in between are not reported; a
/// leadership that was lost and won again shows in the term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoleChange {
    /// The role.
    pub role: Role,
    /// The term.
    pub term: Term,
    /// The leader of the term, once known.
    pub leader: Option<NodeId>,
}

/// A follower needs entries that the log no longer holds: the driver streams a snapshot to it and reports by
/// `Raft::snapshot_sent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotJob {
    /// The follower.
    pub to: NodeId,
    /// The leader's term. The stream carries it: by the time it ends, this replica may be in a later term, in which
    /// it does not lead.
    pub term: Term,
}

/// The state of this replica can no longer be trusted: the driver stops it for good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fatal {
    /// Two nodes lead one term; a vote must have been forgotten.
    #[error("{first} and {second} both lead {term}")]
    TwoLeaders {
        /// The term.
        term: Term,
        /// The leader this replica knew.
        first: NodeId,
        /// The other one.
        second: NodeId,
    },
    /// The node's clock ran back: no promise that rests on it can be kept.
    #[error("the clock ran back from {} ns to {} ns", .before.get(), .now.get())]
    ClockRanBack {
        /// The newest reading before.
        before: Nanos,
        /// The reading.
        now: Nanos,
    },
    /// A leader's log contradicts an entry that is committed here.
    #[error("{leader} holds {theirs} where {ours} is committed")]
    CommittedConflict {
        /// The leader.
        leader: NodeId,
        /// What is committed here.
        ours: LogId,
        /// What the leader sent.
        theirs: LogId,
    },
}

/// Why a request was not taken; it had no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// This replica does not lead.
    #[error("not the leader")]
    NotLeader {
        /// Who does, if known.
        hint: Option<NodeId>,
    },
    /// The leader is handing its office over; if that fails, it takes requests again after one election timeout.
    #[error("leadership is being handed to {to}")]
    Transferring {
        /// To whom.
        to: NodeId,
    },
    /// Too many bytes are proposed and not committed.
    #[error("too many uncommitted bytes")]
    Busy,
    /// There is nothing to propose.
    #[error("the batch is empty")]
    Empty,
    /// The leader has committed nothing in its term yet, so it cannot know what earlier leaders left.
    #[error("the leader has committed no entry of its term yet")]
    NoOwnTermCommit,
    /// The newest change of the membership is not committed yet.
    #[error("the membership of {index} is not committed yet")]
    ConfigUncommitted {
        /// Its entry.
        index: LogIndex,
    },
    /// A change of the membership is half done: two halves still agree on everything.
    #[error("a change of the membership is under way")]
    Joint,
    /// The wanted membership cannot stand.
    #[error("the wanted membership cannot stand")]
    Membership(#[source] MembershipError),
    /// The wanted membership has too many members.
    #[error("{members} members are too many")]
    TooManyMembers {
        /// Members of either half.
        members: usize,
    },
    /// The wanted membership is the one in force.
    #[error("the membership is as wanted already")]
    NothingToDo,
    /// The node is no member of the group.
    #[error("{0} is no member")]
    NotMember(NodeId),
    /// The node is a learner, which leads nothing.
    #[error("{0} is a learner")]
    Learner(NodeId),
    /// The node will be no voter once the change under way is complete.
    #[error("{0} is about to leave")]
    Leaving(NodeId),
    /// The node has not answered for an election timeout.
    #[error("{0} does not answer")]
    Unreachable(NodeId),
    /// This replica does not vote, so it cannot stand for election.
    #[error("this replica does not vote")]
    NotVoter,
    /// This replica is not to lead at the moment.
    #[error("this replica is not to lead at the moment")]
    NotElectable,
    /// This replica has promised a leader not to stand for election yet.
    #[error("no election is begun before {} ns", .until.get())]
    Withheld {
        /// The end of the promise, by its own clock.
        until: Nanos,
    },
    /// The replica has reported a fatal state.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a read got no index; it may be tried again, anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadRefused {
    /// The replica asked does not lead, or stopped leading before the read was confirmed.
    #[error("not the leader")]
    NotLeader {
        /// Who does, if known.
        hint: Option<NodeId>,
    },
}

/// Where proposed commands stand in the log. They may still be replaced by a later leader's: a command took effect
/// only if the entry applied at its index has this term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// The term of the entries.
    pub term: Term,
    /// The index of the first.
    pub first: LogIndex,
    /// The index of the last.
    pub last: LogIndex,
}

/// Effects that have gathered since the last `take`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// One atomic write.
    pub write: Option<Write>,
    /// Messages that may leave at once, also before `write` is durable.
    pub send: Vec<Message>,
    /// Messages that may leave only once the named write, and so every earlier one, is durable.
    pub send_after: Vec<(WriteId, Message)>,
    /// The new end of what is committed, if it moved.
    pub commit: Option<LogId>,
    /// Reads and the index each must wait for.
    pub reads: Vec<(Ticket, Result<LogIndex, ReadRefused>)>,
    /// The new role, if it changed.
    pub role: Option<RoleChange>,
    /// The leader's lease, if it changed. Publish it before anything of this output is sent or written.
    pub lease: Option<LeaseUpdate>,
    /// Snapshots to stream.
    pub snapshots: Vec<SnapshotJob>,
    /// Set once and for good: the replica must stop. Every other field is then empty, but for the end of a lease.
    pub fatal: Option<Fatal>,
}
