//! Who does what in the cluster at this moment.

use std::collections::{BTreeMap, BTreeSet};

use kv_client::{Client, Error, NodeAnswer, ShardTxns};
use kv_fault::Roles;
use kv_proto::v1;
use kv_types::{NodeId, SessionId, ShardId, TxnId};

/// The roles as the nodes that answered saw them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClusterRoles {
    nodes: BTreeSet<NodeId>,
    /// The leader in the newest epoch that anybody knows one of.
    leaders: BTreeMap<ShardId, (u64, NodeId)>,
    /// Where each transaction in doubt is decided.
    anchors: BTreeMap<TxnId, ShardId>,
}

impl ClusterRoles {
    /// Asks the cluster, and every shard which transactions are in doubt. Nodes that do not answer are known by those that
    /// do; what nobody knows is left out.
    ///
    /// # Errors
    /// If no node answers.
    pub async fn read_with_txns(client: &Client) -> Result<Self, Error> {
        let mut roles = Self::default();
        let answers = client.status().await;
        for answer in &answers {
            roles.hear(answer);
        }
        let mut failures = answers.into_iter().map(|answer| answer.answer.err());
        if let Some(Some(failure)) = failures.next()
            && failures.all(|failure| failure.is_some())
        {
            return Err(failure);
        }
        let lists = client.list_txns().await.unwrap_or_default();
        roles.doubts(&lists);
        Ok(roles)
    }

    /// The roles among these nodes, as those see them that have answered.
    pub(crate) fn of<'a>(
        nodes: impl IntoIterator<Item = NodeId>,
        answers: impl IntoIterator<Item = &'a v1::StatusReply>,
    ) -> Self {
        let mut roles = Self { nodes: nodes.into_iter().collect(), ..Self::default() };
        for status in answers {
            roles.hear_status(status);
        }
        roles
    }

    /// Takes up which transactions are in doubt: that asks every shard.
    pub(crate) async fn add_txns(&mut self, client: &Client) {
        let lists = client.list_txns().await.unwrap_or_default();
        self.doubts(&lists);
    }

    /// The leader of each shard, with its epoch.
    pub fn leaders(&self) -> impl Iterator<Item = (ShardId, u64, NodeId)> + '_ {
        self.leaders.iter().map(|(shard, (epoch, node))| (*shard, *epoch, *node))
    }

    fn hear(&mut self, answer: &NodeAnswer<v1::StatusReply>) {
        let Ok(status) = &answer.answer else {
            self.nodes.extend(answer.node);
            return;
        };
        self.nodes.insert(NodeId::new(status.node));
        self.nodes.extend(status.peers.iter().map(|peer| NodeId::new(peer.node)));
        self.hear_status(status);
    }

    fn hear_status(&mut self, status: &v1::StatusReply) {
        for replica in status.replicas.iter().filter(|replica| replica.leader != 0) {
            let found = (replica.epoch, NodeId::new(replica.leader));
            let known = self.leaders.entry(ShardId::new(replica.shard)).or_insert(found);
            // An older leader may not know yet that it is one no more.
            if found.0 > known.0 {
                *known = found;
            }
        }
    }

    fn doubts(&mut self, lists: &[ShardTxns]) {
        let mut starts: Vec<_> = lists.iter().map(|list| (list.start.clone(), list.shard)).collect();
        starts.sort();
        let owner = |key: &[u8]| {
            let owners = starts.iter().take_while(|(start, _)| start.as_ref() <= key);
            owners.last().map(|(_, shard)| *shard)
        };
        let parts = lists.iter().filter_map(|list| list.answer.as_ref().ok()).flat_map(|list| &list.prepared);
        for part in parts {
            self.anchors.extend(part.txn.as_ref().map(txn).zip(owner(&part.anchor)));
        }
    }
}

fn txn(name: &v1::TxnName) -> TxnId {
    TxnId { session: SessionId::new(name.session), seq: name.seq }
}

impl Roles for ClusterRoles {
    fn nodes(&self) -> BTreeSet<NodeId> {
        self.nodes.clone()
    }

    fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        self.leaders.get(&shard).map(|(_, node)| *node)
    }

    fn manager_of(&self, txn: Option<TxnId>) -> Option<NodeId> {
        let anchor = match txn {
            Some(txn) => self.anchors.get(&txn),
            None => self.anchors.values().next(),
        };
        anchor.and_then(|anchor| self.leader_of(*anchor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node: u64, epoch: u64, leader: u64) -> NodeAnswer<v1::StatusReply> {
        let replica = v1::ReplicaStatus { shard: 1, epoch, leader, ..v1::ReplicaStatus::default() };
        let peers = vec![v1::PeerStatus { node: 9, ..v1::PeerStatus::default() }];
        let reply = v1::StatusReply { node, replicas: vec![replica], peers, ..v1::StatusReply::default() };
        NodeAnswer { node: None, endpoint: "h:1".to_owned(), answer: Ok(reply) }
    }

    #[test]
    fn the_leader_of_the_newest_epoch_is_the_leader() {
        let mut roles = ClusterRoles::default();
        for (node, epoch, leader) in [(1, 4, 1), (2, 5, 2), (3, 6, 0), (4, 4, 1)] {
            roles.hear(&status(node, epoch, leader));
        }
        assert_eq!(roles.leader_of(ShardId::new(1)), Some(NodeId::new(2)));
        assert_eq!(roles.leader_of(ShardId::new(2)), None);
        assert_eq!(roles.nodes(), [1, 2, 3, 4, 9].map(NodeId::new).into());
    }

    #[test]
    fn the_manager_of_a_transaction_leads_the_shard_of_its_anchor() {
        let mut roles = ClusterRoles::default();
        roles.hear(&status(1, 4, 3));
        let name = v1::TxnName { session: 5, seq: 7, ..v1::TxnName::default() };
        let part = v1::PreparedPart { txn: Some(name), anchor: "b".into(), ..v1::PreparedPart::default() };
        let answer = Ok(v1::ListTxnsReply { prepared: vec![part], ..v1::ListTxnsReply::default() });
        let shard = |shard, start: &'static str, answer| ShardTxns {
            shard: ShardId::new(shard),
            start: start.into(),
            answer,
        };
        let nothing = Ok(v1::ListTxnsReply::default());
        roles.doubts(&[shard(2, "g", answer), shard(1, "", nothing)]);
        let txn = TxnId { session: SessionId::new(5), seq: 7 };
        assert_eq!(roles.manager_of(Some(txn)), Some(NodeId::new(3)));
        assert_eq!(roles.manager_of(None), Some(NodeId::new(3)));
        assert_eq!(roles.manager_of(Some(TxnId { seq: 8, ..txn })), None);
    }
}
