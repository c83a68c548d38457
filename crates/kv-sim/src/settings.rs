//! What a cluster runs under.

use std::time::Duration;

use kv_raft::LeaseConfig;
use kv_types::{NodeId, ShardId};

use crate::planted::Planted;

/// Settings of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    /// Nodes with a disk; those above `voters` begin outside the group.
    pub(crate) nodes: u64,
    /// Voters of the membership that every group is formed with.
    pub(crate) voters: u64,
    pub(crate) shards: u32,
    /// Whether there is a meta group beside them, which keeps sessions.
    pub(crate) has_meta: bool,
    /// Little, so that followers are served from the disk as well.
    pub(crate) log_cache_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) append_entries_max: usize,
    pub(crate) in_flight_appends_max: usize,
    pub(crate) uncommitted_bytes_max: u64,
    /// Entries applied in a turn.
    pub(crate) apply_max: u64,
    pub(crate) election_timeout: Duration,
    pub(crate) heartbeat: Duration,
    pub(crate) lease: Option<LeaseConfig>,
    /// A bug to run with.
    #[cfg(feature = "planted")]
    pub(crate) planted: Option<Planted>,
    /// Whether the first violation ends the process, as tests of single paths like it.
    pub(crate) is_strict: bool,
    /// Whether every event is written down.
    pub(crate) has_log: bool,
}

impl Settings {
    pub(crate) fn new(nodes: u64, shards: u32) -> Self {
        Self {
            seed: 1,
            nodes,
            voters: nodes,
            shards,
            has_meta: false,
            log_cache_bytes: 1 << 10,
            segment_bytes: 256 << 10,
            append_entries_max: 8,
            in_flight_appends_max: 4,
            uncommitted_bytes_max: 1 << 20,
            apply_max: 4,
            election_timeout: Duration::from_millis(100),
            heartbeat: Duration::from_millis(20),
            lease: None,
            #[cfg(feature = "planted")]
            planted: None,
            is_strict: true,
            has_log: false,
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.nodes).map(NodeId::new)
    }

    pub(crate) fn voters(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.voters).map(NodeId::new)
    }

    /// The shards with clients' rows, and the meta group if there is one.
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        let first = if self.has_meta { ShardId::META.get() } else { 1 };
        (first..=self.shards).map(ShardId::new)
    }

    /// Plants a bug.
    #[cfg(feature = "planted")]
    pub(crate) fn plant(&mut self, bug: Option<Planted>) {
        self.planted = bug;
    }

    /// No bug can be planted without the feature.
    #[cfg(not(feature = "planted"))]
    pub(crate) fn plant(&mut self, _bug: Option<Planted>) {}

    /// The bug that every replica runs with.
    #[cfg(feature = "planted")]
    pub(crate) fn bug_of_replicas(&self) -> Option<kv_shard::Planted> {
        match self.planted? {
            Planted::State(bug) => Some(kv_shard::Planted::State(bug)),
            Planted::Shard(bug) => Some(bug),
            Planted::GateBeforeLog => Some(kv_shard::Planted::State(kv_state::Planted::GateNotAtApply)),
            _ => None,
        }
    }

    /// The fault that the parties of transactions act with.
    #[cfg(feature = "planted")]
    pub(crate) fn fault_of_parties(&self) -> Option<kv_txn::Planted> {
        match self.planted? {
            Planted::Party(fault) => Some(fault),
            _ => None,
        }
    }

    /// Whether the cluster runs with a bug of a shard's rules for transactions.
    #[cfg(feature = "planted")]
    pub(crate) fn has_bug_of_txns(&self) -> bool {
        matches!(self.planted, Some(Planted::State(bug)) if kv_state::Planted::OF_TXNS.contains(&bug))
    }

    /// Whether the cluster runs with this bug.
    #[cfg(feature = "planted")]
    pub(crate) fn is_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// No bug is planted without the feature.
    #[cfg(not(feature = "planted"))]
    pub(crate) const fn has_bug_of_txns(&self) -> bool {
        false
    }

    /// No bug is planted without the feature.
    #[cfg(not(feature = "planted"))]
    pub(crate) const fn is_planted(&self, _bug: Planted) -> bool {
        false
    }
}
