//! Snapshot streams, chunk by chunk, with the steps and the breaks that the daemon's have.

use std::sync::Arc;

use kv_raft::SnapshotJob;
use kv_storage::{EngineFactory, SnapshotReceiver, SnapshotSource, StoreError, TwinFactory};
use kv_types::{LogId, NodeId, ShardId};

use crate::cluster::Cluster;
use crate::violation::Violation;

/// How far a stream is.
#[derive(Debug)]
pub(crate) enum Stage {
    Asked,
    Flowing { source: Box<SnapshotSource>, receiver: Box<SnapshotReceiver> },
    Installing { wanted: LogId },
}

/// A snapshot on its way from one node to another.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) shard: ShardId,
    pub(crate) from: NodeId,
    pub(crate) job: SnapshotJob,
    /// Whether it takes the place of damaged rows; Raft hears nothing of it then.
    pub(crate) repair: bool,
    /// The lives of sender and receiver.
    lives: (u64, u64),
    pub(crate) stage: Stage,
}

impl Cluster {
    pub(crate) fn begin_stream(&mut self, from: NodeId, shard: ShardId, job: SnapshotJob, repair: bool) {
        let lives = (self.of(from).lives, self.of(job.to).lives);
        self.streams.push(Stream { shard, from, job, repair, lives, stage: Stage::Asked });
    }

    /// Moves a stream one step on; whether anything happened.
    pub(crate) fn step_stream(&mut self, at: usize) -> bool {
        let Some(stream) = self.streams.get(at) else { return false };
        let (shard, from, to) = (stream.shard, stream.from, stream.job.to);
        if self.is_broken(stream) {
            self.break_stream(at);
            return true;
        }
        let Some(stream) = self.streams.get_mut(at) else { return false };
        match &mut stream.stage {
            Stage::Asked => self.open_stream(at),
            Stage::Flowing { source, receiver } => match source.next_chunk() {
                Ok(Some(chunk)) => {
                    if let Err(cause) = receiver.push(&chunk) {
                        self.refuse_stream(at, &cause);
                    }
                }
                Ok(None) => self.offer(at),
                Err(StoreError::Damaged { detail }) => {
                    let generation = source.generation();
                    self.break_stream(at);
                    self.find_damage(from, shard, generation, detail);
                }
                // A snapshot was installed under the sender's feet.
                Err(_) => self.break_stream(at),
            },
            Stage::Installing { wanted } => {
                let wanted = *wanted;
                let Some(replica) = self.replica(to, shard) else { return false };
                if replica.is_installing() {
                    return false;
                }
                let result = if replica.applied().index >= wanted.index { Ok(wanted) } else { Err(()) };
                self.streams.remove(at);
                self.turn_with(from, shard, |replica, now| {
                    replica.snapshot_sent(now, to, result);
                    Ok(())
                });
            }
        }
        true
    }

    fn is_broken(&self, stream: &Stream) -> bool {
        let (from, to) = (self.of(stream.from), self.of(stream.job.to));
        let up = from.life.is_some() && to.life.is_some();
        !up || stream.lives != (from.lives, to.lives) || self.network.is_cut(stream.from, stream.job.to)
    }

    /// A node receives one snapshot a shard at a time.
    fn open_stream(&mut self, at: usize) {
        let Some(&Stream { shard, from, job, .. }) = self.streams.get(at) else { return };
        let busy = self.streams.iter().any(|other| {
            other.shard == shard && other.job.to == job.to && !matches!(other.stage, Stage::Asked)
        });
        if busy {
            self.break_stream(at);
            return;
        }
        let Some(life) = self.life(job.to) else { return };
        let generation = life.begin_generation(shard);
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&self.of(job.to).engines);
        let Some(source) = self.replica(from, shard).map(kv_shard::Replica::snapshot_source) else { return };
        match SnapshotReceiver::new(engines, shard, generation) {
            #[cfg_attr(not(feature = "planted"), allow(unused_mut, reason = "a bug may be planted in it"))]
            Ok(mut receiver) => {
                #[cfg(feature = "planted")]
                if self.settings.is_planted(crate::planted::Planted::SnapshotNewerThanIndex) {
                    receiver.label_older();
                }
                let (source, receiver) = (Box::new(source), Box::new(receiver));
                self.set_stage(at, Stage::Flowing { source, receiver });
            }
            Err(cause) => self.stop(job.to, &format!("{shard}: {cause:?}")),
        }
    }

    /// All chunks are there: the replica decides.
    fn offer(&mut self, at: usize) {
        let Some(&Stream { shard, from, job, repair, .. }) = self.streams.get(at) else { return };
        let Some(Stage::Flowing { receiver, .. }) = self.set_stage(at, Stage::Asked) else { return };
        let received = match receiver.finish() {
            Ok(received) => received,
            Err(cause) => {
                self.refuse_stream(at, &cause);
                return;
            }
        };
        let wanted = received.base().meta.last;
        self.set_stage(at, Stage::Installing { wanted });
        self.counts.snapshots_offered += 1;
        if repair {
            // It may wait there for long, and keeps nobody out.
            self.streams.remove(at);
        }
        self.turn_with(job.to, shard, |replica, now| {
            if repair {
                replica.repair_received(received);
            } else {
                replica.snapshot_received(now, from, job.term, received);
            }
            Ok(())
        });
    }

    fn set_stage(&mut self, at: usize, stage: Stage) -> Option<Stage> {
        self.streams.get_mut(at).map(|stream| std::mem::replace(&mut stream.stage, stage))
    }

    /// The receiver found the stream unsound, which no sound sender makes.
    fn refuse_stream(&mut self, at: usize, cause: &dyn std::fmt::Debug) {
        let detail = format!("a snapshot is refused: {cause:?}");
        self.report(Err(Violation::new("snapshot-exact", detail)));
        self.break_stream(at);
    }

    /// Both ends learn that the stream broke, as far as they are up.
    pub(crate) fn break_stream(&mut self, at: usize) {
        let Stream { shard, from, job, repair, lives, stage } = self.streams.remove(at);
        let (sender, receiver) = (self.of(from), self.of(job.to));
        if let Stage::Flowing { receiver: half, .. } = stage
            && (receiver.life.is_none() || receiver.lives != lives.1)
        {
            // The process that would have tidied up is dead.
            std::mem::forget(half);
        }
        if !repair && sender.life.is_some() && sender.lives == lives.0 {
            self.turn_with(from, shard, |replica, now| {
                replica.snapshot_sent(now, job.to, Err(()));
                Ok(())
            });
        }
    }
}
