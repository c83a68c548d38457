//! What must hold after every step: one property a file.
//!
//! | property | where it is from |
//! |---|---|
//! | [`election_safety`] | Raft paper 5.2, Figure 3 |
//! | [`leader_append_only`] | Raft paper 5.3, Figure 3 |
//! | [`log_matching`] | Raft paper 5.3, Figure 3 |
//! | [`leader_completeness`] | Raft paper 5.4, Figure 3 |
//! | [`state_machine_safety`] | Raft paper 5.4.3, Figure 3 |
//! | [`uniform_agreement`] | consensus: no two processes decide differently, also those that fail later |
//! | [`integrity`] | consensus: every process decides once |
//! | [`validity`] | consensus: what is decided was proposed |
//! | [`termination`] | consensus: with a quorum that works, something is decided |
//! | [`lease_exclusivity`] | Raft thesis 6.4.1 |
//! | [`promise_kept`] | Raft thesis 4.2.3 and 6.4.1 |
//! | [`durability`] | Raft paper 5.3: what is committed stays |
//! | [`persisted_first`] | Raft paper, Figure 2: persistent state is updated before an answer leaves |
//! | [`monotonicity`] | Raft paper 5.1, 5.2: term, vote, commit and applied only grow |
//! | [`membership`] | Raft thesis 4.1, 4.3: in force once appended, one change at a time |
//! | [`exactly_once`] | RIFL (Lee et al. 2015): a completed operation is not carried out again, whoever retries it |
//! | [`atomicity`] | Gray and Lamport 2006: all participants of a transaction come to the same decision |
//! | [`leftovers`] | Gray and Lamport 2006: no participant waits for ever while a majority works |
//! | [`serialisability`] | Papadimitriou 1979, strict; checked on the clients' history by `kv-check` |
//! | [`linearisability`] | Herlihy and Wing 1990, checked on the clients' history by `kv-check` |
//!
//! A check is incremental: it is told what happens, looks at the world as it was just before, and keeps what it needs.

use crate::violation::Holds;
use crate::world::{Event, World};

mod atomicity;
mod durability;
mod election_safety;
pub(crate) mod exactly_once;
mod integrity;
mod leader_append_only;
mod leader_completeness;
mod lease_exclusivity;
pub(crate) mod leftovers;
pub(crate) mod linearisability;
mod log_matching;
mod membership;
mod monotonicity;
mod persisted_first;
mod promise_kept;
pub(crate) mod serialisability;
mod state_machine_safety;
pub(crate) mod termination;
#[cfg(test)]
mod tests;
mod uniform_agreement;
mod validity;

/// A property of the whole cluster.
pub(crate) trait Invariant: std::fmt::Debug {
    /// The property's name.
    fn name(&self) -> &'static str;

    /// Whether it holds when this happens; `world` is what was before.
    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds;
}

/// All of them, for a new cluster.
pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(election_safety::ElectionSafety::default()),
        Box::new(leader_append_only::LeaderAppendOnly),
        Box::new(log_matching::LogMatching::default()),
        Box::new(leader_completeness::LeaderCompleteness),
        Box::new(state_machine_safety::StateMachineSafety::default()),
        Box::new(uniform_agreement::UniformAgreement),
        Box::new(integrity::Integrity::default()),
        Box::new(validity::Validity::default()),
        Box::new(lease_exclusivity::LeaseExclusivity),
        Box::new(promise_kept::PromiseKept::default()),
        Box::new(durability::Durability),
        Box::new(persisted_first::PersistedFirst),
        Box::new(monotonicity::Monotonicity::default()),
        Box::new(membership::MembershipInForce),
        Box::new(exactly_once::ExactlyOnce::default()),
        Box::new(atomicity::Atomicity::default()),
    ]
}
