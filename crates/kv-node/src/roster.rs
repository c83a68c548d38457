//! Who belongs to the cluster after its formation, as far as this node has applied the meta group's log.

use std::collections::BTreeMap;

use kv_state::cluster::{ClusterState, Wanted};
use kv_types::{Incarnation, NodeId};

/// What is known of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is a member with this disk.
    Member(Incarnation),
    /// It was removed, and every group has let go of it.
    Removed,
}

/// All nodes that are or were members. Nodes that are only announced are not in it: nobody has seen their disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Roster {
    nodes: BTreeMap<NodeId, Standing>,
}

impl Roster {
    /// The members the cluster was formed by.
    pub(crate) fn of_table(members: &BTreeMap<NodeId, Incarnation>) -> Self {
        Self { nodes: members.iter().map(|(node, life)| (*node, Standing::Member(*life))).collect() }
    }

    /// The members as the meta group has them. A node that is being removed is heard until every group has let go of
    /// it: until then it votes, and what removes it reaches it over the same links.
    pub(crate) fn of_cluster(cluster: &ClusterState) -> Self {
        let settled = cluster.is_settled();
        let standing = |(node, member): (&NodeId, &kv_state::cluster::Member)| {
            let life = member.incarnation?;
            let leaving = cluster.subject == Some(*node) && !settled;
            let removed = member.wanted == Wanted::Removed && !leaving;
            Some((*node, if removed { Standing::Removed } else { Standing::Member(life) }))
        };
        Self { nodes: cluster.members.iter().filter_map(standing).collect() }
    }

    /// What is known of a node; `None` for a stranger.
    pub(crate) fn standing(&self, node: NodeId) -> Option<Standing> {
        self.nodes.get(&node).copied()
    }
}

#[cfg(test)]
mod tests {
    use kv_state::cluster::{ClusterCommand, Member};
    use kv_types::{Revision, ShardId};

    use super::*;

    fn member(node: u64) -> (NodeId, Member) {
        let member = Member {
            incarnation: Some(Incarnation::new(node + 100)),
            wanted: Wanted::Voter,
            peer_addr: "p".to_owned(),
            client_addr: "c".to_owned(),
        };
        (NodeId::new(node), member)
    }

    #[test]
    fn a_node_that_is_being_removed_is_heard_until_every_group_has_let_go_of_it() {
        let mut cluster = ClusterState::default();
        let members = (1..=3).map(member).collect();
        let found = ClusterCommand::Found { members, groups: vec![ShardId::META] };
        cluster.apply(Revision::new(1), found).unwrap();
        let three = NodeId::new(3);
        let life = Some(Standing::Member(Incarnation::new(103)));
        assert_eq!(Roster::of_cluster(&cluster).standing(three), life);
        cluster.apply(Revision::new(2), ClusterCommand::Remove { node: three }).unwrap();
        assert_eq!(Roster::of_cluster(&cluster).standing(three), life);
        let membership = cluster.wanted();
        let reached = ClusterCommand::Reached { group: ShardId::META, change: Revision::new(2), membership };
        cluster.apply(Revision::new(3), reached).unwrap();
        assert_eq!(Roster::of_cluster(&cluster).standing(three), Some(Standing::Removed));
        assert_eq!(Roster::of_cluster(&cluster).standing(NodeId::new(9)), None);
    }
}
