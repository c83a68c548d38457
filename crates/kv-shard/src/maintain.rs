//! Keeping the disk small: checkpoints of the rows and compaction of the log.

use kv_raft::ProgressState;
use kv_storage::{Checkpoint, CheckpointDone, Regeneration, Retired, SnapshotSource, WalOp};
use kv_types::{LogId, LogIndex, Nanos};

use crate::replica::Replica;

/// Entries that stay in the log below a checkpoint, so that a follower that was away for a moment needs no snapshot.
pub const COMPACT_KEEP_ENTRIES: u64 = 20_000;

/// Entries that stay in the log for a slow but live follower of this leader.
const COMPACT_KEEP_FOR_FOLLOWER: u64 = 200_000;

impl<W> Replica<W> {
    /// Begins a checkpoint of everything applied, if there is something new and the own WAL is durable through it.
    pub fn begin_checkpoint(&mut self) -> Option<Checkpoint> {
        if !self.verified || self.installing.is_some() || self.log.persisted_index() < self.applied.index {
            return None;
        }
        let checkpoint = self.store.freeze();
        self.merging |= checkpoint.is_some();
        checkpoint
    }

    /// The base may be rewritten: it was compared with its hash, and no snapshot is about to replace it.
    pub fn regeneration_source(&self) -> Option<SnapshotSource> {
        (self.verified && self.installing.is_none()).then(|| self.snapshot_source())
    }

    /// Ends a regeneration that has caught up, with a checkpoint whose rows go into the new generation. While that is
    /// under way no other begins, and a snapshot that was received waits: so the record that names the new generation
    /// is preceded and followed by none that contradicts it.
    ///
    /// # Errors
    /// The regeneration, if it is not the time for that: it goes on, and tries again.
    pub fn end_regeneration(
        &mut self,
        regeneration: Box<Regeneration>,
    ) -> Result<Checkpoint, Box<Regeneration>> {
        if !self.verified || self.installing.is_some() || self.log.persisted_index() < self.applied.index {
            return Err(regeneration);
        }
        let checkpoint = self.store.freeze_into(regeneration)?;
        self.merging = true;
        Ok(checkpoint)
    }

    /// Bases that were replaced and effects that are compacted away: to be removed where nobody waits.
    pub fn retired(&mut self) -> Vec<Retired> {
        self.store.retired()
    }

    /// A checkpoint is complete: publishes the view without the frozen table, over the rewritten base if there is
    /// one, and compacts the log.
    pub fn checkpoint_done(&mut self, now: Nanos, done: CheckpointDone) {
        let freed = self.store.merged(done);
        self.effects.freed.push(freed);
        self.merging = false;
        let base = self.store.base().meta.last.index;
        self.compact(LogIndex::new(base.get().saturating_sub(COMPACT_KEEP_ENTRIES)));
        self.offer_parked(now);
    }

    /// Gives up what the log keeps for slow followers: they get a snapshot.
    pub fn compact_to_base(&mut self) {
        self.compact_upto(self.store.base().meta.last.index);
    }

    /// The rows as a stream that any peer can install.
    pub fn snapshot_source(&self) -> SnapshotSource {
        self.store.snapshot_source()
    }

    fn compact(&mut self, wanted: LogIndex) {
        let floor = self.applied.index.get().saturating_sub(COMPACT_KEEP_FOR_FOLLOWER);
        let slowest = self.slowest_follower().map_or(wanted, |matched| matched.max(LogIndex::new(floor)));
        self.compact_upto(wanted.min(slowest));
    }

    fn compact_upto(&mut self, upto: LogIndex) {
        if upto <= self.log.start().index {
            return;
        }
        let Some(term) = self.log.term(upto) else { return };
        let id = LogId::new(term, upto);
        self.log.compact(id);
        self.raft.compacted(id);
        self.store.purge_effects(upto);
        self.push_write(None, WalOp::Compact(id));
    }

    /// The lowest match among the followers that this leader streams entries to: one that is not reached, or that
    /// waits for a snapshot anyway, holds nothing back.
    fn slowest_follower(&self) -> Option<LogIndex> {
        if !self.raft.is_leader() {
            return None;
        }
        let status = self.raft.status();
        let live = status.peers.values().filter(|peer| peer.state == ProgressState::Replicate);
        live.map(|peer| peer.matched).min()
    }

    /// The entry up to which rows are applied.
    pub fn applied(&self) -> LogId {
        self.applied
    }
}
