//! What waits for a replica: bounded, filled from any thread, emptied whole by the replica's task.
//!
//! Emptying everything at once is what makes batches: all that arrived while the replica was busy becomes one
//! proposal, one WAL record and one append to each follower.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use kv_raft::{Message, Refused, Target, WriteId};
use kv_shard::ReplicaStatus;
use kv_state::cluster::Settings;
use kv_storage::{
    Checkpoint, CheckpointDone, Generation, ReceivedSnapshot, Regeneration, SnapshotSource, StoreError,
};
use kv_types::limits::{MAILBOX_BYTES_MAX, MAILBOX_LEN_MAX, PEER_QUEUE_BYTES_MAX, PEER_QUEUE_LEN_MAX};
use kv_types::{LogId, LogIndex, Nanos, NodeId, Term};
use tokio::sync::{Notify, oneshot};

use crate::links::message_bytes;
use crate::waiter::Waiter;

/// A request of a client for the replica.
#[derive(Debug)]
pub(crate) enum Request {
    /// A command to replicate.
    Write {
        /// The command, encoded.
        command: Bytes,
        /// When nobody waits for it any more.
        until: Nanos,
        /// Who waits for it.
        waiter: Waiter,
    },
    /// Tells the waiter when the rows may be read.
    Read(Waiter),
}

/// What the node itself wants of the replica. Rare, so not counted against limits.
#[derive(Debug)]
pub(crate) enum Control {
    /// The replica at this instant.
    Status(oneshot::Sender<ReplicaStatus>),
    /// The rows found at the start are what they should be, or not.
    Verified(Result<(), StoreError>),
    /// Begin a checkpoint if there is anything to merge.
    BeginCheckpoint(oneshot::Sender<Option<Checkpoint>>),
    /// A checkpoint is complete.
    CheckpointDone(CheckpointDone),
    /// A checkpoint has found damage, and is over.
    CheckpointFailed(String),
    /// Somebody has found that the rows of a generation are damaged.
    Damaged(Generation, String),
    /// Give up log entries kept for slow followers.
    CompactToBase,
    /// The rows as a stream.
    SnapshotSource(oneshot::Sender<SnapshotSource>),
    /// The rows as a stream into a new generation, and the newest generation so far; none if that is not the time.
    RegenerationSource(oneshot::Sender<Option<(SnapshotSource, Generation)>>),
    /// The new generation has caught up: begin the checkpoint that ends it; it comes back if that is not the time.
    EndRegeneration(Box<Regeneration>, oneshot::Sender<Result<Checkpoint, Box<Regeneration>>>),
    /// A snapshot stream to a peer has ended.
    SnapshotSent(NodeId, Result<LogId, ()>),
    /// A snapshot has been received; answered by what is applied once it was installed or dropped.
    SnapshotReceived(NodeId, Term, ReceivedSnapshot, oneshot::Sender<LogId>),
    /// Rows of a peer have been received in the place of damaged ones.
    RepairReceived(ReceivedSnapshot),
    /// A peer cannot be reached.
    Unreachable(NodeId),
    /// The settings of the cluster, which it shall follow from now on.
    Settings(Settings),
    /// Change the members of the group.
    Reconfigure(Target, oneshot::Sender<Result<LogIndex, Refused>>),
    /// Hand the leadership over.
    Transfer(NodeId, oneshot::Sender<Result<(), Refused>>),
    /// Start an election.
    Campaign,
}

/// Everything that waited.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) control: Vec<Control>,
    pub(crate) messages: Vec<Message>,
    pub(crate) requests: Vec<Request>,
    /// The newest record known durable, if that moved.
    pub(crate) persisted: Option<WriteId>,
    bytes: usize,
    writes: usize,
    message_bytes: usize,
}

/// Why a request was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many requests or bytes wait already.
    Full,
    /// The replica has stopped.
    Closed,
}

/// The mailbox of one replica.
#[derive(Debug)]
pub(crate) struct Mailbox {
    mail: Mutex<Option<Mail>>,
    arrived: Notify,
    /// Writes that may wait here; the replica says how many it will take.
    writes_max: AtomicUsize,
}

impl Mailbox {
    pub(crate) fn new() -> Self {
        Self {
            mail: Mutex::new(Some(Mail::default())),
            arrived: Notify::new(),
            writes_max: AtomicUsize::new(MAILBOX_LEN_MAX),
        }
    }

    /// Adds requests in order; those that do not fit come back.
    pub(crate) fn request(&self, requests: impl IntoIterator<Item = Request>) -> Vec<(Request, Refusal)> {
        let mut refused = Vec::new();
        let mut guard = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        for request in requests {
            let Some(mail) = guard.as_mut() else {
                refused.push((request, Refusal::Closed));
                continue;
            };
            let (bytes, writes) = match &request {
                Request::Write { command, .. } => (command.len(), 1),
                Request::Read(_) => (0, 0),
            };
            let is_full = mail.requests.len() >= MAILBOX_LEN_MAX
                || mail.bytes + bytes > MAILBOX_BYTES_MAX
                || mail.writes + writes > self.writes_max.load(Ordering::Relaxed);
            if is_full {
                refused.push((request, Refusal::Full));
            } else {
                mail.bytes += bytes;
                mail.writes += writes;
                mail.requests.push(request);
            }
        }
        drop(guard);
        self.arrived.notify_one();
        refused
    }

    /// Takes no more than so many writes until it is emptied.
    pub(crate) fn set_writes_max(&self, writes: usize) {
        self.writes_max.store(writes, Ordering::Relaxed);
    }

    /// Adds messages of peers; those beyond the limit are dropped, which Raft tolerates. How many were.
    pub(crate) fn messages(&self, messages: impl IntoIterator<Item = Message>) -> usize {
        let mut dropped = 0;
        self.with(|mail| {
            for message in messages {
                let bytes = message_bytes(&message);
                let fits = mail.message_bytes + bytes <= PEER_QUEUE_BYTES_MAX;
                if fits && mail.messages.len() < PEER_QUEUE_LEN_MAX {
                    mail.message_bytes += bytes;
                    mail.messages.push(message);
                } else {
                    dropped += 1;
                }
            }
        });
        dropped
    }

    /// Adds a wish of the node; dropped (and so answered by a closed channel) if the replica has stopped.
    pub(crate) fn control(&self, control: Control) {
        self.with(|mail| mail.control.push(control));
    }

    /// Records up to this one are durable.
    pub(crate) fn persisted(&self, upto: WriteId) {
        self.with(|mail| mail.persisted = mail.persisted.max(Some(upto)));
    }

    /// Waits until something has arrived.
    pub(crate) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Takes everything.
    pub(crate) fn take(&self) -> Mail {
        let mut guard = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        guard.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Takes everything and refuses all that comes later.
    pub(crate) fn close(&self) -> Mail {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_default()
    }

    fn with(&self, add: impl FnOnce(&mut Mail)) {
        let mut guard = self.mail.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mail) = guard.as_mut() {
            add(mail);
        }
        drop(guard);
        self.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use kv_raft::{MessageKind, Round};
    use kv_types::{Body, Entry, Lamport, LogIndex};

    use super::*;

    fn write(bytes: usize) -> Request {
        let (answer, _) = oneshot::channel();
        let command = Bytes::from(vec![0; bytes]);
        Request::Write { command, until: Nanos::new(u64::MAX), waiter: Waiter::Write(answer) }
    }

    #[test]
    fn requests_beyond_count_or_bytes_come_back() {
        let mailbox = Mailbox::new();
        let refused = mailbox.request((0..=MAILBOX_LEN_MAX).map(|_| write(0)));
        assert!(matches!(refused.as_slice(), [(_, Refusal::Full)]));
        assert_eq!(mailbox.take().requests.len(), MAILBOX_LEN_MAX);
        assert!(mailbox.request([write(MAILBOX_BYTES_MAX)]).is_empty());
        assert!(matches!(mailbox.request([write(1)]).as_slice(), [(_, Refusal::Full)]));
        assert_eq!(mailbox.take().requests.len(), 1);
        assert!(mailbox.request([write(1)]).is_empty());
        mailbox.take();
        mailbox.set_writes_max(1);
        assert!(matches!(mailbox.request([write(1), write(1)]).as_slice(), [(_, Refusal::Full)]));
        let (answer, _) = oneshot::channel();
        assert!(mailbox.request([Request::Read(Waiter::Read(answer))]).is_empty(), "a read is no write");
        mailbox.take();
        assert!(mailbox.request([write(1)]).is_empty());
    }

    fn append(bytes: usize) -> Message {
        let body = Body::Command(Bytes::from(vec![0; bytes]));
        let entries = vec![Entry { id: LogId::ZERO, stamp: Lamport::ZERO, body }];
        let kind = MessageKind::Append {
            prev: LogId::ZERO,
            last: LogId::ZERO,
            entries,
            commit: LogIndex::ZERO,
            round: Round::default(),
            promise_ms: 0,
        };
        Message { from: NodeId::new(1), to: NodeId::new(2), term: Term::new(1), kind }
    }

    #[test]
    fn messages_beyond_count_or_bytes_are_dropped() {
        let mailbox = Mailbox::new();
        assert_eq!(mailbox.messages((0..=PEER_QUEUE_LEN_MAX).map(|_| append(0))), 1);
        assert_eq!(mailbox.take().messages.len(), PEER_QUEUE_LEN_MAX);
        let half = PEER_QUEUE_BYTES_MAX / 2 - message_bytes(&append(0));
        assert_eq!(mailbox.messages([append(half), append(half), append(1)]), 1);
        assert_eq!(mailbox.take().messages.len(), 2);
        assert_eq!(mailbox.messages([append(half)]), 0);
    }

    #[test]
    fn a_closed_mailbox_says_so() {
        let mailbox = Mailbox::new();
        mailbox.persisted(WriteId::ZERO);
        assert_eq!(mailbox.close().persisted, Some(WriteId::ZERO));
        assert!(matches!(mailbox.request([write(1)]).as_slice(), [(_, Refusal::Closed)]));
    }
}
