//! Random walks: loss, doubling, reordering, one-way cuts, slow disks, torn writes, crashes at any event, checkpoints,
//! compactions and snapshots that break, under clients that write and read. In the end everything heals, and the group
//! must agree and serve.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_shard::Replica;
use kv_state::{Command, Expect};
use kv_types::{KeyRange, Nanos, NodeId, Revision, ShardId, Value};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::cluster::Cluster;
use crate::cluster::calls::{key_of, put};
use crate::oracle::End;
use crate::settings::Settings;

/// Seeds of one ordinary run.
const SEEDS: u64 = 120;
/// Events of one walk.
const STEPS: usize = 6000;

/// What a walk has seen; a walk that does nothing proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    trace: u64,
    applied: usize,
    elections: usize,
    acknowledged: usize,
    reads: usize,
    snapshots: usize,
    checkpoints: usize,
    regenerations: usize,
    replaced: usize,
    crashes: usize,
}

struct Walk {
    cluster: Cluster,
    rng: ChaCha8Rng,
    writes: u64,
    crashes: usize,
    /// Percent of messages lost.
    loss: u32,
    /// Events in a thousand that are trouble.
    trouble: u32,
}

impl Walk {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut settings = Settings::new([3, 3, 5][rng.random_range(0..3)], 2);
        settings.seed = seed;
        settings.log_cache_bytes = [0, 500, 1 << 20][rng.random_range(0..3)];
        settings.append_entries_max = rng.random_range(1..12);
        settings.in_flight_appends_max = rng.random_range(1..5);
        settings.uncommitted_bytes_max = [1000, 1 << 20][rng.random_range(0..2)];
        settings.apply_max = rng.random_range(1..6);
        let rates: Vec<u64> = (0..7).map(|_| rng.random_range(70..150)).collect();
        let loss = [0, 3, 15][rng.random_range(0..3)];
        let trouble = [5, 15, 40][rng.random_range(0..3)];
        let mut cluster = Cluster::new(settings);
        for (node, rate) in cluster.settings.nodes().zip(rates) {
            cluster.clock_mut(node).set_rate(Nanos::default(), rate * 10_000);
        }
        Self { cluster, rng, writes: 0, crashes: 0, loss, trouble }
    }

    fn any_node(&mut self) -> NodeId {
        NodeId::new(self.rng.random_range(1..=self.cluster.settings.nodes))
    }

    fn any_shard(&mut self) -> ShardId {
        ShardId::new(self.rng.random_range(1..=self.cluster.settings.shards))
    }

    /// Who leads, or believes so, mostly, else any node.
    fn target(&mut self, shard: ShardId) -> NodeId {
        let leads = |node: &NodeId| self.cluster.replica(*node, shard).is_some_and(Replica::is_leader);
        let leaders: Vec<NodeId> = self.cluster.settings.nodes().filter(leads).collect();
        if leaders.is_empty() || self.rng.random_range(0..5) == 0 {
            return self.any_node();
        }
        leaders[self.rng.random_range(0..leaders.len())]
    }

    fn key(&mut self) -> String {
        format!("k{}", self.rng.random_range(0..12))
    }

    /// A value no other command writes; now and then a long one, so that a snapshot has several chunks.
    fn value(&mut self) -> String {
        let tail = if self.rng.random_range(0..60) == 0 { 60_000 } else { self.rng.random_range(0..40) };
        format!("v{}{}", self.writes, "x".repeat(tail))
    }

    fn command(&mut self) -> Command {
        self.writes += 1;
        let key = self.key();
        match self.rng.random_range(0..10) {
            0..6 => put(&key, &self.value()),
            6 => Command::Delete { key: key_of(&key) },
            7 => {
                // The end tells this command from all others.
                let end = Bytes::from(format!("{key}\0{}", self.writes));
                Command::DeleteRange { range: KeyRange::new(Bytes::from(key), Some(end)).unwrap() }
            }
            _ => {
                let expect = match self.rng.random_range(0..3) {
                    0 => Expect::Absent,
                    1 => Expect::Revision(Revision::new(self.rng.random_range(0..100))),
                    _ => Expect::Value(Value::new(format!("v{}", self.writes)).unwrap()),
                };
                let value = Value::new(self.value()).unwrap();
                Command::CompareAndSet { key: key_of(&key), expect, value }
            }
        }
    }

    fn deliver_some(&mut self) {
        for _ in 0..self.rng.random_range(1..10) {
            let len = self.cluster.network.packets.len();
            if len == 0 {
                return;
            }
            // Near the front mostly: links reorder little, but anything may come late.
            let reach = if self.rng.random_range(0..20) == 0 { len } else { len.min(3) };
            let at = self.rng.random_range(0..reach);
            let lost = self.rng.random_range(0..100) < self.loss;
            let doubled = self.rng.random_range(0..20) == 0 && len < 400;
            let packets = &mut self.cluster.network.packets;
            let packet = if doubled { packets[at].clone() } else { packets.remove(at) };
            if !lost {
                self.cluster.deliver(packet);
            }
        }
    }

    /// What a crash leaves: all that was written, or any legal part of it.
    fn crash(&mut self, node: NodeId) {
        self.crashes += usize::from(self.cluster.is_up(node));
        let kind = self.rng.random_range(0..3);
        let rng = &mut self.rng;
        self.cluster.crash(node, &mut |outcomes| match kind {
            0 => 0,
            _ => rng.random_range(0..outcomes),
        });
    }

    fn advance(&mut self) {
        let span = Duration::from_micros(self.rng.random_range(1..12_000));
        self.cluster.now = self.cluster.now.after(span);
        self.cluster.wake();
    }

    fn step(&mut self) {
        let (node, shard) = (self.any_node(), self.any_shard());
        if self.rng.random_range(0..1000) < self.trouble {
            self.trouble(node, shard);
            return;
        }
        match self.rng.random_range(0..100) {
            0..25 => self.deliver_some(),
            25..32 => self.advance(),
            32..52 => self.cluster.turn(node, shard),
            52..66 => {
                let count = self.rng.random_range(1..8);
                self.cluster.write_wal(node, count);
            }
            66..76 => {
                let node = self.target(shard);
                let command = self.command();
                self.cluster.write(node, shard, &command);
            }
            76..80 => {
                let node = self.target(shard);
                let key = self.key();
                self.cluster.read(node, shard, &key);
            }
            80..87 => {
                self.cluster.step_background(node);
            }
            87..94 => self.stream(),
            _ => self.keep_house(node, shard),
        }
    }

    /// What a node does for its disk without being asked.
    fn keep_house(&mut self, node: NodeId, shard: ShardId) {
        match self.rng.random_range(0..11) {
            0..4 => {
                self.cluster.begin_merge(node, shard);
            }
            10 => self.cluster.begin_regeneration(node, shard),
            4..6 => {
                self.cluster.compact_to_base(node, shard);
            }
            6 => self.cluster.release(node),
            _ => {
                if !self.cluster.is_up(node) && self.rng.random_range(0..3) == 0 {
                    self.cluster.restart(node);
                }
            }
        }
    }

    fn stream(&mut self) {
        let len = self.cluster.streams.len();
        if len > 0 {
            let at = self.rng.random_range(0..len);
            if self.rng.random_range(0..25) == 0 {
                self.cluster.break_stream(at);
            } else {
                self.cluster.step_stream(at);
            }
        }
    }

    fn trouble(&mut self, node: NodeId, shard: ShardId) {
        match self.rng.random_range(0..28) {
            0..4 => self.crash(node),
            4 => {
                let calls = self.rng.random_range(0..4);
                self.cluster.step_merges_in_vain(node, calls);
                self.crash(node);
            }
            5 => {
                self.crash(node);
                let calls = self.rng.random_range(0..20);
                if !self.cluster.restart_in_vain(node, calls) {
                    self.crash(node);
                }
            }
            6 | 7 => {
                let calls = self.rng.random_range(0..6);
                self.cluster.nodes.get_mut(&node).unwrap().tear_wal(calls);
                self.crash(node);
            }
            8..11 => {
                self.cluster.turn_with(node, shard, |replica, now| {
                    replica.campaign(now);
                    Ok(())
                });
            }
            11..14 => {
                let leader = self.target(shard);
                self.cluster.isolate(leader);
            }
            14..18 => {
                let other = self.any_node();
                self.cluster.network.cut(node, other);
            }
            18..25 => self.cluster.network.heal(),
            _ => {
                let other = self.any_node();
                self.cluster.turn_with(node, shard, |replica, _| {
                    replica.unreachable(other);
                    Ok(())
                });
            }
        }
    }

    /// Heals everything; the group must agree, and serve.
    fn rest(&mut self) {
        self.cluster.network.heal();
        for node in self.cluster.settings.nodes() {
            if !self.cluster.is_up(node) {
                self.cluster.restart(node);
            }
        }
        let settled = self.cluster.run_until(Duration::from_secs(20), Cluster::is_settled);
        assert!(settled, "a healed group comes to rest: {}", self.cluster.summary());
        for shard in self.cluster.settings.shards() {
            let leader = self.cluster.leader(shard).unwrap();
            let write = self.cluster.write(leader, shard, &put("last", "word"));
            assert!(self.cluster.run_until(Duration::from_secs(5), Cluster::is_settled));
            assert!(matches!(self.cluster.oracle.calls[write].end, Some(End::Written(_))));
            for node in self.cluster.settings.nodes() {
                let read = self.cluster.read(node, shard, "last");
                self.cluster.run(Duration::from_millis(100));
                assert!(matches!(self.cluster.oracle.calls[read].end, Some(End::Read(_))), "{node}");
                self.cluster.check_rows(node, shard);
            }
        }
        let open = self.cluster.oracle.calls.iter().find(|call| call.end.is_none());
        assert!(open.is_none(), "{open:?} was never answered");
    }

    fn seen(&self) -> Seen {
        let (applied, counts) = (self.cluster.oracle.applied_len(), self.cluster.counts);
        let count = |want: fn(&End) -> bool| {
            self.cluster.oracle.calls.iter().filter(|call| call.end.as_ref().is_some_and(want)).count()
        };
        Seen {
            trace: self.cluster.trace(),
            applied,
            elections: counts.elections,
            acknowledged: count(|end| matches!(end, End::Written(_))),
            reads: count(|end| matches!(end, End::Read(_))),
            snapshots: counts.snapshots_offered,
            checkpoints: counts.checkpoints,
            regenerations: counts.regenerations,
            replaced: counts.regenerations_replaced,
            crashes: self.crashes,
        }
    }
}

fn walk(seed: u64, steps: usize) -> Seen {
    let mut walk = Walk::new(seed);
    for _ in 0..steps {
        walk.step();
    }
    walk.rest();
    walk.seen()
}

/// How many seeds to walk; more than the ordinary number if the environment says so.
#[allow(clippy::disallowed_methods, reason = "how long a test runs is no part of what it replays")]
fn seeds() -> u64 {
    std::env::var("QUORATE_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS)
}

fn walks(seeds: impl Iterator<Item = u64>) {
    let mut sum: BTreeMap<&str, usize> = BTreeMap::new();
    let mut count = 0;
    for seed in seeds {
        let seen = std::panic::catch_unwind(|| walk(seed, STEPS));
        let Ok(seen) = seen else { panic!("seed {seed} fails: see above") };
        count += 1;
        for (name, number) in [
            ("applied", seen.applied),
            ("elections", seen.elections),
            ("acknowledged", seen.acknowledged),
            ("reads", seen.reads),
            ("snapshots", seen.snapshots),
            ("checkpoints", seen.checkpoints),
            ("regenerations", seen.regenerations),
            ("replaced", seen.replaced),
            ("crashes", seen.crashes),
        ] {
            *sum.entry(name).or_default() += number;
        }
    }
    eprintln!("{count} walks: {sum:?}");
    if count < 50 {
        return;
    }
    for (name, least_in_hundred) in [
        ("applied", 4000),
        ("elections", 300),
        ("acknowledged", 2500),
        ("reads", 2000),
        ("snapshots", 50),
        ("checkpoints", 500),
        ("regenerations", 20),
        ("replaced", 1),
        ("crashes", 600),
    ] {
        assert!(sum[name] * 100 >= least_in_hundred * count, "only {} {name} in {count} walks", sum[name]);
    }
}

#[test]
fn even_seeds_keep_all_promises() {
    walks((0..seeds()).step_by(2));
}

#[test]
fn odd_seeds_keep_all_promises() {
    walks((1..seeds()).step_by(2));
}

#[test]
fn a_seed_fixes_the_walk() {
    assert_eq!(walk(7, STEPS), walk(7, STEPS));
}
