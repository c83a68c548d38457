//! The cluster: what happens, one event at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use kv_raft::Role;
use kv_shard::{Effects, Replica};
use kv_state::Command;
use kv_storage::{PageLimit, RowRange};
use kv_types::{Key, Nanos, NodeId, Row, RowKey, ShardId, Value};

use crate::conditions::{Network, Packet, Settings};
use crate::node::{Durable, Merge, Node};
use crate::oracle::{Ask, Oracle};
use crate::stream::Stream;

/// Nodes, network, time, and who watches them.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) settings: Settings,
    pub(crate) now: Nanos,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) network: Network,
    pub(crate) streams: Vec<Stream>,
    pub(crate) oracle: Oracle,
    /// Nodes whose disks write nothing at the moment.
    pub(crate) stalled_disks: BTreeSet<NodeId>,
    /// Peers that a leader wanted to send a snapshot, in all.
    pub(crate) snapshots_asked: usize,
    pub(crate) snapshots_offered: usize,
    pub(crate) checkpoints: usize,
    /// Bases that were rewritten, and attempts that a snapshot ended.
    pub(crate) regenerations: usize,
    pub(crate) regenerations_replaced: usize,
    /// When the rates of the clocks last changed, and what they said then.
    rates_since: (Nanos, BTreeMap<NodeId, Nanos>),
    trace: DefaultHasher,
}

impl Cluster {
    pub(crate) fn new(settings: Settings) -> Self {
        let nodes = settings.nodes().map(|id| (id, Node::new(id))).collect();
        let mut cluster = Self {
            now: Nanos::new(0),
            nodes,
            network: Network::default(),
            streams: Vec::new(),
            oracle: Oracle::default(),
            stalled_disks: BTreeSet::new(),
            snapshots_asked: 0,
            snapshots_offered: 0,
            checkpoints: 0,
            regenerations: 0,
            regenerations_replaced: 0,
            rates_since: (Nanos::default(), BTreeMap::new()),
            trace: DefaultHasher::new(),
            settings,
        };
        for node in cluster.settings.nodes() {
            cluster.restart(node);
        }
        cluster
    }

    /// What happened so far, as a number.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    pub(crate) fn is_up(&self, node: NodeId) -> bool {
        self.nodes[&node].life.is_some()
    }

    pub(crate) fn replica(&self, node: NodeId, shard: ShardId) -> Option<&Replica<usize>> {
        self.nodes[&node].life.as_ref()?.replicas.get(&shard)
    }

    fn rate(&self, node: NodeId) -> u64 {
        let rates = &self.settings.clock_rates;
        rates[usize::try_from(node.get()).unwrap() % rates.len()]
    }

    /// Clocks run at these rates from now on.
    pub(crate) fn set_clock_rates(&mut self, rates: Vec<u64>) {
        let shown = self.settings.nodes().map(|node| (node, self.clock(node))).collect();
        self.rates_since = (self.now, shown);
        self.settings.clock_rates = rates;
    }

    fn shown_then(&self, node: NodeId) -> Nanos {
        self.rates_since.1.get(&node).copied().unwrap_or_default()
    }

    /// What the clock of a node says.
    pub(crate) fn clock(&self, node: NodeId) -> Nanos {
        let passed = self.now.get() - self.rates_since.0.get();
        Nanos::new(self.shown_then(node).get() + passed * self.rate(node) / 100)
    }

    /// When the clock of a node says so.
    fn when(&self, node: NodeId, reading: Nanos) -> Nanos {
        let missing = reading.get().saturating_sub(self.shown_then(node).get());
        Nanos::new(self.rates_since.0.get().saturating_add((missing * 100).div_ceil(self.rate(node))))
    }

    /// The leader of the newest term.
    pub(crate) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let term = |node: &NodeId| {
            let replica = self.replica(*node, shard)?;
            replica.is_leader().then(|| (replica.leadership().0, *node))
        };
        self.settings.nodes().filter_map(|node| term(&node)).max().map(|(_, node)| node)
    }

    pub(crate) fn restart(&mut self, node: NodeId) {
        let now = self.clock(node);
        let started = self.nodes.get_mut(&node).unwrap().start(now, &self.settings);
        started.unwrap_or_else(|cause| panic!("{node} does not open: {cause}"));
        self.check_started(node);
    }

    /// Restarts a node whose power goes after so many changes of its disk; whether it came up.
    pub(crate) fn restart_in_vain(&mut self, node: NodeId, calls: u64) -> bool {
        let now = self.clock(node);
        let starting = self.nodes.get_mut(&node).unwrap();
        starting.disk.power_off_after(calls);
        let started = starting.start(now, &self.settings);
        starting.disk.power_on();
        if started.is_ok() {
            self.check_started(node);
        }
        started.is_ok()
    }

    /// One step of every checkpoint of a node whose power goes after so many changes of its disk. The caller crashes
    /// it.
    pub(crate) fn step_merges_in_vain(&mut self, node: NodeId, calls: u64) {
        let now = self.clock(node);
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return };
        let merges: Vec<Merge> = std::mem::take(&mut life.merges).into_values().collect();
        self.nodes[&node].disk.power_off_after(calls);
        for mut merge in merges.into_iter().filter(|merge| !merge.waits) {
            // It fails, or it does not: the node will never know.
            let _ = merge.checkpoint.step(now);
        }
    }

    fn check_started(&mut self, node: NodeId) {
        for shard in self.settings.shards() {
            let replica = self.replica(node, shard).unwrap();
            let (applied, hash) = (replica.applied(), replica.reader().hash().1);
            self.oracle.applied(node, shard, applied, hash);
            self.check_rows(node, shard);
            self.turn(node, shard);
        }
    }

    /// The power goes; `choose` decides about everything that was not durable.
    pub(crate) fn crash(&mut self, node: NodeId, choose: &mut dyn FnMut(usize) -> usize) {
        self.nodes.get_mut(&node).unwrap().crash(choose);
        self.oracle.node_gone(node);
        self.network.packets.retain(|packet| packet.message.to != node);
    }

    /// Cuts every path from and to a node.
    pub(crate) fn isolate(&mut self, node: NodeId) {
        for other in self.settings.nodes().filter(|other| *other != node) {
            self.network.cuts.insert((node, other));
            self.network.cuts.insert((other, node));
        }
    }

    /// One turn of a replica: what arrived, what is to be done, what is to be applied.
    pub(crate) fn turn(&mut self, node: NodeId, shard: ShardId) {
        self.turn_with(node, shard, |_, _| {});
    }

    /// A turn with something that is no mail.
    pub(crate) fn turn_with<T>(
        &mut self,
        node: NodeId,
        shard: ShardId,
        control: impl FnOnce(&mut Replica<usize>, Nanos) -> T,
    ) -> Option<T> {
        let now = self.clock(node);
        let life = self.nodes.get_mut(&node)?.life.as_mut()?;
        let mail = std::mem::take(life.mail.get_mut(&shard)?);
        let replica = life.replicas.get_mut(&shard)?;
        replica.tick(now);
        if let Some(upto) = mail.persisted {
            replica.persisted(now, upto).unwrap();
            let (applied, hash) = (replica.applied(), replica.reader().hash().1);
            self.oracle.applied(node, shard, applied, hash);
        }
        for (message, counter) in mail.messages {
            life.clock.merge(counter).unwrap();
            replica.step(now, message);
        }
        for call in mail.reads {
            replica.read(now, call);
        }
        if !mail.writes.is_empty() {
            replica.write(mail.writes);
        }
        let result = control(replica, now);
        let effects = replica.take().unwrap();
        self.hand_on(node, shard, effects);
        self.apply(node, shard);
        self.check_replica(node, shard);
        Some(result)
    }

    /// Entry by entry, so that the oracle sees each of them.
    fn apply(&mut self, node: NodeId, shard: ShardId) {
        for _ in 0..self.settings.apply_max {
            let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return };
            let Some(replica) = life.replicas.get_mut(&shard) else { return };
            let before = replica.applied();
            let more = replica.apply(1, u64::MAX).unwrap();
            let applied = replica.applied();
            if applied != before {
                self.oracle.applied(node, shard, applied, replica.reader().hash().1);
            }
            let effects = replica.take().unwrap();
            self.hand_on(node, shard, effects);
            if !more {
                return;
            }
        }
    }

    fn hand_on(&mut self, node: NodeId, shard: ShardId, effects: Effects<usize>) {
        let Effects { writes, messages, written, reads, snapshots, freed: _, role, lease: _ } = effects;
        let life = self.nodes.get_mut(&node).unwrap().life.as_mut().unwrap();
        if let Some(change) = role.filter(|change| change.role == Role::Leader) {
            self.oracle.leads(node, shard, change.term);
        }
        (node, shard, messages.len(), written.len()).hash(&mut self.trace);
        for write in writes {
            if let kv_storage::WalOp::Raft { append, .. } = &write.record.op {
                self.oracle.appended(node, shard, append);
            }
            let durable = write.id.map_or(Durable::Nobody, |id| Durable::Replica(shard, id));
            life.queue.push_back((write.record, durable));
        }
        let counter = life.clock.now();
        self.nodes.get_mut(&node).unwrap().told = counter;
        let packet = |message| Packet { shard, message, counter };
        self.network.packets.extend(messages.into_iter().map(packet));
        for (call, result) in written {
            if let Ok(written) = &result {
                let held = self
                    .nodes
                    .values()
                    .filter(|node| node.held.get(&shard).is_some_and(|held| held.holds(written.id)))
                    .count();
                assert!(
                    held > self.nodes.len() / 2,
                    "{node} {shard}: {} is answered, {held} hold it",
                    written.id
                );
            }
            self.oracle.written(call, result);
        }
        for (call, result) in reads {
            match result {
                Ok(()) => self.serve(node, shard, call),
                Err(_) => self.oracle.read_failed(call),
            }
        }
        for job in snapshots {
            self.snapshots_asked += 1;
            self.begin_stream(node, shard, job);
        }
    }

    fn serve(&mut self, node: NodeId, shard: ShardId, call: usize) {
        let Ask::Read(key) = self.oracle.calls[call].ask.clone() else { panic!("call {call} is no read") };
        let reader = self.replica(node, shard).unwrap().reader();
        let row = reader.get(&key).unwrap();
        self.oracle.read(call, reader.applied(), row.as_ref());
    }

    fn check_replica(&mut self, node: NodeId, shard: ShardId) {
        let replica = self.replica(node, shard).unwrap();
        let status = replica.status();
        let (raft, applied) = (&status.raft, status.applied);
        assert!(applied.index <= raft.commit && raft.commit <= raft.last.index, "{node} {shard}: {status:?}");
        let joined = status.log_start <= applied.index || replica.is_installing();
        assert!(joined, "{node} {shard}: {status:?}");
        (self.now, raft.term, raft.commit, raft.last, applied, status.hash).hash(&mut self.trace);
    }

    /// Compares all rows of a replica with the model.
    pub(crate) fn check_rows(&mut self, node: NodeId, shard: ShardId) {
        let Some(replica) = self.replica(node, shard) else { return };
        let now = self.clock(node);
        let pin = replica.reader().pin(now).unwrap();
        let mut rows: BTreeMap<RowKey, Row> = BTreeMap::new();
        let mut range = RowRange::ALL;
        loop {
            let page = pin.scan(&range, PageLimit { rows: 50, bytes: 1 << 20 }, now).unwrap();
            rows.extend(page.rows);
            match page.resume {
                Some(key) => range = range.starting_at(key),
                None => break,
            }
        }
        self.oracle.rows(node, shard, pin.index(), &rows);
    }

    /// Puts a message that arrived into the mail of its replica.
    pub(crate) fn deliver(&mut self, packet: Packet) {
        let Packet { shard, message, counter } = packet;
        if self.network.is_cut(message.from, message.to) {
            return;
        }
        if let Some(life) = self.nodes.get_mut(&message.to).unwrap().life.as_mut() {
            life.mail.get_mut(&shard).unwrap().messages.push((message, counter));
        }
    }

    /// A client asks a node to write; the number of the call.
    pub(crate) fn write(&mut self, node: NodeId, shard: ShardId, command: &Command) -> usize {
        let command = command.encode();
        let call = self.oracle.begin(node, shard, Ask::Write(command.clone()));
        match self.nodes.get_mut(&node).unwrap().life.as_mut() {
            Some(life) => life.mail.get_mut(&shard).unwrap().writes.push((command, call)),
            None => self.oracle.node_gone(node),
        }
        call
    }

    /// A client asks a node to read.
    pub(crate) fn read(&mut self, node: NodeId, shard: ShardId, key: &str) -> usize {
        let key = RowKey::user(&key_of(key));
        let call = self.oracle.begin(node, shard, Ask::Read(key));
        match self.nodes.get_mut(&node).unwrap().life.as_mut() {
            Some(life) => life.mail.get_mut(&shard).unwrap().reads.push(call),
            None => self.oracle.node_gone(node),
        }
        call
    }

    /// Lets go of old segments, and does what the WAL asks for.
    pub(crate) fn release(&mut self, node: NodeId) {
        let Some(life) = self.nodes.get_mut(&node).and_then(|node| node.life.as_mut()) else { return };
        let released = life.wal.release().unwrap();
        for shard in released.redo {
            self.begin_merge(node, shard);
        }
        for shard in released.log {
            self.turn_with(node, shard, |replica, _| replica.compact_to_base().unwrap());
        }
    }

    /// Does everything that can be done without waiting; whether there was anything.
    pub(crate) fn work(&mut self) -> bool {
        let mut worked = self.work_without_streams();
        let mut at = self.streams.len();
        while at > 0 {
            at -= 1;
            worked |= at < self.streams.len() && self.step_stream(at);
        }
        worked
    }

    /// The same, but snapshots stand still.
    pub(crate) fn work_without_streams(&mut self) -> bool {
        let mut worked = false;
        for packet in std::mem::take(&mut self.network.packets) {
            self.deliver(packet);
            worked = true;
        }
        for node in self.settings.nodes() {
            while !self.stalled_disks.contains(&node) && self.write_wal(node, usize::MAX) > 0 {
                worked = true;
            }
            for shard in self.settings.shards() {
                let Some(life) = self.nodes[&node].life.as_ref() else { continue };
                let replica = &life.replicas[&shard];
                let (mail, before) = (!life.mail[&shard].is_empty(), replica.applied().index);
                if mail || (replica.status().verified && before < replica.status().raft.commit) {
                    self.turn(node, shard);
                    let after = self.replica(node, shard).map(|replica| replica.applied().index);
                    worked |= mail || after > Some(before);
                }
                worked |= self.step_verification(node, shard);
                worked |= self.step_merge(node, shard);
                worked |= self.step_regeneration(node, shard);
            }
        }
        worked
    }

    /// Turns of the replicas that have asked to be woken by now.
    pub(crate) fn wake(&mut self) {
        for node in self.settings.nodes() {
            for shard in self.settings.shards() {
                if self
                    .replica(node, shard)
                    .is_some_and(|replica| replica.next_deadline() <= self.clock(node))
                {
                    self.turn(node, shard);
                }
            }
        }
    }

    /// Lets everything run, with a network that loses nothing, until `done` or until the time is up.
    pub(crate) fn run_until(&mut self, span: Duration, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.now.after(span);
        loop {
            while self.work() {}
            if done(self) {
                return true;
            }
            let Some(next) = self.next_deadline().filter(|next| *next <= end) else {
                self.now = end;
                return false;
            };
            self.now = self.now.max(next).max(Nanos::new(self.now.get() + 1));
            self.wake();
        }
    }

    /// When the first replica has something to do.
    fn next_deadline(&self) -> Option<Nanos> {
        let deadlines = self.nodes.iter().filter_map(|(id, node)| Some((*id, node.life.as_ref()?)));
        let deadlines = deadlines.flat_map(|(id, life)| {
            life.replicas.values().map(move |replica| self.when(id, replica.next_deadline()))
        });
        deadlines.min()
    }

    pub(crate) fn run(&mut self, span: Duration) {
        self.run_until(span, |_| false);
    }

    /// Whether all nodes are up and every shard is the same on all of them, with a leader.
    pub(crate) fn is_settled(&self) -> bool {
        self.settings.shards().all(|shard| {
            let Some(leader) = self.leader(shard).and_then(|leader| self.replica(leader, shard)) else {
                return false;
            };
            let end = leader.status().raft.last;
            self.settings.nodes().all(|node| {
                self.replica(node, shard).is_some_and(|replica| {
                    let raft = replica.status().raft;
                    replica.applied() == end && raft.last == end && raft.durable == end.index
                })
            })
        })
    }

    /// Where every replica stands, for a failure to say.
    pub(crate) fn summary(&self) -> String {
        let mut text = format!("{:?}, {} streams", self.now, self.streams.len());
        for node in self.settings.nodes() {
            for shard in self.settings.shards() {
                text += &format!("\n{node} {shard}: {:?}", self.replica(node, shard).map(Replica::status));
            }
        }
        text
    }

    /// Makes records of a node durable, as one group; how many.
    pub(crate) fn write_wal(&mut self, node: NodeId, count: usize) -> usize {
        self.nodes.get_mut(&node).unwrap().write_wal(count)
    }
}

pub(crate) fn key_of(key: &str) -> Key {
    Key::new(Bytes::copy_from_slice(key.as_bytes())).unwrap()
}

pub(crate) fn put(key: &str, value: &str) -> Command {
    let value = Value::new(Bytes::copy_from_slice(value.as_bytes())).unwrap();
    Command::Put { key: key_of(key), value }
}
