//! Where everybody stands.

use std::collections::BTreeSet;

use kv_shard::Replica;
use kv_types::{NodeId, ShardId};

use super::Cluster;

impl Cluster {
    /// The leader of the newest term.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.leader_of(shard, self.settings.nodes())
    }

    /// The leader of the newest term that any of these leads.
    pub(crate) fn leader_among(&self, shard: ShardId, nodes: &BTreeSet<NodeId>) -> Option<NodeId> {
        self.leader_of(shard, nodes.iter().copied())
    }

    fn leader_of(&self, shard: ShardId, nodes: impl Iterator<Item = NodeId>) -> Option<NodeId> {
        let term = |node: NodeId| {
            let replica = self.replica(node, shard)?;
            replica.is_leader().then(|| (replica.leadership().0, node))
        };
        nodes.filter_map(term).max().map(|(_, node)| node)
    }

    /// Whether every shard has a leader and is the same on all of these that are members, and no change of the
    /// membership is under way.
    pub(crate) fn is_settled_among(&self, nodes: &BTreeSet<NodeId>) -> bool {
        self.settings.shards().all(|shard| {
            let leader = self.leader_among(shard, nodes).and_then(|leader| self.replica(leader, shard));
            let Some(leader) = leader.map(Replica::status) else { return false };
            let (end, members) = (leader.raft.last, leader.raft.membership.members());
            let mut present = nodes.iter().filter(|node| members.contains(*node));
            !leader.raft.membership.is_joint()
                && present.all(|node| {
                    self.replica(*node, shard).is_some_and(|replica| {
                        let raft = replica.status().raft;
                        replica.applied() == end && raft.last == end && raft.durable == end.index
                    })
                })
        })
    }

    /// Where every replica stands, for a failure to say.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("{} streams", self.streams.len());
        for node in self.settings.nodes() {
            for shard in self.settings.shards() {
                match self.replica(node, shard).map(Replica::status) {
                    None => text += &format!("; {node} is down"),
                    Some(status) => {
                        let raft = &status.raft;
                        text += &format!(
                            "; {node} {shard} {} {} of {:?}, last {} durable {} commit {} applied {} start {}, {}",
                            raft.role,
                            raft.term,
                            raft.leader,
                            raft.last,
                            raft.durable,
                            raft.commit,
                            status.applied,
                            status.log_start,
                            raft.membership,
                        );
                    }
                }
            }
        }
        text
    }
}
