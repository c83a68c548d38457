//! The unary key-value service: a thin face on the gateway.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::request::{
    CompareAndSet, Delete, DeleteRange, Get, Increment, MultiGet, Put, Request as Op, Scan,
};
use kv_proto::status::ApiError;
use kv_proto::validate::WireError;
use kv_proto::{v1, validate};
use kv_state::Command;
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::answer::WriteReply;
use crate::gateway::{Gateway, Principal};
use crate::service::pipeline;
use crate::txns::Txns;
use crate::waiter::WriteKind;

/// Pages of a scan that wait for a client to take them.
const SCAN_PAGES_AHEAD: usize = 2;

/// Serves clients.
#[derive(Clone, Debug)]
pub(crate) struct KvService {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) txns: Arc<Txns>,
}

impl KvService {
    async fn write(&self, context: Option<v1::RequestContext>, op: Op) -> Result<WriteReply, Status> {
        let gateway = &self.gateway;
        let context = validate::context(context.as_ref(), &gateway.cluster)?;
        let key = Bytes::copy_from_slice(op.routing_key());
        let Some((command, kind)) = gateway.command(op)? else {
            unreachable!("only writes are handed to KvService::write");
        };
        let (shard, written) = gateway.write(Principal::Anonymous, &context, &key, command).await?;
        gateway.metrics.writes.inc();
        Ok(gateway.write_reply(kind, shard, written, false)?)
    }
}

type Pages = Pin<Box<dyn Stream<Item = Result<v1::ScanReply, Status>> + Send>>;
type Replies = Pin<Box<dyn Stream<Item = Result<v1::PipelineReplies, Status>> + Send>>;

#[tonic::async_trait]
impl v1::kv_server::Kv for KvService {
    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutReply>, Status> {
        let mut wire = request.into_inner();
        let context = wire.context.take();
        let op = Op::Put(Put::try_from(wire)?);
        match self.write(context, op).await? {
            WriteReply::Put(reply) => Ok(Response::new(reply)),
            _ => unreachable!("a put is answered as a put"),
        }
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &self.gateway.cluster)?;
        let key = Get::try_from(wire)?.key.into_bytes();
        let gateway = &self.gateway;
        let shard = gateway.route_read(Principal::Anonymous, &key)?;
        gateway.metrics.reads.inc();
        let look = || gateway.get(shard, &key, false);
        Ok(Response::new(self.txns.read(shard, context.deadline, look).await?))
    }

    async fn multi_get(
        &self,
        request: Request<v1::MultiGetRequest>,
    ) -> Result<Response<v1::MultiGetReply>, Status> {
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &self.gateway.cluster)?;
        let keys = MultiGet::try_from(wire)?.keys;
        let keys: Vec<Bytes> = keys.into_iter().map(kv_types::Key::into_bytes).collect();
        let first = keys.first().cloned().unwrap_or_default();
        let gateway = &self.gateway;
        one_shard(gateway, &keys)?;
        let shard = gateway.route_read(Principal::Anonymous, &first)?;
        gateway.metrics.reads.inc();
        let look = || gateway.multi_get(shard, &keys, false);
        Ok(Response::new(self.txns.read(shard, context.deadline, look).await?))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        let mut wire = request.into_inner();
        let context = wire.context.take();
        let op = Op::Delete(Delete::try_from(wire)?);
        match self.write(context, op).await? {
            WriteReply::Delete(reply) => Ok(Response::new(reply)),
            _ => unreachable!("a delete is answered as a delete"),
        }
    }

    async fn delete_range(
        &self,
        request: Request<v1::DeleteRangeRequest>,
    ) -> Result<Response<v1::DeleteRangeReply>, Status> {
        let mut wire = request.into_inner();
        let context = wire.context.take();
        let op = Op::DeleteRange(DeleteRange::try_from(wire)?);
        match self.write(context, op).await? {
            WriteReply::DeleteRange(reply) => Ok(Response::new(reply)),
            _ => unreachable!("a delete-range is answered as a delete-range"),
        }
    }

    type ScanStream = Pages;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Pages>, Status> {
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &self.gateway.cluster)?;
        let scan = Scan::try_from(wire)?;
        let start = scan.range.start().clone();
        let shard = self.gateway.route_read(Principal::Anonymous, &start)?.clone();
        let mut page = self.gateway.page(&scan)?;
        let look = || self.gateway.freeze(&shard, &page.range);
        let view = self.txns.read(&shard, context.deadline, look).await?;
        let gateway = Arc::clone(&self.gateway);
        let (pages, stream) = mpsc::channel(SCAN_PAGES_AHEAD);
        tokio::spawn(async move {
            gateway.metrics.reads.inc();
            loop {
                // A client that has gone away ends the scan, and so does one that reads too slowly: the pin expires.
                match gateway.read_page(&shard, &view, page, false) {
                    Err(error) => return drop(pages.send(Err(error.into())).await),
                    Ok((reply, rest)) => {
                        if pages.send(Ok(reply)).await.is_err() {
                            return;
                        }
                        match rest {
                            None => return,
                            Some(rest) => page = rest,
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn scan_page(&self, request: Request<v1::ScanRequest>) -> Result<Response<v1::ScanReply>, Status> {
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &self.gateway.cluster)?;
        let scan = Scan::try_from(wire)?;
        let start = scan.range.start().clone();
        let gateway = &self.gateway;
        let shard = gateway.route_read(Principal::Anonymous, &start)?;
        let page = gateway.page(&scan)?;
        gateway.metrics.reads.inc();
        let look = || gateway.one_page(shard, &page, false);
        Ok(Response::new(self.txns.read(shard, context.deadline, look).await?))
    }

    async fn compare_and_set(
        &self,
        request: Request<v1::CompareAndSetRequest>,
    ) -> Result<Response<v1::CompareAndSetReply>, Status> {
        let mut wire = request.into_inner();
        let context = wire.context.take();
        let op = Op::CompareAndSet(CompareAndSet::try_from(wire)?);
        match self.write(context, op).await? {
            WriteReply::CompareAndSet(reply) => Ok(Response::new(reply)),
            _ => unreachable!("a compare-and-set is answered as a compare-and-set"),
        }
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementReply>, Status> {
        let mut wire = request.into_inner();
        let context = wire.context.take();
        let op = Op::Increment(Increment::try_from(wire)?);
        match self.write(context, op).await? {
            WriteReply::Increment(reply) => Ok(Response::new(reply)),
            _ => unreachable!("an increment is answered as an increment"),
        }
    }

    async fn get_outcome(
        &self,
        request: Request<v1::GetOutcomeRequest>,
    ) -> Result<Response<v1::GetOutcomeReply>, Status> {
        let gateway = &self.gateway;
        let wire = request.into_inner();
        let context = validate::context(wire.context.as_ref(), &gateway.cluster)?;
        let identity = context.request.ok_or(WireError::Missing("request_id")).map_err(ApiError::from)?;
        if !wire.settle {
            let shard = gateway.route_read(Principal::Anonymous, &wire.key)?;
            gateway.confirm(shard, context.deadline).await?;
            return Ok(Response::new(gateway.outcome(shard, &identity)?));
        }
        let (who, command) = (Principal::Anonymous, Command::Settle);
        let (shard, written) = gateway.write(who, &context, &wire.key, command).await?;
        match gateway.write_reply(WriteKind::Settle, shard, written, false)? {
            WriteReply::Outcome(reply) => Ok(Response::new(reply)),
            _ => unreachable!("a settling is answered by an outcome"),
        }
    }

    type PipelineStream = Replies;

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequests>>,
    ) -> Result<Response<Replies>, Status> {
        let replies =
            pipeline::serve(Arc::clone(&self.gateway), Arc::clone(&self.txns), request.into_inner());
        Ok(Response::new(Box::pin(replies)))
    }
}

/// Refuses keys that do not all belong to the shard of the first.
pub(crate) fn one_shard(gateway: &Gateway, keys: &[Bytes]) -> Result<(), ApiError> {
    let mut shards = keys.iter().map(|key| gateway.map.shard_of(key));
    let first = shards.next();
    match shards.find(|shard| Some(*shard) != first) {
        None => Ok(()),
        Some(other) => Err(ApiError::Invalid(format!(
            "the keys of one call must belong to one shard; these belong to {} and {other}",
            first.unwrap_or_default()
        ))),
    }
}
