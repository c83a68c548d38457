//! The safety properties of Raft (paper, Figure 3), checked over all nodes after every event.

use std::collections::BTreeMap;

use kv_raft::{ReadRefused, Role, Ticket};
use kv_types::{Entry, LogId, LogIndex, Nanos, NodeId, Term};

use crate::cluster::Node;

/// What was ever true.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    leaders: BTreeMap<Term, NodeId>,
    /// Every entry that was ever applied anywhere.
    applied: BTreeMap<LogIndex, Entry>,
    /// Reads that wait, with what was committed anywhere when they were asked.
    reads: BTreeMap<(NodeId, Ticket), LogIndex>,
    pub(crate) reads_answered: usize,
    /// The newest term of which anything is committed.
    committed_term: Term,
    /// Checks that met a node with a good lease.
    pub(crate) leases_seen: usize,
}

impl Oracle {
    pub(crate) fn new(applied: &[Entry]) -> Self {
        let applied = applied.iter().map(|entry| (entry.id.index, entry.clone())).collect();
        Self { applied, ..Self::default() }
    }

    pub(crate) fn applied_len(&self) -> usize {
        self.applied.len()
    }

    pub(crate) fn elections(&self) -> usize {
        self.leaders.len()
    }

    pub(crate) fn crashed(&mut self, id: NodeId) {
        self.reads.retain(|(node, _), _| *node != id);
    }

    pub(crate) fn asked(&mut self, id: NodeId, ticket: Ticket, nodes: &BTreeMap<NodeId, Node>) {
        let committed = nodes.values().filter_map(|node| Some(node.raft.as_ref()?.commit().index)).max();
        // What a crashed node had applied was committed, too.
        let applied = self.applied.keys().next_back().copied();
        self.reads.insert((id, ticket), committed.max(applied).unwrap_or_default());
    }

    /// Reads are linearisable: the index covers all that was committed before they were asked.
    pub(crate) fn answered(&mut self, id: NodeId, ticket: Ticket, result: Result<LogIndex, ReadRefused>) {
        let floor = self.reads.remove(&(id, ticket)).expect("a read is answered once");
        if let Ok(index) = result {
            self.reads_answered += 1;
            assert!(index >= floor, "stale read: {id} answers {index}, {floor} was committed before");
        }
    }

    pub(crate) fn check(&mut self, now: Nanos, nodes: &BTreeMap<NodeId, Node>) {
        for (id, node) in nodes {
            let Some(raft) = node.raft.as_ref() else { continue };
            assert_eq!(raft.last(), node.log.last(), "Log Shape: {id} thinks it has another log");
        }
        self.state_machine_safety(nodes);
        self.lease_safety(now, nodes);
        self.election_safety(nodes);
        log_matching(nodes);
    }

    /// No two nodes apply different entries at an index.
    fn state_machine_safety(&mut self, nodes: &BTreeMap<NodeId, Node>) {
        for (id, node) in nodes.iter().filter(|(_, node)| node.raft.is_some()) {
            for entry in node.machine.applied.iter().rev().take(20) {
                let known = self.applied.entry(entry.id.index).or_insert_with(|| entry.clone());
                assert_eq!(known, entry, "State Machine Safety: {id} applied another entry");
                self.committed_term = self.committed_term.max(entry.id.term);
            }
        }
    }

    /// While a node's lease is good by its own clock, nothing of a later term is committed.
    fn lease_safety(&mut self, now: Nanos, nodes: &BTreeMap<NodeId, Node>) {
        for (id, node) in nodes.iter().filter(|(_, node)| node.raft.is_some()) {
            let (lease, shown) = (node.lease, node.clock.read(now));
            if shown < lease.until {
                self.leases_seen += 1;
                let newest = self.committed_term;
                assert!(newest <= lease.term, "Lease Safety: {id} serves {}, {newest} commits", lease.term);
            }
        }
    }

    /// One leader a term (Election Safety), which holds all that was committed before (Leader Completeness).
    fn election_safety(&mut self, nodes: &BTreeMap<NodeId, Node>) {
        for (id, node) in nodes {
            let Some(raft) = node.raft.as_ref().filter(|raft| raft.role() == Role::Leader) else { continue };
            match self.leaders.insert(raft.term(), *id) {
                Some(leader) if leader == *id => continue,
                Some(leader) => panic!("Election Safety: {leader} and {id} both lead {}", raft.term()),
                None => {}
            }
            for entry in self.applied.values().filter(|entry| entry.id.index > node.log.start.index) {
                // A newer leader may have committed more than an old one that is elected late.
                if entry.id.term < raft.term() {
                    let held = node.log.get(entry.id.index).map(|held| held.id);
                    assert_eq!(held, Some(entry.id), "Leader Completeness: {id} leads {}", raft.term());
                }
            }
        }
    }
}

/// Logs that hold an entry of the same term and index are equal up to it.
fn log_matching(nodes: &BTreeMap<NodeId, Node>) {
    let logs: Vec<_> = nodes.iter().map(|(id, node)| (id, &node.log)).collect();
    for (i, (a, left)) in logs.iter().enumerate() {
        for (b, right) in &logs[i + 1..] {
            let mut matching = false;
            let from = left.start.index.max(right.start.index);
            for entry in left.entries.iter().rev().filter(|entry| entry.id.index > from) {
                let Some(other) = right.get(entry.id.index) else { continue };
                let same: bool = LogId::eq(&entry.id, &other.id);
                assert!(same || !matching, "Log Matching: {a} {:?} and {b} {:?}", entry.id, other.id);
                assert!(!same || entry == other, "Log Matching: {a} and {b} differ at {:?}", entry.id);
                matching |= same;
            }
        }
    }
}
