//! The end of a run. First a quorum is healed and all others stand still: it must elect a leader, and answer. Then
//! everybody comes back, and all must agree.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_types::{NodeId, ShardId};
use rand::RngExt;

use super::Run;
use crate::clock::MILLION;
use crate::cluster::calls::put;
use crate::invariants::termination;
use crate::oracle::End;

/// How often somebody who waits looks again.
const LOOK: Duration = Duration::from_millis(20);

impl Run {
    /// Ends the trouble and demands progress.
    pub(super) fn rest(&mut self) {
        if self.cluster.violation.is_some() {
            return;
        }
        self.is_troubled = false;
        let quorum = self.draw_quorum();
        self.heal(&quorum);
        self.demand(&quorum);
        if self.cluster.violation.is_some() {
            return;
        }
        let all: BTreeSet<NodeId> =
            self.cluster.settings.nodes().filter(|node| !self.lost.contains(node)).collect();
        self.heal(&all);
        self.clients.is_quiet = true;
        self.demand(&all);
        self.end_txns();
        self.end_counting();
        self.end_late_txns();
        if self.cluster.violation.is_none() {
            self.agree(&all);
        }
    }

    /// A quorum of every membership that may count, as small as it comes.
    fn draw_quorum(&mut self) -> BTreeSet<NodeId> {
        let mut quorum: BTreeSet<NodeId> =
            self.cluster.settings.nodes().filter(|node| !self.lost.contains(node)).collect();
        let mut others: Vec<NodeId> = quorum.iter().copied().collect();
        while !others.is_empty() {
            let at = self.dice.troubles.random_range(0..others.len());
            let node = others.swap_remove(at);
            quorum.remove(&node);
            // One whose rows are damaged votes, but it cannot lead.
            let sound = self.sound().intersection(&quorum).copied().collect();
            if !self.suffice(&sound) {
                quorum.insert(node);
            }
        }
        quorum
    }

    /// These nodes work and reach each other; nobody reaches the others, which stand still.
    fn heal(&mut self, quorum: &BTreeSet<NodeId>) {
        self.cluster.network.heal();
        // Cuts from before are gone, so nothing is left to be mended.
        self.queue.retain(|_, happening| !matches!(happening, super::Happening::Mend(_)));
        let nodes: Vec<NodeId> = self.cluster.settings.nodes().collect();
        for from in &nodes {
            for to in &nodes {
                if !quorum.contains(from) || !quorum.contains(to) {
                    self.cluster.network.cut(*from, *to);
                }
            }
        }
        self.deliver_late();
        let now = self.cluster.now;
        for node in quorum {
            self.suspended.remove(node);
            if self.cluster.stalled_disks.remove(node) {
                self.begin_write(*node);
            }
            self.make_room(*node);
            self.cluster.clock_mut(*node).set_rate(now, MILLION);
            if self.cluster.failing_disks.contains(node) && self.cluster.is_up(*node) {
                self.cluster.stop(*node, "its disk was about to fail");
            }
            self.restart(*node);
            for shard in self.cluster.settings.shards() {
                self.turns.remove(&(*node, shard));
                self.wake(*node, shard, now);
            }
        }
        self.settle();
    }

    /// A new write and, on every member that works, a read of it must be answered in time.
    fn demand(&mut self, quorum: &BTreeSet<NodeId>) {
        let patience = termination::patience(self.cluster.settings.election_timeout);
        let deadline = self.cluster.now.after(patience);
        let mut missing = Vec::new();
        for shard in self.cluster.settings.shards() {
            let written = self.try_until(deadline, |run| run.probe_write(shard, quorum));
            if !written {
                missing.push(format!("{shard} answers no write"));
                continue;
            }
            for node in quorum {
                let read = self.try_until(deadline, |run| run.probe_read(shard, *node));
                if !read {
                    missing.push(format!("{shard} answers no read on {node}"));
                }
            }
        }
        if self.cluster.violation.is_none() {
            let result = termination::check(&missing, &self.cluster.summary());
            self.cluster.report(result);
        }
    }

    /// Tries something again and again.
    pub(super) fn try_until(
        &mut self,
        deadline: kv_types::Nanos,
        mut attempt: impl FnMut(&mut Self) -> bool,
    ) -> bool {
        while self.cluster.violation.is_none() && self.cluster.now < deadline {
            if attempt(self) {
                return true;
            }
            let next = self.cluster.now.after(LOOK);
            self.run_until(next, |_| false);
        }
        false
    }

    pub(super) fn await_call(&mut self, call: usize) -> Option<End> {
        let deadline = self.cluster.now.after(self.cluster.settings.election_timeout * 4);
        self.run_until(deadline, |run| run.cluster.oracle.call(call).end.is_some());
        self.cluster.oracle.call(call).end.clone()
    }

    fn probe_write(&mut self, shard: ShardId, quorum: &BTreeSet<NodeId>) -> bool {
        let Some(leader) = self.cluster.leader_among(shard, quorum) else { return false };
        let value = format!("probe {}", self.cluster.oracle.calls.len());
        let call = self.cluster.write(leader, shard, &put("probe", &value));
        self.wake(leader, shard, self.cluster.now);
        matches!(self.await_call(call), Some(End::Written(_)))
    }

    /// A node that is no voter of the group may have nobody to ask, or be far behind.
    fn probe_read(&mut self, shard: ShardId, node: NodeId) -> bool {
        let Some(leader) = self.cluster.leader(shard) else { return false };
        if !self.cluster.world.ghost(leader, shard).membership().1.is_voter(node) {
            return true;
        }
        let call = self.cluster.read(node, shard, "probe");
        self.wake(node, shard, self.cluster.now);
        matches!(self.await_call(call), Some(End::Read(_)))
    }

    /// All members come to the same end, and their rows are what they should be.
    fn agree(&mut self, all: &BTreeSet<NodeId>) {
        // Everything that anybody lacks has to be sent.
        let patience = termination::patience(self.cluster.settings.election_timeout) * 4;
        let deadline = self.cluster.now.after(patience);
        let settled = self.try_until(deadline, |run| run.cluster.is_settled_among(all));
        if self.cluster.violation.is_some() {
            return;
        }
        let missing = if settled { Vec::new() } else { vec!["the members do not come to rest".to_owned()] };
        let result = termination::check(&missing, &self.cluster.summary());
        self.cluster.report(result);
        for node in all {
            for shard in self.cluster.settings.shards() {
                self.cluster.check_rows(*node, shard);
            }
        }
    }
}
