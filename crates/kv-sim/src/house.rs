//! What a node does for its disk: checkpoints, comparisons of rows with their hash, new generations of bases.

use std::sync::Arc;

use kv_shard::{Replica, ReplicaError};
use kv_storage::disk::is_no_room;
use kv_storage::wal::WalError;
use kv_storage::{
    CheckpointStep, EngineFactory, Generation, Regeneration, RegenerationError, RegenerationStep, Retired,
    StoreError, TwinFactory, WalRecord,
};
use kv_types::{NodeId, ShardId};

use crate::cluster::Cluster;
use crate::node::{Durable, Merge};
use crate::violation::Violation;

impl Cluster {
    /// Begins a checkpoint, if none is under way; whether one is.
    pub(crate) fn begin_merge(&mut self, node: NodeId, shard: ShardId) -> bool {
        let Some(life) = self.life(node) else { return false };
        if life.merges.contains_key(&shard) {
            return true;
        }
        let begun = self.turn_with(node, shard, |replica, _| {
            sweep(replica)?;
            Ok(replica.begin_checkpoint())
        });
        let Some(checkpoint) = begun.flatten() else { return false };
        let Some(life) = self.life(node) else { return false };
        life.is_busy = true;
        life.merges.insert(shard, Merge { checkpoint, waits: false });
        true
    }

    /// One step of a checkpoint; whether anything happened.
    pub(crate) fn step_merge(&mut self, node: NodeId, shard: ShardId) -> bool {
        let now = self.clock(node);
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return false };
        let Some(merge) = life.merges.get_mut(&shard).filter(|merge| !merge.waits) else { return false };
        let step = match merge.checkpoint.step(now) {
            Ok(step) => step,
            Err(StoreError::Damaged { detail }) => {
                life.merges.remove(&shard);
                let (told, before) = (detail.clone(), self.is_damaged(node, shard));
                self.turn_with(node, shard, |replica, now| {
                    replica.checkpoint_failed(now, told);
                    Ok(())
                });
                if !before {
                    self.lost(node, shard, &detail);
                }
                return true;
            }
            Err(cause) => {
                self.stop(node, &format!("{shard}: {cause:?}"));
                return false;
            }
        };
        match step {
            CheckpointStep::Again => true,
            CheckpointStep::Wait => false,
            CheckpointStep::Wal(op) => {
                merge.waits = true;
                self.touched.insert((node, shard));
                let Some(life) = self.life(node) else { return false };
                life.queue.push_back((WalRecord { shard, op }, Durable::Merge(shard)));
                true
            }
            CheckpointStep::Done(done) => {
                life.merges.remove(&shard);
                self.counts.checkpoints += 1;
                self.counts.regenerations += usize::from(done.is_regeneration());
                let stood = self.turn_with(node, shard, |replica, now| {
                    let (before, hash) = (replica.applied(), replica.reader().hash());
                    replica.checkpoint_done(now, done);
                    let after = replica.reader();
                    sweep(replica)?;
                    Ok((after.applied(), after.hash()) == (before.index, hash))
                });
                if stood == Some(false) {
                    let detail = format!("{node} {shard}: a checkpoint changes what is applied");
                    self.report(Err(Violation::new("rows", detail)));
                }
                self.check_rows(node, shard);
                true
            }
        }
    }

    /// One step of every checkpoint of a node, and of every comparison of rows; whether there is more to do.
    pub(crate) fn step_background(&mut self, node: NodeId) -> bool {
        let mut waits = false;
        for shard in self.settings.shards() {
            self.step_verification(node, shard);
            self.step_merge(node, shard);
            self.step_regeneration(node, shard);
            waits |= self.step_repair(node, shard);
        }
        let Some(life) = self.life(node) else { return false };
        life.is_busy = waits
            || !life.verifications.is_empty()
            || !life.merges.is_empty()
            || !life.regenerations.is_empty();
        life.is_busy
    }

    pub(crate) fn generation(&self, node: NodeId, shard: ShardId) -> Generation {
        self.replica(node, shard).map(|replica| replica.status().base_generation).unwrap_or_default()
    }

    /// Lets go of old segments, and does what the WAL asks for.
    pub(crate) fn release(&mut self, node: NodeId) {
        let Some(life) = self.life(node) else { return };
        match life.wal.release() {
            Ok(released) => {
                for shard in released.redo {
                    self.begin_merge(node, shard);
                }
                for shard in released.log {
                    self.compact_to_base(node, shard);
                }
            }
            // There was no room to copy what is left of a segment.
            Err(WalError::Full) => {}
            Err(cause) => self.stop(node, &format!("{cause:?}")),
        }
    }

    /// Gives up what a log keeps for slow followers.
    pub(crate) fn compact_to_base(&mut self, node: NodeId, shard: ShardId) {
        self.turn_with(node, shard, |replica, _| {
            replica.compact_to_base();
            Ok(())
        });
    }

    /// One step of every checkpoint of a node whose power goes after so many changes of its disk. The caller crashes
    /// it.
    pub(crate) fn step_merges_in_vain(&mut self, node: NodeId, calls: u64) {
        let now = self.clock(node);
        let Some(life) = self.life(node) else { return };
        let merges: Vec<Merge> = std::mem::take(&mut life.merges).into_values().collect();
        self.of(node).disk.power_off_after(calls);
        for mut merge in merges.into_iter().filter(|merge| !merge.waits) {
            // It fails, or it does not: the node will never know.
            let _ = merge.checkpoint.step(now);
        }
    }

    /// Begins to rewrite a base, if that is not under way.
    pub(crate) fn begin_regeneration(&mut self, node: NodeId, shard: ShardId) {
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&self.of(node).engines);
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return };
        if life.regenerations.contains_key(&shard) {
            return;
        }
        let Some(source) = life.replicas.get(&shard).and_then(kv_shard::Replica::regeneration_source) else {
            return;
        };
        let generation = life.begin_generation(shard);
        match Regeneration::begin(source, engines, generation) {
            Ok(regeneration) => {
                life.regenerations.insert(shard, Box::new(regeneration));
                life.is_busy = true;
            }
            Err(cause) => self.stop(node, &format!("{shard}: {cause:?}")),
        }
    }

    /// One step of a regeneration; whether there was anything to do. The last one is a checkpoint, which waits until no
    /// other is under way.
    pub(crate) fn step_regeneration(&mut self, node: NodeId, shard: ShardId) -> bool {
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return false };
        let Some(mut regeneration) = life.regenerations.remove(&shard) else { return false };
        match regeneration.step() {
            Ok(RegenerationStep::Again) => {
                life.regenerations.insert(shard, regeneration);
                true
            }
            Ok(RegenerationStep::CaughtUp) => {
                let ended =
                    self.turn_with(node, shard, |replica, _| Ok(replica.end_regeneration(regeneration)));
                let (Some(ended), Some(life)) = (ended, self.life(node)) else { return false };
                match ended {
                    Ok(checkpoint) => {
                        life.merges.insert(shard, Merge { checkpoint, waits: false });
                        true
                    }
                    Err(regeneration) => {
                        life.regenerations.insert(shard, regeneration);
                        false
                    }
                }
            }
            Err(RegenerationError::Damaged(StoreError::Damaged { detail })) => {
                let generation = self.generation(node, shard);
                self.find_damage(node, shard, generation, detail);
                true
            }
            Err(RegenerationError::Replaced) => {
                self.counts.regenerations_replaced += 1;
                true
            }
            // As the daemon, it is given up.
            Err(RegenerationError::Io(cause)) if is_no_room(&cause) => false,
            Err(cause) => {
                self.stop(node, &format!("{shard}: {cause:?}"));
                false
            }
        }
    }

    /// One step of the comparison of rows with their hash; whether one was under way.
    pub(crate) fn step_verification(&mut self, node: NodeId, shard: ShardId) -> bool {
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return false };
        let Some(verification) = life.verifications.get_mut(&shard) else { return false };
        match verification.step() {
            Ok(true) => {
                life.verifications.remove(&shard);
                self.turn_with(node, shard, |replica, _| {
                    replica.verified();
                    Ok(())
                });
            }
            Ok(false) => {}
            Err(StoreError::Damaged { detail }) => {
                life.verifications.remove(&shard);
                let generation = self.generation(node, shard);
                if !self.replica(node, shard).is_some_and(|replica| replica.status().verified) {
                    self.find_damage(node, shard, generation, detail);
                }
            }
            Err(cause) => self.stop(node, &format!("{shard}: {cause:?}")),
        }
        true
    }
}

/// Removes the files that a replica does not need any more.
fn sweep(replica: &mut Replica<usize>) -> Result<(), ReplicaError> {
    Ok(replica.retired().into_iter().try_for_each(Retired::remove)?)
}
