//! Bases that have outgrown what is alive in them are rewritten, one at a time a node.
//!
//! The engine never gives space back. A base whose file is longer than a few times its live bytes is streamed into a new
//! generation in short pieces, so that merges of all shards go on in between; only its end takes the place of a merge. Rows
//! are copied on the thread for long work, for a while; the rest, and writes made meanwhile, on the one for what is behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_storage::{
    BaseSize, Checkpoint, Regeneration, RegenerationError, RegenerationStep, StoreError, disk::Disk,
};
use kv_types::ShardId;
use kv_types::limits::{BASE_FILE_FACTOR, DISK_FREE_MERGE_MIN};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::gateway::{Gateway, ShardHandle};
use crate::host::{Shared, chain};
use crate::mailbox::Control;
use crate::snapshots::Installer;

/// Steps made before other work of the thread has its turn.
const STEPS_A_TURN: usize = 8;

/// How long rows are copied at leisure. On a full machine that gets nowhere, and what is written meanwhile is to be followed.
const LEISURE: Duration = Duration::from_secs(5);

/// How long a rewritten base may run after what is applied beside merges, before it takes their place. What is then
/// applied is bounded by the memory for it.
const FOLLOW_BESIDE_MERGES: Duration = Duration::from_secs(20);

/// How long in their place. One that does not catch up then has too much to do at the moment.
const FOLLOW_MAX: Duration = Duration::from_secs(60);

/// After an attempt that did not end well.
const RETRY_PAUSE: Duration = Duration::from_secs(300);

/// After an attempt that came while a node that has just started still read its rows, or while a snapshot was installed.
const NOT_READY_PAUSE: Duration = Duration::from_secs(5);

/// While the own WAL or a snapshot is waited for.
const WAIT: Duration = Duration::from_millis(20);

/// A count may be wrong after this long: rows may have become shorter.
const COUNT_AGE_MAX: Duration = Duration::from_secs(3600);

/// What is known of a shard's base besides its size.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Growth {
    counted: Option<Counted>,
    /// No attempt before this.
    not_before: Option<Instant>,
}

/// A count of live bytes.
#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    rows: u64,
    bytes: u64,
}

impl Growth {
    /// The length that the file may have. Without a count that is none beside the slack, so that it is counted.
    fn limit(&self, size: &BaseSize, slack: u64, now: Instant) -> u64 {
        let counted = self.counted.filter(|counted| now.duration_since(counted.at) < COUNT_AGE_MAX);
        let live = counted.map_or(0, |counted| fewer(counted.bytes, size.rows, counted.rows));
        let fresh = fewer(size.fresh_file_bytes, size.rows, size.fresh_rows);
        let alive = live.saturating_mul(BASE_FILE_FACTOR);
        alive.max(fresh.saturating_add(fresh / 2)).saturating_add(slack)
    }

    fn is_outgrown(&self, size: &BaseSize, slack: u64, now: Instant) -> bool {
        size.file_bytes > self.limit(size, slack, now) && self.not_before.is_none_or(|then| then <= now)
    }
}

/// What `bytes` of `then` rows are of as many rows as there are now, if those are fewer. Rows are counted by merges: before
/// the first one has ended there are some, and nobody knows how many.
fn fewer(bytes: u64, now: u64, then: u64) -> u64 {
    if then == 0 {
        return bytes;
    }
    let scaled = u128::from(bytes) * u128::from(now.min(then)) / u128::from(then);
    u64::try_from(scaled).unwrap_or(bytes)
}

/// Why a base was not rewritten.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error("the node stops")]
    Stopping,
    #[error("the disk has {free} bytes free, about {needed} are needed")]
    NoRoom { free: u64, needed: u64 },
    #[error("the replica is not ready for it")]
    NotReady,
    #[error("it did not catch up with the writes within {} s", FOLLOW_MAX.as_secs())]
    TooSlow,
    #[error(transparent)]
    Failed(#[from] RegenerationError),
    #[error("the base cannot be read")]
    Unread(#[from] StoreError),
}

/// Rewrites bases.
pub(crate) struct Rewriter {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) shared: Shared,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) installer: Arc<Installer>,
    /// Bytes a file may have beside a few times its live bytes.
    pub(crate) slack_bytes: u64,
    /// Held by whoever merges.
    pub(crate) merge_slot: Arc<tokio::sync::Mutex<()>>,
}

impl Rewriter {
    /// Looks at the files of all bases; the one that has outgrown its rows most, if there is one.
    pub(crate) fn outgrown(&self, growths: &BTreeMap<ShardId, Growth>) -> Option<ShardId> {
        let (mut sum, mut most, now) = (0_u64, None, Instant::now());
        for handle in self.gateway.shards.values() {
            // One that cannot be read is for its readers to tell.
            let Ok(size) = handle.reader.base_size() else { continue };
            sum = sum.saturating_add(size.file_bytes);
            let growth = growths.get(&handle.shard).copied().unwrap_or_default();
            if growth.is_outgrown(&size, self.slack_bytes, now) {
                let beyond = size.file_bytes - growth.limit(&size, self.slack_bytes, now);
                most = most.max(Some((beyond, handle.shard)));
            }
        }
        self.gateway.metrics.space.base_bytes.set(i64::try_from(sum).unwrap_or(i64::MAX));
        most.map(|(_, shard)| shard)
    }

    /// Counts what is alive in a base, and rewrites it if its file is too long for that. What is known of it then.
    pub(crate) async fn run(
        &self,
        shard: ShardId,
        mut growth: Growth,
        stop: &CancellationToken,
    ) -> (ShardId, Growth) {
        let Some(handle) = self.gateway.shards.get(&shard) else { return (shard, growth) };
        let generation = handle.reader.generation();
        match self.rewrite(handle, &mut growth, stop).await {
            Ok(()) | Err(GivenUp::Stopping) => {}
            // Nothing is known of the new one.
            Err(cause @ GivenUp::Failed(RegenerationError::Replaced)) => {
                info!(%shard, %cause);
                growth = Growth::default();
            }
            Err(
                GivenUp::Failed(RegenerationError::Damaged(StoreError::Damaged { detail }))
                | GivenUp::Unread(StoreError::Damaged { detail }),
            ) => {
                handle.mailbox.control(Control::Damaged(generation, detail));
            }
            Err(GivenUp::Failed(RegenerationError::Damaged(cause)) | GivenUp::Unread(cause)) => {
                error!(%shard, error = &cause as &dyn std::error::Error, "the base is damaged: the node stops");
                self.shared.fatal.stop(format!("the base of {shard} cannot be rewritten: {}", chain(&cause)));
            }
            Err(cause @ GivenUp::NotReady) => {
                debug!(%shard, %cause);
                growth.not_before = Some(Instant::now() + NOT_READY_PAUSE);
            }
            Err(cause) => {
                warn!(%shard, %cause, "the base has outgrown its rows and is not rewritten; later it is tried again");
                growth.not_before = Some(Instant::now() + RETRY_PAUSE);
            }
        }
        (shard, growth)
    }

    async fn rewrite(
        &self,
        handle: &ShardHandle,
        growth: &mut Growth,
        stop: &CancellationToken,
    ) -> Result<(), GivenUp> {
        let size = handle.reader.base_size()?;
        let live = self.count(handle, stop).await?;
        growth.counted = Some(Counted { at: Instant::now(), rows: size.rows, bytes: live });
        if !growth.is_outgrown(&size, self.slack_bytes, Instant::now()) {
            return Ok(());
        }
        let needed = live.saturating_mul(4).saturating_add(DISK_FREE_MERGE_MIN);
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        if free < needed {
            return Err(GivenUp::NoRoom { free, needed });
        }
        let shard = handle.shard;
        let mut regeneration = self.begin(handle).await?;
        info!(%shard, file_bytes = size.file_bytes, live_bytes = live, "the base is being rewritten");
        loop {
            (regeneration, _) = self.follow(regeneration, FOLLOW_BESIDE_MERGES, stop).await?;
            debug!(%shard, "merges make way");
            let slot = self.merge_slot.lock().await;
            debug!(%shard, "the rest is followed in the place of merges");
            let caught_up;
            (regeneration, caught_up) = self.follow(regeneration, FOLLOW_MAX, stop).await?;
            if !caught_up {
                self.shared.background.free(regeneration);
                return Err(GivenUp::TooSlow);
            }
            debug!(%shard, "it has caught up");
            let (asked, ended) = oneshot::channel();
            handle.mailbox.control(Control::EndRegeneration(regeneration, asked));
            match ended.await.map_err(|_| GivenUp::Stopping)? {
                Ok(checkpoint) => {
                    self.end(handle, checkpoint, stop).await;
                    break;
                }
                Err(again) => regeneration = again,
            }
            drop(slot);
            tokio::time::sleep(WAIT).await;
        }
        info!(%shard, file_bytes = handle.reader.base_size()?.file_bytes, "the base was rewritten");
        Ok(())
    }

    async fn count(&self, handle: &ShardHandle, stop: &CancellationToken) -> Result<u64, GivenUp> {
        let mut live = handle.reader.live_bytes();
        loop {
            if stop.is_cancelled() {
                return Err(GivenUp::Stopping);
            }
            let turn = move || {
                for _ in 0..STEPS_A_TURN {
                    if let Some(bytes) = live.step()? {
                        return Ok((live, Some(bytes)));
                    }
                }
                Ok::<_, StoreError>((live, None))
            };
            let (rest, bytes) = self.shared.background.run(turn).await.ok_or(GivenUp::Stopping)??;
            if let Some(bytes) = bytes {
                return Ok(bytes);
            }
            live = rest;
        }
    }

    async fn begin(&self, handle: &ShardHandle) -> Result<Box<Regeneration>, GivenUp> {
        let (asked, source) = oneshot::channel();
        handle.mailbox.control(Control::RegenerationSource(asked));
        let (source, current) = source.await.map_err(|_| GivenUp::Stopping)?.ok_or(GivenUp::NotReady)?;
        let installer = Arc::clone(&self.installer);
        let shard = handle.shard;
        // Opened there, the threads of the new generation have the priority of that thread.
        let begun = self.shared.background.run(move || installer.rewrite(shard, source, current)).await;
        Ok(Box::new(begun.ok_or(GivenUp::Stopping)??))
    }

    /// Steps until the new generation has caught up with what is applied, and whether it has: if not, it has tried for
    /// `patience` since all rows were there. Rows are copied at [leisure](LEISURE), but writes are run after in a hurry: on a full
    /// machine they would get ahead instead.
    async fn follow(
        &self,
        mut regeneration: Box<Regeneration>,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<(Box<Regeneration>, bool), GivenUp> {
        let (begun, mut since) = (Instant::now(), None);
        loop {
            if stop.is_cancelled() {
                self.shared.background.free(regeneration);
                return Err(GivenUp::Stopping);
            }
            let hurries = regeneration.is_following() || begun.elapsed() > LEISURE;
            let thread = if hurries { &self.shared.merge_now } else { &self.shared.background };
            let turn = move || {
                for _ in 0..STEPS_A_TURN {
                    let step = regeneration.step()?;
                    if step == RegenerationStep::CaughtUp || regeneration.is_following() {
                        return Ok((regeneration, step));
                    }
                }
                Ok::<_, RegenerationError>((regeneration, RegenerationStep::Again))
            };
            let (rest, step) = thread.run(turn).await.ok_or(GivenUp::Stopping)??;
            if step == RegenerationStep::CaughtUp {
                return Ok((rest, true));
            }
            regeneration = rest;
            if regeneration.is_following() && since.get_or_insert_with(Instant::now).elapsed() > patience {
                return Ok((regeneration, false));
            }
        }
    }

    async fn end(&self, handle: &ShardHandle, checkpoint: Checkpoint, stop: &CancellationToken) {
        if let Some(done) = self.shared.merge(checkpoint, handle, stop).await {
            if done.is_regeneration() {
                self.gateway.metrics.regenerations.inc();
            }
            handle.mailbox.control(Control::CheckpointDone(done));
            // The mailbox is emptied in order: when this is answered, the new base is in use.
            let (asked, status) = oneshot::channel();
            handle.mailbox.control(Control::Status(asked));
            let _ = status.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_outgrown_beyond_live_bytes_a_fresh_file_and_the_slack() {
        let now = Instant::now();
        let mut growth = Growth::default();
        let size = |file_bytes| BaseSize { file_bytes, rows: 10, ..BaseSize::default() };
        assert!(!growth.is_outgrown(&size(100), 100, now) && growth.is_outgrown(&size(101), 100, now));
        growth.counted = Some(Counted { at: now, rows: 0, bytes: 50 });
        assert!(!growth.is_outgrown(&size(250), 100, now), "no merge has counted the rows yet");
        growth.counted = Some(Counted { at: now, rows: 10, bytes: 50 });
        assert!(!growth.is_outgrown(&size(250), 100, now) && growth.is_outgrown(&size(251), 100, now));
        assert!(growth.is_outgrown(&size(250), 100, now + COUNT_AGE_MAX), "the count is too old");
        let fewer = |file_bytes| BaseSize { rows: 4, ..size(file_bytes) };
        assert!(!growth.is_outgrown(&fewer(160), 100, now) && growth.is_outgrown(&fewer(161), 100, now));
        let fresh = |file_bytes| BaseSize { fresh_file_bytes: 400, fresh_rows: 20, ..size(file_bytes) };
        assert!(!growth.is_outgrown(&fresh(400), 100, now) && growth.is_outgrown(&fresh(401), 100, now));
        growth.not_before = Some(now + RETRY_PAUSE);
        assert!(!growth.is_outgrown(&fresh(401), 100, now));
        assert!(growth.is_outgrown(&fresh(401), 100, now + RETRY_PAUSE));
    }
}
