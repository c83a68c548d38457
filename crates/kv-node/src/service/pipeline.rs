//! The pipeline: batches of requests in, batches of replies out, in any order.
//!
//! A unary call costs tens of microseconds of HTTP/2 and scheduling; a request of a batch costs a fraction of one. Two
//! tasks serve a stream. The *reader* decodes a batch, sorts it by shard and puts each shard's part into its mailbox
//! at once. The *writer* takes all answers that have gathered, reads the rows that reads asked for, and sends one
//! frame. Requests in flight are bounded: at the limit the reader stops, and HTTP/2 holds the client back.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_proto::request::{Commit, Request as Op};
use kv_proto::status::ApiError;
use kv_proto::validate::Context;
use kv_proto::{request_id, v1, validate};
use kv_shard::{WriteFailure, Written};
use kv_txn::Looked;
use kv_types::ShardId;
use kv_types::limits::{PIPELINE_FRAME_BYTES_MAX, PIPELINE_FRAME_REQUESTS_MAX, PIPELINE_IN_FLIGHT_MAX};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use v1::pipeline_reply::Result as Reply;

use crate::answer::WriteReply;
use crate::clock;
use crate::gateway::{Gateway, ShardHandle, encode, until};
use crate::mailbox::Request as Mail;
use crate::service::kv::one_shard;
use crate::service::txn::TxnService;
use crate::txns::Txns;
use crate::waiter::{PipelineRead, PipelineSink, ReadKind, Ready, Waiter, WriteKind};

/// Frames that wait for the client to take them.
const FRAMES_AHEAD: usize = 2;

/// Reads of one stream that find out about locks at a time.
const LATE_READS_MAX: usize = 64;

/// Replies stop being added to a frame at this size; the largest single reply still fits behind it.
const FRAME_BYTES_TARGET: usize = 1 << 20;

type Frame = Result<v1::PipelineReplies, Status>;

/// Serves one stream until the client ends it.
pub(crate) fn serve(
    gateway: Arc<Gateway>,
    txns: Arc<Txns>,
    requests: Streaming<v1::PipelineRequests>,
) -> ReceiverStream<Frame> {
    let (frames, stream) = mpsc::channel(FRAMES_AHEAD);
    let sink = Arc::new(PipelineSink::default());
    let room = Arc::new(Semaphore::new(PIPELINE_IN_FLIGHT_MAX));
    let commits = TxnService { gateway: Arc::clone(&gateway), txns: Arc::clone(&txns) };
    let writer = Writer {
        gateway: Arc::clone(&gateway),
        txns,
        sink: Arc::clone(&sink),
        room: Arc::clone(&room),
        late: Arc::new(Semaphore::new(LATE_READS_MAX)),
        frames,
    };
    let reader = Reader { gateway, commits, sink, room };
    tokio::spawn(async move {
        let frames = writer.frames.clone();
        tokio::select! {
            failed = reader.run(requests) => {
                if let Err(error) = failed {
                    drop(frames.send(Err(error)).await);
                }
            }
            () = writer.run() => {}
        }
    });
    ReceiverStream::new(stream)
}

struct Reader {
    gateway: Arc<Gateway>,
    commits: TxnService,
    sink: Arc<PipelineSink>,
    room: Arc<Semaphore>,
}

impl Reader {
    /// Reads until the client ends the stream or the node is about to stop, then waits for all answers to leave. A node
    /// that stops ends the stream with `DRAINING`: all it read is answered by then, so what is unanswered never happened.
    async fn run(self, mut requests: Streaming<v1::PipelineRequests>) -> Result<(), Status> {
        let gateway = Arc::clone(&self.gateway);
        let end = loop {
            let batch = tokio::select! {
                biased;
                () = gateway.drained() => break Err(gateway.stopping().into()),
                batch = requests.message() => batch?,
            };
            let Some(batch) = batch else { break Ok(()) };
            if batch.requests.len() > PIPELINE_FRAME_REQUESTS_MAX {
                let text = format!("a batch has at most {PIPELINE_FRAME_REQUESTS_MAX} requests");
                // Of this frame nothing is done; what came before is answered first.
                break Err(ApiError::TooLarge(text).into());
            }
            let count = u32::try_from(batch.requests.len()).unwrap_or(u32::MAX);
            match self.room.acquire_many(count).await {
                Ok(room) => room.forget(),
                Err(_) => return Ok(()),
            }
            self.dispatch(batch);
        };
        let all = u32::try_from(PIPELINE_IN_FLIGHT_MAX).unwrap_or(u32::MAX);
        drop(self.room.acquire_many(all).await);
        end
    }

    fn dispatch(&self, batch: v1::PipelineRequests) {
        let gateway = &self.gateway;
        let context = validate::context(batch.context.as_ref(), &gateway.cluster);
        let mut writes: BTreeMap<ShardId, Vec<Mail>> = BTreeMap::new();
        let mut reads: BTreeMap<ShardId, Vec<PipelineRead>> = BTreeMap::new();
        for request in batch.requests {
            let id = request.id;
            let sorted = match &context {
                Err(error) => Err(error.clone()),
                Ok(context) => self.sort(context, request, &mut writes, &mut reads),
            };
            if let Err(error) = sorted {
                self.sink.push(Ready::Reply(failed(id, &error)));
            }
        }
        for (shard, reads) in reads {
            if gateway.shards.get(&shard).is_some_and(ShardHandle::is_readable) {
                self.sink.push(Ready::Reads { shard, reads, result: Ok(()) });
                continue;
            }
            let waiter = Waiter::PipelineReads { sink: Arc::clone(&self.sink), shard, reads };
            writes.entry(shard).or_default().push(Mail::Read(waiter));
        }
        for (shard, mail) in writes {
            let Some(handle) = gateway.shards.get(&shard) else { continue };
            for (request, refusal) in handle.mailbox.request(mail) {
                let error = gateway.refusal(handle, refusal);
                self.refuse(request, &error);
            }
        }
    }

    /// Puts a request to its shard's others.
    fn sort(
        &self,
        context: &Context,
        request: v1::PipelineRequest,
        writes: &mut BTreeMap<ShardId, Vec<Mail>>,
        reads: &mut BTreeMap<ShardId, Vec<PipelineRead>>,
    ) -> Result<(), ApiError> {
        let id = request.id;
        let until = until(validate::deadline(request.deadline_ms));
        let op = Op::try_from(request.op)?;
        let identity = request_id::read(request.request_id)?;
        let gateway = &self.gateway;
        let what = match op {
            Op::Get(get) => ReadKind::Get(get.key.into_bytes()),
            Op::MultiGet(get) => {
                let keys: Vec<Bytes> = get.keys.into_iter().map(kv_types::Key::into_bytes).collect();
                one_shard(gateway, &keys)?;
                ReadKind::MultiGet(keys)
            }
            Op::ScanPage(scan) => ReadKind::Page(Box::new(gateway.page(&scan)?)),
            Op::Commit(commit) => {
                let deadline = validate::deadline(request.deadline_ms);
                self.commit(id, Context { deadline, request: identity, ..*context }, commit);
                return Ok(());
            }
            write => {
                gateway.admit(context)?;
                let shard = gateway.route_write(write.routing_key())?.shard;
                let Some((command, kind)) = gateway.command(write)? else {
                    unreachable!("reads are sorted above")
                };
                let command = encode(identity, command)?;
                let waiter = Waiter::PipelineWrite { sink: Arc::clone(&self.sink), id, kind, shard };
                writes.entry(shard).or_default().push(Mail::Write { command, until, waiter });
                return Ok(());
            }
        };
        let shard = gateway.route(routing_key(&what))?.shard;
        reads.entry(shard).or_default().push(PipelineRead { id, until, what });
        Ok(())
    }

    /// Commits in a task of its own: it asks other nodes.
    fn commit(&self, id: u64, context: Context, commit: Commit) {
        let (commits, sink) = (self.commits.clone(), Arc::clone(&self.sink));
        tokio::spawn(async move {
            let committed = commits.run(context, commit, true).await;
            sink.push(Ready::Reply(reply(id, committed.map(Reply::Commit))));
        });
    }

    fn refuse(&self, request: Mail, error: &ApiError) {
        match request {
            Mail::Write { waiter: Waiter::PipelineWrite { id, .. }, .. } => {
                self.sink.push(Ready::Reply(failed(id, error)))
            }
            Mail::Read(Waiter::PipelineReads { reads, .. }) => {
                for read in reads {
                    self.sink.push(Ready::Reply(failed(read.id, error)));
                }
            }
            Mail::Write { .. } | Mail::Read(_) => unreachable!("a pipeline sends its own waiters only"),
        }
    }
}

fn routing_key(what: &ReadKind) -> &[u8] {
    match what {
        ReadKind::Get(key) => key,
        ReadKind::MultiGet(keys) => keys.first().map_or(&[], |key| key),
        ReadKind::Page(page) => page.range.start(),
    }
}

fn failed(id: u64, error: &ApiError) -> v1::PipelineReply {
    v1::PipelineReply { id, result: Some(Reply::Error(error.to_pipeline())) }
}

struct Writer {
    gateway: Arc<Gateway>,
    txns: Arc<Txns>,
    sink: Arc<PipelineSink>,
    room: Arc<Semaphore>,
    /// Bounds the reads that find out about locks at a time, each of which may hold a page.
    late: Arc<Semaphore>,
    frames: mpsc::Sender<Frame>,
}

impl Writer {
    /// Sends answers until the client is gone.
    async fn run(&self) {
        loop {
            let ready = self.sink.take().await;
            let mut frame = FrameBuilder::default();
            for ready in ready {
                if !self.answer(ready, &mut frame).await {
                    return;
                }
            }
            if !frame.replies.is_empty() && !self.send(&mut frame).await {
                return;
            }
        }
    }

    /// Adds one reply, or one after the other for each read: a batch of reads may ask for more rows than memory should
    /// hold at a time. Whether the client is still there.
    async fn answer(&self, ready: Ready, frame: &mut FrameBuilder) -> bool {
        let gateway = &self.gateway;
        let (shard, reads, result) = match ready {
            Ready::Reply(reply) => return self.add(frame, reply).await,
            Ready::Written { id, kind, shard, result } => {
                let reply = self.written(id, kind, shard, result);
                return self.add(frame, reply).await;
            }
            Ready::Reads { shard, reads, result } => (shard, reads, result),
        };
        let Some(handle) = gateway.shards.get(&shard) else { return true };
        gateway.metrics.reads.inc_by(reads.len() as u64);
        let failure = result.err().map(|failure| gateway.read_failure(handle, failure));
        for read in reads {
            let reply = match &failure {
                Some(error) => failed(read.id, error),
                None if read.until <= clock::now() => {
                    gateway.metrics.expired.inc();
                    failed(read.id, &ApiError::Expired)
                }
                None => match self.read(handle, read) {
                    Some(reply) => reply,
                    None => continue,
                },
            };
            if !self.add(frame, reply).await {
                return false;
            }
        }
        true
    }

    async fn add(&self, frame: &mut FrameBuilder, reply: v1::PipelineReply) -> bool {
        if frame.is_full() {
            if !self.send(frame).await {
                return false;
            }
            // Replicas share these threads: one client's pages must not hold up heartbeats.
            tokio::task::yield_now().await;
        }
        frame.add(reply);
        true
    }

    async fn send(&self, frame: &mut FrameBuilder) -> bool {
        let replies = std::mem::take(frame).replies;
        let count = replies.len();
        let batch = v1::PipelineReplies { cluster: self.gateway.cluster.clone(), replies };
        let sent = self.frames.send(Ok(batch)).await.is_ok();
        self.room.add_permits(count);
        sent
    }

    fn written(
        &self,
        id: u64,
        kind: WriteKind,
        shard: ShardId,
        result: Result<Written, WriteFailure>,
    ) -> v1::PipelineReply {
        let gateway = &self.gateway;
        gateway.metrics.writes.inc();
        let result = match (result, gateway.shards.get(&shard)) {
            (Ok(written), _) => match gateway.write_reply(kind, shard, written, true) {
                Ok(WriteReply::Put(reply)) => Reply::Put(reply),
                Ok(WriteReply::Delete(reply)) => Reply::Delete(reply),
                Ok(WriteReply::DeleteRange(reply)) => Reply::DeleteRange(reply),
                Ok(WriteReply::CompareAndSet(reply)) => Reply::CompareAndSet(reply),
                Ok(WriteReply::Increment(reply)) => Reply::Increment(reply),
                Ok(WriteReply::Outcome(_)) => unreachable!("a pipeline settles nothing"),
                Err(error) => Reply::Error(error.to_pipeline()),
            },
            (Err(failure), Some(handle)) => {
                Reply::Error(gateway.write_failure(handle, failure).to_pipeline())
            }
            (Err(_), None) => Reply::Error(ApiError::UnknownShard(shard).to_pipeline()),
        };
        v1::PipelineReply { id, result: Some(result) }
    }

    /// Reads rows that may be read now; `None` if a writer's lock lies on them: then the answer comes later.
    fn read(&self, shard: &ShardHandle, read: PipelineRead) -> Option<v1::PipelineReply> {
        match look(&self.gateway, shard, &read.what) {
            Ok(looked) if looked.owners.is_empty() => Some(reply(read.id, Ok(looked.found))),
            Ok(_) => {
                self.read_late(shard.clone(), read);
                None
            }
            Err(error) => Some(reply(read.id, Err(error))),
        }
    }

    /// Reads in a task of its own, which finds out about the locks.
    fn read_late(&self, shard: ShardHandle, read: PipelineRead) {
        let (gateway, txns) = (Arc::clone(&self.gateway), Arc::clone(&self.txns));
        let (sink, late) = (Arc::clone(&self.sink), Arc::clone(&self.late));
        tokio::spawn(async move {
            let left = || read.until.since(clock::now());
            // Never closed.
            let found = match timeout(left(), late.acquire()).await {
                Err(_) => Err(ApiError::Expired),
                Ok(_room) => txns.read(&shard, Some(left()), || look(&gateway, &shard, &read.what)).await,
            };
            sink.push(Ready::Reply(reply(read.id, found)));
        });
    }
}

fn look(gateway: &Gateway, shard: &ShardHandle, what: &ReadKind) -> Result<Looked<Reply>, ApiError> {
    Ok(match what {
        ReadKind::Get(key) => gateway.get(shard, key, true)?.map(Reply::Get),
        ReadKind::MultiGet(keys) => gateway.multi_get(shard, keys, true)?.map(Reply::MultiGet),
        ReadKind::Page(page) => gateway.one_page(shard, page, true)?.map(Reply::ScanPage),
    })
}

fn reply(id: u64, found: Result<Reply, ApiError>) -> v1::PipelineReply {
    let result = found.unwrap_or_else(|error| Reply::Error(error.to_pipeline()));
    v1::PipelineReply { id, result: Some(result) }
}

/// Replies on their way into one frame.
#[derive(Default)]
struct FrameBuilder {
    replies: Vec<v1::PipelineReply>,
    bytes: usize,
}

const _: () =
    assert!(FRAME_BYTES_TARGET * 3 < PIPELINE_FRAME_BYTES_MAX, "one more page fits behind a full frame");

impl FrameBuilder {
    fn is_full(&self) -> bool {
        self.bytes >= FRAME_BYTES_TARGET || self.replies.len() >= PIPELINE_FRAME_REQUESTS_MAX
    }

    fn add(&mut self, reply: v1::PipelineReply) {
        // Only rows are large, and keys may be; the rest is noise beside the target.
        self.bytes += match &reply.result {
            Some(Reply::Get(get)) => get.row.as_ref().map_or(0, row_bytes),
            Some(Reply::MultiGet(get)) => get.rows.iter().map(row_bytes).sum(),
            Some(Reply::ScanPage(page)) => page.rows.iter().map(row_bytes).sum(),
            Some(Reply::CompareAndSet(cas)) => cas.current.as_ref().map_or(0, row_bytes),
            Some(Reply::Commit(commit)) => commit.conflict.len(),
            Some(
                Reply::Error(_)
                | Reply::Put(_)
                | Reply::Delete(_)
                | Reply::DeleteRange(_)
                | Reply::Increment(_),
            )
            | None => 0,
        };
        self.replies.push(reply);
    }
}

fn row_bytes(row: &v1::Row) -> usize {
    row.key.len() + row.value.len()
}
