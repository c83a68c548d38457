//! Random walks: cores under loss, doubling, reordering, crashes with whatever prefix of the writes was durable, and
//! snapshots. After every event the oracle looks at all of them; in the end the group must come to rest in agreement.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/cluster.rs"]
mod cluster;
#[path = "harness/oracle.rs"]
mod oracle;

use std::time::Duration;

use cluster::{Cluster, Options};
use kv_raft::Ticket;
use kv_types::{LogIndex, Membership, NodeId};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

struct Walk {
    cluster: Cluster,
    rng: ChaCha8Rng,
    tickets: u64,
    commands: u64,
    /// Percent of messages lost.
    loss: u32,
}

impl Walk {
    fn new(seed: u64) -> Self {
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
        let loss = [0, 5, 20][rng.random_range(0..3)];
        Self { cluster: Cluster::new(options), rng, tickets: 0, commands: 0, loss }
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
            920..935 => self.cluster.crash(id),
            935..965 => {
                if self.cluster.nodes[&id].raft.is_none() {
                    self.cluster.restart(id);
                }
            }
            965..970 => {
                self.cluster.on(id, |raft, now| raft.campaign(now));
            }
            970..975 => {
                let other = self.any_node();
                self.cluster.cut.insert((id, other));
            }
            975..980 => self.cluster.cut.clear(),
            980..990 => {
                let back = self.rng.random_range(0..4);
                let applied = self.cluster.nodes[&id].machine.meta.last.index.get();
                self.cluster.compact(id, LogIndex::new(applied.saturating_sub(back)));
            }
            990..993 => {
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

    fn no_fatal(&mut self) {
        let fatal = self.cluster.events.iter().find(|event| matches!(event, cluster::Event::Fatal(..)));
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
        let answered = self.cluster.oracle.reads_answered;
        self.cluster.propose(leader, &["last"]).unwrap().unwrap();
        for id in &ids {
            self.tickets += 1;
            self.cluster.read(*id, Ticket::new(self.tickets)).unwrap().unwrap();
        }
        self.cluster.advance(Duration::from_secs(1), true);
        assert!(self.cluster.oracle.reads_answered >= answered + ids.len(), "every read is answered");
        let last = self.cluster.nodes[&leader].log.last();
        for id in &ids {
            let node = &self.cluster.nodes[id];
            assert_eq!((node.machine.meta.last, node.log.last()), (last, last), "{id} has all");
        }
    }
}

fn walk(seed: u64, steps: usize) -> (usize, usize) {
    let mut walk = Walk::new(seed);
    for _ in 0..steps {
        walk.step();
    }
    walk.rest();
    (walk.cluster.oracle.applied_len(), walk.cluster.oracle.elections())
}

fn walks(seeds: std::ops::Range<u64>) {
    let (mut applied, mut elections) = (0, 0);
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let result = std::panic::catch_unwind(|| walk(seed, 2000));
        match result {
            Ok((entries, leaders)) => {
                applied += entries;
                elections += leaders;
            }
            Err(cause) => panic!("seed {seed} fails: {:?}", cause.downcast_ref::<String>()),
        }
    }
    // A walk that does nothing proves nothing.
    assert!(applied as u64 > 50 * count, "only {applied} entries in {count} walks");
    assert!(elections as u64 > 2 * count, "only {elections} elections in {count} walks");
}

#[test]
fn safety_holds_on_walks_a() {
    walks(0..30);
}

#[test]
fn safety_holds_on_walks_b() {
    walks(1000..1030);
}

#[test]
fn a_seed_fixes_the_walk() {
    assert_eq!(walk(7, 1000), walk(7, 1000));
}
