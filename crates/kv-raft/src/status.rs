//! A replica as plain data: for operators, oracles and golden scripts.

use std::collections::BTreeMap;

use kv_types::{LogId, LogIndex, Membership, Nanos, NodeId, Term};

use crate::raft::State;
use crate::{ProgressState, Raft, Role};

/// What a replica knows and is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The node it lives on.
    pub id: NodeId,
    /// Its role.
    pub role: Role,
    /// Its term.
    pub term: Term,
    /// Whom it voted for in that term.
    pub vote: Option<NodeId>,
    /// The leader of the term, once known.
    pub leader: Option<NodeId>,
    /// The commit index.
    pub commit: LogIndex,
    /// The applied index.
    pub applied: LogIndex,
    /// The entry before the first one the log holds.
    pub log_start: LogId,
    /// The last entry.
    pub last: LogId,
    /// The end of the durable part of the log.
    pub durable: LogIndex,
    /// The membership in force.
    pub membership: Membership,
    /// The entry that put it in force.
    pub membership_index: LogIndex,
    /// When it campaigns unless it hears from a leader.
    pub election_deadline: Nanos,
    /// Reads that wait, here or with the leader.
    pub reads_waiting: usize,
    /// On a leader, the other members.
    pub peers: BTreeMap<NodeId, PeerStatus>,
}

/// What a leader knows of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerStatus {
    /// Its log equals the leader's up to here.
    pub matched: LogIndex,
    /// The first entry to send next.
    pub next: LogIndex,
    /// How entries are sent to it.
    pub state: ProgressState,
    /// Appends in flight.
    pub in_flight: usize,
    /// When it last answered, or when the leader took over.
    pub last_contact: Nanos,
}

impl Raft {
    /// The replica as plain data.
    pub fn status(&self) -> Status {
        let core = &self.core;
        let (reads_waiting, peers) = match &self.state {
            State::Follower(follower) => (follower.forwards.len(), BTreeMap::new()),
            State::Candidate(_) => (0, BTreeMap::new()),
            State::Leader(leader) => {
                let peer = |progress: &crate::progress::Progress| PeerStatus {
                    matched: progress.matched,
                    next: progress.next,
                    state: progress.state,
                    in_flight: progress.in_flight_len(),
                    last_contact: progress.last_contact,
                };
                (leader.reads.len(), leader.peers.iter().map(|(node, p)| (*node, peer(p))).collect())
            }
        };
        Status {
            id: core.id(),
            role: self.role(),
            term: core.term(),
            vote: core.hard.vote,
            leader: core.leader,
            commit: core.commit,
            applied: core.applied,
            log_start: core.log.start(),
            last: core.log.last(),
            durable: core.outbox.durable(),
            membership: core.membership().clone(),
            membership_index: core.memberships.since(),
            election_deadline: core.election_deadline,
            reads_waiting,
            peers,
        }
    }
}
