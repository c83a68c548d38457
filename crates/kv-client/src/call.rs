//! What can be sent to the leader of a key's shard.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::request::Request;
use kv_proto::status::ApiError;
use kv_proto::v1::{self, pipeline_reply};
use kv_types::Request as Identity;
use tokio::time::timeout_at;
use tonic::{Response, Status};

use crate::error::Failure;
use crate::node::Node;
use crate::pipeline::Answer;
use crate::reply::Source;
use crate::token::Token;

/// A call: its attempts are all alike, but for the node that is asked.
pub(crate) trait Call {
    /// What a node says to it.
    type Answer;

    /// Whether the task that keeps the node's pipeline notices if the node says nothing at all meanwhile.
    const IS_WATCHED: bool;

    /// Whether it may change something, so that its outcome matters.
    fn is_write(&self) -> bool;

    /// The key whose shard answers.
    fn routing_key(&self) -> &[u8];

    /// One attempt: sends it and waits for the answer, no longer than `until`.
    fn send(
        &self,
        node: &Node,
        identity: Option<Identity>,
        until: Instant,
    ) -> impl Future<Output = Result<Self::Answer, Failure>> + Send;
}

/// What a unary attempt says about itself, and the call that is made of it.
pub(crate) struct Unary<'a> {
    pub(crate) node: &'a Node,
    pub(crate) until: Instant,
    /// What a status means.
    pub(crate) failure: fn(&str, &Status) -> Failure,
}

impl Unary<'_> {
    /// The context of the attempt.
    pub(crate) fn context(&self, token: &Token) -> v1::RequestContext {
        let left = self.until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        v1::RequestContext {
            deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX),
            ..token.context()
        }
    }

    /// Waits for the answer, no longer than it may.
    pub(crate) async fn wait<T>(
        self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<(T, Source), Failure> {
        let endpoint = self.node.endpoint();
        let failure = match timeout_at(self.until.into(), call).await {
            Ok(Ok(reply)) => {
                let source = Source { endpoint: Arc::clone(endpoint), cluster: "".into() };
                return Ok((reply.into_inner(), source));
            }
            Ok(Err(status)) => (self.failure)(endpoint, &status),
            Err(_) => Failure::TimedOut(endpoint.to_string()),
        };
        if matches!(failure, Failure::Unreachable { .. } | Failure::Broken(_)) {
            self.node.leave_alone();
        }
        Err(failure)
    }
}

impl Call for Request {
    type Answer = Answer;

    const IS_WATCHED: bool = true;

    fn is_write(&self) -> bool {
        self.is_write()
    }

    fn routing_key(&self) -> &[u8] {
        self.routing_key()
    }

    async fn send(&self, node: &Node, identity: Option<Identity>, until: Instant) -> Result<Answer, Failure> {
        match node.send(self.clone(), identity, until).await? {
            (pipeline_reply::Result::Error(error), _) => Err(ApiError::from_pipeline(error).into()),
            answer => Ok(answer),
        }
    }
}
