//! A random walk of a group: loss, doubling, reordering, crashes with whatever prefix of the writes was durable, clocks
//! that run apart, snapshots, hand-overs and changes of the membership.

use std::time::Duration;

use crate::cluster::{Cluster, Disk, Options};
use kv_raft::{LeaseConfig, Target, Ticket};
use kv_types::{LogIndex, Membership, NodeId};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// One walk.
pub(crate) struct Walk {
    pub(crate) cluster: Cluster,
    rng: ChaCha8Rng,
    tickets: u64,
    commands: u64,
    /// Percent of messages lost.
    loss: u32,
    /// Changes of the membership begun.
    changes: usize,
    /// Hand-overs begun.
    transfers: usize,
}

impl Walk {
    pub(crate) fn new(seed: u64) -> Self {
        Self::with(seed, |_| {})
    }

    /// With other settings.
    pub(crate) fn with(seed: u64, change: impl FnOnce(&mut Options)) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let ids = |from: u64, upto: u64| (from..=upto).map(NodeId::new);
        let membership = match seed % 4 {
            0 => Membership::of_voters(ids(1, 5)),
            1 => Membership { learners: ids(4, 4).collect(), ..Membership::of_voters(ids(1, 3)) },
            2 => Membership { outgoing: ids(2, 4).collect(), ..Membership::of_voters(ids(1, 3)) },
            _ => Membership::of_voters(ids(1, 3)),
        };
        let mut options = Options::new(membership);
        options.seed = seed;
        options.append_entries_max = rng.random_range(1..6);
        options.in_flight_appends_max = rng.random_range(1..5);
        options.uncommitted_bytes_max = 2000;
        let drift_ppm = [10_000, 100_000][rng.random_range(0..2)];
        options.lease = (!seed.is_multiple_of(3))
            .then_some(LeaseConfig { drift_ppm, granularity: Duration::from_nanos(1) });
        let loss = [0, 5, 20][rng.random_range(0..3)];
        change(&mut options);
        let mut cluster = Cluster::new(options);
        for spare in ids(1, 6) {
            if !cluster.nodes.contains_key(&spare) {
                cluster.install(spare, Disk::default());
            }
            // Every clock keeps the bound that leases rest on.
            let drift = i64::from(drift_ppm);
            cluster.skew(spare, rng.random_range(-drift..=drift));
        }
        Self { cluster, rng, tickets: 0, commands: 0, loss, changes: 0, transfers: 0 }
    }

    fn any_node(&mut self) -> NodeId {
        let nodes: Vec<NodeId> = self.cluster.nodes.keys().copied().collect();
        nodes[self.rng.random_range(0..nodes.len())]
    }

    /// The leader mostly, else any node.
    fn target(&mut self) -> NodeId {
        match self.cluster.leader() {
            Some(leader) if self.rng.random_range(0..4) > 0 => leader,
            _ => self.any_node(),
        }
    }

    fn deliver_some(&mut self) {
        for _ in 0..self.rng.random_range(1..8) {
            if self.cluster.network.is_empty() {
                return;
            }
            // Near the front mostly: links reorder little, but anything may come late.
            let len = self.cluster.network.len();
            let reach = if self.rng.random_range(0..20) == 0 { len } else { len.min(3) };
            let at = self.rng.random_range(0..reach);
            let lost = self.rng.random_range(0..100) < self.loss;
            let message = if self.rng.random_range(0..20) == 0 && len < 500 {
                self.cluster.network[at].clone()
            } else {
                self.cluster.network.remove(at).unwrap()
            };
            if !lost {
                self.cluster.deliver(message);
            }
        }
    }

    fn step(&mut self) {
        let id = self.any_node();
        match self.rng.random_range(0..1000) {
            0..450 => self.deliver_some(),
            450..600 => {
                let span = Duration::from_millis(self.rng.random_range(1..30));
                self.cluster.advance(span, false);
            }
            600..700 => {
                self.cluster.persist(id);
            }
            700..710 => {
                let held = &mut self.cluster.nodes.get_mut(&id).unwrap().disk_held;
                *held = !*held;
            }
            710..850 => {
                let id = self.target();
                self.commands += 1;
                let text = format!("c{}", self.commands);
                self.cluster.propose(id, &[&text, &text]);
            }
            850..920 => {
                let id = self.target();
                self.tickets += 1;
                self.cluster.read(id, Ticket::new(self.tickets));
            }
            920..933 => {
                self.cluster.crash(id);
                if self.rng.random_range(0..4) == 0 {
                    let now = self.cluster.now;
                    self.cluster.nodes.get_mut(&id).unwrap().clock.begin_anew(now);
                }
            }
            933..963 => {
                if self.cluster.nodes[&id].raft.is_none() {
                    self.cluster.restart(id);
                }
            }
            963..966 => {
                self.cluster.on(id, |raft, now| raft.campaign(now));
            }
            966..971 => {
                let other = self.any_node();
                self.cluster.cut.insert((id, other));
            }
            971..974 => self.cluster.cut.clear(),
            974..982 => self.transfer(),
            982..988 => self.reconfigure(),
            988..993 => {
                let back = self.rng.random_range(0..4);
                let applied = self.cluster.nodes[&id].machine.meta.last.index.get();
                self.cluster.compact(id, LogIndex::new(applied.saturating_sub(back)));
            }
            993..995 => {
                let other = self.any_node();
                self.cluster.on(id, |raft, _| raft.unreachable(other));
            }
            _ => {
                if let Some((from, job)) = self.cluster.streams.pop_front() {
                    let arrives = self.rng.random_range(0..4) > 0;
                    self.cluster.finish_stream(from, job, arrives);
                }
            }
        }
        self.no_fatal();
    }

    fn transfer(&mut self) {
        let from = self.target();
        let Some(raft) = &self.cluster.nodes[&from].raft else { return };
        let voters: Vec<NodeId> = raft.status().membership.voters.into_iter().collect();
        if voters.is_empty() {
            return;
        }
        let to = voters[self.rng.random_range(0..voters.len())];
        let begun = self.cluster.on(from, |raft, now| raft.transfer(now, to));
        self.transfers += usize::from(from != to && begun.is_some_and(|begun| begun.is_ok()));
    }

    /// Any membership may follow any other one.
    fn reconfigure(&mut self) {
        let mut target = Target::default();
        for raw in 1..=6 {
            match self.rng.random_range(0..5) {
                0..3 => target.voters.insert(NodeId::new(raw)),
                3 => target.learners.insert(NodeId::new(raw)),
                _ => false,
            };
        }
        let leader = self.target();
        let begun = self.cluster.on(leader, |raft, now| raft.reconfigure(now, target));
        self.changes += usize::from(begun.is_some_and(|begun| begun.is_ok()));
    }

    fn no_fatal(&mut self) {
        let fatal =
            self.cluster.events.iter().find(|event| matches!(event, crate::cluster::Event::Fatal(..)));
        assert!(fatal.is_none(), "{fatal:?}");
        self.cluster.events.clear();
    }

    /// Heals everything; the group must agree, and serve.
    fn rest(&mut self) {
        self.cluster.cut.clear();
        let ids: Vec<NodeId> = self.cluster.nodes.keys().copied().collect();
        for id in &ids {
            self.cluster.nodes.get_mut(id).unwrap().disk_held = false;
            if self.cluster.nodes[id].raft.is_none() {
                self.cluster.restart(*id);
            }
            while self.cluster.persist(*id) {}
        }
        self.cluster.advance(Duration::from_secs(5), true);
        self.no_fatal();
        let leader = self.cluster.leader().expect("a healed group elects a leader");
        let membership = self.cluster.nodes[&leader].raft.as_ref().unwrap().status().membership;
        assert!(!membership.is_joint(), "a change comes to its end: {membership}");
        let answered = self.cluster.oracle.reads_answered;
        self.cluster.propose(leader, &["last"]).unwrap().unwrap();
        for id in membership.members() {
            self.tickets += 1;
            self.cluster.read(id, Ticket::new(self.tickets)).unwrap().unwrap();
        }
        self.cluster.advance(Duration::from_secs(1), true);
        let members = membership.members();
        assert!(self.cluster.oracle.reads_answered >= answered + members.len(), "every read is answered");
        let last = self.cluster.nodes[&leader].log.last();
        for id in members {
            let node = &self.cluster.nodes[&id];
            assert_eq!((node.machine.meta.last, node.log.last()), (last, last), "{id} has all");
        }
    }
}

/// What a walk met.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Met {
    pub(crate) applied: usize,
    pub(crate) elections: usize,
    pub(crate) leases: usize,
    pub(crate) changes: usize,
    pub(crate) transfers: usize,
}

impl Met {
    pub(crate) fn add(&mut self, other: &Self) {
        self.applied += other.applied;
        self.elections += other.elections;
        self.leases += other.leases;
        self.changes += other.changes;
        self.transfers += other.transfers;
    }
}

impl Walk {
    /// Walks, comes to rest, and says what it met.
    pub(crate) fn run(mut self, steps: usize) -> Met {
        for _ in 0..steps {
            self.step();
        }
        self.rest();
        let oracle = &self.cluster.oracle;
        Met {
            applied: oracle.applied_len(),
            elections: oracle.elections(),
            leases: oracle.leases_seen,
            changes: self.changes,
            transfers: self.transfers,
        }
    }
}
