//! What a request with an id came to.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kv_proto::status::ApiError;
use kv_proto::v1::get_outcome_reply::Result as Wire;
use kv_proto::{request_id, v1};
use kv_types::{ClusterTime, Request, RequestId, SessionId, SessionRequest};
use tokio::time::timeout;

use crate::attempt::Caller;
use crate::error::{Error, Failure};
use crate::node::unary_failure;
use crate::reply::{Header, Source};

/// What a shard knows of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestOutcome {
    /// Where, by whom and when; of a decided request, its revision and stamp.
    pub header: Header,
    /// What is known.
    pub known: Known,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// The value was written.
    Written,
    /// So many keys were deleted.
    Deleted(u64),
    /// The key was not as expected; nothing was written.
    CompareFailed,
    /// The sum after the increment.
    Incremented(i64),
    /// Nothing was added: the value is no number, or the sum does not fit.
    NotIncremented,
    /// The transaction is committed.
    Committed,
    /// The transaction is aborted, and never will be committed.
    Aborted,
    /// It was not applied, and never will be.
    Settled,
    /// It was not applied so far. It may still be under way.
    NotSeen,
    /// What it came to may be forgotten.
    NoLongerKnown,
}

/// Asks the shard of a key.
pub(crate) async fn of_key(
    caller: &Arc<Caller>,
    id: RequestId,
    key: &[u8],
    settle: bool,
) -> Result<RequestOutcome, Error> {
    let deadline = caller.deadline();
    let asked = async {
        let request = with_lease(caller, id, deadline).await?;
        ask(caller, &request, key, settle, deadline).await
    };
    // That it was not settled changes nothing for the request.
    asked.await.map_err(Error::of_read)
}

/// Asks every shard, for an id alone does not say which one carried it out.
pub(crate) async fn anywhere(
    caller: &Arc<Caller>,
    id: RequestId,
    settle: bool,
) -> Result<RequestOutcome, Error> {
    let deadline = caller.deadline();
    let asked = async {
        let request = with_lease(caller, id, deadline).await?;
        caller.shard_of(&[], deadline).await?;
        let mut found: Option<RequestOutcome> = None;
        for start in caller.routes().starts() {
            let other = ask(caller, &request, &start, settle, deadline).await?;
            found = Some(match found {
                Some(found) if weight(&found.known) >= weight(&other.known) => found,
                _ => other,
            });
        }
        found.ok_or_else(|| ApiError::Draining("the cluster has no shard map yet".to_owned()).into())
    };
    asked.await.map_err(Error::of_read)
}

/// Of what two shards say, the one that says more.
fn weight(known: &Known) -> u8 {
    match known {
        // That it never will be applied is known only if every shard says so.
        Known::Settled => 0,
        Known::NotSeen => 1,
        Known::NoLongerKnown => 2,
        Known::Written
        | Known::Deleted(_)
        | Known::CompareFailed
        | Known::Incremented(_)
        | Known::NotIncremented
        | Known::Committed
        | Known::Aborted => 3,
    }
}

/// A request as a shard wants it named: of a session with its lease, or with none if the session is gone. How far a session is
/// only its own client knows.
pub(crate) async fn with_lease(
    caller: &Arc<Caller>,
    id: RequestId,
    deadline: Instant,
) -> Result<Request, Failure> {
    let (session, seq) = match id {
        RequestId::Timed(id) => return Ok(Request::Timed(id)),
        RequestId::Session { session, seq } => (session, seq),
    };
    let found = session_of(caller, session, deadline).await?.session;
    let lease_ms = found.map_or(0, |session| session.lease_until_ms);
    let lease_until = ClusterTime::from_ms(lease_ms).unwrap_or(ClusterTime::MAX);
    let first_incomplete = caller.sessions.first_incomplete(session, seq);
    Ok(Request::Session(SessionRequest { session, seq, first_incomplete, lease_until }))
}

/// A session, as the meta group has it.
pub(crate) async fn session_of(
    caller: &Arc<Caller>,
    session: SessionId,
    deadline: Instant,
) -> Result<v1::GetSessionReply, Failure> {
    let call = |node: Arc<crate::node::Node>, context| {
        let request = v1::GetSessionRequest { context: Some(context), session: session.get() };
        async move { node.sessions().get_session(request).await }
    };
    caller.meta_call(deadline, call).await
}

async fn ask(
    caller: &Arc<Caller>,
    request: &Request,
    key: &[u8],
    settle: bool,
    deadline: Instant,
) -> Result<RequestOutcome, Failure> {
    let mut attempt = 0;
    caller.begins();
    loop {
        attempt += 1;
        let began = Instant::now();
        let (failure, was_asked) = match caller.route(key, deadline).await {
            Err(failure) => (failure, false),
            Ok((shard, node)) => {
                let patience = deadline.saturating_duration_since(began).min(caller.config.silence);
                let mut context = caller.token.context_for(patience);
                context.request_id = Some(request_id::write(request));
                let (context, key) = (Some(context), Bytes::copy_from_slice(key));
                let mut kv = node.kv();
                let asked = kv.get_outcome(v1::GetOutcomeRequest { context, key, settle });
                let failure = match timeout(patience, asked).await {
                    Ok(Ok(reply)) => return read(node.endpoint(), reply.into_inner()),
                    Ok(Err(status)) => unary_failure(node.endpoint(), &status),
                    Err(_) => Failure::TimedOut(node.endpoint().to_string()),
                };
                caller.learn(shard, &failure, began, deadline).await;
                (failure, true)
            }
        };
        // Only the session's own client can change it, by its next request.
        let is_beyond = matches!(failure, Failure::Api(ApiError::WindowOverflow(_)));
        if is_beyond || !caller.again_to_read(&failure, (was_asked, attempt), deadline).await {
            return Err(failure);
        }
    }
}

fn read(endpoint: &Arc<str>, reply: v1::GetOutcomeReply) -> Result<RequestOutcome, Failure> {
    let source = Source { endpoint: Arc::clone(endpoint), cluster: "".into() };
    let known = match (reply.state(), &reply.result) {
        (v1::RequestState::Settled, _) => Known::Settled,
        (v1::RequestState::NotSeen, _) => Known::NotSeen,
        (v1::RequestState::NoLongerKnown, _) => Known::NoLongerKnown,
        (v1::RequestState::Decided, Some(Wire::Written(_))) => Known::Written,
        (v1::RequestState::Decided, Some(Wire::Deleted(count))) => Known::Deleted(*count),
        (v1::RequestState::Decided, Some(Wire::CompareFailed(_))) => Known::CompareFailed,
        (v1::RequestState::Decided, Some(Wire::Incremented(value))) => Known::Incremented(*value),
        (v1::RequestState::Decided, Some(Wire::NotIncremented(_))) => Known::NotIncremented,
        (v1::RequestState::Decided, Some(Wire::Committed(true))) => Known::Committed,
        (v1::RequestState::Decided, Some(Wire::Committed(false))) => Known::Aborted,
        (v1::RequestState::Decided, None) | (v1::RequestState::Unspecified, _) => {
            return Err(source.bad("it does not say what is known"));
        }
    };
    Ok(RequestOutcome { header: source.header(reply.header)?, known })
}
