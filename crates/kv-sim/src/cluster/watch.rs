//! Shows everything that happens to the invariants.

use std::hash::Hash;

use kv_raft::LeaseUpdate;
use kv_shard::{Replica, ShardWrite};
use kv_state::StateHash;
use kv_storage::WalOp;
use kv_types::{Body, LogId, LogIndex, NodeId, ShardId};

use super::Cluster;
use crate::violation::{Holds, Violation};
use crate::world::{Event, Seen};

impl Cluster {
    /// Takes note of a violation.
    pub(crate) fn report(&mut self, result: Holds) {
        if let Err(violation) = result {
            assert!(!self.settings.is_strict, "{violation}");
            let at = self.now;
            self.violation.get_or_insert(Violation { at, ..violation });
        }
    }

    /// Shows an event to all invariants, and notes it.
    pub(crate) fn see(&mut self, node: NodeId, shard: ShardId, seen: Seen<'_>) {
        let event = Event { node, shard, seen };
        self.world.now = self.now;
        if self.settings.has_log {
            let line = format!("{} {event:?}\n", self.now.get());
            self.log.push_str(&line);
        }
        for at in 0..self.invariants.len() {
            let Some(invariant) = self.invariants.get_mut(at) else { break };
            let result = invariant.check(&event, &self.world);
            if result.is_err() {
                self.report(result);
            }
        }
        self.world.note(&event);
    }

    pub(crate) fn applied(&mut self, node: NodeId, shard: ShardId, id: LogId, hash: StateHash) {
        let entry = self.world.groups.get(&shard).and_then(|group| group.entries.get(&id));
        let result = self.oracle.applied(node, shard, (id, hash), entry);
        self.report(result);
        if id.index > LogIndex::ZERO {
            self.see(node, shard, Seen::Applied(id, hash));
        }
    }

    /// Shows what a turn wrote, and what became of role, commit index and membership in it.
    pub(super) fn watch_writes(&mut self, node: NodeId, shard: ShardId, writes: &[ShardWrite]) {
        let Some(replica) = self.replica(node, shard) else { return };
        let (term, _) = replica.leadership();
        let leads = replica.is_leader().then_some(term);
        let commit = replica.commit();
        let (before, known) = {
            let ghost = self.world.ghost(node, shard);
            (ghost.leads, ghost.commit)
        };
        (term, commit).hash(&mut self.trace);
        let leads_on = leads.is_some() && leads == before;
        // What a leader commits was in its log before; what a follower commits may have come in this turn.
        if leads_on && commit != known {
            self.see(node, shard, Seen::Commit(commit));
        }
        let mut changes = false;
        for write in writes {
            let op = &write.record.op;
            self.see(node, shard, Seen::Wrote(op, leads));
            changes |= match op {
                WalOp::Raft { truncate_from, append, .. } => {
                    let configs = append.iter().filter(|entry| matches!(entry.body, Body::Config(_))).count();
                    self.counts.configs += configs;
                    truncate_from.is_some() || configs > 0
                }
                WalOp::Install { .. } => true,
                _ => false,
            };
        }
        if !leads_on && commit != known {
            self.see(node, shard, Seen::Commit(commit));
        }
        if leads != before {
            self.counts.elections += usize::from(leads.is_some());
            self.see(node, shard, Seen::Leads(leads));
        }
        if changes && let Some(replica) = self.replica(node, shard) {
            let index = replica.status().raft.membership_index;
            self.see(node, shard, Seen::InForce(index));
        }
    }

    pub(crate) fn publish_lease(&mut self, node: NodeId, shard: ShardId, lease: Option<LeaseUpdate>) {
        let Some(lease) = lease else { return };
        let Some(life) = self.life(node) else { return };
        life.published.entry(shard).or_default().lease = lease;
        self.see(node, shard, Seen::Lease(lease));
    }

    pub(super) fn publish_commit(&mut self, node: NodeId, shard: ShardId) {
        let Some(life) = self.life(node) else { return };
        let commit = life.replicas.get(&shard).map(Replica::commit).unwrap_or_default();
        life.published.entry(shard).or_default().commit = commit;
    }
}
