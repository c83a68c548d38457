//! Damaged rows: who finds them, and who sends others.

use kv_raft::SnapshotJob;
use kv_storage::Generation;
use kv_types::{NodeId, ShardId};

use crate::cluster::Cluster;
use crate::violation::Violation;
use crate::world::Seen;

impl Cluster {
    /// Somebody reads rows that are not what they should be, and tells the replica.
    pub(crate) fn find_damage(
        &mut self,
        node: NodeId,
        shard: ShardId,
        generation: Generation,
        detail: String,
    ) {
        let told = detail.clone();
        let before = self.is_damaged(node, shard);
        self.turn_with(node, shard, |replica, _| {
            replica.damaged(generation, told);
            Ok(())
        });
        if !before && self.is_damaged(node, shard) {
            self.lost(node, shard, &detail);
        }
    }

    /// A replica knows that its rows are damaged. Only a fault may have made them so.
    pub(crate) fn lost(&mut self, node: NodeId, shard: ShardId, detail: &str) {
        self.counts.damaged += 1;
        if !self.spoiled.contains_key(&(node, shard)) {
            let detail = format!("{node} {shard}: rows that no fault has touched are damaged: {detail}");
            self.report(Err(Violation::new("no-replica-stops", detail)));
        }
        let base = self.replica(node, shard).map(|replica| replica.status().base);
        if let Some(base) = base {
            self.see(node, shard, Seen::Lost(base));
        }
    }

    pub(crate) fn is_damaged(&self, node: NodeId, shard: ShardId) -> bool {
        self.replica(node, shard).is_some_and(|replica| replica.damage().is_some())
    }

    /// Asks a member for rows in the place of damaged ones, if that is to be done; whether it is.
    pub(crate) fn step_repair(&mut self, node: NodeId, shard: ShardId) -> bool {
        let Some(replica) = self.replica(node, shard) else { return false };
        let status = replica.status();
        if let Some(spoiled) = self.spoiled.get(&(node, shard))
            && status.verified
            && status.base_generation > *spoiled
        {
            self.spoiled.remove(&(node, shard));
            self.counts.repaired += 1;
            self.check_rows(node, shard);
        }
        if status.damage.is_none() {
            return false;
        }
        let is_coming = self.streams.iter().any(|stream| stream.shard == shard && stream.job.to == node);
        if is_coming || status.installing {
            return true;
        }
        self.repairs_asked += 1;
        let others: Vec<NodeId> =
            status.raft.membership.members().into_iter().filter(|other| *other != node).collect();
        let able = |other: &&NodeId| {
            let other = self.replica(**other, shard).map(kv_shard::Replica::status);
            other.is_some_and(|other| other.verified && other.applied.index >= status.base)
        };
        // Another one at each try.
        let able: Vec<&NodeId> = others.iter().filter(able).collect();
        let Some(from) = able.get(self.repairs_asked % able.len().max(1)).map(|from| **from) else {
            return true;
        };
        if !self.network.is_cut(from, node) && !self.network.is_cut(node, from) {
            self.begin_stream(from, shard, SnapshotJob { to: node, term: status.raft.term }, true);
        }
        true
    }
}
