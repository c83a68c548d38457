//! Where a call goes, and what is done when it fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kv_proto::request::Request;
use kv_proto::status::ApiError;
use kv_proto::v1::{self, pipeline_reply};
use kv_types::{NodeId, Outcome, ShardId};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout, timeout_at};
use tonic::Code;

use crate::config::Config;
use crate::error::{Error, Failure};
use crate::node::{Node, unary_failure};
use crate::pipeline::Answer;
use crate::routes::Routes;
use crate::token::Token;

/// Attempts that follow a leader hint at once; further ones wait, as hints may lead in a circle.
const HINTS_AT_ONCE_MAX: u32 = 3;

/// The shortest time one attempt of a read gets, so that halving what is left comes to an end.
const READ_ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// Knows the nodes and carries calls to them.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) config: Config,
    pub(crate) token: Arc<Token>,
    /// The configured endpoints.
    seeds: Vec<Arc<Node>>,
    routes: RwLock<Arc<Routes>>,
    /// When the fetch of the current map began; locked while a fetch is under way, so that one serves all.
    fetched: Mutex<Option<Instant>>,
    turn: AtomicUsize,
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The failure stands.
    GiveUp,
    /// Another node was named: ask it at once.
    AtOnce,
    /// Wait, at least this long, and try again.
    Wait(Duration),
}

impl Caller {
    pub(crate) fn new(config: Config) -> Result<Self, Failure> {
        if config.endpoints.is_empty() {
            return Err(Failure::Config("at least one endpoint is needed".to_owned()));
        }
        let token = Arc::new(Token::new(config.cluster.clone()));
        let node = |endpoint: &String| {
            Node::new(endpoint, config.connect_timeout, config.rest, &token).map(Arc::new)
        };
        let seeds = config.endpoints.iter().map(node).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            config,
            token,
            seeds,
            routes: RwLock::default(),
            fetched: Mutex::new(None),
            turn: AtomicUsize::new(0),
        })
    }

    /// Carries a request to its shard, retrying while that is safe and the deadline has not passed. An answer that
    /// `read` refuses is a failed attempt.
    pub(crate) async fn call<T>(
        &self,
        request: Request,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + self.config.timeout;
        let is_write = request.is_write();
        let mut attempt = 0;
        let mut earlier = None;
        loop {
            attempt += 1;
            let answer = self.attempt(&request, is_write, deadline).await;
            let failure = match answer.and_then(&read) {
                Ok(result) => return Ok(result),
                // The deadline cut a further attempt short before it did anything: the one before says more.
                Err(Failure::NotSent(to)) => earlier.take().unwrap_or(Failure::NotSent(to)),
                Err(failure) => failure,
            };
            match self.wait_before_next(&failure, is_write, attempt) {
                Some(wait) if Instant::now() + wait < deadline => {
                    earlier = Some(failure);
                    sleep(wait).await;
                }
                _ if is_write => return Err(Error::of_write(failure)),
                _ => return Err(Error::of_read(failure)),
            }
        }
    }

    /// How long to wait after failed attempt number `attempt`; `None` to give up.
    pub(crate) fn wait_before_next(
        &self,
        failure: &Failure,
        is_write: bool,
        attempt: u32,
    ) -> Option<Duration> {
        let jittered = || self.config.backoff.wait(attempt, rand::random());
        match next(failure, is_write) {
            Next::GiveUp => None,
            Next::AtOnce if attempt <= HINTS_AT_ONCE_MAX => Some(Duration::ZERO),
            Next::AtOnce => Some(jittered()),
            Next::Wait(least) => Some(jittered().max(least)),
        }
    }

    async fn attempt(&self, request: &Request, is_write: bool, deadline: Instant) -> Result<Answer, Failure> {
        let (shard, node) = self.route(request.routing_key(), deadline).await?;
        let began = Instant::now();
        // A read that meets a stopped node must have time left for another one.
        let patience = deadline.saturating_duration_since(began).div_f64(2.0).max(READ_ATTEMPT_MIN);
        let until = if is_write { deadline } else { deadline.min(began + patience) };
        let failure = match node.send(request.clone(), until).await {
            Ok((pipeline_reply::Result::Error(error), _)) => ApiError::from_pipeline(error).into(),
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        self.learn(shard, &failure, began, deadline).await;
        Err(failure)
    }

    /// The shard of a key and the node to ask for it.
    pub(crate) async fn route(&self, key: &[u8], deadline: Instant) -> Result<(ShardId, Arc<Node>), Failure> {
        let mut routes = self.routes();
        if routes.is_empty() {
            self.refresh(Instant::now(), deadline).await?;
            routes = self.routes();
        }
        let route = routes
            .of(key)
            .ok_or_else(|| Failure::Api(ApiError::Draining("the cluster has no shard map yet".to_owned())))?;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let node = routes.node(route, turn).ok_or(Failure::Api(ApiError::NoLeader(route.shard)))?;
        Ok((route.shard, node))
    }

    /// Draws from a failure what it says about the map. `began` is when the attempt did: a map fetched later is as new
    /// as the failure.
    pub(crate) async fn learn(&self, shard: ShardId, failure: &Failure, began: Instant, deadline: Instant) {
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
            | Failure::Broken(_)
            | Failure::TimedOut(_) => self.change(|routes| routes.learn(shard, None)),
            _ => return,
        }
        // A fetch that fails leaves the map as it is; the next attempt asks any replica.
        let _ = self.refresh(began, deadline).await;
    }

    /// Fetches the map, unless one was fetched since `since`.
    pub(crate) async fn refresh(&self, since: Instant, deadline: Instant) -> Result<(), Failure> {
        let fetch = async {
            let mut fetched = self.fetched.lock().await;
            if fetched.is_some_and(|at| at > since) && !self.routes().is_empty() {
                return Ok(());
            }
            let began = Instant::now();
            let map = self.fetch_map().await?;
            self.install(map);
            *fetched = Some(began);
            Ok(())
        };
        match timeout_at(deadline.into(), fetch).await {
            Ok(result) => result,
            Err(_) => Err(Failure::NotSent("any node".to_owned())),
        }
    }

    async fn fetch_map(&self) -> Result<v1::ClusterMapReply, Failure> {
        let mut failure = Failure::Config("no node is known".to_owned());
        for node in self.candidates() {
            match self.ask_map(&node).await {
                Ok(map) if map.shards.is_empty() => {
                    failure = ApiError::Draining("the cluster is not formed yet".to_owned()).into();
                }
                Ok(map) => return Ok(map),
                Err(error) => {
                    node.leave_alone();
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn ask_map(&self, node: &Node) -> Result<v1::ClusterMapReply, Failure> {
        let request = v1::ClusterMapRequest { context: Some(self.token.context()) };
        let mut client = node.cluster();
        match timeout(self.config.connect_timeout, client.cluster_map(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(unary_failure(node.endpoint(), &status)),
            Err(_) => Err(Failure::TimedOut(node.endpoint().to_string())),
        }
    }

    /// All known nodes, beginning with another one each time, those that rest last.
    pub(crate) fn candidates(&self) -> Vec<Arc<Node>> {
        let mut by_endpoint = BTreeMap::new();
        for node in self.seeds.iter().chain(self.routes().nodes.values()) {
            by_endpoint.entry(Arc::clone(node.endpoint())).or_insert_with(|| Arc::clone(node));
        }
        let mut nodes: Vec<_> = by_endpoint.into_values().collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let first = turn.checked_rem(nodes.len()).unwrap_or_default();
        nodes.rotate_left(first);
        nodes.sort_by_key(|node| node.is_resting());
        nodes
    }

    /// The configured endpoints, in their order.
    pub(crate) fn seeds(&self) -> &[Arc<Node>] {
        &self.seeds
    }

    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut Routes)) {
        let mut guard = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut guard));
    }

    fn install(&self, map: v1::ClusterMapReply) {
        let old = self.routes();
        let known: BTreeMap<&str, &Arc<Node>> = self
            .seeds
            .iter()
            .chain(old.nodes.values())
            .map(|node| (node.endpoint().as_ref(), node))
            .collect();
        let mut nodes = BTreeMap::new();
        for member in map.members {
            let node = match known.get(member.client_addr.as_str()) {
                Some(node) => Ok(Arc::clone(node)),
                None => {
                    let Config { connect_timeout, rest, .. } = self.config;
                    Node::new(&member.client_addr, connect_timeout, rest, &self.token).map(Arc::new)
                }
            };
            // A member whose address is no address cannot be asked; the others can.
            if let Ok(node) = node {
                nodes.insert(NodeId::new(member.node), node);
            }
        }
        let mut routes = Routes::new(map.shards, nodes);
        routes.keep_newer_leaders(&old);
        self.change(|current| *current = routes);
    }
}

/// What a failure asks for. A write is tried again only if it did not happen.
fn next(failure: &Failure, is_write: bool) -> Next {
    if is_write && failure.outcome() == Outcome::Unknown {
        return Next::GiveUp;
    }
    match failure {
        Failure::Api(ApiError::NotLeader(error)) if error.hint.is_some() => Next::AtOnce,
        Failure::Api(ApiError::Overloaded(error)) => Next::Wait(error.retry_after),
        Failure::BadReply { .. } if !is_write => Next::Wait(Duration::ZERO),
        Failure::TimedOut(_) if !is_write => Next::AtOnce,
        other => match other.code() {
            Code::Unavailable | Code::ResourceExhausted => Next::Wait(Duration::ZERO),
            Code::DataLoss | Code::DeadlineExceeded if !is_write => Next::Wait(Duration::ZERO),
            _ => Next::GiveUp,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::status::{LeaderHint, NotLeader, Overloaded};

    #[test]
    fn only_writes_that_did_not_happen_are_tried_again() {
        let shard = ShardId::new(1);
        let hint = Some(LeaderHint { node: NodeId::new(1), client_addr: String::new() });
        let hinted = ApiError::NotLeader(NotLeader { shard, hint });
        let busy = ApiError::Overloaded(Overloaded {
            message: String::new(),
            retry_after: Duration::from_millis(7),
        });
        let cases: [(Failure, Next, Next); 9] = [
            (hinted.into(), Next::AtOnce, Next::AtOnce),
            (ApiError::NoLeader(shard).into(), Next::Wait(Duration::ZERO), Next::Wait(Duration::ZERO)),
            (busy.into(), Next::Wait(Duration::from_millis(7)), Next::Wait(Duration::from_millis(7))),
            (ApiError::LeadershipLost(shard).into(), Next::GiveUp, Next::Wait(Duration::ZERO)),
            (ApiError::Deadline.into(), Next::GiveUp, Next::Wait(Duration::ZERO)),
            (ApiError::Invalid(String::new()).into(), Next::GiveUp, Next::GiveUp),
            (Failure::Broken(String::new()), Next::GiveUp, Next::Wait(Duration::ZERO)),
            (Failure::TimedOut(String::new()), Next::GiveUp, Next::AtOnce),
            (Failure::QueueFull(String::new()), Next::Wait(Duration::ZERO), Next::Wait(Duration::ZERO)),
        ];
        for (failure, write, read) in cases {
            assert_eq!(next(&failure, true), write, "write: {failure:?}");
            assert_eq!(next(&failure, false), read, "read: {failure:?}");
        }
    }
}
