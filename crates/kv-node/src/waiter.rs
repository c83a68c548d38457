//! Who waits for a replica's answer, and how a pipeline gathers its answers.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use kv_proto::v1;
use kv_shard::{ReadFailure, WriteFailure, Written};
use kv_types::{Nanos, ShardId};
use tokio::sync::{Notify, oneshot};

/// Whoever waits for a write or a read.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A unary call that writes.
    Write(oneshot::Sender<Result<Written, WriteFailure>>),
    /// Several that share an entry.
    Together(Vec<oneshot::Sender<Result<Written, WriteFailure>>>),
    /// A call that reads.
    Read(oneshot::Sender<Result<(), ReadFailure>>),
    /// A write of a pipeline.
    PipelineWrite {
        /// The pipeline.
        sink: Arc<PipelineSink>,
        /// The client's id of the request.
        id: u64,
        /// What was asked, which decides the shape of the answer.
        kind: WriteKind,
        /// The shard.
        shard: ShardId,
    },
    /// All reads of one shard in one batch of a pipeline.
    PipelineReads {
        /// The pipeline.
        sink: Arc<PipelineSink>,
        /// The shard.
        shard: ShardId,
        /// The reads.
        reads: Vec<PipelineRead>,
    },
}

/// What kind of write an answer belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum WriteKind {
    /// A put.
    Put,
    /// A deletion of one key.
    Delete,
    /// A deletion of a range.
    DeleteRange {
        /// The range's start within the shard.
        start: Bytes,
        /// Where the range goes on behind the shard, if it does.
        beyond: Option<Bytes>,
    },
    /// A compare-and-set.
    CompareAndSet,
    /// An increment.
    Increment,
    /// A settling of a request, whose answer is its outcome.
    Settle,
}

/// A read of a pipeline.
#[derive(Debug)]
pub(crate) struct PipelineRead {
    /// The client's id of the request.
    pub(crate) id: u64,
    /// When nobody waits for it any more.
    pub(crate) until: Nanos,
    /// What is read.
    pub(crate) what: ReadKind,
}

/// What a read wants.
#[derive(Debug)]
pub(crate) enum ReadKind {
    /// One key.
    Get(Bytes),
    /// Several keys at one revision.
    MultiGet(Vec<Bytes>),
    /// A page of a range.
    Page(Box<crate::gateway::PageRequest>),
}

/// An answer on its way to a pipeline's client.
#[derive(Debug)]
pub(crate) enum Ready {
    /// A write has an answer.
    Written {
        /// The client's id of the request.
        id: u64,
        /// What was asked.
        kind: WriteKind,
        /// The shard.
        shard: ShardId,
        /// The answer.
        result: Result<Written, WriteFailure>,
    },
    /// Reads may be served from the rows as they are now.
    Reads {
        /// The shard.
        shard: ShardId,
        /// The reads.
        reads: Vec<PipelineRead>,
        /// Whether they may.
        result: Result<(), ReadFailure>,
    },
    /// A reply that was complete at once.
    Reply(v1::PipelineReply),
}

/// Where the answers of one pipeline gather until its writer takes them all.
///
/// Bounded by the requests in flight on the stream, which its reader limits.
#[derive(Debug, Default)]
pub(crate) struct PipelineSink {
    ready: Mutex<Vec<Ready>>,
    arrived: Notify,
}

impl PipelineSink {
    /// Adds an answer.
    pub(crate) fn push(&self, ready: Ready) {
        let mut queue = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        let first = queue.is_empty();
        queue.push(ready);
        drop(queue);
        if first {
            self.arrived.notify_one();
        }
    }

    /// Waits for answers and takes them all.
    pub(crate) async fn take(&self) -> Vec<Ready> {
        loop {
            let ready = std::mem::take(&mut *self.ready.lock().unwrap_or_else(PoisonError::into_inner));
            if !ready.is_empty() {
                return ready;
            }
            self.arrived.notified().await;
        }
    }
}

impl Waiter {
    /// Answers a write.
    pub(crate) fn written(self, result: Result<Written, WriteFailure>) {
        match self {
            // A caller that has gone away does not mind.
            Self::Write(answer) => drop(answer.send(result)),
            Self::Together(answers) => {
                for answer in answers {
                    drop(answer.send(result.clone()));
                }
            }
            Self::PipelineWrite { sink, id, kind, shard } => {
                sink.push(Ready::Written { id, kind, shard, result })
            }
            Self::Read(_) | Self::PipelineReads { .. } => unreachable!("a read is never answered as a write"),
        }
    }

    /// Answers a read: the rows may be read now, or not.
    pub(crate) fn readable(self, result: Result<(), ReadFailure>) {
        match self {
            Self::Read(answer) => drop(answer.send(result)),
            Self::PipelineReads { sink, shard, reads } => sink.push(Ready::Reads { shard, reads, result }),
            Self::Write(_) | Self::Together(_) | Self::PipelineWrite { .. } => {
                unreachable!("a write is never answered as a read")
            }
        }
    }
}
