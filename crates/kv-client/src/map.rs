//! The shard map: fetched, kept, and corrected by what failures say.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_types::{NodeId, ShardId};
use tokio::task::JoinSet;
use tokio::time::{timeout, timeout_at};

use crate::attempt::Caller;
use crate::error::Failure;
use crate::node::{Node, to_its_end, unary_failure};
use crate::routes::Routes;
use crate::token::Token;

/// A node that has not told the map after this long is not waited for alone: the next one is asked, too.
const HEDGE: Duration = Duration::from_millis(50);

/// Of so many nodes none knew all leaders: they are not known.
const OPINIONS_MAX: usize = 3;

impl Caller {
    /// The shard of a key and the node to ask for it: its leader.
    pub(crate) async fn route(
        self: &Arc<Self>,
        key: &[u8],
        deadline: Instant,
    ) -> Result<(ShardId, Arc<Node>), Failure> {
        let began = Instant::now();
        let shard = self.shard_of(key, deadline).await?;
        if let Some(node) = self.routes().leader(shard) {
            return Ok((shard, node));
        }
        // Nobody is asked who certainly does not lead; all callers wait for the same fetch.
        self.refresh(began, deadline).await?;
        let node = self.routes().leader(shard);
        Ok((shard, node.ok_or(Failure::Api(ApiError::NoLeader(shard)))?))
    }

    /// The shard of a key.
    pub(crate) async fn shard_of(
        self: &Arc<Self>,
        key: &[u8],
        deadline: Instant,
    ) -> Result<ShardId, Failure> {
        if self.routes().is_empty() {
            self.refresh(Instant::now(), deadline).await?;
        }
        let routes = self.routes();
        let route = routes.of(key);
        let none = || Failure::Api(ApiError::Draining("the cluster has no shard map yet".to_owned()));
        route.map(|route| route.shard).ok_or_else(none)
    }

    /// Draws from a failure what it says about the map. `began` is when the attempt did: a map fetched later is as new
    /// as the failure.
    pub(crate) async fn learn(
        self: &Arc<Self>,
        shard: ShardId,
        failure: &Failure,
        began: Instant,
        deadline: Instant,
    ) {
        match failure {
            Failure::Api(ApiError::NotLeader(error)) => {
                let named = error.hint.as_ref().map(|hint| hint.node);
                let known = named.filter(|node| self.routes().nodes.contains_key(node));
                self.change(|routes| routes.learn(shard, known));
                if known.is_some() {
                    return;
                }
            }
            Failure::Api(
                ApiError::NoLeader(_)
                | ApiError::ShardMoved(_)
                | ApiError::Draining(_)
                | ApiError::LeadershipLost(_)
                | ApiError::Stopped,
            )
            | Failure::Unreachable { .. }
            | Failure::Broken(_) => self.change(|routes| routes.learn(shard, None)),
            // One slow request says nothing of who leads; a node that is silent rests by now.
            Failure::TimedOut(_) if self.routes().leader(shard).is_some() => return,
            Failure::TimedOut(_) => self.change(|routes| routes.learn(shard, None)),
            _ => return,
        }
        // A fetch that fails leaves the map as it is.
        let _ = self.refresh(began, deadline).await;
    }

    /// Fetches the map, unless one was fetched since `since`.
    pub(crate) async fn refresh(self: &Arc<Self>, since: Instant, deadline: Instant) -> Result<(), Failure> {
        let fetch = async {
            let mut fetched = Arc::clone(&self.fetched).lock_owned().await;
            if fetched.is_some_and(|at| at > since) && !self.routes().is_empty() {
                return Ok(());
            }
            let caller = Arc::clone(self);
            to_its_end(async move {
                let began = Instant::now();
                let map = caller.fetch_map().await?;
                caller.install(map);
                *fetched = Some(began);
                Ok(())
            })
            .await
        };
        match timeout_at(deadline.into(), fetch).await {
            Ok(result) => result,
            Err(_) => Err(Failure::NotSent("no node has named the shards and their leaders".to_owned())),
        }
    }

    /// Asks one node after the other, and does not wait for a slow one alone. A node that is cut off from the others knows
    /// no leaders, or old ones, so that its map alone does not do.
    async fn fetch_map(&self) -> Result<v1::ClusterMapReply, Failure> {
        let mut failure = Failure::Config("no node is known".to_owned());
        let mut nodes = self.candidates().into_iter();
        let mut asked = JoinSet::new();
        let mut best: Option<v1::ClusterMapReply> = None;
        let mut opinions = 0;
        loop {
            if let Some(node) = nodes.next() {
                asked.spawn(ask_map(node, Arc::clone(&self.token), self.config.connect_timeout));
            }
            let map = match timeout(HEDGE, asked.join_next()).await {
                // Somebody has answered, and the others are slow to.
                Err(_) if best.is_some() => break,
                Err(_) => continue,
                Ok(None) => break,
                Ok(Some(Err(_))) => continue,
                Ok(Some(Ok(Err(cause)))) => {
                    failure = cause;
                    continue;
                }
                Ok(Some(Ok(Ok(map)))) => map,
            };
            opinions += 1;
            let map = best.take().map_or_else(|| map.clone(), |best| newer(best, &map));
            let is_enough = opinions >= OPINIONS_MAX || self.knows_all_leaders(&map);
            best = Some(map);
            if is_enough {
                break;
            }
        }
        // Those asked as well may answer in peace.
        asked.detach_all();
        best.ok_or(failure)
    }

    fn knows_all_leaders(&self, map: &v1::ClusterMapReply) -> bool {
        let routes = self.routes();
        map.shards.iter().all(|shard| {
            let leader = NodeId::new(shard.leader.as_ref().map_or(0, |hint| hint.node));
            // One that failed a moment ago may lead no more; others may know better.
            leader != NodeId::ZERO && routes.nodes.get(&leader).is_none_or(|node| !node.is_resting())
        })
    }

    fn install(&self, map: v1::ClusterMapReply) {
        let old = self.routes();
        let known: BTreeMap<&str, &Arc<Node>> = self
            .seeds()
            .iter()
            .chain(old.nodes.values())
            .map(|node| (node.endpoint().as_ref(), node))
            .collect();
        let mut nodes = BTreeMap::new();
        for member in map.members {
            let node = match known.get(member.client_addr.as_str()) {
                Some(node) => Ok(Arc::clone(node)),
                None => Node::new(&member.client_addr, &self.config, &self.token).map(Arc::new),
            };
            // A member whose address is no address cannot be asked; the others can.
            if let Ok(node) = node {
                nodes.insert(NodeId::new(member.node), node);
            }
        }
        let mut routes = Routes::new(map.shards, nodes);
        routes.keep_newer(&old);
        self.change(|current| *current = routes);
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Routes)) {
        let mut guard = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut guard));
    }
}

/// Asks one node for the map; one that fails is left alone for a moment.
async fn ask_map(
    node: Arc<Node>,
    token: Arc<Token>,
    patience: Duration,
) -> Result<v1::ClusterMapReply, Failure> {
    let request = v1::ClusterMapRequest { context: Some(token.context()) };
    let mut client = node.cluster();
    let failure = match timeout(patience, client.cluster_map(request)).await {
        Ok(Ok(reply)) => {
            let map = reply.into_inner();
            if !map.shards.is_empty() {
                return Ok(map);
            }
            ApiError::Draining("the cluster is not formed yet".to_owned()).into()
        }
        Ok(Err(status)) => {
            node.leave_alone();
            unary_failure(node.endpoint(), &status)
        }
        Err(_) => {
            node.leave_alone();
            Failure::TimedOut(node.endpoint().to_string())
        }
    };
    Err(failure)
}

/// The later of two maps, with the later of what both say of each leader and each time.
fn newer(one: v1::ClusterMapReply, other: &v1::ClusterMapReply) -> v1::ClusterMapReply {
    let (mut map, older) =
        if other.version > one.version { (other.clone(), &one) } else { (one.clone(), other) };
    for shard in &mut map.shards {
        let Some(same) = older.shards.iter().find(|same| same.shard == shard.shard) else { continue };
        shard.cluster_time_ms = shard.cluster_time_ms.max(same.cluster_time_ms);
        let leads = |shard: &v1::MapShard| shard.leader.as_ref().is_some_and(|hint| hint.node != 0);
        if leads(same) && (same.epoch > shard.epoch || !leads(shard)) {
            shard.leader.clone_from(&same.leader);
            shard.epoch = same.epoch;
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(version: u64, leader: u64, epoch: u64, cluster_time_ms: u64) -> v1::ClusterMapReply {
        let leader = (leader > 0).then(|| v1::LeaderHint { node: leader, client_addr: String::new() });
        let shard = v1::MapShard { shard: 1, leader, epoch, cluster_time_ms, ..v1::MapShard::default() };
        v1::ClusterMapReply { version, shards: vec![shard], ..v1::ClusterMapReply::default() }
    }

    #[test]
    fn of_two_maps_the_later_of_everything_counts() {
        let newer = |one, other| {
            let map: v1::ClusterMapReply = newer(one, &other);
            let shard = map.shards[0].clone();
            (map.version, shard.leader.map_or(0, |hint| hint.node), shard.epoch, shard.cluster_time_ms)
        };
        assert_eq!(newer(map(1, 1, 4, 9), map(2, 0, 5, 7)), (2, 1, 4, 9));
        assert_eq!(newer(map(2, 1, 4, 9), map(1, 3, 5, 7)), (2, 3, 5, 9));
        assert_eq!(newer(map(2, 1, 6, 1), map(2, 3, 5, 7)), (2, 1, 6, 7));
    }
}
