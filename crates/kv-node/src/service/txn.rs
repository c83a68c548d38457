//! Transactions: a thin face on the manager.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::request::Commit;
use kv_proto::status::ApiError;
use kv_proto::txn::Validate;
use kv_proto::validate::{Context, WireError};
use kv_proto::{txn, v1, validate};
use kv_state::txn::{ContentError, Read, Scan, Transaction, Write};
use kv_txn::{Aborted, Decision};
use kv_types::limits::TXN_OPERATIONS_MAX;
use kv_types::{Fingerprint, KeyRange, Request as Identity};
use tonic::{Request, Response, Status};

use crate::gateway::{Gateway, Principal, ShardHandle};
use crate::service::kv::one_shard;
use crate::txns::{self, Txns};

/// How long a transaction waits for its turn, at most.
const RESERVE_MAX: Duration = Duration::from_secs(10);

/// Serves clients that commit transactions.
#[derive(Clone, Debug)]
pub(crate) struct TxnService {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) txns: Arc<Txns>,
}

#[tonic::async_trait]
impl v1::txn_server::Txn for TxnService {
    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitReply>, Status> {
        let mut wire = request.into_inner();
        let context = validate::context(wire.context.take().as_ref(), &self.gateway.cluster)?;
        Ok(Response::new(self.run(context, wire.try_into()?, false).await?))
    }

    async fn validate(
        &self,
        request: Request<v1::ValidateRequest>,
    ) -> Result<Response<v1::ValidateReply>, Status> {
        let gateway = &self.gateway;
        let mut wire = request.into_inner();
        let context = validate::context(wire.context.take().as_ref(), &gateway.cluster)?;
        let question = Validate::try_from(wire)?;
        let shard = gateway.route_read(Principal::Anonymous, &self.place(&question)?)?;
        gateway.metrics.reads.inc();
        let look = || gateway.validate(shard, &question);
        Ok(Response::new(self.txns.read(shard, context.deadline, look).await?))
    }

    async fn reserve(
        &self,
        request: Request<v1::ReserveRequest>,
    ) -> Result<Response<v1::ReserveReply>, Status> {
        let gateway = &self.gateway;
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &gateway.cluster)?;
        validate::at_most("keys", wire.keys.len(), TXN_OPERATIONS_MAX).map_err(ApiError::from)?;
        if wire.keys.is_empty() || wire.reservation == 0 {
            return Err(ApiError::from(WireError::Missing("keys, or reservation")).into());
        }
        one_shard(gateway, &wire.keys)?;
        let shard = gateway.route_write(wire.keys.first().map_or(&[], |key| key))?;
        let until = Instant::now() + context.deadline.unwrap_or(RESERVE_MAX).min(RESERVE_MAX);
        let keys = wire.keys.into_iter().collect();
        let reserved = self.txns.reservations.reserve(wire.reservation, &keys, until).await;
        let header = gateway.read_header(shard, shard.reader.applied(), false);
        Ok(Response::new(v1::ReserveReply { header: Some(header), reserved }))
    }

    async fn list_txns(
        &self,
        request: Request<v1::ListTxnsRequest>,
    ) -> Result<Response<v1::ListTxnsReply>, Status> {
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &self.gateway.cluster)?;
        let shard = self.shard_at(&wire.place)?;
        self.gateway.confirm(shard, context.deadline).await?;
        let limit = usize::try_from(wire.limit).unwrap_or(usize::MAX);
        Ok(Response::new(self.txns.list(shard, limit)?))
    }

    async fn end_txn(
        &self,
        request: Request<v1::EndTxnRequest>,
    ) -> Result<Response<v1::EndTxnReply>, Status> {
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &self.gateway.cluster)?;
        let shard = self.shard_at(&wire.place)?;
        let name = wire.txn.ok_or(WireError::Missing("txn")).map_err(ApiError::from)?;
        let named = txns::wire::name_from_wire(&name)?;
        if self.txns.leads(shard.shard).is_none() {
            return Err(self.gateway.not_leader(shard).into());
        }
        let ended = self.txns.end(shard, named, context.deadline).await?;
        let header = self.gateway.read_header(shard, shard.reader.applied(), false);
        Ok(Response::new(v1::EndTxnReply {
            header: Some(header),
            ended: ended.is_some(),
            committed: ended == Some(true),
        }))
    }
}

impl TxnService {
    /// Commits a transaction, whichever way it was asked for.
    ///
    /// # Errors
    /// [`ApiError`]; it says nothing of what the transaction comes to.
    pub(crate) async fn run(
        &self,
        context: Context,
        commit: Commit,
        in_pipeline: bool,
    ) -> Result<v1::CommitReply, ApiError> {
        let gateway = &self.gateway;
        let request = match context.request {
            Some(Identity::Session(request)) => request,
            Some(Identity::Timed(_)) => {
                return Err(ApiError::Invalid("a transaction is a request of a session".to_owned()));
            }
            None => return Err(WireError::Missing("request_id").into()),
        };
        let txn = self.content(commit.content)?;
        gateway.admit(&context)?;
        let shard = gateway.route_write(txn.anchor().as_ref())?;
        let asked = (request, commit.reservation);
        let decision = self.txns.commit(shard, asked, txn, context.deadline).await?;
        Ok(self.reply(shard, decision, in_pipeline))
    }

    /// The shard of a place, which an operator looks at.
    fn shard_at(&self, place: &[u8]) -> Result<&ShardHandle, ApiError> {
        self.gateway.route_read(Principal::Anonymous, place)
    }

    /// Where in the key space a question is, all of whose keys and ranges are of one shard.
    fn place(&self, question: &Validate) -> Result<Bytes, ApiError> {
        let starts = question.scans.iter().map(|(range, _)| range.start().clone());
        let keys = question.reads.iter().map(|(key, _)| key.bytes().clone());
        let places: Vec<Bytes> = starts.chain(keys).collect();
        one_shard(&self.gateway, &places)?;
        self.within_shards(&question.scans)?;
        places.into_iter().next().ok_or_else(|| WireError::Missing("reads").into())
    }

    fn within_shards(&self, scans: &[(KeyRange, Fingerprint)]) -> Result<(), ApiError> {
        for (range, _) in scans {
            if self.gateway.within_shard(range)?.1.is_some() {
                return Err(ApiError::Invalid("a scanned range reaches beyond its shard".to_owned()));
            }
        }
        Ok(())
    }

    fn content(&self, commit: txn::Commit) -> Result<Transaction, ApiError> {
        self.within_shards(&commit.scans)?;
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

    fn reply(&self, shard: &ShardHandle, decision: Decision, in_pipeline: bool) -> v1::CommitReply {
        let header = match decision.place {
            Some(place) => self.gateway.placed_header(shard.shard, &place, in_pipeline),
            None => self.gateway.read_header(shard, shard.reader.applied(), in_pipeline),
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
