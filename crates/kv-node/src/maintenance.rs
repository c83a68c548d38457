//! What a node does for its disk and memory without being asked: checkpoints, removal of old WAL, limits.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kv_shard::ReplicaStatus;
use kv_storage::{Checkpoint, CheckpointDone, CheckpointStep, StoreError, WalRecord, disk::Disk};
use kv_types::ShardId;
use kv_types::limits::DISK_FREE_MERGE_MIN;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::clock;
use crate::gateway::{Gateway, ShardHandle};
use crate::host::{Shared, chain};
use crate::mailbox::Control;
use crate::pace::{Debt, Pacer};
use crate::repair::Repairer;
use crate::rewriting::{Growth, Rewriter};

/// How often the limits are looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes of effects above the bases of a node at which the largest is merged; or a quarter of the WAL's budget, if that
/// is less: what is not merged holds WAL, and more arrives while a merge runs.
const UNMERGED_BYTES_MAX: u64 = 256 << 20;

/// A shard with anything to merge is merged at least this often.
const CHECKPOINT_IDLE: Duration = Duration::from_secs(60);

/// A WAL that is nearly full is released this often: each time looks at every segment that is held.
const RELEASE_PAUSE: Duration = Duration::from_millis(500);

/// A log that is full, with nothing to merge for so long, is full of what no merge frees. What a log is compacted by is
/// removed by the release after that, so this is longer than two of them take.
const STUCK_AFTER: Duration = Duration::from_secs(3);

/// What the engine writes for each row when it is opened.
const OPEN_BYTES_A_ROW: u64 = 16;

/// While a pin is waited for.
const PIN_WAIT: Duration = Duration::from_millis(20);

/// Everything maintenance looks at.
pub(crate) struct Maintenance {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) shared: Shared,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) memtable_bytes_max: usize,
    pub(crate) disk_free_min: u64,
    pub(crate) rewriter: Rewriter,
    /// A merge is due: the scrub makes way.
    pub(crate) merge_waits: Arc<AtomicBool>,
}

/// When the WAL was last released, so that one that is nearly full is not released all the time.
#[derive(Debug, Default)]
struct ReleasePace {
    last: Option<Instant>,
}

impl ReleasePace {
    /// Whether the WAL is to be released now.
    fn is_due(&self, is_nearly_full: bool, now: Instant) -> bool {
        is_nearly_full && self.last.is_none_or(|last| now.duration_since(last) >= RELEASE_PAUSE)
    }
}

impl Maintenance {
    /// Runs until the node stops.
    pub(crate) async fn run(self, mut repairer: Repairer, stop: CancellationToken) {
        let _guard = self.shared.fatal.on_panic("maintenance".to_owned());
        let mut last: BTreeMap<ShardId, Instant> = BTreeMap::new();
        let mut urgent = BTreeSet::new();
        let mut pace = ReleasePace::default();
        let mut pacer = Pacer::default();
        let mut full_for_nothing: Option<Instant> = None;
        let this = Arc::new(self);
        // One merge at a time; the limits are looked at while it runs.
        let mut merging: Option<JoinHandle<()>> = None;
        let mut rewriting: Option<JoinHandle<(ShardId, Growth)>> = None;
        let mut growths: BTreeMap<ShardId, Growth> = BTreeMap::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                looked = ended(&mut rewriting) => {
                    rewriting = None;
                    growths.extend(looked);
                }
                _ = ended(&mut merging) => {
                    merging = None;
                    urgent.extend(this.release().await);
                    pace.last = Some(Instant::now());
                }
                () = tokio::time::sleep(INTERVAL) => {}
            }
            let (replicas, log_holder) = this.look(&mut pacer).await;
            repairer.look(&replicas);
            let log = &this.shared.log;
            if pace.is_due(log.is_nearly_full(), Instant::now()) {
                urgent.extend(this.release().await);
                pace.last = Some(Instant::now());
            }
            for replica in &replicas {
                last.entry(replica.shard).or_insert_with(Instant::now);
            }
            let may_merge = this.look_at_disk();
            let due = this.due(&replicas, &last, &urgent, log_holder);
            // One that waits for space on the disk is due as well: until then nothing may fill it further.
            let idle = log.is_full() && merging.is_none() && due.is_none();
            let due = due.filter(|_| may_merge);
            this.merge_waits.store(due.is_some() || merging.is_some(), Ordering::Release);
            full_for_nothing = full_for_nothing.filter(|_| idle).or_else(|| idle.then(Instant::now));
            log.set_stuck(full_for_nothing.is_some_and(|since| since.elapsed() >= STUCK_AFTER));
            if !may_merge {
                continue;
            }
            let outgrown = this.rewriter.outgrown(&growths);
            if let Some(shard) = outgrown.filter(|_| rewriting.is_none()) {
                let growth = growths.get(&shard).copied().unwrap_or_default();
                let (maintenance, stop) = (Arc::clone(&this), stop.clone());
                rewriting =
                    Some(tokio::spawn(async move { maintenance.rewriter.run(shard, growth, &stop).await }));
            }
            if merging.is_some() {
                continue;
            }
            let Some(shard) = due else { continue };
            urgent.remove(&shard);
            last.insert(shard, Instant::now());
            let (maintenance, stop) = (Arc::clone(&this), stop.clone());
            merging = Some(tokio::spawn(async move { maintenance.checkpoint(shard, &stop).await }));
        }
        // Both end early when the node stops.
        if merging.is_some() {
            ended(&mut merging).await;
        }
        if rewriting.is_some() {
            ended(&mut rewriting).await;
        }
    }

    /// Removes WAL that nothing needs, and has the logs compacted that hold it only for slow followers. The shards that
    /// must be merged before more can go.
    async fn release(&self) -> BTreeSet<ShardId> {
        let Some(released) = self.shared.wal.release().await else { return BTreeSet::new() };
        for shard in released.log {
            if let Some(handle) = self.gateway.shards.get(&shard) {
                handle.mailbox.control(Control::CompactToBase);
            }
        }
        released.redo
    }

    /// Asks all replicas how much they hold, and sets the limits by it; and which shard holds a log that is getting full.
    async fn look(&self, pacer: &mut Pacer) -> (Vec<ReplicaStatus>, Option<ShardId>) {
        let mut replicas = Vec::new();
        for handle in self.gateway.shards.values() {
            let (asked, status) = oneshot::channel();
            handle.mailbox.control(Control::Status(asked));
            replicas.extend(status.await.ok());
        }
        let rows: usize = replicas.iter().map(|replica| replica.memtable_bytes).sum();
        let unmerged: u64 = replicas.iter().map(|replica| replica.unmerged_bytes).sum();
        let log = &self.shared.log;
        let kept = self.shared.log_reader.unmerged(log.segment_bytes());
        let debt = Debt {
            log: kept.map_or(0, |kept| kept.bytes),
            log_max: log.unmerged_max(),
            rows: rows as u64,
            rows_max: self.memtable_bytes_max as u64,
        };
        pacer.look(&self.shared.pace, debt, clock::now());
        if debt.is_of_rows()
            && let Some(largest) = replicas.iter().max_by_key(|replica| replica.memtable_bytes)
            && let Some(handle) = self.gateway.shards.get(&largest.shard)
            && handle.reader.break_oldest_pin()
        {
            let shard = largest.shard;
            warn!(%shard, "a reader's view was given up: it kept rows in memory that is nearly full");
        }
        let full = rows >= self.memtable_bytes_max;
        if full != self.shared.memory_full.swap(full, Ordering::AcqRel) && full {
            warn!(bytes = rows, "the memtables are full: writes are refused until a merge frees memory");
        }
        self.gateway.set_memory_full(full);
        let metrics = &self.gateway.metrics;
        metrics.space.memtable_bytes.set(i64::try_from(rows).unwrap_or(i64::MAX));
        metrics.space.write_rate_max.set(i64::try_from(self.shared.pace.rate()).unwrap_or(i64::MAX));
        metrics.space.unmerged_bytes.set(i64::try_from(unmerged).unwrap_or(i64::MAX));
        (replicas, kept.filter(|_| debt.is_of_log()).map(|kept| kept.shard))
    }

    /// Refuses writes while the disk is nearly full; whether a merge may write.
    fn look_at_disk(&self) -> bool {
        let Ok(free) = self.disk.free_bytes() else { return true };
        self.gateway.metrics.space.disk_free_bytes.set(i64::try_from(free).unwrap_or(i64::MAX));
        let full = free < self.disk_free_min;
        if self.gateway.set_disk_full(full) != full && full {
            error!(
                free,
                least = self.disk_free_min,
                "the disk is nearly full: writes are refused; free some space"
            );
        }
        // A base that is opened anew writes a file of about so many bytes a row, without which it does not open.
        let rows =
            self.gateway.shards.values().map(|handle| handle.reader.base_size().map_or(0, |size| size.rows));
        let least = DISK_FREE_MERGE_MIN.saturating_add(rows.sum::<u64>().saturating_mul(OPEN_BYTES_A_ROW));
        free >= least.min(self.disk_free_min)
    }

    /// The shard to merge now, if any.
    fn due(
        &self,
        replicas: &[ReplicaStatus],
        last: &BTreeMap<ShardId, Instant>,
        urgent: &BTreeSet<ShardId>,
        log_holder: Option<ShardId>,
    ) -> Option<ShardId> {
        let candidates =
            || replicas.iter().filter(|replica| replica.verified && replica.base < replica.applied.index);
        let holds = candidates().find(|replica| log_holder == Some(replica.shard));
        if let Some(replica) = holds.or_else(|| candidates().find(|replica| urgent.contains(&replica.shard)))
        {
            return Some(replica.shard);
        }
        let rows: usize = replicas.iter().map(|replica| replica.memtable_bytes).sum();
        let unmerged: u64 = replicas.iter().map(|replica| replica.unmerged_bytes).sum();
        if unmerged >= UNMERGED_BYTES_MAX.min(self.shared.log.bytes_max() / 4)
            || rows >= self.memtable_bytes_max / 2
        {
            return candidates().max_by_key(|replica| replica.unmerged_bytes).map(|replica| replica.shard);
        }
        let idle = |shard| last.get(shard).is_some_and(|last| last.elapsed() >= CHECKPOINT_IDLE);
        candidates().find(|replica| idle(&replica.shard)).map(|replica| replica.shard)
    }

    async fn checkpoint(&self, shard: ShardId, stop: &CancellationToken) {
        let Some(handle) = self.gateway.shards.get(&shard) else { return };
        let _slot = self.rewriter.merge_slot.lock().await;
        let (asked, begun) = oneshot::channel();
        handle.mailbox.control(Control::BeginCheckpoint(asked));
        let Ok(Some(checkpoint)) = begun.await else { return };
        let upto = checkpoint.upto();
        debug!(%shard, %upto, "checkpoint");
        if let Some(done) = self.shared.merge(checkpoint, handle, stop).await {
            handle.mailbox.control(Control::CheckpointDone(done));
        }
    }
}

impl Shared {
    /// Runs a checkpoint to its end on the thread for long work; `None` if the node stops, also because it failed, or if it
    /// found damage, which the replica is told.
    pub(crate) async fn merge(
        &self,
        checkpoint: Checkpoint,
        handle: &ShardHandle,
        stop: &CancellationToken,
    ) -> Option<CheckpointDone> {
        let shard = handle.shard;
        let mut checkpoint = checkpoint;
        let merged = loop {
            let hurries = self.pace.is_urgent();
            let thread = if hurries { &self.merge_now } else { &self.background };
            let (shared, stop) = (self.clone(), stop.clone());
            match thread.run(move || shared.steps(checkpoint, shard, hurries, &stop)).await? {
                Ok(Merged::Moves(rest)) => checkpoint = *rest,
                Ok(Merged::Ended(done)) => break Ok(done),
                Err(cause) => break Err(cause),
            }
        };
        match merged {
            Ok(done) => done,
            Err(StoreError::Damaged { detail }) => {
                handle.mailbox.control(Control::CheckpointFailed(detail));
                None
            }
            Err(cause) => {
                error!(%shard, error = &cause as &dyn std::error::Error, "the checkpoint failed: the node stops");
                self.fatal.stop(format!("the checkpoint of {shard} failed: {}", chain(&cause)));
                None
            }
        }
    }

    /// Steps a checkpoint on this thread, to its end or until it has to wait, or begins or ceases to be urgent.
    fn steps(
        &self,
        mut checkpoint: Checkpoint,
        shard: ShardId,
        hurries: bool,
        stop: &CancellationToken,
    ) -> Result<Merged, StoreError> {
        loop {
            // A merge that is cut short is one that a crash cut short: the next start does it again.
            if stop.is_cancelled() {
                return Ok(Merged::Ended(None));
            }
            if self.pace.is_urgent() != hurries {
                return Ok(Merged::Moves(Box::new(checkpoint)));
            }
            match checkpoint.step(clock::now())? {
                CheckpointStep::Again => {}
                CheckpointStep::Wait => {
                    std::thread::sleep(PIN_WAIT);
                    // What it waits for may wait for this thread: files to be removed, on a full disk.
                    return Ok(Merged::Moves(Box::new(checkpoint)));
                }
                CheckpointStep::Wal(op) => {
                    if !self.wal.write_and_wait(WalRecord { shard, op }) {
                        return Ok(Merged::Ended(None));
                    }
                }
                CheckpointStep::Done(done) => return Ok(Merged::Ended(Some(done))),
            }
        }
    }
}

/// How far a merge has come on one thread.
enum Merged {
    /// It goes on behind what waits for the thread, or on the other one.
    Moves(Box<Checkpoint>),
    /// It is complete, or the node stops.
    Ended(Option<CheckpointDone>),
}

/// Completes when the work under way has ended; never, if there is none.
async fn ended<T>(work: &mut Option<JoinHandle<T>>) -> Option<T> {
    match work {
        // A panic in it is the guard's to tell.
        Some(work) => work.await.ok(),
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wal_that_is_nearly_full_is_released_at_once_and_then_once_a_pause() {
        let start = Instant::now();
        let mut pace = ReleasePace::default();
        assert!(!pace.is_due(false, start));
        assert!(pace.is_due(true, start));
        pace.last = Some(start);
        assert!(!pace.is_due(true, start + RELEASE_PAUSE / 2));
        assert!(pace.is_due(true, start + RELEASE_PAUSE));
        assert!(!pace.is_due(false, start + RELEASE_PAUSE));
    }
}
