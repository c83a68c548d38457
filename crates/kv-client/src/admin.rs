//! Questions about the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::v1;
use kv_proto::v1::change_member_request::Change;
use kv_types::{NodeId, ShardId};
use tokio::time::timeout;
use tonic::{Response, Status};

use crate::attempt::Caller;
use crate::error::{Error, Failure};
use crate::join::join_all;
use crate::node::{Node, unary_failure, unary_write_failure};

/// Between two rounds of asking all nodes.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// What one node said, or why it said nothing.
#[derive(Debug, Clone)]
pub struct NodeAnswer<T> {
    /// The node, if the map names it.
    pub node: Option<NodeId>,
    /// The node's client address.
    pub endpoint: String,
    /// Its answer.
    pub answer: Result<T, Error>,
}

/// Asks `node` one question, within the client's timeout.
async fn ask<T>(
    caller: &Caller,
    node: &Node,
    question: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    match timeout(caller.config.timeout, question).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(unary_failure(node.endpoint(), &status)),
        Err(_) => Err(Failure::TimedOut(node.endpoint().to_string())),
    }
}

/// The configured endpoints, then the members the map names beside them.
async fn everybody(caller: &Arc<Caller>) -> Vec<Arc<Node>> {
    // Without a map the configured endpoints have to do.
    let _ = caller.refresh(Instant::now(), Instant::now() + caller.config.timeout / 2).await;
    let mut nodes = caller.seeds().to_vec();
    for node in caller.routes().nodes.values() {
        if nodes.iter().all(|known| known.endpoint() != node.endpoint()) {
            nodes.push(Arc::clone(node));
        }
    }
    nodes
}

async fn ask_status(caller: &Caller, node: Arc<Node>) -> NodeAnswer<v1::StatusReply> {
    let request = v1::StatusRequest { context: Some(caller.token.context()) };
    let mut client = node.cluster();
    let answer = ask(caller, &node, client.status(request)).await;
    let routes = caller.routes();
    let named = routes.nodes.iter().find(|(_, known)| known.endpoint() == node.endpoint());
    NodeAnswer {
        node: named.map(|(id, _)| *id),
        endpoint: node.endpoint().to_string(),
        answer: answer.map_err(Error::of_read),
    }
}

async fn ask_shards(caller: &Caller, node: Arc<Node>) -> Result<v1::ShardsReply, Failure> {
    let request = v1::ShardsRequest { context: Some(caller.token.context()) };
    let mut client = node.cluster();
    ask(caller, &node, client.shards(request)).await
}

pub(crate) async fn status_of_endpoints(caller: &Caller) -> Vec<NodeAnswer<v1::StatusReply>> {
    join_all(caller.seeds().iter().map(|node| ask_status(caller, Arc::clone(node)))).await
}

pub(crate) async fn status(caller: &Arc<Caller>) -> Vec<NodeAnswer<v1::StatusReply>> {
    let nodes = everybody(caller).await;
    join_all(nodes.into_iter().map(|node| ask_status(caller, node))).await
}

pub(crate) async fn members(caller: &Caller) -> Result<v1::MembersReply, Error> {
    let mut failure = Failure::Config("no node is known".to_owned());
    for node in caller.candidates() {
        let request = v1::MembersRequest { context: Some(caller.token.context()) };
        let mut client = node.cluster();
        match timeout(caller.config.connect_timeout, client.members(request)).await {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => failure = unary_failure(node.endpoint(), &status),
            Err(_) => failure = Failure::TimedOut(node.endpoint().to_string()),
        }
    }
    Err(Error::of_read(failure))
}

/// Asks nodes one after the other, within the client's timeout, until one does it or it is clear that it cannot be done.
/// What may have happened is not sent again.
async fn change<T, C>(caller: &Arc<Caller>, call: impl Fn(Arc<Node>) -> C) -> Result<T, Error>
where
    C: Future<Output = Result<Response<T>, Status>>,
{
    let deadline = caller.deadline();
    let mut failure = Failure::Config("no node is known".to_owned());
    loop {
        for node in everybody(caller).await {
            let left = deadline.saturating_duration_since(Instant::now());
            let again = match timeout(left, call(Arc::clone(&node))).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => {
                    failure = unary_write_failure(node.endpoint(), &status);
                    Error::of_write(failure.clone()).is_worth_a_retry()
                }
                Err(_) => {
                    failure = Failure::TimedOut(node.endpoint().to_string());
                    false
                }
            };
            if !again {
                return Err(Error::of_write(failure));
            }
        }
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(Error::of_write(failure));
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

pub(crate) async fn change_member(caller: &Arc<Caller>, wanted: Change) -> Result<(), Error> {
    let request = v1::ChangeMemberRequest { context: Some(caller.token.context()), change: Some(wanted) };
    change(caller, |node| {
        let request = request.clone();
        async move { node.cluster().change_member(request).await }
    })
    .await
    .map(drop)
}

pub(crate) async fn transfer_leader(caller: &Arc<Caller>, shard: ShardId, to: NodeId) -> Result<(), Error> {
    let request = v1::TransferLeaderRequest {
        context: Some(caller.token.context()),
        shard: shard.get(),
        node: to.get(),
    };
    change(caller, |node| {
        let request = request.clone();
        async move { node.cluster().transfer_leader(request).await }
    })
    .await
    .map(drop)
}

pub(crate) async fn set_setting(caller: &Arc<Caller>, name: &str, value: &str) -> Result<(), Error> {
    let setting = Some(v1::Setting { name: name.to_owned(), value: value.to_owned() });
    let request = v1::SetSettingRequest { context: Some(caller.token.context()), setting };
    change(caller, |node| {
        let request = request.clone();
        async move { node.cluster().set_setting(request).await }
    })
    .await
    .map(drop)
}

pub(crate) async fn shards(caller: &Arc<Caller>) -> Result<Vec<v1::ShardStatus>, Error> {
    let nodes = everybody(caller).await;
    let answers = join_all(nodes.into_iter().map(|node| ask_shards(caller, node))).await;
    let (answers, failures): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    let answers: Vec<_> = answers.into_iter().flatten().collect();
    match failures.into_iter().find_map(Result::err) {
        Some(failure) if answers.is_empty() => Err(Error::of_read(failure)),
        _ => Ok(merge(&answers)),
    }
}

/// One picture from what several nodes know: a shard as its newest leader sees it, each replica as its own node does.
fn merge(answers: &[v1::ShardsReply]) -> Vec<v1::ShardStatus> {
    let mut merged: BTreeMap<u32, (bool, v1::ShardStatus)> = BTreeMap::new();
    for answer in answers {
        for shard in &answer.shards {
            let by_leader = shard.leader == answer.node;
            let better = merged
                .get(&shard.shard)
                .is_none_or(|(led, known)| (shard.epoch, by_leader) > (known.epoch, *led));
            if better {
                merged.insert(shard.shard, (by_leader, shard.clone()));
            }
        }
    }
    for answer in answers {
        for shard in &answer.shards {
            let own = shard.replicas.iter().find(|replica| replica.node == answer.node);
            let known = merged.get_mut(&shard.shard).map(|(_, known)| known);
            let kept =
                known.and_then(|known| known.replicas.iter_mut().find(|kept| kept.node == answer.node));
            if let (Some(own), Some(kept)) = (own, kept) {
                kept.role = own.role;
                kept.applied = own.applied;
                kept.state_hash = own.state_hash.clone();
            }
        }
    }
    merged.into_values().map(|(_, shard)| shard).collect()
}

pub(crate) async fn sessions(
    caller: &Caller,
    after: Option<kv_types::SessionId>,
) -> Result<v1::ListSessionsReply, Error> {
    let call = |node: Arc<Node>, context| {
        let after = after.map_or(0, kv_types::SessionId::get);
        let request = v1::ListSessionsRequest { context: Some(context), after, limit: 0 };
        async move { node.sessions().list_sessions(request).await }
    };
    caller.meta_call(caller.deadline(), call).await.map_err(Error::of_read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(node: u64, match_index: Option<u64>, applied: Option<u64>) -> v1::ShardReplica {
        v1::ShardReplica { node, match_index, applied, ..v1::ShardReplica::default() }
    }

    #[test]
    fn the_leader_knows_the_shard_and_each_node_its_replica() {
        let of = |node, leader, epoch, replicas| v1::ShardsReply {
            node,
            shards: vec![v1::ShardStatus { shard: 1, leader, epoch, replicas, ..v1::ShardStatus::default() }],
        };
        let stale = of(3, 3, 4, vec![replica(3, Some(5), Some(5))]);
        let leader = of(1, 1, 5, vec![replica(1, Some(9), Some(9)), replica(2, Some(8), None)]);
        let follower = of(2, 1, 5, vec![replica(1, None, None), replica(2, Some(8), Some(7))]);
        for answers in [[stale.clone(), leader.clone(), follower.clone()], [follower, leader, stale]] {
            let merged = merge(&answers);
            assert_eq!((merged[0].leader, merged[0].epoch), (1, 5));
            assert_eq!(merged[0].replicas, [replica(1, Some(9), Some(9)), replica(2, Some(8), Some(7))]);
        }
    }
}
