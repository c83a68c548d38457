//! Drives a cluster by hand: everything that can be done is done, in one order, and time leaps when there is nothing.

use std::time::Duration;

use kv_types::{Nanos, NodeId};

use crate::cluster::Cluster;

impl Cluster {
    /// Cuts every path from and to a node.
    pub(crate) fn isolate(&mut self, node: NodeId) {
        for other in self.settings.nodes().filter(|other| *other != node) {
            self.network.cut(node, other);
            self.network.cut(other, node);
        }
    }

    /// Does everything that can be done without waiting; whether there was anything.
    pub(crate) fn work(&mut self) -> bool {
        let mut worked = self.work_without_streams();
        let mut at = self.streams.len();
        while at > 0 {
            at -= 1;
            worked |= at < self.streams.len() && self.step_stream(at);
        }
        worked
    }

    /// The same, but snapshots stand still.
    pub(crate) fn work_without_streams(&mut self) -> bool {
        let mut worked = false;
        for packet in std::mem::take(&mut self.network.packets) {
            self.deliver(packet);
            worked = true;
        }
        for node in self.settings.nodes() {
            while !self.stalled_disks.contains(&node) && self.write_wal(node, usize::MAX) > 0 {
                worked = true;
            }
            for shard in self.settings.shards() {
                let Some(life) = self.nodes[&node].life.as_ref() else { continue };
                let replica = &life.replicas[&shard];
                let (mail, before) = (!life.mail[&shard].is_empty(), replica.applied().index);
                if mail || (replica.status().verified && before < replica.status().raft.commit) {
                    self.turn(node, shard);
                    let after = self.replica(node, shard).map(|replica| replica.applied().index);
                    worked |= mail || after > Some(before);
                }
                worked |= self.step_verification(node, shard);
                worked |= self.step_merge(node, shard);
                worked |= self.step_regeneration(node, shard);
            }
        }
        worked
    }

    /// Turns of the replicas that have asked to be woken by now.
    pub(crate) fn wake(&mut self) {
        for node in self.settings.nodes() {
            for shard in self.settings.shards() {
                if self
                    .replica(node, shard)
                    .is_some_and(|replica| replica.next_deadline() <= self.clock(node))
                {
                    self.turn(node, shard);
                }
            }
        }
    }

    /// Lets everything run, with a network that loses nothing, until `done` or until the time is up.
    pub(crate) fn run_until(&mut self, span: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.after(span);
        loop {
            while self.work() {}
            if done(self) {
                return true;
            }
            let Some(next) = self.next_deadline().filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next).max(Nanos::new(self.now.get() + 1));
            self.wake();
        }
    }

    /// When the first replica has something to do.
    fn next_deadline(&self) -> Option<Nanos> {
        let deadlines = self.nodes.iter().filter_map(|(id, node)| Some((*id, node.life.as_ref()?)));
        let deadlines = deadlines.flat_map(|(id, life)| {
            life.replicas.values().map(move |replica| self.when(id, replica.next_deadline()))
        });
        deadlines.min()
    }

    pub(crate) fn run(&mut self, span: Duration) {
        self.run_until(span, |_| false);
    }

    /// Whether all nodes are up and every shard is the same on all of them, with a leader.
    pub(crate) fn is_settled(&self) -> bool {
        self.settings.nodes().all(|node| self.is_up(node))
            && self.is_settled_among(&self.settings.nodes().collect())
    }
}
