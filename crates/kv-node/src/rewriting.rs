//! Bases that have outgrown what is alive in them are rewritten, one at a time a node.
//!
//! The engine never gives space back. A base whose file is longer than a few times its live bytes is streamed into a new
//! generation on the thread for long work, in short pieces, so that merges of all shards go on in between; only its end
//! takes the place of a merge.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_storage::{Checkpoint, Regeneration, RegenerationError, RegenerationStep, StoreError, disk::Disk};
use kv_types::ShardId;
use kv_types::limits::{BASE_FILE_FACTOR, DISK_FREE_MERGE_MIN};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::gateway::{Gateway, ShardHandle};
use crate::host::{Shared, chain};
use crate::mailbox::Control;
use crate::snapshots::Installer;

/// Steps made before other work of the thread has its turn.
const STEPS_A_TURN: usize = 8;

/// How long a rewritten base may run after what is applied beside merges, before it takes their place. What is then
/// applied is bounded by the memory for it.
const FOLLOW_BESIDE_MERGES: Duration = Duration::from_secs(2);

/// How long in their place. One that does not catch up then has too much to do at the moment.
const FOLLOW_MAX: Duration = Duration::from_secs(60);

/// After an attempt that did not end well.
const RETRY_PAUSE: Duration = Duration::from_secs(300);

/// While the own WAL or a snapshot is waited for.
const WAIT: Duration = Duration::from_millis(20);

/// What is known of a shard's base.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Growth {
    /// Bytes that were alive when they were last counted; none before that.
    live: u64,
    /// Length of the file when it had just been written at once. The engine may need more than a few times the bytes of
    /// the rows even then.
    fresh: u64,
    /// No attempt before this.
    not_before: Option<Instant>,
}

impl Growth {
    /// The length that a file may have.
    fn limit(&self, slack: u64) -> u64 {
        let alive = self.live.saturating_mul(BASE_FILE_FACTOR);
        alive.max(self.fresh.saturating_add(self.fresh / 2)).saturating_add(slack)
    }

    fn is_outgrown(&self, file_bytes: u64, slack: u64, now: Instant) -> bool {
        file_bytes > self.limit(slack) && self.not_before.is_none_or(|then| then <= now)
    }
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
        let (mut sum, mut most) = (0_u64, None);
        for handle in self.gateway.shards.values() {
            let Ok(bytes) = handle.reader.base_disk_bytes() else { continue };
            sum = sum.saturating_add(bytes);
            let growth = growths.get(&handle.shard).copied().unwrap_or_default();
            if growth.is_outgrown(bytes, self.slack_bytes, Instant::now()) {
                most = most.max(Some((bytes - growth.limit(self.slack_bytes), handle.shard)));
            }
        }
        self.gateway.metrics.base_bytes.set(i64::try_from(sum).unwrap_or(i64::MAX));
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
        match self.rewrite(handle, &mut growth, stop).await {
            Ok(()) | Err(GivenUp::Stopping) => {}
            Err(GivenUp::Failed(RegenerationError::Damaged(cause)) | GivenUp::Unread(cause)) => {
                error!(%shard, error = &cause as &dyn std::error::Error, "the base is damaged: the node stops");
                self.shared.fatal.stop(format!("the base of {shard} cannot be rewritten: {}", chain(&cause)));
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
        let before = handle.reader.base_disk_bytes()?;
        growth.fresh = handle.reader.base_fresh_bytes()?;
        if growth.is_outgrown(before, self.slack_bytes, Instant::now()) {
            growth.live = self.count(handle, stop).await?;
        }
        if !growth.is_outgrown(before, self.slack_bytes, Instant::now()) {
            return Ok(());
        }
        let needed = growth.live.saturating_mul(2).saturating_add(DISK_FREE_MERGE_MIN);
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        if free < needed {
            return Err(GivenUp::NoRoom { free, needed });
        }
        let shard = handle.shard;
        info!(%shard, file_bytes = before, live_bytes = growth.live, "the base is being rewritten");
        let mut regeneration = self.begin(handle).await?;
        loop {
            (regeneration, _) = self.follow(regeneration, FOLLOW_BESIDE_MERGES, stop).await?;
            let slot = self.merge_slot.lock().await;
            let caught_up;
            (regeneration, caught_up) = self.follow(regeneration, FOLLOW_MAX, stop).await?;
            if !caught_up {
                self.shared.background.free(regeneration);
                return Err(GivenUp::TooSlow);
            }
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
        growth.fresh = handle.reader.base_fresh_bytes()?;
        info!(%shard, file_bytes = growth.fresh, "the base was rewritten");
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
    /// `patience` since all rows were there.
    async fn follow(
        &self,
        mut regeneration: Box<Regeneration>,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<(Box<Regeneration>, bool), GivenUp> {
        let mut since = None;
        loop {
            if stop.is_cancelled() {
                self.shared.background.free(regeneration);
                return Err(GivenUp::Stopping);
            }
            let turn = move || {
                for _ in 0..STEPS_A_TURN {
                    let step = regeneration.step()?;
                    if step == RegenerationStep::CaughtUp || regeneration.is_following() {
                        return Ok((regeneration, step));
                    }
                }
                Ok::<_, RegenerationError>((regeneration, RegenerationStep::Again))
            };
            let (rest, step) = self.shared.background.run(turn).await.ok_or(GivenUp::Stopping)??;
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
        if let Some(done) = self.shared.merge(checkpoint, handle.shard, stop).await {
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
        assert!(!growth.is_outgrown(100, 100, now) && growth.is_outgrown(101, 100, now));
        growth.live = 50;
        assert!(!growth.is_outgrown(250, 100, now) && growth.is_outgrown(251, 100, now));
        growth.fresh = 200;
        assert!(!growth.is_outgrown(400, 100, now) && growth.is_outgrown(401, 100, now));
        growth.not_before = Some(now + RETRY_PAUSE);
        assert!(!growth.is_outgrown(401, 100, now) && growth.is_outgrown(401, 100, now + RETRY_PAUSE));
    }
}
