//! What transactions have left, for operators.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kv_proto::v1;
use kv_types::{Request as Identity, ShardId};

use crate::attempt::Caller;
use crate::call::{Call, Unary};
use crate::error::{Error, Failure};
use crate::join::join_all;
use crate::node::{Node, unary_failure, unary_write_failure};
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
        let unary = Unary { node, until, failure: unary_failure };
        let context = Some(unary.context(&self.token));
        let request = v1::ListTxnsRequest { context, place: self.place.clone(), limit: 0 };
        Ok(unary.wait(node.txn().list_txns(request)).await?.0)
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
        let unary = Unary { node, until, failure: unary_write_failure };
        let (context, place) = (Some(unary.context(&self.token)), self.place.clone());
        let request = v1::EndTxnRequest { context, place, txn: Some(self.txn.clone()) };
        Ok(unary.wait(node.txn().end_txn(request)).await?.0)
    }
}

/// Asks all shards at once.
pub(crate) async fn list(caller: &Arc<Caller>) -> Result<Vec<ShardTxns>, Error> {
    let deadline = caller.deadline();
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
