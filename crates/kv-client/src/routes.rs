//! Which node to ask for a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::v1;
use kv_types::{ClusterTime, NodeId, ShardId, Term};

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
    time: ClusterTime,
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

    /// The leader of a shard, if it is known and did not fail a moment ago.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<Arc<Node>> {
        let route = self.routes.iter().find(|route| route.shard == shard)?;
        let leader = self.nodes.get(&route.leader?)?;
        (!leader.is_resting()).then(|| Arc::clone(leader))
    }

    /// The shards, and where the key range of each begins.
    pub(crate) fn shards(&self) -> Vec<(ShardId, Bytes)> {
        self.routes.iter().map(|route| (route.shard, route.start.clone())).collect()
    }

    /// Where the key ranges of the shards begin.
    pub(crate) fn starts(&self) -> Vec<Bytes> {
        self.routes.iter().map(|route| route.start.clone()).collect()
    }

    /// The cluster time of a shard when the map was fetched, if a node asked knew it.
    pub(crate) fn cluster_time(&self, shard: ShardId) -> Option<ClusterTime> {
        let route = self.routes.iter().find(|route| route.shard == shard)?;
        (route.time > ClusterTime::ZERO).then_some(route.time)
    }

    /// Learns a leader from an error.
    pub(crate) fn learn(&mut self, shard: ShardId, leader: Option<NodeId>) {
        for route in self.routes.iter_mut().filter(|route| route.shard == shard) {
            route.leader = leader;
        }
    }

    /// Keeps the newer of what two maps say. A node that leads anew is asked at once, whatever it did in an earlier epoch.
    pub(crate) fn keep_newer(&mut self, other: &Self) {
        for route in &mut self.routes {
            let Some(known) = other.routes.iter().find(|known| known.shard == route.shard) else { continue };
            route.time = route.time.max(known.time);
            if known.epoch > route.epoch && known.leader.is_some() {
                route.leader = known.leader;
                route.epoch = known.epoch;
            } else if route.epoch > known.epoch
                && let Some(leader) = route.leader.and_then(|leader| self.nodes.get(&leader))
            {
                leader.wake();
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
            time: ClusterTime::from_ms(wire.cluster_time_ms).unwrap_or_default(),
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
            cluster_time_ms: epoch,
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
        older.keep_newer(&newer);
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
