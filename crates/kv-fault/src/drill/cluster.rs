//! The cluster that a drill needs.

use std::collections::BTreeSet;

use kv_types::{NodeId, ShardId, TxnId};

use super::error::Flaw;
use super::table::{self, Reader, Value};
use crate::limits::{MEMTABLE_MB, NODES_MAX, SHARDS_MAX};
use crate::{Partition, ResolveError, Roles, Who};

/// The cluster that a drill needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    /// How many nodes: `n1` and so on.
    pub nodes: u32,
    /// How many shards, from 1, beside the meta group, which is 0.
    pub shards: u32,
    /// Memory of a node for rows that are not merged into its base yet, in MiB, where nodes are started for the drill: with
    /// little of it, and much written, bases are made while the drill lasts.
    pub memtable_mb: u64,
}

impl Cluster {
    /// The nodes.
    pub fn node_ids(&self) -> BTreeSet<NodeId> {
        (1..=u64::from(self.nodes)).map(NodeId::new).collect()
    }

    /// That of a drill which says nothing else.
    pub const DEFAULT: Self = Self { nodes: 5, shards: 4, memtable_mb: 256 };

    pub(super) fn read(value: &Value<'_>) -> Result<Self, Flaw> {
        let reader = Reader::of(value, "a cluster", &["nodes", "shards", "memtable-mb"])?;
        let nodes = reader.read("nodes", |value| table::small(value, 1..=NODES_MAX))?;
        let shards = reader.read("shards", |value| table::small(value, 1..=SHARDS_MAX))?;
        let memtable_mb = reader.read("memtable-mb", |value| table::integer(value, MEMTABLE_MB))?;
        let default = Self::DEFAULT;
        Ok(Self {
            nodes: nodes.unwrap_or(default.nodes),
            shards: shards.unwrap_or(default.shards),
            memtable_mb: memtable_mb.unwrap_or(default.memtable_mb),
        })
    }

    /// Whether somebody could be of this cluster.
    pub(super) fn check_who(&self, who: Who) -> Result<(), String> {
        match who {
            Who::Node(node) if !self.node_ids().contains(&node) => {
                Err(format!("{node} is not a node of the cluster, which has {}", self.nodes))
            }
            Who::LeaderOf(shard) | Who::FollowerOf(shard) => self.check_shard(shard),
            Who::Node(_) | Who::ManagerOf(_) | Who::Any => Ok(()),
        }
    }

    pub(super) fn check_shard(&self, shard: ShardId) -> Result<(), String> {
        if shard.get() <= self.shards {
            return Ok(());
        }
        Err(format!("{shard} is not a shard of the cluster, which has {}", self.shards))
    }

    /// Whether a partition could be one of this cluster, whoever leads what.
    pub(super) fn check_partition(&self, partition: &Partition) -> Result<(), String> {
        let named = match partition {
            Partition::Isolate(who) | Partition::Mute(who) | Partition::Deaf(who) => [Some(*who), None],
            Partition::Minority(who) | Partition::Bridge(who) => [*who, None],
            Partition::OneWay(a, b) | Partition::Partial(a, b) => [Some(*a), Some(*b)],
            Partition::Groups(_) | Partition::Halves | Partition::Ring => [None, None],
        };
        for who in named.into_iter().flatten() {
            self.check_who(who)?;
        }
        match partition.resolve(&Fitting(self), 0) {
            Ok(_) => Ok(()),
            // These depend on who leads.
            Err(ResolveError::SameNode(..) | ResolveError::NobodyLeft(_)) if self.nodes > 1 => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The first node leads everything: enough to see whether a shape fits.
struct Fitting<'a>(&'a Cluster);

impl Roles for Fitting<'_> {
    fn nodes(&self) -> BTreeSet<NodeId> {
        self.0.node_ids()
    }

    fn leader_of(&self, _: ShardId) -> Option<NodeId> {
        Some(NodeId::new(1))
    }

    fn manager_of(&self, _: Option<TxnId>) -> Option<NodeId> {
        Some(NodeId::new(1))
    }
}
