//! Transactions: a thin face on the manager.

use std::sync::Arc;

use kv_proto::status::ApiError;
use kv_proto::txn::Commit;
use kv_proto::validate::WireError;
use kv_proto::{v1, validate};
use kv_state::txn::{ContentError, Read, Scan, Transaction, Write};
use kv_txn::{Aborted, Decision};
use kv_types::Request as Identity;
use tonic::{Request, Response, Status};

use crate::gateway::{Gateway, ShardHandle};
use crate::txns::Txns;

/// Serves clients that commit transactions.
#[derive(Clone, Debug)]
pub(crate) struct TxnService {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) txns: Arc<Txns>,
}

#[tonic::async_trait]
impl v1::txn_server::Txn for TxnService {
    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let gateway = &self.gateway;
        let mut wire = request.into_inner();
        let context = validate::context(wire.context.take().as_ref(), &gateway.cluster)?;
        let request = match context.request {
            Some(Identity::Session(request)) => request,
            Some(Identity::Timed(_)) => {
                let text = "a transaction is a request of a session".to_owned();
                return Err(ApiError::Invalid(text).into());
            }
            None => return Err(ApiError::from(WireError::Missing("request_id")).into()),
        };
        let txn = self.content(wire.try_into()?)?;
        gateway.admit(&context)?;
        let shard = gateway.route_write(txn.anchor().as_ref())?;
        let decision = self.txns.commit(shard, request, txn, context.deadline).await?;
        Ok(Response::new(self.reply(shard, decision)))
    }
}

impl TxnService {
    fn content(&self, commit: Commit) -> Result<Transaction, ApiError> {
        for (range, _) in &commit.scans {
            if self.gateway.within_shard(range)?.1.is_some() {
                return Err(ApiError::Invalid("a scanned range reaches beyond its shard".to_owned()));
            }
        }
        let reads = commit.reads.into_iter().map(|(key, seen)| Read { key, seen });
        let scans = commit.scans.into_iter().map(|(range, digest)| Scan { range, digest });
        let writes = commit.writes.into_iter().map(|(key, value)| Write { key, value });
        Transaction::new(commit.anchor, reads.collect(), scans.collect(), writes.collect()).map_err(|cause| {
            match cause {
                ContentError::Operations(_) | ContentError::Bytes(_) => ApiError::TooLarge(cause.to_string()),
                ContentError::Twice(_) | ContentError::ScannedTwice(_) | ContentError::Anchor(_) => {
                    ApiError::Invalid(cause.to_string())
                }
            }
        })
    }

    fn reply(&self, shard: &ShardHandle, decision: Decision) -> v1::CommitReply {
        let header = match decision.place {
            Some(place) => self.gateway.placed_header(shard.shard, &place, false),
            None => self.gateway.read_header(shard, shard.reader.applied(), false),
        };
        let (aborted, conflict) = match decision.aborted {
            None => (v1::AbortReason::None, None),
            Some(Aborted::Conflict(key)) => (v1::AbortReason::Conflict, Some(key)),
            Some(Aborted::Locked) => (v1::AbortReason::Locked, None),
            Some(Aborted::Unreachable) => (v1::AbortReason::Unreachable, None),
            Some(Aborted::Before) => (v1::AbortReason::DecidedBefore, None),
        };
        v1::CommitReply {
            header: Some(header),
            aborted: aborted.into(),
            conflict: conflict.unwrap_or_default(),
        }
    }
}
