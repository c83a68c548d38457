//! Where a call goes, and what is done when it fails.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as Lock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use kv_proto::request::Request;
use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_types::{Outcome, Request as Identity, ShardId, TimedId};
use tokio::sync::Mutex;
use tokio::time::{sleep, timeout};
use tonic::{Code, Response, Status};

use crate::budget::Budget;
use crate::call::Call;
use crate::config::{Config, RequestIds, SESSION_TTL_DEFAULT};
use crate::error::{Error, Failure};
use crate::node::{Node, unary_failure};
use crate::pipeline::Answer;
use crate::routes::Routes;
use crate::sessions::{LaneOf, Sessions, Ticket};
use crate::token::Token;

/// Attempts that follow a leader hint at once; further ones wait, as hints may lead in a circle.
const HINTS_AT_ONCE_MAX: u32 = 3;

/// The shortest time one attempt gets, so that halving what is left comes to an end.
const ATTEMPT_MIN: Duration = Duration::from_millis(100);

/// A write's last attempt begins while there is as much time as the one before took, but this part of a call's time is enough.
const LAST_PART: u32 = 8;

/// An answer that takes this many times what is typical is taken for lost.
const LOST_FACTOR: u32 = 8;

/// An id without a session is drawn by a map that is not older.
const TIME_AGE_MAX: Duration = Duration::from_secs(60);

/// Knows the nodes and carries calls to them.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) config: Config,
    pub(crate) token: Arc<Token>,
    pub(crate) sessions: Sessions,
    budget: Budget,
    /// The configured endpoints.
    seeds: Vec<Arc<Node>>,
    pub(crate) routes: RwLock<Arc<Routes>>,
    /// When the fetch of the current map began; locked while a fetch is under way, so that one serves all.
    pub(crate) fetched: Arc<Mutex<Option<Instant>>>,
    /// Who answered for the meta group last.
    meta: Lock<Option<Arc<Node>>>,
    turn: AtomicUsize,
}

/// What makes the retry of a call safe.
enum Named {
    /// Nothing: a read, or a write that is only tried again if it did not happen.
    Not,
    /// What it is: to be carried out twice does no harm.
    Repeatable,
    /// A number of a session.
    BySession(Ticket),
    /// An id that the caller chose, or one without a session.
    ById(Identity),
}

impl Named {
    fn request(&self) -> Option<Identity> {
        match self {
            Self::Not | Self::Repeatable => None,
            Self::BySession(ticket) => Some(ticket.request()),
            Self::ById(id) => Some(*id),
        }
    }
}

/// What to do after a failed attempt.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The failure stands.
    GiveUp,
    /// Another node was named, or another must be found: ask it at once.
    AtOnce,
    /// Renew the session, and try again.
    Renew,
    /// Wait, at least this long, and try again.
    Wait(Duration),
}

impl Caller {
    pub(crate) fn new(config: Config) -> Result<Self, Failure> {
        if config.endpoints.is_empty() {
            return Err(Failure::Config("at least one endpoint is needed".to_owned()));
        }
        let token = Arc::new(Token::new(config.cluster.clone()));
        let node = |endpoint: &String| Node::new(endpoint, &config, &token).map(Arc::new);
        let seeds = config.endpoints.iter().map(node).collect::<Result<Vec<_>, _>>()?;
        let ttl = match config.request_ids {
            RequestIds::Sessions { ttl } => ttl,
            // Transactions have sessions whatever names the other writes.
            RequestIds::Timed | RequestIds::None => SESSION_TTL_DEFAULT,
        };
        Ok(Self {
            config,
            token,
            sessions: Sessions::new(ttl),
            budget: Budget::new(Instant::now()),
            seeds,
            routes: RwLock::default(),
            fetched: Arc::default(),
            meta: Lock::default(),
            turn: AtomicUsize::new(0),
        })
    }

    /// Carries a request to its shard, retrying while that is safe and the deadline has not passed. An answer that
    /// `read` refuses is a failed attempt.
    pub(crate) async fn call<T>(
        self: &Arc<Self>,
        request: Request,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let deadline = self.deadline();
        let named = if request.is_write() {
            self.name(&request, deadline).await.map_err(Error::of_read)?
        } else {
            Named::Not
        };
        self.attempts(request, &named, deadline, read).await
    }

    /// Carries a write with an id that the caller chose.
    pub(crate) async fn call_as<T>(
        self: &Arc<Self>,
        id: Identity,
        request: Request,
        deadline: Instant,
        read: impl Fn(Answer) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        self.attempts(request, &Named::ById(id), deadline, read).await
    }

    /// Carries a call that changes nothing.
    pub(crate) async fn call_to_read<C: Call, T>(
        self: &Arc<Self>,
        call: C,
        read: impl Fn(C::Answer) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let deadline = self.deadline();
        self.attempts(call, &Named::Not, deadline, read).await
    }

    /// Carries a transaction's commit with a number of a session that only transactions have.
    pub(crate) async fn call_as_txn<C: Call, T>(
        self: &Arc<Self>,
        call: C,
        read: impl Fn(C::Answer) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let deadline = self.deadline();
        let ticket = self.sessions.ticket(self, LaneOf::Transactions, deadline).await;
        let named = Named::BySession(ticket.map_err(Error::of_read)?);
        self.attempts(call, &named, deadline, read).await
    }

    /// Carries a call that does no harm if it is carried out twice.
    pub(crate) async fn call_repeatable<C: Call>(self: &Arc<Self>, call: C) -> Result<C::Answer, Error> {
        let deadline = self.deadline();
        self.attempts(call, &Named::Repeatable, deadline, Ok).await
    }

    async fn attempts<C: Call, T>(
        self: &Arc<Self>,
        call: C,
        named: &Named,
        deadline: Instant,
        read: impl Fn(C::Answer) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let is_write = call.is_write();
        let (mut attempt, mut earlier) = (0, None);
        // Whether a node was asked before: only then is a further attempt a retry.
        let mut has_asked = false;
        // Whether an attempt may have been carried out whose answer is not known.
        let mut in_doubt = false;
        self.begins();
        loop {
            attempt += 1;
            let began = Instant::now();
            let (answer, asked_now) = match self.route(call.routing_key(), deadline).await {
                Ok(to) => {
                    has_asked = true;
                    (self.ask(to, &call, named.request(), deadline).await, true)
                }
                Err(failure) => {
                    if has_asked {
                        self.budget.give_back();
                    }
                    (Err(failure), false)
                }
            };
            let failure = match answer.and_then(&read) {
                Ok(result) => return Ok(result),
                Err(failure) => failure,
            };
            // What failed before a node was asked says nothing of the write.
            if is_write && asked_now {
                in_doubt = match settles(&failure) {
                    true => false,
                    false => in_doubt || failure.outcome() == Outcome::Unknown,
                };
            }
            let failure = match failure {
                // The deadline cut a further attempt short before it did anything: the one before says more.
                Failure::NotSent(what) => earlier.take().unwrap_or(Failure::NotSent(what)),
                failure => failure,
            };
            let may_act = is_write && asked_now;
            // What has not happened is left at that, rather than put in doubt by an attempt that has no time for its answer.
            let needed = if is_write && !in_doubt { began.elapsed() } else { Duration::ZERO };
            let begin_by = deadline - needed.min(self.config.timeout / LAST_PART);
            let again = self.again(&failure, named, (may_act, attempt), begin_by).await;
            if !again || (has_asked && !self.may_retry(begin_by).await) {
                let outcome = if in_doubt { Outcome::Unknown } else { Outcome::NotApplied };
                let request = named.request().map(|request| request.id());
                return Err(Error { failure, outcome, request });
            }
            earlier = Some(failure);
        }
    }

    /// Waits for the next attempt; whether there is one. The last one `may_act` if it was a write that was sent to a node.
    async fn again(
        self: &Arc<Self>,
        failure: &Failure,
        named: &Named,
        (may_act, attempt): (bool, u32),
        deadline: Instant,
    ) -> bool {
        let is_safe = !may_act || !matches!(named, Named::Not);
        let wait = match next(failure, is_safe) {
            Next::GiveUp => return false,
            Next::AtOnce if attempt <= HINTS_AT_ONCE_MAX => Duration::ZERO,
            Next::AtOnce => self.pause(attempt),
            Next::Wait(least) => self.pause(attempt).max(least),
            Next::Renew => {
                let Named::BySession(ticket) = named else { return false };
                if self.sessions.renew_now(self, ticket, deadline).await.is_err() || ticket.is_gone() {
                    return false;
                }
                Duration::ZERO
            }
        };
        if Instant::now() + wait >= deadline {
            return false;
        }
        sleep(wait).await;
        true
    }

    /// Waits until the budget has a retry for this call; whether it has one in time.
    async fn may_retry(&self, deadline: Instant) -> bool {
        let wait = self.config.backoff.max.max(Duration::from_millis(1));
        while !self.budget.withdraw(Instant::now()) {
            if Instant::now() + wait >= deadline {
                return false;
            }
            sleep(wait).await;
        }
        true
    }

    /// A jittered wait before the attempt after number `attempt`.
    pub(crate) fn pause(&self, attempt: u32) -> Duration {
        self.config.backoff.wait(attempt, rand::random())
    }

    /// Waits for the next attempt of a call that changes nothing; whether there is one. If a node was asked, it is a retry.
    pub(crate) async fn again_to_read(
        &self,
        failure: &Failure,
        (was_asked, attempt): (bool, u32),
        deadline: Instant,
    ) -> bool {
        let Some(wait) = self.wait_before_next(failure, attempt) else { return false };
        if Instant::now() + wait >= deadline {
            return false;
        }
        sleep(wait).await;
        !was_asked || self.may_retry(deadline).await
    }

    /// A call begins: it adds to the budget of retries.
    pub(crate) fn begins(&self) {
        self.budget.deposit();
    }

    /// How long to wait after a failed attempt that changed nothing, number `attempt`; `None` to give up.
    fn wait_before_next(&self, failure: &Failure, attempt: u32) -> Option<Duration> {
        match next(failure, true) {
            Next::GiveUp | Next::Renew => None,
            Next::AtOnce if attempt <= HINTS_AT_ONCE_MAX => Some(Duration::ZERO),
            Next::AtOnce => Some(self.pause(attempt)),
            Next::Wait(least) => Some(self.pause(attempt).max(least)),
        }
    }

    /// What makes the retry of a write safe. Where no session can be had, an id without one does: it needs no meta group.
    async fn name(self: &Arc<Self>, request: &Request, deadline: Instant) -> Result<Named, Failure> {
        if self.config.request_ids == RequestIds::None {
            return Ok(Named::Not);
        }
        let shard = self.find_shard(request.routing_key(), deadline).await?;
        if matches!(self.config.request_ids, RequestIds::Sessions { .. }) {
            let half = Instant::now() + deadline.saturating_duration_since(Instant::now()) / 2;
            match self.sessions.ticket(self, LaneOf::Shard(shard), half).await {
                Ok(ticket) => return Ok(Named::BySession(ticket)),
                Err(cause) => tracing::debug!(%cause, "no session for now"),
            }
        }
        Ok(Named::ById(Identity::Timed(self.timed_id(shard, deadline).await?)))
    }

    /// The shard of a key, from the first map that can be had before the deadline.
    pub(crate) async fn find_shard(
        self: &Arc<Self>,
        key: &[u8],
        deadline: Instant,
    ) -> Result<ShardId, Failure> {
        let (mut attempt, mut earlier) = (0, None);
        loop {
            attempt += 1;
            let failure = match self.shard_of(key, deadline).await {
                // The deadline cut this attempt short: the one before says more.
                Err(failure @ Failure::NotSent(_)) => return Err(earlier.unwrap_or(failure)),
                Err(failure) => failure,
                found => return found,
            };
            // All callers share the fetches of a map: they are no retries.
            if !self.again_to_read(&failure, (false, attempt), deadline).await {
                return Err(failure);
            }
            earlier = Some(failure);
        }
    }

    /// Draws an id for a write without a session.
    pub(crate) async fn timed_id(
        self: &Arc<Self>,
        shard: ShardId,
        deadline: Instant,
    ) -> Result<TimedId, Failure> {
        let mut since = Instant::now().checked_sub(TIME_AGE_MAX).unwrap_or_else(Instant::now);
        let mut attempt = 0;
        loop {
            self.refresh(since, deadline).await?;
            if let Some(time) = self.routes().cluster_time(shard) {
                return Ok(TimedId::new(time, rand::random()));
            }
            // The nodes asked have only just started.
            attempt += 1;
            let wait = self.pause(attempt);
            if Instant::now() + wait >= deadline {
                return Err(ApiError::NoLeader(shard).into());
            }
            sleep(wait).await;
            since = Instant::now();
        }
    }

    async fn ask<C: Call>(
        self: &Arc<Self>,
        (shard, node): (ShardId, Arc<Node>),
        call: &C,
        identity: Option<Identity>,
        deadline: Instant,
    ) -> Result<C::Answer, Failure> {
        let began = Instant::now();
        // What got lost must have time left for another attempt. But where everything is slow, it is only slow: to ask
        // again would be to ask for more of what is too much already.
        let half = deadline.saturating_duration_since(began).div_f64(2.0);
        let patience = half.max(ATTEMPT_MIN).max(node.typical() * LOST_FACTOR);
        let is_final = call.is_write() && identity.is_none();
        let until = if is_final { deadline } else { deadline.min(began + patience) };
        let failure = match call.send(&node, identity, until).await {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        self.learn(shard, &failure, began, deadline).await;
        if !C::IS_WATCHED && matches!(failure, Failure::TimedOut(_)) {
            // The node may be silent for good, and nobody has noticed. If another leads by now, a map names it.
            let _ = self.refresh(began, deadline).await;
        }
        Err(failure)
    }

    /// Asks the leader of the meta group, which any node names, for something that may be asked for twice.
    pub(crate) async fn meta_call<T, C>(
        &self,
        deadline: Instant,
        call: impl Fn(Arc<Node>, v1::RequestContext) -> C,
    ) -> Result<T, Failure>
    where
        C: Future<Output = Result<Response<T>, Status>>,
    {
        self.begins();
        let mut attempt = 0;
        let mut named = self.meta.lock().unwrap_or_else(PoisonError::into_inner).clone();
        loop {
            attempt += 1;
            let known = named.take().filter(|node| !node.is_resting());
            let node = match known.or_else(|| self.candidates().into_iter().next()) {
                Some(node) => node,
                None => return Err(Failure::Config("no node is known".to_owned())),
            };
            let patience = deadline.saturating_duration_since(Instant::now()).min(self.config.silence);
            let context = self.token.context_for(patience);
            let failure = match timeout(patience, call(Arc::clone(&node), context)).await {
                Ok(Ok(response)) => {
                    *self.meta.lock().unwrap_or_else(PoisonError::into_inner) = Some(node);
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => unary_failure(node.endpoint(), &status),
                Err(_) => Failure::TimedOut(node.endpoint().to_string()),
            };
            if matches!(failure, Failure::Unreachable { .. } | Failure::TimedOut(_)) {
                node.leave_alone();
            }
            if let Failure::Api(ApiError::NotLeader(error)) = &failure {
                let hint = error.hint.as_ref();
                named = hint.and_then(|hint| self.routes().nodes.get(&hint.node).map(Arc::clone));
            }
            if !self.again_to_read(&failure, (true, attempt), deadline).await {
                return Err(failure);
            }
        }
    }

    /// The time by which a call that begins now has its answer.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.config.timeout
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
}

/// Whether a failure is the final answer to the call, whatever became of its earlier attempts: it was given where they
/// would have been found.
fn settles(failure: &Failure) -> bool {
    matches!(
        failure,
        Failure::Api(
            ApiError::RequestMismatch(_)
                | ApiError::RequestSettled(_)
                | ApiError::NotANumber(_)
                | ApiError::NumberOverflow(_)
        )
    )
}

/// What a failure asks for. What is not safe is tried again only if it did not happen.
fn next(failure: &Failure, is_safe: bool) -> Next {
    if !is_safe && failure.outcome() == Outcome::Unknown {
        return Next::GiveUp;
    }
    match failure {
        Failure::Api(ApiError::NotLeader(error)) if error.hint.is_some() => Next::AtOnce,
        Failure::Api(ApiError::Overloaded(error)) => Next::Wait(error.retry_after),
        Failure::Api(ApiError::SessionExpired(_)) => Next::Renew,
        // A lock goes as soon as its transaction is decided.
        Failure::Api(ApiError::Locked(_)) => Next::Wait(Duration::ZERO),
        Failure::BadReply { .. } if is_safe => Next::Wait(Duration::ZERO),
        Failure::TimedOut(_) if is_safe => Next::AtOnce,
        Failure::NotSent(_) => Next::Wait(Duration::ZERO),
        other => match other.code() {
            Code::Unavailable | Code::ResourceExhausted => Next::Wait(Duration::ZERO),
            Code::DataLoss | Code::DeadlineExceeded if is_safe => Next::Wait(Duration::ZERO),
            _ => Next::GiveUp,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_proto::status::{LeaderHint, NotLeader, Overloaded};
    use kv_types::NodeId;

    #[test]
    fn without_an_id_only_writes_that_did_not_happen_are_tried_again() {
        let shard = ShardId::new(1);
        let hint = Some(LeaderHint { node: NodeId::new(1), client_addr: String::new() });
        let hinted = ApiError::NotLeader(NotLeader { shard, hint });
        let busy = ApiError::Overloaded(Overloaded {
            message: String::new(),
            retry_after: Duration::from_millis(7),
        });
        let cases: [(Failure, Next, Next); 12] = [
            (hinted.into(), Next::AtOnce, Next::AtOnce),
            (ApiError::NoLeader(shard).into(), Next::Wait(Duration::ZERO), Next::Wait(Duration::ZERO)),
            (busy.into(), Next::Wait(Duration::from_millis(7)), Next::Wait(Duration::from_millis(7))),
            (ApiError::LeadershipLost(shard).into(), Next::GiveUp, Next::Wait(Duration::ZERO)),
            (ApiError::Deadline.into(), Next::GiveUp, Next::Wait(Duration::ZERO)),
            (ApiError::Invalid(String::new()).into(), Next::GiveUp, Next::GiveUp),
            (Failure::Broken(String::new()), Next::GiveUp, Next::Wait(Duration::ZERO)),
            (Failure::TimedOut(String::new()), Next::GiveUp, Next::AtOnce),
            (ApiError::SessionExpired(String::new()).into(), Next::GiveUp, Next::Renew),
            (Failure::QueueFull(String::new()), Next::Wait(Duration::ZERO), Next::Wait(Duration::ZERO)),
            (ApiError::Locked(String::new()).into(), Next::Wait(Duration::ZERO), Next::Wait(Duration::ZERO)),
            (ApiError::Conflict(String::new()).into(), Next::GiveUp, Next::GiveUp),
        ];
        for (failure, unsafe_, safe) in cases {
            assert_eq!(next(&failure, false), unsafe_, "a write without an id: {failure:?}");
            assert_eq!(next(&failure, true), safe, "a read, or a write with an id: {failure:?}");
        }
    }
}
