//! What a cluster runs under: settings, and what the network does.

use std::collections::BTreeSet;

use kv_raft::Message;
use kv_types::{NodeId, ShardId};

/// Settings of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) seed: u64,
    pub(crate) nodes: u64,
    pub(crate) shards: u32,
    /// Little, so that followers are served from the disk as well.
    pub(crate) log_cache_bytes: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) append_entries_max: usize,
    pub(crate) in_flight_appends_max: usize,
    pub(crate) uncommitted_bytes_max: u64,
    /// Entries applied in a turn.
    pub(crate) apply_max: u64,
    /// How fast the clock of each node runs, in percent, in turn.
    pub(crate) clock_rates: Vec<u64>,
}

impl Settings {
    pub(crate) fn new(nodes: u64, shards: u32) -> Self {
        Self {
            seed: 1,
            nodes,
            shards,
            log_cache_bytes: 1 << 10,
            segment_bytes: 256 << 10,
            append_entries_max: 8,
            in_flight_appends_max: 4,
            uncommitted_bytes_max: 1 << 20,
            apply_max: 4,
            clock_rates: vec![100],
        }
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.nodes).map(NodeId::new)
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        (1..=self.shards).map(ShardId::new)
    }
}

/// A message, and the clock of the node that sent it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) shard: ShardId,
    pub(crate) message: Message,
    pub(crate) counter: u64,
}

/// What is on its way, and which directions are cut.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) packets: Vec<Packet>,
    pub(crate) cuts: BTreeSet<(NodeId, NodeId)>,
}

impl Network {
    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cuts.contains(&(from, to))
    }
}
