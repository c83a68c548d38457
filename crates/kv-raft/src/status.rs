//! A replica as plain data: for operators, oracles and golden scripts.

use std::collections::BTreeMap;

use kv_types::{LogId, LogIndex, Membership, Nanos, NodeId, Term};

use crate::core::Core;
use crate::progress::Progress;
use crate::raft::State;
use crate::{ClockRate, LeaseStatus, NoLease, ProgressState, Raft, Role};

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
    /// The first index the log holds an entry of, or would.
    pub first: LogIndex,
    /// The last entry.
    pub last: LogId,
    /// Where each term begins in the log, ascending; what [`Status::term_of`] looks into.
    pub term_starts: Vec<LogId>,
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
    /// Its lease and its promises.
    pub lease: LeaseStatus,
    /// On a leader, to whom it is handing over.
    pub transferring: Option<NodeId>,
    /// On a leader, the other members, and those that a change under way leaves out.
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
    /// When it last answered in this term, if it did.
    pub last_contact: Option<Nanos>,
    /// The rate of its clock against the leader's, once measured.
    pub clock_rate: Option<ClockRate>,
    /// Whether that rate is certainly out of bound, so that the leader serves reads by rounds.
    pub clock_is_off: bool,
}

impl Status {
    /// The term of an entry that the log holds, or of the one before its first.
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index == self.log_start.index {
            return Some(self.log_start.term);
        }
        if index < self.first || index > self.last.index {
            return None;
        }
        self.term_starts.iter().rev().find(|start| start.index <= index).map(|start| start.term)
    }
}

impl Raft {
    /// The replica as plain data.
    pub fn status(&self) -> Status {
        let core = &self.core;
        let (reads_waiting, peers) = match &self.state {
            State::Follower(follower) => (follower.forwards.len(), BTreeMap::new()),
            State::Candidate(_) => (0, BTreeMap::new()),
            State::Leader(leader) => {
                let peers = leader.peers.iter().map(|(node, peer)| (*node, peer_status(core, peer)));
                (leader.reads.len(), peers.collect())
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
            first: core.log.start().index.next(),
            last: core.log.last(),
            term_starts: core.log.term_starts(),
            durable: core.outbox.durable(),
            membership: core.membership().clone(),
            membership_index: core.memberships.since(),
            election_deadline: core.election_deadline,
            reads_waiting,
            lease: self.lease_status(),
            transferring: match &self.state {
                State::Leader(leader) => leader.transfer.as_ref().map(|transfer| transfer.to),
                State::Follower(_) | State::Candidate(_) => None,
            },
            peers,
        }
    }

    /// A voter for whose clock, which certainly runs too fast or too slow, this leader has no lease.
    pub fn clock_off(&self) -> Option<NodeId> {
        let State::Leader(leader) = &self.state else { return None };
        match leader.no_lease(&self.core) {
            Some(NoLease::ClockRate(node)) => Some(node),
            _ => None,
        }
    }

    fn lease_status(&self) -> LeaseStatus {
        let core = &self.core;
        let until = self.lease().until;
        let none = match &self.state {
            State::Leader(_) if until != Nanos::default() => None,
            State::Leader(leader) => Some(leader.no_lease(core).unwrap_or(NoLease::Unconfirmed)),
            State::Follower(_) | State::Candidate(_) => Some(NoLease::NotLeader),
        };
        LeaseStatus { until, none, promise_ms: core.hard.promise_ms, withhold_until: core.withhold_until }
    }
}

fn peer_status(core: &Core, peer: &Progress) -> PeerStatus {
    let bound = core.config.lease.map(|lease| lease.rate_bound_ppm());
    PeerStatus {
        matched: peer.matched,
        next: peer.next,
        state: peer.state,
        in_flight: peer.in_flight_len(),
        last_contact: peer.answered.then_some(peer.last_contact),
        clock_rate: peer.rate.rate,
        clock_is_off: bound.is_some_and(|bound| peer.rate.exceeds(bound)),
    }
}
