//! What the layer has done.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use kv_client::v1;
use v1::pipeline_reply::Result as Reply;

/// What the layer has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Writes passed on, retries by clients included.
    pub writes: u64,
    /// Answers dropped one by one.
    pub replies_lost: u64,
    /// Streams broken.
    pub streams_broken: u64,
    /// Answers that were in the frame at which a stream was broken.
    pub replies_broken: u64,
    /// Writes sent twice at once.
    pub twice: u64,
    /// Writes sent again within a second.
    pub soon: u64,
    /// Writes sent again late.
    pub late: u64,
    /// Of the late ones, those that began at another node than their original.
    pub elsewhere: u64,
    /// Doubles that wait for their time now.
    pub waiting: u64,
    /// Writes that were to be doubled and were not, as too many doubles waited or the node was away.
    pub not_doubled: u64,
    /// Answers about sessions replaced by an error.
    pub session_replies_lost: u64,
    /// Answers to doubles that an earlier attempt had been carried out.
    pub replayed: u64,
    /// Answers to doubles that were carried out themselves, before their originals.
    pub first: u64,
    /// Refusals of doubles, by reason.
    pub refused: BTreeMap<String, u64>,
}

/// The same, while it is counted.
#[derive(Debug, Default)]
pub(super) struct Counts {
    writes: AtomicU64,
    replies_lost: AtomicU64,
    streams_broken: AtomicU64,
    replies_broken: AtomicU64,
    twice: AtomicU64,
    soon: AtomicU64,
    late: AtomicU64,
    elsewhere: AtomicU64,
    waiting: AtomicU64,
    not_doubled: AtomicU64,
    session_replies_lost: AtomicU64,
    replayed: AtomicU64,
    first: AtomicU64,
    refused: Mutex<BTreeMap<String, u64>>,
}

fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

impl Counts {
    pub(super) fn writes(&self, count: usize) {
        add(&self.writes, count);
    }

    pub(super) fn replies_lost(&self, count: usize) {
        add(&self.replies_lost, count);
    }

    pub(super) fn stream_broken(&self, replies: usize) {
        add(&self.streams_broken, 1);
        add(&self.replies_broken, replies);
    }

    pub(super) fn twice(&self, count: usize) {
        add(&self.twice, count);
    }

    pub(super) fn soon(&self) {
        add(&self.soon, 1);
    }

    pub(super) fn late(&self, elsewhere: bool) {
        add(&self.late, 1);
        add(&self.elsewhere, usize::from(elsewhere));
    }

    pub(super) fn waiting(&self, count: usize) {
        self.waiting.store(count as u64, Ordering::Relaxed);
    }

    pub(super) fn not_doubled(&self) {
        add(&self.not_doubled, 1);
    }

    pub(super) fn session_reply_lost(&self) {
        add(&self.session_replies_lost, 1);
    }

    /// What a double was answered.
    pub(super) fn answered(&self, result: Option<&Reply>) {
        let header = match result {
            Some(Reply::Put(reply)) => reply.header.as_ref(),
            Some(Reply::Delete(reply)) => reply.header.as_ref(),
            Some(Reply::DeleteRange(reply)) => reply.header.as_ref(),
            Some(Reply::CompareAndSet(reply)) => reply.header.as_ref(),
            Some(Reply::Increment(reply)) => reply.header.as_ref(),
            Some(Reply::Commit(reply)) => reply.header.as_ref(),
            Some(Reply::Error(error)) => return self.refused(error),
            Some(Reply::Get(_) | Reply::MultiGet(_) | Reply::ScanPage(_)) | None => None,
        };
        match header {
            Some(header) if header.replayed => add(&self.replayed, 1),
            _ => add(&self.first, 1),
        }
    }

    fn refused(&self, error: &v1::PipelineError) {
        let reason = error.detail.as_ref().map(v1::ErrorDetail::reason).unwrap_or_default();
        let word = reason.as_str_name().trim_start_matches("REASON_").to_ascii_lowercase();
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(word).or_default() += 1;
    }

    pub(super) fn read(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counted {
            writes: read(&self.writes),
            replies_lost: read(&self.replies_lost),
            streams_broken: read(&self.streams_broken),
            replies_broken: read(&self.replies_broken),
            twice: read(&self.twice),
            soon: read(&self.soon),
            late: read(&self.late),
            elsewhere: read(&self.elsewhere),
            waiting: read(&self.waiting),
            not_doubled: read(&self.not_doubled),
            session_replies_lost: read(&self.session_replies_lost),
            replayed: read(&self.replayed),
            first: read(&self.first),
            refused: self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
