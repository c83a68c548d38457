//! A run: what happens when, on one line of true time. Time leaps from one event to the next, so quiet costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_raft::LeaseUpdate;
use kv_types::{Nanos, NodeId, ShardId};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::cluster::Cluster;
use crate::network::Packet;
use crate::scenario::Plan;

mod clients;
mod counting;
mod drill;
mod rest;
mod troubles;
mod txns;

use clients::Clients;
use counting::{Counting, Deed};
use drill::Playing;
use txns::Txns;

/// Something that happens at a time.
#[derive(Debug)]
enum Happening {
    /// A packet reaches its node.
    Arrival(Packet),
    /// A replica has something to do.
    Turn(NodeId, ShardId),
    /// The disk has written what it was given in this life of the node.
    Written(NodeId, u64),
    /// Checkpoints and the like of a node move on.
    Background(NodeId),
    /// Snapshot streams move on.
    Streams,
    /// A client begins its next call.
    Call(usize),
    /// A request for a read reaches its node.
    ReadArrives(NodeId, ShardId, usize),
    /// A client gives up a call.
    GiveUp(usize, usize),
    /// The lease of a replica is published at last: a planted bug.
    Publish(NodeId, ShardId, u64, LeaseUpdate),
    /// Another trouble begins.
    Trouble,
    /// A node is started again.
    Restart(NodeId),
    /// A counting client does something, or who collects sessions.
    Count(Deed),
    /// Something about transactions.
    Txn(txns::Deed),
    /// Something about the drill that is played.
    Drill(drill::Deed),
    /// A replica drops what it keeps for others of its log.
    Compact(NodeId, ShardId),
    /// A cut is mended.
    Mend(Vec<(NodeId, NodeId)>),
    /// A disk goes on.
    Unstall(NodeId),
    /// There is room on the disk again.
    Room(NodeId),
    /// A clock goes on.
    Unfreeze(NodeId),
}

/// How long a step in the background takes, a chunk of a snapshot, and a turn of a replica that has more to apply.
const BACKGROUND: Duration = Duration::from_micros(300);
const CHUNK: Duration = Duration::from_micros(400);
const APPLY: Duration = Duration::from_micros(20);
/// How late a lease is published with the bug that does so.
const LATE: Duration = Duration::from_millis(40);

/// Random numbers, apart for each concern: more of one changes nothing of another.
#[derive(Debug)]
struct Dice {
    network: ChaCha8Rng,
    disk: ChaCha8Rng,
    clients: ChaCha8Rng,
    troubles: ChaCha8Rng,
    counting: ChaCha8Rng,
    txns: ChaCha8Rng,
}

impl Dice {
    fn new(seed: u64) -> Self {
        let stream = |number| {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(number);
            rng
        };
        Self {
            network: stream(1),
            disk: stream(2),
            clients: stream(3),
            troubles: stream(4),
            counting: stream(5),
            txns: stream(7),
        }
    }
}

/// One run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) cluster: Cluster,
    plan: Plan,
    queue: BTreeMap<(Nanos, u64), Happening>,
    sequence: u64,
    dice: Dice,
    clients: Clients,
    /// Clients that count, if the scenario has them.
    counting: Option<Counting>,
    /// Clients and parties of transactions, if the scenario has them.
    txns: Option<Txns>,
    /// The drill that is played, if one is.
    drill: Option<Playing>,
    /// The turn that each replica waits for.
    turns: BTreeMap<(NodeId, ShardId), Nanos>,
    writing: BTreeSet<NodeId>,
    in_background: BTreeSet<NodeId>,
    has_streams: bool,
    /// Processes that stand still, and until when.
    suspended: BTreeMap<NodeId, Nanos>,
    /// Packets that wait for a cut to be mended.
    late: Vec<Packet>,
    /// Nodes whose disks are lost for good.
    lost: BTreeSet<NodeId>,
    /// Whether there is trouble at all.
    is_troubled: bool,
    pub(crate) troubles: usize,
}

impl Run {
    pub(crate) fn new(plan: Plan) -> Self {
        let seed = plan.settings.seed;
        let mut run = Self {
            cluster: Cluster::new(plan.settings.clone()),
            queue: BTreeMap::new(),
            sequence: 0,
            dice: Dice::new(seed),
            clients: Clients::new(plan.clients),
            counting: None,
            txns: None,
            drill: None,
            turns: BTreeMap::new(),
            writing: BTreeSet::new(),
            in_background: BTreeSet::new(),
            has_streams: false,
            suspended: BTreeMap::new(),
            late: Vec::new(),
            lost: BTreeSet::new(),
            is_troubled: true,
            troubles: 0,
            plan,
        };
        for client in 0..run.plan.clients {
            run.after(Duration::ZERO, Happening::Call(client));
        }
        if let Some(plan) = run.plan.counting.clone() {
            run.begin_counting(plan);
        }
        if let Some(plan) = run.plan.transactions.clone() {
            run.begin_txns(plan);
        }
        if !run.plan.mix.is_empty() {
            run.draw_rates();
            run.next_trouble();
        }
        run.settle();
        run
    }

    /// The whole run: trouble, then a quorum that must work without the others, then rest.
    pub(crate) fn play(&mut self) {
        let end = Nanos::default().after(self.plan.run);
        if let Some(drill) = self.plan.drill.take() {
            self.play_drill(drill);
        } else {
            self.run_until(end, |run| {
                run.txns.is_none() && run.counting.as_ref().is_some_and(Counting::is_done)
            });
        }
        if !self.plan.mix.is_empty() || self.counting.is_some() {
            self.rest();
        }
        if self.cluster.violation.is_none() {
            self.check_history();
        }
    }

    fn at(&mut self, time: Nanos, happening: Happening) {
        self.sequence += 1;
        self.queue.insert((time.max(self.cluster.now), self.sequence), happening);
    }

    fn after(&mut self, span: Duration, happening: Happening) {
        self.at(self.cluster.now.after(span), happening);
    }

    /// Lets things happen until a time, a violation, or until it is done; whether it is done.
    fn run_until(&mut self, end: Nanos, done: impl Fn(&mut Self) -> bool) -> bool {
        while self.cluster.violation.is_none() {
            if done(self) {
                return true;
            }
            let Some(entry) = self.queue.first_entry() else { break };
            let (time, _) = *entry.key();
            if time > end {
                break;
            }
            let happening = entry.remove();
            self.cluster.now = time;
            self.happen(happening);
            self.settle();
        }
        self.cluster.now = self.cluster.now.max(end);
        false
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrival(packet) => self.arrive(packet),
            Happening::Turn(node, shard) => self.turn(node, shard),
            Happening::Written(node, life) => self.written(node, life),
            Happening::Background(node) => self.background(node),
            Happening::Streams => self.step_streams(),
            Happening::Call(client) => self.call(client),
            Happening::ReadArrives(node, shard, call) => match self.awake(node) {
                Some(until) => self.at(until, Happening::ReadArrives(node, shard, call)),
                None => {
                    self.cluster.read_arrives(node, shard, call);
                    self.cluster.touched.insert((node, shard));
                    self.wake(node, shard, self.cluster.now);
                }
            },
            Happening::GiveUp(client, call) => self.give_up(client, call),
            Happening::Publish(node, shard, life, lease) => {
                if self.cluster.of(node).lives == life {
                    self.cluster.publish_lease(node, shard, Some(lease));
                }
            }
            Happening::Trouble => self.trouble(),
            Happening::Restart(node) => self.restart(node),
            Happening::Count(deed) => self.count(deed),
            Happening::Txn(deed) => self.transact(deed),
            Happening::Drill(deed) => self.drill(deed),
            Happening::Compact(node, shard) => {
                if self.awake(node).is_none() {
                    self.cluster.compact_to_base(node, shard);
                }
            }
            Happening::Mend(cuts) => self.mend(&cuts),
            Happening::Unstall(node) => {
                self.cluster.stalled_disks.remove(&node);
                self.begin_write(node);
            }
            Happening::Room(node) => self.make_room(node),
            Happening::Unfreeze(node) => self.unfreeze(node),
        }
    }

    /// When a process that stands still goes on.
    fn awake(&self, node: NodeId) -> Option<Nanos> {
        self.suspended.get(&node).copied().filter(|until| *until > self.cluster.now)
    }

    /// A replica gets a turn at a time, unless it gets an earlier one.
    fn wake(&mut self, node: NodeId, shard: ShardId, time: Nanos) {
        if time == Nanos::new(u64::MAX) {
            return;
        }
        let time = time.max(self.cluster.now);
        if self.turns.get(&(node, shard)).is_some_and(|earlier| *earlier <= time) {
            return;
        }
        self.turns.insert((node, shard), time);
        self.at(time, Happening::Turn(node, shard));
    }

    fn turn(&mut self, node: NodeId, shard: ShardId) {
        if self.turns.get(&(node, shard)) != Some(&self.cluster.now) {
            return;
        }
        self.turns.remove(&(node, shard));
        if let Some(until) = self.awake(node) {
            // Readers need no turn: those that waited may come first.
            let late = Duration::from_micros(self.dice.network.random_range(0..200));
            self.wake(node, shard, until.after(late));
            return;
        }
        self.cluster.turn(node, shard);
    }

    /// Follows up what the last happening has left to do.
    fn settle(&mut self) {
        for (node, shard) in std::mem::take(&mut self.cluster.touched) {
            let Some(replica) = self.cluster.replica(node, shard) else { continue };
            let deadline = self.cluster.when(node, replica.next_deadline());
            self.wake(node, shard, deadline);
            if self.cluster.hungry.contains(&(node, shard)) {
                let soon = self.cluster.now.after(APPLY);
                self.wake(node, shard, soon);
            }
            self.begin_write(node);
            let is_busy = self.cluster.life(node).is_some_and(|life| life.is_busy);
            if is_busy && self.in_background.insert(node) {
                self.after(BACKGROUND, Happening::Background(node));
            }
        }
        for packet in std::mem::take(&mut self.cluster.network.packets) {
            self.send(packet);
        }
        if !self.has_streams && !self.cluster.streams.is_empty() {
            self.has_streams = true;
            self.after(CHUNK, Happening::Streams);
        }
        for (node, shard, lease) in std::mem::take(&mut self.cluster.late_leases) {
            let life = self.cluster.of(node).lives;
            self.after(LATE, Happening::Publish(node, shard, life, lease));
        }
        self.hear();
    }

    fn send(&mut self, packet: Packet) {
        let Some(packet) = self.carry_packet(packet) else { return };
        let (from, to) = (packet.message.from, packet.message.to);
        let rng = &mut self.dice.network;
        if self.cluster.network.is_cut(from, to) {
            if rng.random_range(0..100) < self.plan.late {
                self.late.push(packet);
            }
            return;
        }
        let (low, high) = self.plan.delay_us;
        let mut delay = rng.random_range(low..=high);
        let chance = rng.random_range(0..10_000);
        let (lost, slow, doubled) = match self.is_troubled {
            true => (self.plan.loss, self.plan.slow, self.plan.doubled),
            false => (0, 0, 0),
        };
        if chance < lost {
            return;
        }
        if chance < lost + slow {
            delay += rng.random_range(0..=self.plan.slow_us);
        }
        if rng.random_range(0..10_000) < doubled {
            let again = Duration::from_micros(rng.random_range(low..=high + self.plan.slow_us));
            self.after(again, Happening::Arrival(packet.clone()));
        }
        self.after(Duration::from_micros(delay), Happening::Arrival(packet));
    }

    fn arrive(&mut self, packet: Packet) {
        let (shard, from, to) = (packet.shard, packet.message.from, packet.message.to);
        if self.cluster.network.is_cut(from, to) {
            if self.dice.network.random_range(0..100) < self.plan.late {
                self.late.push(packet);
            }
        } else if self.cluster.deliver(packet) {
            self.wake(to, shard, self.cluster.now);
        }
    }

    /// Cuts are mended; what was sent into them may arrive now.
    fn mend(&mut self, cuts: &[(NodeId, NodeId)]) {
        for (from, to) in cuts {
            self.cluster.network.mend(*from, *to);
        }
        self.deliver_late();
    }

    fn deliver_late(&mut self) {
        for packet in std::mem::take(&mut self.late) {
            if self.cluster.network.is_cut(packet.message.from, packet.message.to) {
                self.late.push(packet);
            } else {
                let delay = Duration::from_micros(self.dice.network.random_range(0..=self.plan.delay_us.1));
                self.after(delay, Happening::Arrival(packet));
            }
        }
    }

    fn begin_write(&mut self, node: NodeId) {
        let waits = self.cluster.life(node).is_some_and(|life| !life.queue.is_empty());
        if !waits || self.cluster.stalled_disks.contains(&node) || !self.writing.insert(node) {
            return;
        }
        let (low, high) = self.plan.disk_us;
        let latency = Duration::from_micros(self.dice.disk.random_range(low..=high));
        let life = self.cluster.of(node).lives;
        self.after(latency, Happening::Written(node, life));
    }

    fn written(&mut self, node: NodeId, life: u64) {
        if self.cluster.of(node).lives != life {
            return;
        }
        self.writing.remove(&node);
        if self.cluster.stalled_disks.contains(&node) {
            return;
        }
        self.cluster.write_wal(node, usize::MAX);
        for shard in self.cluster.settings.shards() {
            let has_mail = self.cluster.life(node).and_then(|life| life.mail.get(&shard));
            if has_mail.is_some_and(|mail| !mail.is_empty()) {
                self.wake(node, shard, self.cluster.now);
            }
        }
        self.begin_write(node);
    }

    fn background(&mut self, node: NodeId) {
        self.in_background.remove(&node);
        let is_busy = match self.awake(node) {
            Some(_) => true,
            None => self.cluster.step_background(node),
        };
        if is_busy && self.in_background.insert(node) {
            let next = self.cluster.now.after(BACKGROUND);
            let next = self.awake(node).map_or(next, |until| until.max(next));
            self.at(next, Happening::Background(node));
        }
    }

    fn step_streams(&mut self) {
        self.has_streams = false;
        let mut at = self.cluster.streams.len();
        while at > 0 {
            at -= 1;
            let Some(stream) = self.cluster.streams.get(at) else { continue };
            if self.awake(stream.from).is_none() && self.awake(stream.job.to).is_none() {
                self.carry_chunk(at);
            }
        }
    }
}
