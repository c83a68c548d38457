//! Requests as no client of ours would make them, sent once to one node.

use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use kv_client::{ApiError, Code, v1};
use kv_types::Outcome;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint};
use v1::pipeline_reply::Result as Reply;
use v1::pipeline_request::Op;
use v1::request_id::Id;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a call of its own.
    Unary,
    /// As the only request of a stream.
    Pipelined,
}

/// Both.
pub const WAYS: [Way; 2] = [Way::Unary, Way::Pipelined];

/// A write that was carried out, now or before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The revision it made.
    pub revision: u64,
    /// Whether it was carried out before.
    pub replayed: bool,
    /// Of an increment, the sum.
    pub sum: Option<i64>,
}

/// A refusal, as a program sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The gRPC code.
    pub code: Code,
    /// The reason.
    pub reason: v1::Reason,
    /// Whether the write took effect.
    pub outcome: Outcome,
}

impl From<ApiError> for Refused {
    fn from(error: ApiError) -> Self {
        Self { code: error.code(), reason: error.reason(), outcome: error.outcome() }
    }
}

/// One node.
#[derive(Clone, Debug)]
pub struct Raw {
    channel: Channel,
}

impl Raw {
    /// The node at this client address; connects when first used.
    ///
    /// # Errors
    /// If it is no address.
    pub fn at(address: &str) -> anyhow::Result<Self> {
        Ok(Self { channel: Endpoint::from_shared(format!("http://{address}"))?.connect_lazy() })
    }

    /// Sessions.
    pub fn sessions(&self) -> v1::sessions_client::SessionsClient<Channel> {
        v1::sessions_client::SessionsClient::new(self.channel.clone())
    }

    /// Keys.
    pub fn kv(&self) -> v1::kv_client::KvClient<Channel> {
        v1::kv_client::KvClient::new(self.channel.clone())
    }

    /// Transactions.
    pub fn txns(&self) -> v1::txn_client::TxnClient<Channel> {
        v1::txn_client::TxnClient::new(self.channel.clone())
    }

    /// Sends a commit.
    ///
    /// # Errors
    /// If there is no answer. A refusal is an answer.
    pub async fn commit(
        &self,
        content: &v1::CommitRequest,
        id: Option<v1::RequestId>,
    ) -> anyhow::Result<Result<v1::CommitReply, Refused>> {
        let context = Some(v1::RequestContext { request_id: id, ..v1::RequestContext::default() });
        let request = v1::CommitRequest { context, ..content.clone() };
        let answer = timeout(ANSWER_MAX, self.txns().commit(request)).await.context("there is no answer")?;
        Ok(answer.map(tonic::Response::into_inner).map_err(|status| ApiError::from_status(&status).into()))
    }

    /// Sends a put or an increment.
    ///
    /// # Errors
    /// If there is no answer, or none that makes sense. A refusal is an answer.
    pub async fn send(
        &self,
        way: Way,
        op: Op,
        id: Option<v1::RequestId>,
    ) -> anyhow::Result<Result<Done, Refused>> {
        let answer = async {
            match way {
                Way::Unary => self.unary(op, id).await,
                Way::Pipelined => self.pipelined(op, id).await,
            }
        };
        timeout(ANSWER_MAX, answer).await.context("there is no answer")?
    }

    async fn unary(&self, op: Op, id: Option<v1::RequestId>) -> anyhow::Result<Result<Done, Refused>> {
        let context = Some(v1::RequestContext { request_id: id, ..v1::RequestContext::default() });
        let answered = match op {
            Op::Put(put) => {
                let reply = self.kv().put(v1::PutRequest { context, ..put }).await;
                reply.map(|reply| (reply.into_inner().header, None))
            }
            Op::Increment(increment) => {
                let reply = self.kv().increment(v1::IncrementRequest { context, ..increment }).await;
                reply.map(|reply| reply.into_inner()).map(|reply| (reply.header, Some(reply.value)))
            }
            other => anyhow::bail!("{other:?} is not sent here"),
        };
        match answered {
            Ok((header, sum)) => Ok(Ok(done(header, sum)?)),
            Err(status) => Ok(Err(ApiError::from_status(&status).into())),
        }
    }

    async fn pipelined(&self, op: Op, id: Option<v1::RequestId>) -> anyhow::Result<Result<Done, Refused>> {
        let request = v1::PipelineRequest { id: 1, deadline_ms: 0, op: Some(op), request_id: id };
        let frame = v1::PipelineRequests { context: None, requests: vec![request] };
        let mut replies = self.kv().pipeline(tokio_stream::once(frame)).await?.into_inner();
        let frame = replies.message().await?.context("the stream ends without an answer")?;
        let reply = frame.replies.into_iter().next().and_then(|reply| reply.result);
        match reply.context("the answer is empty")? {
            Reply::Put(reply) => Ok(Ok(done(reply.header, None)?)),
            Reply::Increment(reply) => Ok(Ok(done(reply.header, Some(reply.value))?)),
            Reply::Error(error) => Ok(Err(ApiError::from_pipeline(error).into())),
            other => anyhow::bail!("{other:?} answers another question"),
        }
    }
}

fn done(header: Option<v1::Header>, sum: Option<i64>) -> anyhow::Result<Done> {
    let header = header.context("the answer has no header")?;
    Ok(Done { revision: header.revision, replayed: header.replayed, sum })
}

/// A put.
pub fn put(key: &str, value: &str) -> Op {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    Op::Put(v1::PutRequest { key, value, ..v1::PutRequest::default() })
}

/// An increment.
pub fn incr(key: &str, delta: i64) -> Op {
    Op::Increment(v1::IncrementRequest {
        key: key.to_owned().into(),
        delta,
        ..v1::IncrementRequest::default()
    })
}

/// A transaction that writes these keys and is decided by the shard of the first.
pub fn writes(rows: &[(&str, &str)]) -> v1::CommitRequest {
    let bytes = |text: &str| Bytes::from(text.to_owned());
    let write = |(key, value): &(&str, &str)| v1::TxnWrite { key: bytes(key), value: Some(bytes(value)) };
    let anchor = rows.first().map(|(key, _)| bytes(key)).unwrap_or_default();
    v1::CommitRequest { anchor, writes: rows.iter().map(write).collect(), ..v1::CommitRequest::default() }
}

/// An open session as its client knows it.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    /// Its number.
    pub session: u64,
    /// Until when it lives.
    pub lease_until_ms: u64,
}

impl Session {
    /// Opens a session at the node, which leads the meta group.
    ///
    /// # Errors
    /// Of the node.
    pub async fn open(meta: &Raw, ttl: Duration) -> anyhow::Result<Self> {
        let nonce = rand::random::<u128>().to_be_bytes().to_vec().into();
        let request =
            v1::OpenSessionRequest { context: None, nonce, ttl_ms: u64::try_from(ttl.as_millis())? };
        let opened = meta.sessions().open_session(request).await?.into_inner();
        Ok(Self { session: opened.session, lease_until_ms: opened.lease_until_ms })
    }

    /// The id of one of its writes.
    pub fn request(&self, seq: u64, first_incomplete: u64) -> v1::RequestId {
        let Self { session, lease_until_ms } = *self;
        let request = v1::SessionRequest { session, seq, first_incomplete, lease_until_ms };
        v1::RequestId { id: Some(Id::Session(request)), crc: None }
    }
}

/// The id of a write without a session, of this second of the shard's time.
pub fn timed(seconds: u64) -> v1::RequestId {
    let random = rand::random::<u128>() >> 40;
    sized((u128::from(seconds) << 88 | random).to_be_bytes().to_vec())
}

/// An id of any length.
pub fn sized(id: Vec<u8>) -> v1::RequestId {
    v1::RequestId { id: Some(Id::Timed(id.into())), crc: None }
}
