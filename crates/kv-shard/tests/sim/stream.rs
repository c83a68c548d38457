//! Snapshot streams, chunk by chunk, with the steps and the breaks that the daemon's have.

use std::sync::Arc;

use kv_raft::SnapshotJob;
use kv_storage::{EngineFactory, SnapshotReceiver, SnapshotSource, TwinFactory};
use kv_types::{LogId, NodeId, ShardId};

use crate::cluster::Cluster;

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
    /// The lives of sender and receiver.
    lives: (u64, u64),
    pub(crate) stage: Stage,
}

impl Cluster {
    pub(crate) fn begin_stream(&mut self, from: NodeId, shard: ShardId, job: SnapshotJob) {
        let lives = (self.nodes[&from].lives, self.nodes[&job.to].lives);
        self.streams.push(Stream { shard, from, job, lives, stage: Stage::Asked });
    }

    /// Moves a stream one step on; whether anything happened.
    pub(crate) fn step_stream(&mut self, at: usize) -> bool {
        let stream = &self.streams[at];
        let (shard, from, to) = (stream.shard, stream.from, stream.job.to);
        if self.is_broken(stream) {
            self.break_stream(at);
            return true;
        }
        match &mut self.streams[at].stage {
            Stage::Asked => self.open_stream(at),
            Stage::Flowing { source, receiver } => match source.next_chunk() {
                Ok(Some(chunk)) => receiver.push(&chunk).unwrap(),
                Ok(None) => self.offer(at),
                // A snapshot was installed under the sender's feet.
                Err(_) => self.break_stream(at),
            },
            Stage::Installing { wanted } => {
                let wanted = *wanted;
                let replica = self.replica(to, shard).unwrap();
                if replica.is_installing() {
                    return false;
                }
                let result = if replica.applied() == wanted { Ok(wanted) } else { Err(()) };
                self.streams.remove(at);
                self.turn_with(from, shard, |replica, now| replica.snapshot_sent(now, to, result));
            }
        }
        true
    }

    fn is_broken(&self, stream: &Stream) -> bool {
        let (from, to) = (&self.nodes[&stream.from], &self.nodes[&stream.job.to]);
        let up = from.life.is_some() && to.life.is_some();
        !up || stream.lives != (from.lives, to.lives) || self.network.is_cut(stream.from, stream.job.to)
    }

    /// A node receives one snapshot a shard at a time.
    fn open_stream(&mut self, at: usize) {
        let Stream { shard, from, job, .. } = self.streams[at];
        let busy = self.streams.iter().any(|other| {
            other.shard == shard && other.job.to == job.to && !matches!(other.stage, Stage::Asked)
        });
        if busy {
            self.break_stream(at);
            return;
        }
        let life = self.nodes.get_mut(&job.to).unwrap().life.as_mut().unwrap();
        let generation = life.begin_generation(shard);
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&self.nodes[&job.to].engines);
        let receiver = Box::new(SnapshotReceiver::new(engines, shard, generation).unwrap());
        let source = Box::new(self.replica(from, shard).unwrap().snapshot_source());
        self.streams[at].stage = Stage::Flowing { source, receiver };
    }

    /// All chunks are there: the replica decides.
    fn offer(&mut self, at: usize) {
        let Stream { shard, from, job, .. } = self.streams[at];
        let Stage::Flowing { receiver, .. } = std::mem::replace(&mut self.streams[at].stage, Stage::Asked)
        else {
            unreachable!("only a flowing stream ends")
        };
        let received = receiver.finish().unwrap();
        let wanted = received.base().meta.last;
        self.streams[at].stage = Stage::Installing { wanted };
        self.snapshots_offered += 1;
        self.turn_with(job.to, shard, |replica, now| {
            replica.snapshot_received(now, from, job.term, received);
        });
    }

    /// Both ends learn that the stream broke, as far as they are up.
    pub(crate) fn break_stream(&mut self, at: usize) {
        let Stream { shard, from, job, lives, stage } = self.streams.remove(at);
        let (sender, receiver) = (&self.nodes[&from], &self.nodes[&job.to]);
        if let Stage::Flowing { receiver: half, .. } = stage
            && (receiver.life.is_none() || receiver.lives != lives.1)
        {
            // The process that would have tidied up is dead.
            std::mem::forget(half);
        }
        if sender.life.is_some() && sender.lives == lives.0 {
            self.turn_with(from, shard, |replica, now| replica.snapshot_sent(now, job.to, Err(())));
        }
    }
}
