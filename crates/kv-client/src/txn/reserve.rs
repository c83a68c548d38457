//! A turn at contended keys, for a transaction that was aborted.
//!
//! Whoever only tries again may be aborted again and again: others are always about to write what he reads. So from its second
//! try on a transaction queues for the keys of the try before, shard after shard and key after key in one order, so that no
//! two wait for each other. It is advice: whoever gets no turn goes on without.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kv_proto::v1;
use kv_types::{Key, Request as Identity, ShardId};

use crate::attempt::Caller;
use crate::call::{Call, Unary};
use crate::error::Failure;
use crate::node::{Node, unary_failure};
use crate::reply::Source;
use crate::token::Token;

/// A wish for keys of one shard.
struct ReserveCall {
    request: v1::ReserveRequest,
    token: Arc<Token>,
}

impl Call for ReserveCall {
    type Answer = (v1::ReserveReply, Source);

    const IS_WATCHED: bool = false;

    fn is_write(&self) -> bool {
        false
    }

    fn routing_key(&self) -> &[u8] {
        self.request.keys.first().map_or(&[], |key| key)
    }

    async fn send(&self, node: &Node, _: Option<Identity>, until: Instant) -> Result<Self::Answer, Failure> {
        let unary = Unary { node, until, failure: unary_failure };
        let context = Some(unary.context(&self.token));
        let request = v1::ReserveRequest { context, ..self.request.clone() };
        unary.wait(node.txn().reserve(request)).await
    }
}

/// Waits for a turn at these keys; what they are reserved by.
pub(super) async fn reserve(caller: &Arc<Caller>, keys: BTreeSet<Key>) -> u64 {
    let reservation = rand::random::<u64>().max(1);
    let deadline = caller.deadline();
    let mut shards: BTreeMap<ShardId, Vec<Bytes>> = BTreeMap::new();
    for key in keys {
        match caller.shard_of(key.as_ref(), deadline).await {
            Ok(shard) => shards.entry(shard).or_default().push(key.into_bytes()),
            Err(cause) => {
                tracing::debug!(%cause, "no keys are reserved");
                return 0;
            }
        }
    }
    for keys in shards.into_values() {
        let request = v1::ReserveRequest { context: None, reservation, keys };
        let call = ReserveCall { request, token: Arc::clone(&caller.token) };
        match caller.call_to_read(call, |(reply, _)| Ok(reply.reserved)).await {
            Ok(true) => {}
            Ok(false) => break,
            Err(cause) => {
                tracing::debug!(%cause, "not all keys are reserved");
                break;
            }
        }
    }
    reservation
}
