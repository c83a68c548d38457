//! What always holds, of one state and between two.
//!
//! The pointers into the log stand in this order: `log start <= applied <= commit <= last`, and `durable <= last`.

use crate::raft::State;
use crate::{Raft, Role, Status};

impl Raft {
    /// The cheap part of [`check_state`], asserted before effects leave.
    pub(crate) fn check_pointers(&self) {
        let core = &self.core;
        let (start, last) = (core.log.start(), core.log.last());
        assert!(start.index <= core.applied, "log start {start} <= applied {}", core.applied);
        assert!(core.applied <= core.commit, "applied {} <= commit {}", core.applied, core.commit);
        assert!(core.commit <= last.index, "commit {} <= last {last}", core.commit);
        assert!(core.outbox.durable() <= last.index, "durable {} <= last {last}", core.outbox.durable());
        assert!(last.term <= core.term(), "last {last} is of no later term than {}", core.term());
    }
}

/// Asserts all that must hold of one replica. Costs time in the length of the log: for tests and the simulator.
///
/// # Panics
/// If an invariant is broken.
pub fn check_state(raft: &Raft) {
    raft.check_pointers();
    let core = &raft.core;
    core.log.check();
    assert!(core.memberships.since() <= core.log.last().index, "the membership in force is in the log");
    match &raft.state {
        State::Follower(_) => assert_ne!(core.leader, Some(core.id()), "a follower does not lead"),
        State::Candidate(candidate) => {
            assert_eq!(core.leader, None, "a candidate knows no leader");
            let own = core.hard.vote == Some(core.id());
            assert!(candidate.pre || own, "a candidate votes for itself, not {:?}", core.hard.vote);
        }
        State::Leader(leader) => {
            assert_eq!(core.hard.vote, Some(core.id()), "a leader voted for itself");
            leader.check(core);
        }
    }
}

/// Asserts all that must hold between two states of one life of a replica.
///
/// # Panics
/// If an invariant is broken.
pub fn check_transition(before: &Status, after: &Status) {
    assert!(after.term >= before.term, "terms ascend: {} after {}", after.term, before.term);
    assert!(after.commit >= before.commit, "commit ascends: {} after {}", after.commit, before.commit);
    assert!(after.applied >= before.applied, "applied ascends: {} after {}", after.applied, before.applied);
    assert!(
        after.log_start.index >= before.log_start.index,
        "{} after {}",
        after.log_start,
        before.log_start
    );
    let (promised, promise) = (before.lease.promise_ms, after.lease.promise_ms);
    assert!(promise >= promised, "the longest promise ascends: {promise} after {promised}");
    if after.term == before.term {
        let kept = before.vote.is_none() || after.vote == before.vote;
        assert!(kept, "one vote a term: {:?} after {:?}", after.vote, before.vote);
        let known = before.leader.is_none() || after.leader.is_none() || after.leader == before.leader;
        assert!(known, "one leader a term: {:?} after {:?}", after.leader, before.leader);
        if before.role == Role::Leader && after.role == Role::Leader {
            assert!(after.last >= before.last, "a leader only appends: {} after {}", after.last, before.last);
        }
    }
}
