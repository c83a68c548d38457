//! Which node to ask for a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::v1;
use kv_types::{NodeId, ShardId, Term};

use crate::node::Node;

/// The shard map as last fetched, with what errors have taught since. Empty until the first fetch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    /// Ascending by start; each route ends where the next begins.
    routes: Vec<Route>,
    /// The members, by id.
    pub(crate) nodes: BTreeMap<NodeId, Arc<Node>>,
}

/// One shard.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    start: Bytes,
    pub(crate) shard: ShardId,
    pub(crate) leader: Option<NodeId>,
    epoch: Term,
    replicas: Vec<NodeId>,
}

impl Routes {
    /// Reads a map. `nodes` are the members the client could make a connection for.
    pub(crate) fn new(shards: Vec<v1::MapShard>, nodes: BTreeMap<NodeId, Arc<Node>>) -> Self {
        let mut routes: Vec<Route> = shards.into_iter().map(Route::from).collect();
        routes.sort_by(|a, b| a.start.cmp(&b.start));
        Self { routes, nodes }
    }

    /// Whether there is a map.
    pub(crate) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// The shard of a key.
    pub(crate) fn of(&self, key: &[u8]) -> Option<&Route> {
        let after = self.routes.partition_point(|route| &route.start[..] <= key);
        self.routes.get(after.checked_sub(1)?)
    }

    /// The node to ask for a shard: its leader if known and not resting, else any replica, those not resting first.
    /// `turn` spreads the choice.
    pub(crate) fn node(&self, route: &Route, turn: usize) -> Option<Arc<Node>> {
        let of = |node: &NodeId| self.nodes.get(node);
        if let Some(leader) = route.leader.as_ref().and_then(of)
            && !leader.is_resting()
        {
            return Some(Arc::clone(leader));
        }
        let replicas: Vec<_> = route.replicas.iter().filter_map(of).collect();
        let awake: Vec<_> = replicas.iter().copied().filter(|node| !node.is_resting()).collect();
        let choice = if awake.is_empty() { replicas } else { awake };
        let index = turn.checked_rem(choice.len())?;
        choice.get(index).map(|node| Arc::clone(node))
    }

    /// Learns a leader from an error.
    pub(crate) fn learn(&mut self, shard: ShardId, leader: Option<NodeId>) {
        for route in self.routes.iter_mut().filter(|route| route.shard == shard) {
            route.leader = leader;
        }
    }

    /// Keeps the newer of what two maps say about each leader.
    pub(crate) fn keep_newer_leaders(&mut self, other: &Self) {
        for route in &mut self.routes {
            let known = other.routes.iter().find(|known| known.shard == route.shard);
            if let Some(known) = known
                && known.epoch > route.epoch
                && known.leader.is_some()
            {
                route.leader = known.leader;
                route.epoch = known.epoch;
            }
        }
    }
}

impl From<v1::MapShard> for Route {
    fn from(wire: v1::MapShard) -> Self {
        let leader = wire.leader.map(|hint| NodeId::new(hint.node)).filter(|node| *node != NodeId::ZERO);
        Self {
            start: wire.range.unwrap_or_default().start,
            shard: ShardId::new(wire.shard),
            leader,
            epoch: Term::new(wire.epoch),
            replicas: wire.replicas.into_iter().map(NodeId::new).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(shard: u32, start: &'static str, leader: u64, epoch: u64) -> v1::MapShard {
        v1::MapShard {
            shard,
            range: Some(v1::KeyRange { start: start.into(), end: None }),
            leader: Some(v1::LeaderHint { node: leader, client_addr: String::new() }),
            epoch,
            replicas: vec![1, 2, 3],
        }
    }

    #[test]
    fn a_key_belongs_to_the_last_shard_that_starts_before_it() {
        let routes = Routes::new(vec![shard(2, "m", 2, 1), shard(1, "", 1, 1)], BTreeMap::new());
        let of = |key: &[u8]| routes.of(key).unwrap().shard.get();
        assert_eq!([of(b""), of(b"a"), of(b"lz"), of(b"m"), of(b"z")], [1, 1, 1, 2, 2]);
        assert!(Routes::default().of(b"a").is_none());
    }

    #[test]
    fn an_older_map_does_not_forget_a_newer_leader() {
        let newer = Routes::new(vec![shard(1, "", 3, 9)], BTreeMap::new());
        let mut older = Routes::new(vec![shard(1, "", 1, 4)], BTreeMap::new());
        older.keep_newer_leaders(&newer);
        assert_eq!(older.of(b"k").unwrap().leader, Some(NodeId::new(3)));
    }

    #[test]
    fn what_an_error_teaches_is_used() {
        let mut routes = Routes::new(vec![shard(1, "", 1, 4)], BTreeMap::new());
        routes.learn(ShardId::new(1), Some(NodeId::new(2)));
        assert_eq!(routes.of(b"k").unwrap().leader, Some(NodeId::new(2)));
        routes.learn(ShardId::new(1), None);
        assert_eq!(routes.of(b"k").unwrap().leader, None);
    }
}
