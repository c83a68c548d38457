//! The one thread that writes the node's WAL: it gathers the records of all shards and makes them durable by one
//! fdatasync (group commit).
//!
//! On a full disk, entries wait until there is room for another segment. Records without entries have a reserve of their own
//! in the last segment and go on, past the entries of other shards: a node that cannot write its vote is lost to all. What
//! a merge says goes past those of its own shard, too: it lets segments go.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kv_raft::WriteId;
use kv_storage::wal::{Hurry, NextSegment, Released, Wal, WalError};
use kv_storage::{WalOp, WalRecord};
use kv_types::ShardId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use crate::fatal::Fatal;
use crate::mailbox::Mailbox;
use crate::planted::{self, Planted, is_planted};

/// Records that may wait for the disk.
const QUEUE_LEN_MAX: usize = 4096;

/// Records in one group.
const GROUP_RECORDS_MAX: usize = 1024;

/// Bytes of records in one group; a larger record stands alone.
const GROUP_BYTES_MAX: u64 = 16 << 20;

/// A group that held more writes than this is followed by the next one only after [`GROUP_GAP`]: under load larger
/// groups cost less than more of them.
const BUSY_GROUP: usize = 8;

/// After each mebibyte of zeros for the next segment: commits must not wait for a burst of them on the same disk. A
/// segment then takes about two seconds, far less than the rest of the one before it lasts.
const ZEROS_PAUSE: Duration = Duration::from_millis(30);

/// From the start of one group to the start of the next while busy.
const GROUP_GAP: Duration = Duration::from_micros(200);

/// Without traffic for this long, it is noted that the last group is durable.
const IDLE_NOTE: Duration = Duration::from_millis(10);

/// How often a full disk is tried again.
const FULL_RETRY: Duration = Duration::from_millis(500);

/// Who is told that a record is durable.
#[derive(Debug)]
pub(crate) enum Durable {
    /// A replica, which waits for this write.
    Replica(Arc<Mailbox>, WriteId),
    /// Somebody who waits for this one record.
    Waiter(oneshot::Sender<()>),
    /// Nobody.
    Nobody,
}

#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "nearly every job is a write: a box would cost it an allocation"
)]
enum Job {
    Write(WalRecord, Durable),
    Release(oneshot::Sender<Released>),
}

/// The way to the WAL's thread; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct WalWriter {
    jobs: mpsc::Sender<Job>,
}

impl WalWriter {
    /// Starts the thread. It ends when all handles are gone and everything is written, or on the first error, which
    /// stops the node.
    pub(crate) fn start(
        wal: Wal,
        fatal: Fatal,
        stop: CancellationToken,
        bytes: Gauge,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE_LEN_MAX);
        let idle = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let thread = std::thread::Builder::new().name("wal".to_owned()).spawn(move || {
            let _guard = fatal.on_panic("the WAL's thread".to_owned());
            if let Err(cause) = run(wal, queue, idle, &bytes, &stop) {
                error!(error = &cause as &dyn std::error::Error, "the WAL cannot be written: the node stops");
                fatal.stop(format!("the WAL cannot be written: {cause}"));
            }
        })?;
        Ok((Self { jobs }, thread))
    }

    /// Hands a record over, after all records handed over before. Waits while too many are on their way.
    pub(crate) async fn write(&self, record: WalRecord, durable: Durable) {
        // The thread is gone only when the node stops.
        drop(self.jobs.send(Job::Write(record, durable)).await);
    }

    /// Hands a record over from a thread and waits until it is durable; `false` if the node stops.
    pub(crate) fn write_and_wait(&self, record: WalRecord) -> bool {
        let (done, durable) = oneshot::channel();
        self.jobs.blocking_send(Job::Write(record, Durable::Waiter(done))).is_ok()
            && durable.blocking_recv().is_ok()
    }

    /// Removes segments that nothing needs.
    pub(crate) async fn release(&self) -> Option<Released> {
        let (done, released) = oneshot::channel();
        self.jobs.send(Job::Release(done)).await.ok()?;
        released.await.ok()
    }
}

/// The thread that prepares the next segment, joined when this is dropped: it must not write to the directory after
/// the WAL's thread has ended.
#[derive(Debug, Default)]
struct Preparing {
    thread: Option<(JoinHandle<()>, Hurry)>,
}

impl Preparing {
    fn start(&mut self, next: NextSegment) {
        // The one before is done: there is only one next segment at a time.
        self.join();
        let hurry = next.hurry();
        let make = move || next.make(|| std::thread::sleep(ZEROS_PAUSE));
        let thread = std::thread::Builder::new().name("wal-zeros".to_owned()).spawn(make);
        // Without a thread the segment is made when it is needed, which only takes longer.
        self.thread = thread.ok().map(|thread| (thread, hurry));
    }

    fn join(&mut self) {
        if let Some((thread, hurry)) = self.thread.take() {
            hurry.up();
            // A thread that panicked has made no segment, which the WAL sees for itself.
            drop(thread.join());
        }
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        self.join();
    }
}

fn run(
    mut wal: Wal,
    queue: mpsc::Receiver<Job>,
    idle: Runtime,
    bytes: &Gauge,
    stop: &CancellationToken,
) -> Result<(), WalError> {
    let mut jobs = Jobs { queue, idle, held: VecDeque::new() };
    let mut noted = true;
    let mut batch = Batch::default();
    let mut preparing = Preparing::default();
    loop {
        let next = if noted {
            jobs.next()
        } else {
            match jobs.next_within(IDLE_NOTE) {
                Ok(job) => job,
                Err(_) => {
                    wal.sync_note()?;
                    noted = true;
                    continue;
                }
            }
        };
        let Some(job) = next else { return wal.sync_note() };
        let started = Instant::now();
        jobs.fill(&mut batch, job);
        let writes = batch.records.len();
        if is_planted(Planted::FsyncSkipped) {
            batch.tell();
            std::thread::sleep(planted::UNWRITTEN);
        }
        if !batch.finish(&mut wal, stop)? {
            jobs.put_back(&mut batch);
            jobs.wait_for_room(&mut wal)?;
        }
        if let Some(next) = wal.next_segment() {
            preparing.start(next);
        }
        bytes.set(i64::try_from(wal.bytes()).unwrap_or(i64::MAX));
        noted = false;
        if writes > BUSY_GROUP {
            std::thread::sleep(GROUP_GAP.saturating_sub(started.elapsed()));
        }
    }
}

/// Where the jobs come from.
struct Jobs {
    queue: mpsc::Receiver<Job>,
    idle: Runtime,
    /// What was taken from the queue and did not fit into a group, or on the disk; it goes first.
    held: VecDeque<Job>,
}

impl Jobs {
    /// `None` when all is done.
    fn next(&mut self) -> Option<Job> {
        self.held.pop_front().or_else(|| self.queue.blocking_recv())
    }

    fn next_within(&mut self, time: Duration) -> Result<Option<Job>, tokio::time::error::Elapsed> {
        match self.held.pop_front() {
            Some(job) => Ok(Some(job)),
            None => self.idle.block_on(async { tokio::time::timeout(time, self.queue.recv()).await }),
        }
    }

    /// Begins a group with `job` and adds what waits, as far as it has room.
    fn fill(&mut self, batch: &mut Batch, job: Job) {
        batch.add(job);
        while !batch.is_full()
            && let Some(job) = self.held.pop_front().or_else(|| self.queue.try_recv().ok())
        {
            if !batch.has_room(&job) {
                self.held.push_front(job);
                break;
            }
            batch.add(job);
        }
    }

    /// Puts jobs back before all others.
    fn put_back(&mut self, batch: &mut Batch) {
        for job in batch.take_jobs().into_iter().rev() {
            self.held.push_front(job);
        }
    }

    /// Passes some time on a full disk, in which records without entries are written.
    fn wait_for_room(&mut self, wal: &mut Wal) -> Result<(), WalError> {
        let until = Instant::now() + FULL_RETRY;
        loop {
            let mut bare = self.take_bare();
            match wal.write(&bare.records) {
                Ok(()) => bare.tell(),
                Err(WalError::Full) => self.put_back(&mut bare),
                Err(cause) => return Err(cause),
            }
            let left = until.saturating_duration_since(Instant::now());
            let job = if self.held.len() < QUEUE_LEN_MAX {
                self.idle.block_on(async { tokio::time::timeout(left, self.queue.recv()).await })
            } else {
                Ok(None)
            };
            match job {
                Ok(Some(job)) => self.held.push_back(job),
                // No more are taken.
                Ok(None) => {
                    std::thread::sleep(left);
                    return Ok(());
                }
                Err(_) => return Ok(()),
            }
        }
    }

    /// The records that carry no entries and stand behind no entries of their shard, or need not.
    fn take_bare(&mut self) -> Batch {
        let (mut bare, mut held) = (Batch::default(), HeldBack::default());
        for job in std::mem::take(&mut self.held) {
            match &job {
                Job::Write(record, durable) if !bare.is_full() && held.lets_by(record, durable) => {
                    bare.add(job);
                }
                Job::Write(record, _) => {
                    held.add(record);
                    self.held.push_back(job);
                }
                Job::Release(_) => self.held.push_back(job),
            }
        }
        bare
    }
}

/// Whose records wait for room.
#[derive(Default)]
struct HeldBack {
    shards: BTreeSet<ShardId>,
    /// Those of whom not only entries and votes wait.
    in_order: BTreeSet<ShardId>,
}

impl HeldBack {
    fn add(&mut self, record: &WalRecord) {
        self.shards.insert(record.shard);
        if !matches!(record.op, WalOp::Raft { .. }) {
            self.in_order.insert(record.shard);
        }
    }

    /// Whether a record may be written before those held back. What a merge says may: it is what frees segments. A replica
    /// that waits for a record takes all before it for durable, too.
    fn lets_by(&self, record: &WalRecord, durable: &Durable) -> bool {
        let is_free = || match durable {
            Durable::Waiter(_) | Durable::Nobody => {
                record.op.is_of_base() && !self.in_order.contains(&record.shard)
            }
            Durable::Replica(..) => false,
        };
        record.op.is_bare() && (!self.shards.contains(&record.shard) || is_free())
    }
}

/// What one group is made of.
#[derive(Default)]
struct Batch {
    records: Vec<WalRecord>,
    durable: Vec<Durable>,
    releases: Vec<oneshot::Sender<Released>>,
    bytes: u64,
}

impl Batch {
    fn add(&mut self, job: Job) {
        match job {
            Job::Write(record, durable) => {
                self.bytes += record_bytes(&record);
                self.records.push(record);
                self.durable.push(durable);
            }
            Job::Release(done) => self.releases.push(done),
        }
    }

    /// A group is at most one record or [`GROUP_BYTES_MAX`]: a larger one might not fit into a segment.
    fn has_room(&self, job: &Job) -> bool {
        match job {
            Job::Write(record, _) => {
                self.records.is_empty() || self.bytes + record_bytes(record) <= GROUP_BYTES_MAX
            }
            Job::Release(_) => true,
        }
    }

    fn is_full(&self) -> bool {
        self.records.len() >= GROUP_RECORDS_MAX || self.bytes >= GROUP_BYTES_MAX
    }

    /// Tells those who wait that what they wait for is durable.
    fn tell(&mut self) {
        for durable in &mut self.durable {
            match std::mem::replace(durable, Durable::Nobody) {
                Durable::Replica(mailbox, id) => mailbox.persisted(id),
                Durable::Waiter(done) => drop(done.send(())),
                Durable::Nobody => {}
            }
        }
    }

    /// The jobs it was made of, as they were.
    fn take_jobs(&mut self) -> Vec<Job> {
        let Self { records, durable, releases, .. } = std::mem::take(self);
        let writes = records.into_iter().zip(durable).map(|(record, durable)| Job::Write(record, durable));
        writes.chain(releases.into_iter().map(Job::Release)).collect()
    }

    /// Does what it says; `false` if nothing was done, because the disk is full.
    fn finish(&mut self, wal: &mut Wal, stop: &CancellationToken) -> Result<bool, WalError> {
        while let Err(cause) = wal.write(&self.records) {
            if !matches!(cause, WalError::Full) || stop.is_cancelled() {
                return Err(cause);
            }
            // What nothing needs any more is room, too.
            if release(wal)?.is_some_and(|released| !released.dropped.is_empty()) {
                continue;
            }
            error!(
                "the disk is full: nothing can be written until space is freed; or stop the node, free its ballast (kvnode verify-data --free-ballast), start it again"
            );
            return Ok(false);
        }
        self.tell();
        self.records.clear();
        self.durable.clear();
        self.bytes = 0;
        for done in self.releases.drain(..) {
            // Without an answer the caller asks again later.
            if let Some(released) = release(wal)? {
                debug!(?released, "WAL released");
                drop(done.send(released));
            }
        }
        Ok(true)
    }
}

/// Removes segments that nothing needs; `None` if the disk is too full to copy what is left of one.
fn release(wal: &mut Wal) -> Result<Option<Released>, WalError> {
    match wal.release() {
        Ok(released) => Ok(Some(released)),
        Err(WalError::Full) => Ok(None),
        Err(cause) => Err(cause),
    }
}

/// What a record weighs in a group, its heads included.
fn record_bytes(record: &WalRecord) -> u64 {
    const HEAD_BYTES: u64 = 64;
    let entries = match &record.op {
        WalOp::Raft { append, .. } => {
            append.iter().map(|entry| HEAD_BYTES + entry.body.payload_bytes()).sum()
        }
        WalOp::Install { .. }
        | WalOp::MergeBegin(_)
        | WalOp::BaseAt(_)
        | WalOp::Regenerated(_)
        | WalOp::Compact(_)
        | WalOp::Damaged(_) => 0,
    };
    HEAD_BYTES + entries
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_storage::disk::faulty::VirtualDisk;
    use kv_storage::wal::WalOptions;
    use kv_storage::{Generation, MergeNote};
    use kv_types::{Body, Entry, HardState, Incarnation, Lamport, LogId, LogIndex, Term};

    use super::*;

    fn job(bytes: usize) -> Job {
        let body = Body::Command(Bytes::from(vec![0; bytes]));
        let append = vec![Entry { id: LogId::ZERO, stamp: Lamport::ZERO, body }];
        let op = WalOp::Raft { hard: None, truncate_from: None, append };
        Job::Write(WalRecord { shard: ShardId::META, op }, Durable::Nobody)
    }

    #[test]
    fn a_large_record_stands_alone_and_a_group_keeps_its_limit() {
        let mut batch = Batch::default();
        assert!(batch.has_room(&job(20 << 20)), "no other group would have room for it");
        batch.add(job(9 << 20));
        assert!(!batch.is_full() && batch.has_room(&job(6 << 20)));
        assert!(!batch.has_room(&job(9 << 20)));
    }

    /// Entries of shard 1 wait for room. Votes of shard 2 do not, nor does one that stood in their group; that of shard 1
    /// stays behind its entries, but not what a merge of it says.
    #[test]
    fn votes_go_past_entries_of_other_shards_on_a_full_disk() {
        let disk = Arc::new(VirtualDisk::new());
        let options = WalOptions {
            segment_bytes: 64 << 10,
            reserve_bytes: 16 << 10,
            ballast_bytes: 0,
            ..WalOptions::new(Incarnation::new(1))
        };
        let (mut wal, _) = Wal::open(Arc::<VirtualDisk>::clone(&disk), options.clone()).unwrap();
        disk.set_capacity(0);
        let (sender, queue) = mpsc::channel(8);
        let idle = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut jobs = Jobs { queue, idle, held: VecDeque::new() };
        let vote = |shard, term| {
            let hard = Some(HardState { term: Term::new(term), ..HardState::default() });
            let op = WalOp::Raft { hard, truncate_from: None, append: Vec::new() };
            let (done, durable) = oneshot::channel();
            let record = WalRecord { shard: ShardId::new(shard), op };
            (Job::Write(record, Durable::Waiter(done)), durable)
        };
        let entries = |term, index| {
            let id = LogId::new(Term::new(term), LogIndex::new(index));
            let body = Body::Command(Bytes::from(vec![0; 45_000]));
            let append = vec![Entry { id, stamp: Lamport::ZERO, body }];
            let op = WalOp::Raft { hard: None, truncate_from: None, append };
            Job::Write(WalRecord { shard: ShardId::new(1), op }, Durable::Nobody)
        };
        let merge = MergeNote { generation: Generation::default(), from: LogIndex::ZERO, to: LogIndex::ZERO };
        let note = |op| {
            let (done, durable) = oneshot::channel();
            (Job::Write(WalRecord { shard: ShardId::new(1), op }, Durable::Waiter(done)), durable)
        };
        let (merge, mut merge_durable) = note(WalOp::MergeBegin(merge));
        let (damaged, damaged_durable) = note(WalOp::Damaged(Generation::new(7)));
        let (late, late_durable) = note(WalOp::Compact(LogId::ZERO));
        let (first, mut first_durable) = vote(1, 1);
        let (with, mut with_durable) = vote(2, 1);
        let (after, mut after_durable) = vote(2, 2);
        let (behind, behind_durable) = vote(1, 2);
        let stop = CancellationToken::new();
        let mut batch = Batch::default();
        for job in [first, entries(1, 1), with, behind, merge, damaged, late] {
            batch.add(job);
        }
        assert!(!batch.finish(&mut wal, &stop).unwrap(), "there is no room");
        jobs.put_back(&mut batch);
        sender.try_send(after).unwrap();
        jobs.wait_for_room(&mut wal).unwrap();
        for durable in [&mut first_durable, &mut with_durable, &mut after_durable, &mut merge_durable] {
            durable.try_recv().unwrap();
        }
        let mut held = [behind_durable, damaged_durable, late_durable];
        assert!(held.iter_mut().all(|durable| durable.try_recv().is_err()));
        disk.set_capacity(1 << 20);
        let next = jobs.next().unwrap();
        jobs.fill(&mut batch, next);
        assert!(batch.finish(&mut wal, &stop).unwrap());
        assert!(held.iter_mut().all(|durable| durable.try_recv().is_ok()));
        drop(wal);
        let (_, recovery) = Wal::open(disk, options).unwrap();
        let terms: Vec<_> =
            recovery.shards.values().map(|shard| (shard.hard.term.get(), shard.entries.len())).collect();
        assert_eq!(terms, [(2, 1), (2, 0)]);
    }
}
