//! Who leads what, asked of every node all the time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_proto::v1;
use kv_types::NodeId;
use tokio::task::JoinSet;

use crate::ClusterRoles;
use crate::book::Clock;
use crate::one_node::OneNode;
use crate::record::{Leadership, Replica};

/// How often a node is asked.
const POLL: Duration = Duration::from_millis(50);

/// What the nodes say of themselves.
#[derive(Debug)]
pub(crate) struct Watch {
    clock: Arc<Clock>,
    nodes: BTreeSet<NodeId>,
    view: Mutex<View>,
}

#[derive(Debug, Default)]
struct View {
    /// The last answer of each node that has answered when it was last asked.
    answers: BTreeMap<NodeId, v1::StatusReply>,
    /// The epoch and the leader of each shard, as they were last noted.
    led: BTreeMap<u32, (u64, Option<u64>)>,
    changes: Vec<Leadership>,
}

impl Watch {
    /// Begins to ask; whoever drops the set ends it.
    pub(crate) fn begin(clock: Arc<Clock>, nodes: BTreeMap<NodeId, OneNode>) -> (Arc<Self>, JoinSet<()>) {
        let ids = nodes.keys().copied().collect();
        let watch = Arc::new(Self { clock, nodes: ids, view: Mutex::default() });
        let mut tasks = JoinSet::new();
        for (id, node) in nodes {
            let watch = Arc::clone(&watch);
            tasks.spawn(async move {
                loop {
                    let answer = node.status().await;
                    watch.hear(id, answer);
                    tokio::time::sleep(POLL).await;
                }
            });
        }
        (watch, tasks)
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hear(&self, id: NodeId, answer: Option<v1::StatusReply>) {
        let now = self.clock.ms();
        let mut view = self.view();
        match answer {
            Some(answer) => view.answers.insert(id, answer),
            None => view.answers.remove(&id),
        };
        view.note(now);
    }

    /// The roles at this moment.
    pub(crate) fn roles(&self) -> ClusterRoles {
        ClusterRoles::of(self.nodes.iter().copied(), self.view().answers.values())
    }

    /// The longest election timeout of any node; none until all have said theirs.
    pub(crate) fn longest_election_timeout(&self) -> Option<Duration> {
        let view = self.view();
        if !self.nodes.iter().all(|node| view.answers.contains_key(node)) {
            return None;
        }
        let shortest = view.answers.values().map(|answer| answer.election_timeout_ms).max();
        // Timeouts are drawn between the shortest and twice that.
        shortest.map(|shortest| Duration::from_millis(shortest.saturating_mul(2)))
    }

    /// The epoch and the leader of each shard at this moment.
    pub(crate) fn led(&self) -> BTreeMap<u32, (u64, Option<u64>)> {
        self.view().led.clone()
    }

    /// All changes since time began.
    pub(crate) fn changes(&self) -> Vec<Leadership> {
        self.view().changes.clone()
    }

    /// Time begins: forgets what changed before, and notes who leads what now.
    pub(crate) fn restart(&self) {
        let mut view = self.view();
        view.led.clear();
        view.changes.clear();
        view.note(0.0);
    }

    /// What every replica has come to; none if a node does not answer that has not left.
    pub(crate) fn replicas(&self, left: &BTreeSet<NodeId>) -> Option<Vec<Replica>> {
        let view = self.view();
        if !self.nodes.difference(left).all(|node| view.answers.contains_key(node)) {
            return None;
        }
        let mut replicas: Vec<Replica> = Vec::new();
        for answer in view.answers.values() {
            replicas.extend(answer.replicas.iter().map(|replica| Replica {
                shard: replica.shard,
                node: answer.node,
                applied: replica.applied,
                state_hash: replica.state_hash.iter().map(|byte| format!("{byte:02x}")).collect(),
            }));
        }
        replicas.sort_by_key(|replica| (replica.shard, replica.node));
        Some(replicas)
    }
}

impl View {
    /// Notes what is new: the newest epoch that a node knows of each shard, and its leader if somebody knows him.
    fn note(&mut self, now: f64) {
        let mut newest: BTreeMap<u32, (u64, Option<u64>)> = BTreeMap::new();
        for replica in self.answers.values().flat_map(|answer| &answer.replicas) {
            let leader = (replica.leader != 0).then_some(replica.leader);
            let known = newest.entry(replica.shard).or_insert((replica.epoch, leader));
            *known = (*known).max((replica.epoch, leader));
        }
        for (shard, (epoch, leader)) in newest {
            let before = self.led.get(&shard).copied();
            // A node that comes back knows less than was known before.
            let is_new = before.is_none_or(|before| (epoch, leader) > before);
            if is_new {
                self.led.insert(shard, (epoch, leader));
                self.changes.push(Leadership { shard, at_ms: now, epoch, leader });
            }
        }
    }
}

/// Whether all replicas of each shard have one state; nothing if some have not come as far as others.
pub(crate) fn one_state(replicas: &[Replica]) -> Option<bool> {
    let mut by_index: BTreeMap<(u32, u64), &str> = BTreeMap::new();
    let mut indexes: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
    for replica in replicas {
        let hash = by_index.entry((replica.shard, replica.applied)).or_insert(&replica.state_hash);
        if *hash != replica.state_hash && !hash.is_empty() && !replica.state_hash.is_empty() {
            return Some(false);
        }
        indexes.entry(replica.shard).or_default().insert(replica.applied);
    }
    let are_level = indexes.values().all(|indexes| indexes.len() == 1);
    let are_known = replicas.iter().all(|replica| !replica.state_hash.is_empty());
    (are_level && are_known).then_some(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replica(shard: u32, node: u64, applied: u64, hash: &str) -> Replica {
        Replica { shard, node, applied, state_hash: hash.to_owned() }
    }

    #[test]
    fn states_are_compared_at_the_same_index() {
        let same = [replica(1, 1, 5, "a"), replica(1, 2, 5, "a"), replica(2, 1, 9, "b")];
        assert_eq!(one_state(&same), Some(true));
        assert_eq!(one_state(&[replica(1, 1, 5, "a"), replica(1, 2, 4, "z")]), None);
        assert_eq!(one_state(&[replica(1, 1, 5, "a"), replica(1, 2, 5, "z")]), Some(false));
        assert_eq!(one_state(&[replica(1, 1, 5, "a"), replica(1, 2, 5, "")]), None);
    }

    #[test]
    fn the_longest_election_timeout_is_that_of_the_slowest_of_all() {
        let nodes = BTreeSet::from([NodeId::new(1), NodeId::new(2)]);
        let watch = Watch { clock: Clock::start(), nodes, view: Mutex::default() };
        let says = |ms| Some(v1::StatusReply { election_timeout_ms: ms, ..v1::StatusReply::default() });
        watch.hear(NodeId::new(1), says(300));
        assert_eq!(watch.longest_election_timeout(), None, "one has not said it yet");
        watch.hear(NodeId::new(2), says(500));
        assert_eq!(watch.longest_election_timeout(), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_change_is_noted_once_and_never_undone_by_who_knows_less() {
        let answer = |epoch, leader| {
            let replica = v1::ReplicaStatus { shard: 1, epoch, leader, ..v1::ReplicaStatus::default() };
            v1::StatusReply { replicas: vec![replica], ..v1::StatusReply::default() }
        };
        let mut view = View::default();
        for (at, node, epoch, leader) in [(1.0, 1, 4, 1), (2.0, 1, 4, 1), (3.0, 2, 5, 0), (4.0, 2, 5, 2)] {
            view.answers.insert(NodeId::new(node), answer(epoch, leader));
            view.note(at);
        }
        view.answers.remove(&NodeId::new(2));
        view.note(5.0);
        let noted: Vec<_> = view.changes.iter().map(|it| (it.at_ms, it.epoch, it.leader)).collect();
        assert_eq!(noted, [(1.0, 4, Some(1)), (3.0, 5, None), (4.0, 5, Some(2))]);
    }
}
