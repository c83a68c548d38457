//! What two replicas of a group say to each other.

use kv_types::limits::PROMISE_MAX;
use kv_types::{Body, Entry, LogId, LogIndex, Nanos, NodeId, Term};

use crate::ReadRefused;

/// Terms and indexes above this come from no cluster; refusing them keeps all later arithmetic within `u64`.
const NUMBER_MAX: u64 = 1 << 62;

/// Names one exchange: a leader puts the number of its newest round into every append and the follower echoes it; a
/// follower numbers the read-index requests it sends. Never made from a caller's token, which a caller may reuse
/// (etcd-io/raft #397: an old answer then passes for a new one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Round {
    /// The life of the replica that counts: drawn anew at each start.
    pub incarnation: u64,
    /// Rises by one with each round of that life.
    pub number: u64,
}

/// A message and its envelope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who sent it.
    pub from: NodeId,
    /// Whom it is for.
    pub to: NodeId,
    /// The sender's term. One exception: a granted pre-vote echoes the term of the request it answers, since the
    /// grant must reach a candidate whose term is ahead of the voter's.
    pub term: Term,
    /// What it says.
    pub kind: MessageKind,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageKind {
    /// Entries for a follower; without entries, a heartbeat, a probe or the news of a commit (Raft paper 5.3).
    Append {
        /// The entry before the first one sent.
        prev: LogId,
        /// The last entry sent; `prev` if there is none.
        last: LogId,
        /// The entries in `(prev, last]`. The core leaves them out of what it sends; the driver fills them in.
        entries: Vec<Entry>,
        /// What the leader knows to be committed, at most `last.index`.
        commit: LogIndex,
        /// The leader's newest round, to be echoed.
        round: Round,
        /// The promise asked for, in milliseconds: a receiver that answers gives and requests no vote for so long, on
        /// its own clock, or for its own E if that is longer. 0 asks for none: the leader has no lease.
        promise_ms: u32,
    },
    /// The answer to an append.
    AppendAck {
        /// The round of the append.
        round: Round,
        /// The index up to which the follower's durable log equals the leader's, or where the two part.
        result: Result<LogIndex, Conflict>,
        /// What the follower's clock said when it took the append: lets the leader watch at which rate it runs.
        clock: Nanos,
    },
    /// Asks for a vote in the message's term (Raft paper 5.2), or whether one would be given in the term after it
    /// (pre-vote, Raft thesis 9.6).
    Vote {
        /// The end of the candidate's log.
        last: LogId,
        /// Whether this is a question only.
        pre: bool,
        /// Whether the leader itself wished for this election: then no promise given to it stands in the way.
        by_transfer: bool,
    },
    /// The answer to a vote request.
    VoteAck {
        /// Whether the vote is given.
        granted: bool,
        /// Whether it answers a pre-vote.
        pre: bool,
    },
    /// A leader hands its office over: the receiver shall campaign at once (Raft thesis 3.10).
    TimeoutNow {
        /// The end of the leader's log. A receiver whose durable log ends elsewhere ignores the wish.
        last: LogId,
    },
    /// A follower asks for an index that a read may wait for (Raft thesis 6.4).
    ReadIndex {
        /// The follower's name for the question.
        round: Round,
    },
    /// The answer to it.
    ReadIndexAck {
        /// The follower's name for the question.
        round: Round,
        /// A read is linearisable once the follower has applied this index.
        result: Result<LogIndex, ReadRefused>,
    },
}

/// Why an append did not fit a follower's log, and where to try next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Conflict {
    /// The index of the `prev` that did not match: tells a current rejection from a stale one.
    pub prev: LogIndex,
    /// The follower's last entry that the leader's log may hold: at or below `prev`, of a term no newer than its.
    /// One exchange skips a whole term (Raft paper 5.3, end).
    pub hint: LogId,
}

impl Message {
    /// Whether a correct peer could have sent it. The core ignores any other.
    pub(crate) fn is_sound(&self) -> bool {
        if self.from == NodeId::ZERO || self.from == self.to || self.term.get() > NUMBER_MAX {
            return false;
        }
        let known = |index: LogIndex| index.get() <= NUMBER_MAX;
        let fits = |id: LogId| known(id.index) && id.term <= self.term;
        match &self.kind {
            MessageKind::Append { prev, last, entries, promise_ms, .. } => {
                let bearable = u128::from(*promise_ms) <= PROMISE_MAX.as_millis();
                bearable && fits(*prev) && fits(*last) && follows(*prev, *last, entries)
            }
            MessageKind::Vote { last, .. } | MessageKind::TimeoutNow { last } => fits(*last),
            MessageKind::AppendAck { result: Ok(index), .. }
            | MessageKind::ReadIndexAck { result: Ok(index), .. } => known(*index),
            MessageKind::AppendAck { result: Err(conflict), .. } => {
                known(conflict.prev) && fits(conflict.hint)
            }
            MessageKind::ReadIndexAck { result: Err(_), .. }
            | MessageKind::VoteAck { .. }
            | MessageKind::ReadIndex { .. } => true,
        }
    }
}

/// Whether `entries` are the whole of `(prev, last]` in an order that a log can have.
fn follows(prev: LogId, last: LogId, entries: &[Entry]) -> bool {
    let mut end = prev;
    for entry in entries {
        if entry.id.index != end.index.next() || entry.id.term < end.term || entry.id.term == Term::ZERO {
            return false;
        }
        if let Body::Config(membership) = &entry.body
            && (membership.voters.is_empty() || membership.check().is_err())
        {
            return false;
        }
        end = entry.id;
    }
    end == last && (prev.index != LogIndex::ZERO || prev.term == Term::ZERO)
}
