//! What a drill does to processes.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_fault::{Process, Target, Verb};
use kv_types::{Nanos, NodeId, ShardId};
use rand::RngExt;

use super::super::Run;

/// When a process goes on that stands still until it is told to: after every run.
const FAR: Nanos = Nanos::new(1 << 60);

/// A node to which something was done that another step takes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    /// What takes it back.
    mender: Verb,
    /// By what name the node was broken.
    target: Target,
    node: NodeId,
}

impl Run {
    /// Does something to a process, or to several; to how many.
    pub(super) fn do_to_process(&mut self, process: Process, node: Option<NodeId>) -> u64 {
        match (process.verb, node) {
            (Verb::Kill, Some(node)) => {
                self.note_broken(Verb::Restart, process.target, node);
                self.kill(node)
            }
            (Verb::Pause, Some(node)) => {
                self.note_broken(Verb::Resume, process.target, node);
                self.pause(node)
            }
            (Verb::Wipe, Some(node)) => {
                self.note_broken(Verb::Restart, process.target, node);
                self.wipe_by_step(node)
            }
            (Verb::Damage, Some(node)) => {
                self.note_broken(Verb::Restart, process.target, node);
                self.damage(node)
            }
            (Verb::Resume | Verb::Restart, _) => self.mend_broken(process),
            (Verb::Kill | Verb::Pause | Verb::Wipe | Verb::Damage, None) => 0,
        }
    }

    fn note_broken(&mut self, mender: Verb, target: Target, node: NodeId) {
        self.watch_broken();
        if let Some(playing) = self.drill.as_mut() {
            playing.broken.push(Broken { mender, target, node });
        }
    }

    fn kill(&mut self, node: NodeId) -> u64 {
        if !self.cluster.is_up(node) {
            return 0;
        }
        self.crash(node);
        self.take_up();
        1
    }

    /// Nothing is done if the groups could not go on without it.
    fn wipe_by_step(&mut self, node: NodeId) -> u64 {
        if !self.is_expendable(node) {
            return 0;
        }
        self.lose_disk(node);
        self.take_up();
        1
    }

    /// The node goes down, and a row rots in each of its bases; 0 if they have none, or if the groups need its rows.
    fn damage(&mut self, node: NodeId) -> u64 {
        if !self.is_expendable(node) || !self.cluster.is_up(node) {
            return 0;
        }
        let shards: Vec<ShardId> = self.cluster.settings.shards().collect();
        let bases: Vec<_> =
            shards.into_iter().map(|shard| (shard, self.cluster.generation(node, shard))).collect();
        self.crash(node);
        self.take_up();
        let rotten = bases.into_iter().filter(|base| self.rot_row(node, *base)).count();
        u64::from(rotten > 0)
    }

    fn pause(&mut self, node: NodeId) -> u64 {
        if !self.cluster.is_up(node) {
            return 0;
        }
        self.suspended.insert(node, FAR);
        1
    }

    fn mend_broken(&mut self, process: Process) -> u64 {
        let Some(playing) = self.drill.as_mut() else { return 0 };
        let is_meant = |broken: &mut Broken| {
            let is_target = process.target == Target::All || process.target == broken.target;
            broken.mender == process.verb && is_target
        };
        let broken: Vec<Broken> = playing.broken.extract_if(.., is_meant).collect();
        broken.into_iter().map(|broken| self.mend_one(broken)).sum()
    }

    fn mend_one(&mut self, Broken { mender, node, .. }: Broken) -> u64 {
        self.watch_mended(&BTreeSet::new());
        let (was_up, was_awake) = (self.cluster.is_up(node), self.awake(node).is_none());
        match mender {
            Verb::Restart => {
                self.restart(node);
                u64::from(!was_up)
            }
            Verb::Resume => {
                self.resume(node);
                u64::from(!was_awake)
            }
            Verb::Kill | Verb::Pause | Verb::Wipe | Verb::Damage => {
                unreachable!("{} takes nothing back", mender.name())
            }
        }
    }

    /// Every node is up, and none stands still.
    pub(super) fn mend_all(&mut self) {
        for node in self.cluster.settings.nodes() {
            self.resume(node);
            self.restart(node);
        }
        if let Some(playing) = self.drill.as_mut() {
            playing.broken.clear();
        }
    }

    fn resume(&mut self, node: NodeId) {
        if self.suspended.remove(&node).is_none() {
            return;
        }
        self.take_up();
        for shard in self.cluster.settings.shards() {
            self.turns.remove(&(node, shard));
            // Readers need no turn: those that waited may come first.
            let late = Duration::from_micros(self.dice.network.random_range(0..200));
            self.wake(node, shard, self.cluster.now.after(late));
        }
    }

    /// What waited for processes to go on happens now, or waits again for those that do not.
    fn take_up(&mut self) {
        let now = self.cluster.now;
        for happening in self.queue.split_off(&(FAR, 0)).into_values() {
            self.at(now, happening);
        }
    }
}
