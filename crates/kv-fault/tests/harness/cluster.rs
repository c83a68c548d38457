//! A cluster that says who is who.

use std::collections::{BTreeMap, BTreeSet};

use kv_fault::Roles;
use kv_types::{NodeId, ShardId, TxnId};

/// Nodes from 1, with leaders as told.
#[derive(Default)]
pub struct Named {
    pub nodes: u64,
    pub leaders: BTreeMap<ShardId, NodeId>,
    pub manager: Option<NodeId>,
}

impl Named {
    pub fn of(nodes: u64) -> Self {
        let leaders = BTreeMap::from([(ShardId::new(1), NodeId::new(1)), (ShardId::new(2), NodeId::new(2))]);
        Self { nodes, leaders, manager: Some(NodeId::new(3)) }
    }
}

impl Roles for Named {
    fn nodes(&self) -> BTreeSet<NodeId> {
        (1..=self.nodes).map(NodeId::new).collect()
    }

    fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        self.leaders.get(&shard).copied()
    }

    fn manager_of(&self, _: Option<TxnId>) -> Option<NodeId> {
        self.manager
    }
}
