//! What transactions have left, for operators.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_proto::status::ApiError;
use kv_proto::{v1, validate};
use kv_state::txn::{self, Prepared};
use kv_txn::{Failure, Named};
use kv_types::{ClusterTime, Key};

use super::{DECIDE_MAX, Driven, Txns, wire};
use crate::gateway::ShardHandle;
use crate::reading::unreadable;
use crate::rows::PinnedRows;

/// Transactions in one answer.
const LIST_MAX: usize = 1000;

impl Txns {
    /// Lists what there is in the rows of a shard that may be read now.
    ///
    /// # Errors
    /// [`ApiError`]
    pub(crate) fn list(&self, shard: &ShardHandle, limit: usize) -> Result<v1::ListTxnsReply, ApiError> {
        let limit = if limit == 0 { LIST_MAX } else { limit.min(LIST_MAX) };
        let pin = shard.pin()?;
        let (rows, now) = (PinnedRows(&pin), shard.time.now());
        let mut reply = v1::ListTxnsReply {
            header: Some(self.gateway.read_header(shard, pin.index(), false)),
            ..v1::ListTxnsReply::default()
        };
        let ids = txn::prepared_txns(&rows, None, limit + 1).map_err(unreadable)?;
        reply.more = ids.len() > limit;
        for id in ids.into_iter().take(limit) {
            let part = txn::prepared(&rows, id).map_err(unreadable)?;
            reply.prepared.extend(part.map(|part| part_to_wire(part, now)));
        }
        let records = txn::records(&rows, None, limit + 1).map_err(unreadable)?;
        reply.more |= records.len() > limit;
        reply.unfinished = records
            .into_iter()
            .take(limit)
            .map(|record| v1::UnfinishedTxn {
                txn: Some(wire::name_to_wire(Named { txn: record.txn, fingerprint: record.fingerprint })),
                participants: record.participants,
            })
            .collect();
        Ok(reply)
    }

    /// Ends a part that was prepared at a shard that this node leads; whether its writes took effect, or `None` if there is no
    /// such part.
    ///
    /// # Errors
    /// [`ApiError`]; also if a manager is at work on the transaction.
    pub(crate) async fn end(
        self: &Arc<Self>,
        shard: &ShardHandle,
        named: Named,
        deadline: Option<Duration>,
    ) -> Result<Option<bool>, ApiError> {
        self.gateway.confirm(shard, deadline).await?;
        let part = {
            let pin = shard.pin()?;
            let part = txn::prepared(&PinnedRows(&pin), named.txn);
            part.map_err(unreadable)?
        };
        let Some(part) = part.filter(|part| part.fingerprint == named.fingerprint) else {
            return Ok(None);
        };
        let what = (shard.shard, named.txn);
        let Some(_driven) = Driven::begin(Arc::clone(&self.unblocking), what) else {
            return Err(ApiError::Locked(format!("{} is being ended already", named.txn)));
        };
        let reach = self.reach(deadline.unwrap_or(DECIDE_MAX), None);
        kv_txn::unblock(&reach, shard.shard, &part).await.map(Some).map_err(Failure::into_inner)
    }
}

fn part_to_wire(prepared: Prepared, now: ClusterTime) -> v1::PreparedPart {
    let bytes = |key: &Key| -> Bytes { key.bytes().clone() };
    let Prepared { txn, fingerprint, anchor, since, part, .. } = prepared;
    let written = |key: &Key| part.writes().iter().any(|write| write.key == *key);
    let only_read = part.reads().iter().filter(|read| !written(&read.key));
    v1::PreparedPart {
        txn: Some(wire::name_to_wire(Named { txn, fingerprint })),
        anchor: bytes(&anchor),
        age_ms: now.ms().saturating_sub(since.ms()),
        writes: part.writes().iter().map(|write| bytes(&write.key)).collect(),
        reads: only_read.map(|read| bytes(&read.key)).collect(),
        ranges: part.scans().iter().map(|scan| validate::range_to_wire(&scan.range)).collect(),
    }
}
