//! Nodes that answer as a test tells them, on ports of the system's choice.

#![allow(unreachable_pub, reason = "a module of one test")]

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

#[path = "store.rs"]
mod store;
#[path = "txn_service.rs"]
mod txn_service;

use bytes::Bytes;
use kv_proto::checksum;
use kv_proto::request::Request as Checked;
use kv_proto::status::ApiError;
use kv_proto::v1::cluster_server::{Cluster, ClusterServer};
use kv_proto::v1::kv_server::{Kv, KvServer};
use kv_proto::v1::pipeline_request::Op;
use kv_proto::v1::sessions_server::SessionsServer;
use kv_proto::v1::txn_server::TxnServer;
use kv_proto::v1::{self, pipeline_reply as reply};
use kv_types::ShardId;
use store::{Store, shard_of};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use txn_service::Scripted;

/// What a node does with the next request.
#[derive(Debug, Clone)]
pub enum Act {
    /// Refuses it.
    Fail(ApiError),
    /// Ends the stream without an answer.
    Break,
    /// Never answers.
    Ignore,
    /// Does it and ends the stream without an answer.
    Lose,
    /// Answers as if the row had been damaged on the way.
    Damage,
    /// Aborts a transaction.
    Abort(v1::AbortReason),
}

#[derive(Default)]
struct Inner {
    script: VecDeque<Act>,
    /// Of all of a test's nodes that share it.
    store: Arc<Mutex<Store>>,
    /// Commits that arrived.
    commits: Vec<v1::CommitRequest>,
    validated: Vec<v1::ValidateRequest>,
    reserved: Vec<v1::ReserveRequest>,
    /// What transactions came to; all of a test's nodes that share it remember the same.
    decided: Arc<Mutex<BTreeMap<Bytes, v1::CommitReply>>>,
    /// What each frame that arrived held.
    frames: Vec<usize>,
    asked: usize,
    contexts: Vec<v1::RequestContext>,
    map: v1::ClusterMapReply,
    map_asked: usize,
    scans: VecDeque<Vec<Result<v1::ScanReply, Status>>>,
    stopped: bool,
    /// The ids of all requests that arrived.
    ids: Vec<Option<v1::RequestId>>,
    /// What requests with an id came to; all of a test's nodes remember the same.
    records: Arc<Mutex<BTreeMap<Bytes, reply::Result>>>,
    sessions: Sessions,
    /// Whether nobody is told the map, nor given a session, for now.
    held: watch::Sender<bool>,
}

/// Sessions as a test has them.
#[derive(Default)]
struct Sessions {
    asked: usize,
    opened: u64,
    renewed: u64,
    /// Whether none can be had.
    refused: bool,
    /// Whether all that were opened are gone.
    gone: bool,
}

/// One node; clones share it.
#[derive(Clone)]
pub struct Node {
    pub addr: SocketAddr,
    inner: Arc<Mutex<Inner>>,
    task: Arc<Owned>,
}

struct Owned(AbortHandle);

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Node {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let inner = Arc::new(Mutex::new(Inner::default()));
        let service = Service(Arc::clone(&inner));
        let server = tonic::transport::Server::builder()
            .add_service(KvServer::new(service.clone()))
            .add_service(ClusterServer::new(service.clone()))
            .add_service(SessionsServer::new(service.clone()))
            .add_service(TxnServer::new(service).max_decoding_message_size(kv_types::limits::ENTRY_BYTES_MAX))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let task = tokio::spawn(async move { server.await.unwrap() });
        Self { addr, inner, task: Arc::new(Owned(task.abort_handle())) }
    }

    pub fn endpoint(&self) -> String {
        self.addr.to_string()
    }

    pub fn act(&self, acts: impl IntoIterator<Item = Act>) {
        self.inner.lock().unwrap().script.extend(acts);
    }

    pub fn set_map(&self, map: &v1::ClusterMapReply) {
        self.inner.lock().unwrap().map = map.clone();
    }

    pub fn add_scan(&self, pages: Vec<Result<v1::ScanReply, Status>>) {
        self.inner.lock().unwrap().scans.push_back(pages);
    }

    pub fn asked(&self) -> usize {
        self.inner.lock().unwrap().asked
    }

    /// Tells nobody the map, and gives nobody a session, until it is told otherwise.
    pub fn hold(&self, held: bool) {
        self.inner.lock().unwrap().held.send_replace(held);
    }

    /// How often a session was asked for.
    pub fn sessions_asked(&self) -> usize {
        self.inner.lock().unwrap().sessions.asked
    }

    pub fn map_asked(&self) -> usize {
        self.inner.lock().unwrap().map_asked
    }

    /// The ids of all requests that arrived.
    pub fn ids(&self) -> Vec<Option<v1::RequestId>> {
        self.inner.lock().unwrap().ids.clone()
    }

    /// Remembers what another node remembers, and has its rows.
    pub fn share(&self, other: &Self) {
        let (records, store, decided) = {
            let other = other.inner.lock().unwrap();
            (Arc::clone(&other.records), Arc::clone(&other.store), Arc::clone(&other.decided))
        };
        let mut inner = self.inner.lock().unwrap();
        (inner.records, inner.store, inner.decided) = (records, store, decided);
    }

    /// The reservations that were asked for.
    pub fn reserved(&self) -> Vec<v1::ReserveRequest> {
        self.inner.lock().unwrap().reserved.clone()
    }

    /// The questions that arrived whether something is as it was read.
    pub fn validated(&self) -> Vec<v1::ValidateRequest> {
        self.inner.lock().unwrap().validated.clone()
    }

    /// The commits that arrived.
    pub fn commits(&self) -> Vec<v1::CommitRequest> {
        self.inner.lock().unwrap().commits.clone()
    }

    /// Writes a key, as somebody else would.
    pub fn put(&self, key: &'static str, value: &'static str) {
        self.inner.lock().unwrap().store.lock().unwrap().put(key.into(), value.into());
    }

    /// A page of a scan holds no more rows.
    pub fn set_page_rows(&self, rows: usize) {
        self.inner.lock().unwrap().store.lock().unwrap().page_rows = rows;
    }

    pub fn refuse_sessions(&self) {
        self.inner.lock().unwrap().sessions.refused = true;
    }

    pub fn forget_sessions(&self) {
        self.inner.lock().unwrap().sessions.gone = true;
    }

    /// Sessions opened, and renewals asked for.
    pub fn sessions(&self) -> (u64, u64) {
        let inner = self.inner.lock().unwrap();
        (inner.sessions.opened, inner.sessions.renewed)
    }

    pub fn frames(&self) -> Vec<usize> {
        self.inner.lock().unwrap().frames.clone()
    }

    pub fn contexts(&self) -> Vec<v1::RequestContext> {
        self.inner.lock().unwrap().contexts.clone()
    }

    pub fn value(&self, key: &'static str) -> Option<Bytes> {
        let inner = self.inner.lock().unwrap();
        let store = inner.store.lock().unwrap();
        store.value(key.as_bytes())
    }

    /// Stops serving; streams end.
    pub fn stop(&self) {
        self.inner.lock().unwrap().stopped = true;
        self.task.0.abort();
    }
}

/// A map of one shard per `(start, leader)`, on all of `nodes`, numbered from 1.
pub fn map(nodes: &[Node], shards: &[(&'static str, usize)], epoch: u64) -> v1::ClusterMapReply {
    let id = |index: usize| index as u64 + 1;
    let hint = |index: usize| v1::LeaderHint { node: id(index), client_addr: nodes[index].endpoint() };
    let range = |index: usize| v1::KeyRange {
        start: shards[index].0.into(),
        end: shards.get(index + 1).map(|(start, _)| Bytes::from(*start)),
    };
    let shard = |(index, (_, leader)): (usize, &(&str, usize))| v1::MapShard {
        shard: u32::try_from(index).unwrap() + 1,
        range: Some(range(index)),
        leader: Some(hint(*leader)),
        epoch,
        replicas: (0..nodes.len()).map(id).collect(),
        cluster_time_ms: 5_000,
    };
    v1::ClusterMapReply {
        cluster: "test".into(),
        cluster_id: 1,
        version: 1,
        members: (0..nodes.len())
            .map(|index| v1::MapMember { node: id(index), client_addr: nodes[index].endpoint() })
            .collect(),
        shards: shards.iter().enumerate().map(shard).collect(),
    }
}

pub fn header() -> Option<v1::Header> {
    let lamport = Some(v1::Lamport { counter: 77, node: 1 });
    Some(v1::Header { shard: 1, epoch: 3, leader: 1, revision: 9, lamport, ..v1::Header::default() })
}

pub fn row(key: &Bytes, value: &Bytes) -> v1::Row {
    let mut row = v1::Row { key: key.clone(), value: value.clone(), version: 1, ..v1::Row::default() };
    row.crc = Some(checksum::row(&row));
    row
}

#[derive(Clone)]
struct Service(Arc<Mutex<Inner>>);

impl Service {
    /// The answers to a frame; `None` to break the stream.
    async fn unheld(&self) {
        let mut held = self.0.lock().unwrap().held.subscribe();
        held.wait_for(|held| !held).await.unwrap();
    }

    fn frame(&self, frame: v1::PipelineRequests) -> Option<v1::PipelineReplies> {
        let mut inner = self.0.lock().unwrap();
        if inner.stopped {
            return None;
        }
        inner.frames.push(frame.requests.len());
        inner.contexts.extend(frame.context);
        let mut replies = Vec::new();
        for request in frame.requests {
            if let Some(Op::Commit(commit)) = request.op {
                let v1::PipelineRequest { request_id, deadline_ms, .. } = request;
                let context =
                    Some(v1::RequestContext { request_id, deadline_ms, ..v1::RequestContext::default() });
                let result = match inner.scripted_commit(v1::CommitRequest { context, ..commit }) {
                    Scripted::Told(Ok(reply)) => reply::Result::Commit(reply),
                    Scripted::Told(Err(error)) => reply::Result::Error(error.to_pipeline()),
                    Scripted::Broken => return None,
                    Scripted::Ignored => continue,
                };
                replies.push(v1::PipelineReply { id: request.id, result: Some(result) });
                continue;
            }
            inner.asked += 1;
            inner.ids.push(request.request_id.clone());
            let op = Checked::try_from(request.op);
            let id = request.request_id.map(name);
            let result = match (inner.script.pop_front(), op) {
                (_, Err(error)) | (Some(Act::Fail(error)), _) => reply::Result::Error(error.to_pipeline()),
                (Some(Act::Break), _) => return None,
                (Some(Act::Ignore), _) => continue,
                (Some(Act::Lose), Ok(op)) => {
                    inner.once(id, op);
                    return None;
                }
                (Some(Act::Damage), Ok(op)) => damage(inner.once(id, op)),
                (Some(Act::Abort(reason)), _) => panic!("{reason:?} is for a transaction"),
                (None, Ok(op)) => inner.once(id, op),
            };
            replies.push(v1::PipelineReply { id: request.id, result: Some(result) });
        }
        // Out of order, as a real server may.
        replies.reverse();
        Some(v1::PipelineReplies { cluster: "test".into(), replies })
    }
}

fn damage(result: reply::Result) -> reply::Result {
    match result {
        reply::Result::Get(mut reply) => {
            if let Some(row) = &mut reply.row {
                row.value = "damaged".into();
            }
            reply::Result::Get(reply)
        }
        other => other,
    }
}

/// What an id names, without what changes from attempt to attempt.
fn name(id: v1::RequestId) -> Bytes {
    match id.id.unwrap() {
        v1::request_id::Id::Session(id) => format!("{}/{}", id.session, id.seq).into(),
        v1::request_id::Id::Timed(raw) => raw,
    }
}

impl Inner {
    fn once(&mut self, id: Option<Bytes>, op: Checked) -> reply::Result {
        let Some(id) = id else { return self.answer(op) };
        if let Some(known) = self.records.lock().unwrap().get(&id) {
            return known.clone();
        }
        let result = self.answer(op);
        self.records.lock().unwrap().insert(id, result.clone());
        result
    }

    fn answer(&mut self, op: Checked) -> reply::Result {
        let mut store = self.store.lock().unwrap();
        let shard = shard_of(op.routing_key(), &self.map).0;
        let header = || header().map(|header| v1::Header { shard: shard.get(), ..header });
        match op {
            Checked::Put(put) => {
                store.put(put.key.into_bytes(), put.value.into_bytes());
                reply::Result::Put(v1::PutReply { header: header() })
            }
            Checked::Get(get) => {
                reply::Result::Get(v1::GetReply { header: header(), row: store.row(get.key.bytes()) })
            }
            Checked::MultiGet(get) => {
                // Two keys a reply, so that the client has to come again.
                let keys = || get.keys.iter().take(2);
                let rows = keys().filter_map(|key| store.row(key.bytes())).collect();
                let looked_at = u32::try_from(keys().count()).unwrap();
                reply::Result::MultiGet(v1::MultiGetReply { header: header(), rows, looked_at })
            }
            Checked::Delete(delete) => {
                let deleted = u64::from(store.delete(delete.key.bytes()));
                reply::Result::Delete(v1::DeleteReply { header: header(), deleted })
            }
            Checked::DeleteRange(delete) => {
                let mut keys = store.keys(&delete.range).into_iter();
                let (first, resume_key) = (keys.next(), keys.next());
                let deleted = u64::from(first.is_some());
                first.map(|key| store.delete(&key));
                reply::Result::DeleteRange(v1::DeleteRangeReply { header: header(), deleted, resume_key })
            }
            Checked::Increment(add) => {
                let before = store.value(add.key.bytes()).unwrap_or("0".into());
                let value = std::str::from_utf8(&before).unwrap().parse::<i64>().unwrap() + add.delta;
                store.put(add.key.into_bytes(), value.to_string().into());
                reply::Result::Increment(v1::IncrementReply { header: header(), value })
            }
            Checked::ScanPage(scan) => reply::Result::ScanPage(store.page(&scan, &self.map)),
            Checked::CompareAndSet(_) | Checked::Commit(_) => {
                reply::Result::Error(ApiError::Unsupported("not in this test".into()).to_pipeline())
            }
        }
    }
}

type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Kv for Service {
    type ScanStream = BoxStream<v1::ScanReply>;
    type PipelineStream = BoxStream<v1::PipelineReplies>;

    async fn put(&self, _: Request<v1::PutRequest>) -> Result<Response<v1::PutReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn get(&self, _: Request<v1::GetRequest>) -> Result<Response<v1::GetReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn multi_get(
        &self,
        _: Request<v1::MultiGetRequest>,
    ) -> Result<Response<v1::MultiGetReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn delete(&self, _: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn delete_range(
        &self,
        _: Request<v1::DeleteRangeRequest>,
    ) -> Result<Response<v1::DeleteRangeReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn scan_page(&self, _: Request<v1::ScanRequest>) -> Result<Response<v1::ScanReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn compare_and_set(
        &self,
        _: Request<v1::CompareAndSetRequest>,
    ) -> Result<Response<v1::CompareAndSetReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn increment(
        &self,
        _: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementReply>, Status> {
        Err(Status::unimplemented("use the pipeline"))
    }

    async fn get_outcome(
        &self,
        _: Request<v1::GetOutcomeRequest>,
    ) -> Result<Response<v1::GetOutcomeReply>, Status> {
        self.0.lock().unwrap().asked += 1;
        Err(ApiError::Stopped.into())
    }

    async fn scan(&self, _: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let mut inner = self.0.lock().unwrap();
        inner.asked += 1;
        let pages = inner.scans.pop_front().unwrap_or_default();
        Ok(Response::new(Box::pin(tokio_stream::iter(pages))))
    }

    async fn pipeline(
        &self,
        request: Request<Streaming<v1::PipelineRequests>>,
    ) -> Result<Response<Self::PipelineStream>, Status> {
        let (tx, rx) = mpsc::channel(16);
        let service = self.clone();
        let mut frames = request.into_inner();
        tokio::spawn(async move {
            while let Ok(Some(frame)) = frames.message().await {
                let Some(replies) = service.frame(frame) else { return };
                if tx.send(Ok(replies)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

#[tonic::async_trait]
impl Cluster for Service {
    async fn status(&self, _: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        Ok(Response::new(v1::StatusReply { node: 1, ready: true, ..v1::StatusReply::default() }))
    }

    async fn members(&self, _: Request<v1::MembersRequest>) -> Result<Response<v1::MembersReply>, Status> {
        Ok(Response::new(v1::MembersReply::default()))
    }

    async fn shards(&self, _: Request<v1::ShardsRequest>) -> Result<Response<v1::ShardsReply>, Status> {
        Ok(Response::new(v1::ShardsReply::default()))
    }

    async fn cluster_map(
        &self,
        _: Request<v1::ClusterMapRequest>,
    ) -> Result<Response<v1::ClusterMapReply>, Status> {
        self.0.lock().unwrap().map_asked += 1;
        self.unheld().await;
        let inner = self.0.lock().unwrap();
        if inner.stopped {
            return Err(Status::unavailable("stopped"));
        }
        Ok(Response::new(inner.map.clone()))
    }

    async fn change_member(
        &self,
        _: Request<v1::ChangeMemberRequest>,
    ) -> Result<Response<v1::ChangeMemberReply>, Status> {
        Err(Status::unimplemented("not in these scripts"))
    }

    async fn transfer_leader(
        &self,
        _: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderReply>, Status> {
        Err(Status::unimplemented("not in these scripts"))
    }

    async fn set_setting(
        &self,
        _: Request<v1::SetSettingRequest>,
    ) -> Result<Response<v1::SetSettingReply>, Status> {
        Err(Status::unimplemented("not in these scripts"))
    }

    async fn set_log_level(
        &self,
        _: Request<v1::SetLogLevelRequest>,
    ) -> Result<Response<v1::SetLogLevelReply>, Status> {
        Err(Status::unimplemented("not in this test"))
    }
}

#[tonic::async_trait]
impl v1::sessions_server::Sessions for Service {
    async fn open_session(
        &self,
        _: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionReply>, Status> {
        self.0.lock().unwrap().sessions.asked += 1;
        self.unheld().await;
        let sessions = &mut self.0.lock().unwrap().sessions;
        if sessions.refused {
            return Err(ApiError::NoLeader(kv_types::ShardId::META).into());
        }
        sessions.opened += 1;
        sessions.gone = false;
        let session = sessions.opened;
        Ok(Response::new(v1::OpenSessionReply { session, lease_until_ms: 1_000 }))
    }

    async fn renew_sessions(
        &self,
        request: Request<v1::RenewSessionsRequest>,
    ) -> Result<Response<v1::RenewSessionsReply>, Status> {
        let sessions = &mut self.0.lock().unwrap().sessions;
        sessions.renewed += 1;
        if sessions.refused {
            return Err(ApiError::NoLeader(ShardId::META).into());
        }
        let lease_until_ms = (!sessions.gone).then_some(1_000 + sessions.renewed);
        let renewed = |session| v1::RenewedSession { session, lease_until_ms };
        let sessions = request.into_inner().sessions.into_iter().map(renewed).collect();
        Ok(Response::new(v1::RenewSessionsReply { sessions }))
    }

    async fn close_session(
        &self,
        _: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionReply>, Status> {
        self.0.lock().unwrap().sessions.gone = true;
        Ok(Response::new(v1::CloseSessionReply {}))
    }

    async fn get_session(
        &self,
        _: Request<v1::GetSessionRequest>,
    ) -> Result<Response<v1::GetSessionReply>, Status> {
        self.0.lock().unwrap().asked += 1;
        Err(ApiError::NoLeader(ShardId::META).into())
    }

    async fn list_sessions(
        &self,
        _: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsReply>, Status> {
        Err(Status::unimplemented("not in these scripts"))
    }
}
