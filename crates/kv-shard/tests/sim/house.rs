//! What a node does for its disk: checkpoints, comparisons of rows with their hash, new generations of bases.

use std::sync::Arc;

use kv_storage::{
    CheckpointStep, EngineFactory, Regeneration, RegenerationError, RegenerationStep, TwinFactory, WalRecord,
};
use kv_types::{NodeId, ShardId};

use crate::cluster::Cluster;
use crate::node::{Durable, Merge};

impl Cluster {
    /// Begins a checkpoint, if none is under way; whether one is.
    pub(crate) fn begin_merge(&mut self, node: NodeId, shard: ShardId) -> bool {
        let Some(life) = self.nodes[&node].life.as_ref() else { return false };
        if life.merges.contains_key(&shard) {
            return true;
        }
        let begun = self.turn_with(node, shard, |replica, _| replica.begin_checkpoint().unwrap());
        let Some(checkpoint) = begun.flatten() else { return false };
        let life = self.nodes.get_mut(&node).unwrap().life.as_mut().unwrap();
        life.merges.insert(shard, Merge { checkpoint, waits: false });
        true
    }

    /// One step of a checkpoint; whether anything happened.
    pub(crate) fn step_merge(&mut self, node: NodeId, shard: ShardId) -> bool {
        let now = self.clock(node);
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return false };
        let Some(merge) = life.merges.get_mut(&shard).filter(|merge| !merge.waits) else { return false };
        match merge.checkpoint.step(now).unwrap() {
            CheckpointStep::Again => true,
            CheckpointStep::Wait => false,
            CheckpointStep::Wal(op) => {
                merge.waits = true;
                life.queue.push_back((WalRecord { shard, op }, Durable::Merge(shard)));
                true
            }
            CheckpointStep::Done(done) => {
                life.merges.remove(&shard);
                let before = self.replica(node, shard).unwrap().reader();
                let (applied, hash) = (before.applied(), before.hash());
                self.checkpoints += 1;
                self.regenerations += usize::from(done.is_regeneration());
                self.turn_with(node, shard, |replica, now| {
                    replica.checkpoint_done(now, done).unwrap();
                    let after = replica.reader();
                    assert_eq!((after.applied(), after.hash()), (applied, hash), "nothing is applied by it");
                    replica.retired().into_iter().for_each(|retired| retired.remove().unwrap());
                });
                self.check_rows(node, shard);
                true
            }
        }
    }

    /// One step of every checkpoint of a node, and of every comparison of rows.
    pub(crate) fn step_background(&mut self, node: NodeId) {
        for shard in self.settings.shards() {
            self.step_verification(node, shard);
            self.step_merge(node, shard);
            self.step_regeneration(node, shard);
        }
    }

    /// Begins to rewrite a base, if that is not under way.
    pub(crate) fn begin_regeneration(&mut self, node: NodeId, shard: ShardId) {
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&self.nodes[&node].engines);
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return };
        if life.regenerations.contains_key(&shard) {
            return;
        }
        let Some(source) = life.replicas[&shard].regeneration_source() else { return };
        let generation = life.begin_generation(shard);
        let regeneration = Regeneration::begin(source, engines, generation).unwrap();
        life.regenerations.insert(shard, Box::new(regeneration));
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
                let ended = self.turn_with(node, shard, |replica, _| replica.end_regeneration(regeneration));
                let life = self.nodes.get_mut(&node).unwrap().life.as_mut().unwrap();
                match ended.unwrap() {
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
            Err(RegenerationError::Replaced) => {
                self.regenerations_replaced += 1;
                true
            }
            Err(cause) => panic!("{node} {shard}: {cause}"),
        }
    }

    /// One step of the comparison of rows with their hash; whether one was under way.
    pub(crate) fn step_verification(&mut self, node: NodeId, shard: ShardId) -> bool {
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return false };
        let Some(verification) = life.verifications.get_mut(&shard) else { return false };
        if verification.step().unwrap() {
            life.verifications.remove(&shard);
            self.turn_with(node, shard, |replica, _| replica.verified());
        }
        true
    }
}
