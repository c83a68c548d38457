//! What can be sent to the leader of a key's shard.

use std::time::Instant;

use kv_proto::request::Request;
use kv_proto::status::ApiError;
use kv_proto::v1::pipeline_reply;
use kv_types::Request as Identity;

use crate::error::Failure;
use crate::node::Node;
use crate::pipeline::Answer;

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
