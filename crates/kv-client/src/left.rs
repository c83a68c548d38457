//! What transactions have left, for operators.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::v1;
use kv_types::{Request as Identity, ShardId};
use tokio::time::timeout_at;
use tonic::{Response, Status};

use crate::attempt::Caller;
use crate::call::Call;
use crate::error::{Error, Failure};
use crate::join::join_all;
use crate::node::{Node, unary_failure};
use crate::token::Token;

/// What transactions have left in one shard, or why that is not known.
#[derive(Debug, Clone)]
pub struct ShardTxns {
    /// The shard.
    pub shard: ShardId,
    /// Where its keys begin.
    pub start: Bytes,
    /// At most 1,000 prepared parts, and as many records.
    pub answer: Result<v1::ListTxnsReply, Error>,
}

/// Asks a shard what is left there.
struct List {
    place: Bytes,
    token: Arc<Token>,
}

/// Has a part ended.
struct End {
    place: Bytes,
    txn: v1::TxnName,
    token: Arc<Token>,
}

/// What a call says about itself, if it has until then.
fn context(token: &Token, until: Instant) -> v1::RequestContext {
    let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
    v1::RequestContext { deadline_ms, ..token.context() }
}

async fn answer<T>(
    node: &Node,
    until: Instant,
    question: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Failure> {
    let failure = match timeout_at(until.into(), question).await {
        Ok(Ok(reply)) => return Ok(reply.into_inner()),
        Ok(Err(status)) => unary_failure(node.endpoint(), &status),
        Err(_) => Failure::TimedOut(node.endpoint().to_string()),
    };
    if matches!(failure, Failure::Unreachable { .. } | Failure::Broken(_)) {
        node.leave_alone();
    }
    Err(failure)
}

impl Call for List {
    type Answer = v1::ListTxnsReply;

    const IS_WATCHED: bool = false;

    fn is_write(&self) -> bool {
        false
    }

    fn routing_key(&self) -> &[u8] {
        &self.place
    }

    async fn send(&self, node: &Node, _: Option<Identity>, until: Instant) -> Result<Self::Answer, Failure> {
        let context = Some(context(&self.token, until));
        let request = v1::ListTxnsRequest { context, place: self.place.clone(), limit: 0 };
        answer(node, until, node.txn().list_txns(request)).await
    }
}

impl Call for End {
    type Answer = v1::EndTxnReply;

    const IS_WATCHED: bool = false;

    fn is_write(&self) -> bool {
        true
    }

    fn routing_key(&self) -> &[u8] {
        &self.place
    }

    async fn send(&self, node: &Node, _: Option<Identity>, until: Instant) -> Result<Self::Answer, Failure> {
        let (context, place) = (Some(context(&self.token, until)), self.place.clone());
        let request = v1::EndTxnRequest { context, place, txn: Some(self.txn.clone()) };
        answer(node, until, node.txn().end_txn(request)).await
    }
}

/// Asks all shards at once.
pub(crate) async fn list(caller: &Arc<Caller>) -> Result<Vec<ShardTxns>, Error> {
    let deadline = Instant::now() + caller.config.timeout;
    caller.find_shard(&[], deadline).await.map_err(Error::of_read)?;
    let shards = caller.routes().shards();
    let ask = |(shard, start): (ShardId, Bytes)| async move {
        let call = List { place: start.clone(), token: Arc::clone(&caller.token) };
        let answer = caller.call_repeatable(call).await;
        ShardTxns { shard, start, answer }
    };
    Ok(join_all(shards.into_iter().map(ask)).await)
}

/// Asks the leader of a shard to end a part.
pub(crate) async fn end(
    caller: &Arc<Caller>,
    place: Bytes,
    txn: v1::TxnName,
) -> Result<v1::EndTxnReply, Error> {
    caller.call_repeatable(End { place, txn, token: Arc::clone(&caller.token) }).await
}
