//! One node, asked by itself: it is followed nowhere, and its answer is its own.

use std::time::Duration;

use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_proto::v1::cluster_client::ClusterClient;
use kv_proto::v1::kv_client::KvClient;
use kv_types::{Key, Outcome, Value};
use tonic::transport::{Channel, Endpoint};

use crate::error::RunError;

/// How long a node may take to tell its status.
const STATUS_MAX: Duration = Duration::from_millis(300);

/// The part of a call's time that the node is given.
const DEADLINE_PART: f64 = 0.8;

/// A connection to one node.
#[derive(Clone, Debug)]
pub(crate) struct OneNode {
    channel: Channel,
    timeout: Duration,
}

/// What a read by one node has found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The value, if the key is there and it is text.
    pub(crate) value: Option<String>,
    /// The revision of the shard that was seen.
    pub(crate) revision: Option<u64>,
}

/// What is known of a write that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unwritten {
    /// Whether it may have happened.
    pub(crate) outcome: Outcome,
    /// Whether the node itself has said so.
    pub(crate) answered: bool,
}

impl OneNode {
    /// A way to the node that serves clients at HOST:PORT; nothing is dialled yet.
    pub(crate) fn new(addr: &str, timeout: Duration) -> Result<Self, RunError> {
        let endpoint = Endpoint::from_shared(format!("http://{addr}"));
        let endpoint = endpoint.map_err(|_| RunError::Unfit(format!("`{addr}` is no HOST:PORT")))?;
        let channel = endpoint.connect_timeout(timeout).tcp_nodelay(true).connect_lazy();
        Ok(Self { channel, timeout })
    }

    /// Its status, if it tells it soon.
    pub(crate) async fn status(&self) -> Option<v1::StatusReply> {
        let mut client = ClusterClient::new(self.channel.clone());
        let asked = client.status(v1::StatusRequest { context: None });
        tokio::time::timeout(STATUS_MAX, asked).await.ok()?.ok().map(tonic::Response::into_inner)
    }

    /// Writes a key there, without anything that would make a repetition safe: it is not repeated.
    pub(crate) async fn put(&self, key: &Key, value: &Value) -> Result<Option<u64>, Unwritten> {
        let mut client = KvClient::new(self.channel.clone());
        let (key, value) = (key.bytes().clone(), value.bytes().clone());
        let request = v1::PutRequest { context: Some(self.context()), key, value, crc: None };
        match tokio::time::timeout(self.timeout, client.put(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().header.map(|header| header.revision)),
            // What breaks on the way has no details.
            Ok(Err(status)) => Err(Unwritten {
                outcome: ApiError::from_status(&status).outcome(),
                answered: !status.details().is_empty(),
            }),
            Err(_) => Err(Unwritten { outcome: Outcome::Unknown, answered: false }),
        }
    }

    /// Reads a key there, linearisably; nothing if the node does not answer.
    pub(crate) async fn get(&self, key: &Key) -> Option<Found> {
        let mut client = KvClient::new(self.channel.clone());
        let consistency = v1::Consistency::Linearizable.into();
        let request = v1::GetRequest { context: Some(self.context()), key: key.bytes().clone(), consistency };
        let reply = tokio::time::timeout(self.timeout, client.get(request)).await.ok()?.ok()?.into_inner();
        let value = reply.row.map(|row| String::from_utf8_lossy(&row.value).into_owned());
        Some(Found { value, revision: reply.header.map(|header| header.revision) })
    }

    fn context(&self) -> v1::RequestContext {
        // So that a node that cannot do it says so, before it is given up.
        let deadline = self.timeout.mul_f64(DEADLINE_PART);
        let deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX);
        v1::RequestContext { deadline_ms, ..v1::RequestContext::default() }
    }
}
