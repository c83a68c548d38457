//! A group of cores with virtual disks, network and time, driven one event at a time. What a driver must do is done
//! here in the plainest way; [`Oracle`] watches every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use kv_raft::invariants::{check_state, check_transition};
use kv_raft::{
    Config, EntryShape, Fatal, LeaseConfig, LeaseUpdate, Message, MessageKind, Output, Raft, ReadRefused,
    Refused, Restored, RoleChange, SnapshotJob, Ticket, Write, WriteId,
};
use kv_types::{Body, Entry, HardState, LogId, LogIndex, Membership, Nanos, NodeId, SnapshotMeta};

use crate::clock::NodeClock;
use crate::oracle::Oracle;

/// A log: the entry before its first one, and its entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) start: LogId,
    pub(crate) entries: Vec<Entry>,
}

impl Log {
    pub(crate) fn get(&self, index: LogIndex) -> Option<&Entry> {
        let offset = index.get().checked_sub(self.start.index.get() + 1)?;
        self.entries.get(offset as usize)
    }

    fn truncate(&mut self, from: LogIndex) {
        self.entries.retain(|entry| entry.id.index < from);
    }

    fn begin_after(&mut self, start: LogId, keep_tail: bool) {
        self.start = start;
        self.entries.retain(|entry| keep_tail && entry.id.index > start.index);
    }

    pub(crate) fn last(&self) -> LogId {
        self.entries.last().map_or(self.start, |entry| entry.id)
    }
}

/// A state machine: all it has applied, and the membership in force there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) meta: SnapshotMeta,
    pub(crate) applied: Vec<Entry>,
}

impl Machine {
    fn apply(&mut self, entry: &Entry) {
        assert_eq!(entry.id.index, self.meta.last.index.next(), "entries are applied without a gap");
        self.meta.last = entry.id;
        if let Body::Config(membership) = &entry.body {
            self.meta.membership = membership.clone();
        }
        self.applied.push(entry.clone());
    }
}

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    pub(crate) hard: HardState,
    pub(crate) base: Machine,
    pub(crate) log: Log,
}

/// A node: clock, disk, what is not on it yet, and the core.
pub(crate) struct Node {
    pub(crate) raft: Option<Raft>,
    pub(crate) disk: Disk,
    /// The log with all writes, also those that are not durable.
    pub(crate) log: Log,
    pub(crate) machine: Machine,
    /// Writes handed out and not durable, each with the machine that its reset installs.
    held: VecDeque<(Write, Option<Machine>)>,
    after: Vec<(WriteId, Message)>,
    /// A received snapshot.
    staged: Option<Machine>,
    /// Whether writes wait for `persist`.
    pub(crate) disk_held: bool,
    pub(crate) clock: NodeClock,
    /// The lease that readers of this node see.
    pub(crate) lease: LeaseUpdate,
    lives: u64,
}

/// Settings of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) membership: Membership,
    pub(crate) in_flight_appends_max: usize,
    pub(crate) in_flight_bytes_max: u64,
    pub(crate) append_entries_max: usize,
    pub(crate) append_bytes_max: u64,
    pub(crate) uncommitted_bytes_max: u64,
    pub(crate) lease: Option<LeaseConfig>,
    #[cfg(feature = "planted")]
    pub(crate) planted: Option<kv_raft::Planted>,
}

impl Options {
    pub(crate) fn new(membership: Membership) -> Self {
        Self {
            seed: 1,
            membership,
            in_flight_appends_max: 4,
            in_flight_bytes_max: 1 << 20,
            append_entries_max: 8,
            append_bytes_max: 1 << 10,
            uncommitted_bytes_max: 1 << 20,
            lease: None,
            #[cfg(feature = "planted")]
            planted: None,
        }
    }
}

/// What a step did that a script prints.
#[derive(Debug)]
pub(crate) enum Event {
    Sent(Message),
    /// An append whose entries the log no longer has.
    Unfilled(Message),
    Wrote(NodeId, Write),
    Committed(NodeId, LogId),
    Role(NodeId, RoleChange),
    Read(NodeId, Ticket, Result<LogIndex, ReadRefused>),
    Lease(NodeId, LeaseUpdate),
    Snapshot(NodeId, NodeId),
    Fatal(NodeId, Fatal),
}

/// The group.
pub(crate) struct Cluster {
    pub(crate) now: Nanos,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) network: VecDeque<Message>,
    /// Nodes that are cut off.
    pub(crate) cut: BTreeSet<(NodeId, NodeId)>,
    /// Streams asked for and not finished, by sender.
    pub(crate) streams: VecDeque<(NodeId, SnapshotJob)>,
    pub(crate) events: Vec<Event>,
    pub(crate) oracle: Oracle,
    pub(crate) options: Options,
}

impl Cluster {
    /// A group formed the way the product forms one: a snapshot of term 1 that holds the membership, and an empty
    /// hard state.
    pub(crate) fn new(options: Options) -> Self {
        let last = LogId::new(kv_types::Term::new(1), LogIndex::new(1));
        let membership = options.membership.clone();
        let blank = Entry { id: last, stamp: kv_types::Lamport::ZERO, body: Body::Blank };
        let base =
            Machine { meta: SnapshotMeta { last, membership: membership.clone() }, applied: vec![blank] };
        let mut cluster = Self {
            now: Nanos::new(0),
            nodes: BTreeMap::new(),
            network: VecDeque::new(),
            cut: BTreeSet::new(),
            streams: VecDeque::new(),
            events: Vec::new(),
            oracle: Oracle::new(&base.applied),
            options,
        };
        for id in membership.members() {
            let disk = Disk {
                hard: HardState::default(),
                base: base.clone(),
                log: Log { start: last, entries: Vec::new() },
            };
            cluster.install(id, disk);
        }
        cluster
    }

    /// Puts a node in place and starts it.
    pub(crate) fn install(&mut self, id: NodeId, disk: Disk) {
        let node = Node {
            raft: None,
            log: Log::default(),
            machine: Machine::default(),
            disk,
            held: VecDeque::new(),
            after: Vec::new(),
            staged: None,
            disk_held: false,
            clock: NodeClock::default(),
            lease: LeaseUpdate::default(),
            lives: 0,
        };
        self.nodes.insert(id, node);
        self.restart(id);
    }

    pub(crate) fn crash(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).unwrap();
        node.raft = None;
        node.lease = LeaseUpdate::default();
        node.held.clear();
        node.after.clear();
        node.staged = None;
        self.oracle.crashed(id);
        // A stream to it breaks, and its sender learns so when it is finished.
        self.streams.retain(|(from, _)| *from != id);
    }

    pub(crate) fn restart(&mut self, id: NodeId) {
        let options = self.options.clone();
        let node = self.nodes.get_mut(&id).unwrap();
        assert!(node.raft.is_none(), "{id} runs");
        node.lives += 1;
        let config = Config {
            id,
            election_timeout_min: Duration::from_millis(100),
            heartbeat: Duration::from_millis(20),
            in_flight_appends_max: options.in_flight_appends_max,
            in_flight_bytes_max: options.in_flight_bytes_max,
            append_bytes_max: options.append_bytes_max,
            append_entries_max: options.append_entries_max,
            uncommitted_bytes_max: options.uncommitted_bytes_max,
            incarnation: node.lives,
            seed: options.seed,
            lease: options.lease,
            #[cfg(feature = "planted")]
            planted: options.planted,
        };
        let entries = &node.disk.log.entries;
        let configs = entries.iter().filter_map(|entry| match &entry.body {
            Body::Config(membership) => Some((entry.id.index, membership.clone())),
            Body::Blank | Body::Command(_) => None,
        });
        let shape = |entry: &Entry| EntryShape { id: entry.id, bytes: entry.body.payload_bytes() };
        let restored = Restored {
            hard: node.disk.hard,
            base: node.disk.base.meta.clone(),
            log_start: node.disk.log.start,
            entries: entries.iter().map(shape).collect(),
            configs: configs.collect(),
            commit: LogIndex::ZERO,
            applied: LogIndex::ZERO,
        };
        node.raft = Some(Raft::new(config, node.clock.read(self.now), restored).unwrap());
        node.log = node.disk.log.clone();
        node.machine = node.disk.base.clone();
        self.ready(id);
    }

    /// Runs one event on a node, if it is up, and carries out what it asks for.
    pub(crate) fn on<T>(&mut self, id: NodeId, event: impl FnOnce(&mut Raft, Nanos) -> T) -> Option<T> {
        let node = self.nodes.get_mut(&id)?;
        let now = node.clock.read(self.now);
        let raft = node.raft.as_mut()?;
        let before = raft.status();
        let result = event(raft, now);
        check_state(raft);
        check_transition(&before, &raft.status());
        self.ready(id);
        Some(result)
    }

    /// One `take`, carried out.
    pub(crate) fn ready(&mut self, id: NodeId) {
        let Some(raft) = self.nodes.get_mut(&id).and_then(|node| node.raft.as_mut()) else { return };
        let before = raft.status();
        let output = raft.take();
        check_state(raft);
        check_transition(&before, &raft.status());
        self.carry_out(id, output);
        self.oracle.check(self.now, &self.nodes);
        if !self.nodes[&id].disk_held {
            while self.persist(id) {}
        }
    }

    fn carry_out(&mut self, id: NodeId, output: Output) {
        let Output { write, send, send_after, commit, reads, role, lease, snapshots, fatal } = output;
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(lease) = lease {
            node.lease = lease;
            self.events.push(Event::Lease(id, lease));
        }
        if let Some(role) = role {
            self.events.push(Event::Role(id, role));
        }
        if let Some(write) = write {
            write_log(&mut node.log, &write);
            let machine = write.reset.as_ref().map(|reset| {
                let staged = node.staged.take().expect("a reset answers a received snapshot");
                assert_eq!(staged.meta, reset.meta);
                node.machine = staged.clone();
                staged
            });
            self.events.push(Event::Wrote(id, write.clone()));
            node.held.push_back((write, machine));
        }
        node.after.extend(send_after);
        for message in send {
            self.transmit(message);
        }
        let node = self.nodes.get_mut(&id).unwrap();
        if let Some(commit) = commit {
            let mut next = node.machine.meta.last.index.next();
            while next <= commit.index {
                let entry = node.log.get(next).expect("what is committed is in the log").clone();
                node.machine.apply(&entry);
                next = next.next();
            }
            assert_eq!(node.machine.meta.last, commit);
            node.raft.as_mut().unwrap().applied(commit.index);
            self.events.push(Event::Committed(id, commit));
        }
        for (ticket, result) in reads {
            self.oracle.answered(id, ticket, result);
            self.events.push(Event::Read(id, ticket, result));
        }
        for job in snapshots {
            self.streams.push_back((id, job));
            self.events.push(Event::Snapshot(id, job.to));
        }
        if let Some(fatal) = fatal {
            self.events.push(Event::Fatal(id, fatal));
        }
    }

    /// Fills an append and puts it on the network.
    fn transmit(&mut self, mut message: Message) {
        let log = &self.nodes[&message.from].log;
        let mut whole = true;
        if let MessageKind::Append { prev, last, entries, .. } = &mut message.kind {
            let mut next = prev.index.next();
            while next <= last.index {
                match log.get(next) {
                    Some(entry) => entries.push(entry.clone()),
                    None => whole = false,
                }
                next = next.next();
            }
            whole &= entries.last().is_none_or(|entry| entry.id == *last);
        }
        if !whole {
            self.events.push(Event::Unfilled(message));
            return;
        }
        self.events.push(Event::Sent(message.clone()));
        self.network.push_back(message);
    }

    /// Makes the oldest write of a node durable. Returns whether there was one.
    pub(crate) fn persist(&mut self, id: NodeId) -> bool {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some((write, machine)) = node.held.pop_front() else { return false };
        if let Some(hard) = write.hard {
            node.disk.hard = hard;
        }
        if let Some(machine) = machine {
            node.disk.base = machine;
        }
        write_log(&mut node.disk.log, &write);
        let after = std::mem::take(&mut node.after);
        let (now, later) = after.into_iter().partition(|(id, _)| *id <= write.id);
        node.after = later;
        let now: Vec<(WriteId, Message)> = now;
        for (_, message) in now {
            self.transmit(message);
        }
        self.on(id, |raft, now| raft.persisted(now, write.id));
        true
    }

    /// Delivers a message, unless its path is cut.
    pub(crate) fn deliver(&mut self, message: Message) {
        if !self.cut.contains(&(message.from, message.to)) {
            self.on(message.to, |raft, now| raft.step(now, message));
        }
    }

    /// Delivers until nothing is left, and finishes streams.
    pub(crate) fn stabilize(&mut self) {
        for _ in 0..10_000 {
            if let Some(message) = self.network.pop_front() {
                self.deliver(message);
            } else if let Some((from, job)) = self.streams.pop_front() {
                self.finish_stream(from, job, true);
            } else {
                return;
            }
        }
        panic!("the network does not come to rest");
    }

    /// Ends a snapshot stream, at what the sender has applied by now.
    pub(crate) fn finish_stream(&mut self, from: NodeId, job: SnapshotJob, arrives: bool) {
        let SnapshotJob { to, term } = job;
        let sender = &self.nodes[&from];
        if sender.raft.is_none() {
            return;
        }
        let machine = sender.machine.clone();
        let meta = machine.meta.clone();
        let up =
            self.nodes.get(&to).is_some_and(|node| node.raft.is_some()) && !self.cut.contains(&(from, to));
        let result = if arrives && up { Ok(meta.last) } else { Err(()) };
        if result.is_ok() {
            self.nodes.get_mut(&to).unwrap().staged = Some(machine);
            self.on(to, |raft, now| raft.snapshot_received(now, from, term, meta));
            self.nodes.get_mut(&to).unwrap().staged = None;
        }
        self.on(from, |raft, now| raft.snapshot_sent(now, to, result));
    }

    /// Lets time pass, ticking each node when it asks for it; delivers along the way if told to.
    pub(crate) fn advance(&mut self, span: Duration, deliver: bool) {
        let end = self.now.after(span);
        loop {
            if deliver {
                self.stabilize();
            }
            let due = |(id, node): (&NodeId, &Node)| {
                Some((node.clock.when(node.raft.as_ref()?.next_deadline()), *id))
            };
            let Some((at, id)) = self.nodes.iter().filter_map(due).min().filter(|(at, _)| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            self.on(id, |raft, now| raft.tick(now));
        }
        self.now = end;
    }

    /// Writes the base at `index` and drops the log up to there.
    pub(crate) fn compact(&mut self, id: NodeId, index: LogIndex) {
        let node = self.nodes.get_mut(&id).unwrap();
        let Some(raft) = node.raft.as_ref() else { return };
        let status = raft.status();
        if index <= node.disk.base.meta.last.index || index > status.applied.min(status.durable) {
            return;
        }
        for entry in &node.machine.applied {
            if entry.id.index > node.disk.base.meta.last.index && entry.id.index <= index {
                node.disk.base.apply(entry);
            }
        }
        let upto = node.disk.base.meta.last;
        node.disk.log.begin_after(upto, true);
        node.log.begin_after(upto, true);
        self.on(id, |raft, _| raft.compacted(upto));
    }

    pub(crate) fn propose(&mut self, id: NodeId, commands: &[&str]) -> Option<Result<(), Refused>> {
        let batch = commands.iter().map(|text| Bytes::copy_from_slice(text.as_bytes())).collect();
        self.on(id, |raft, _| raft.propose(batch).map(|_| ()))
    }

    pub(crate) fn read(&mut self, id: NodeId, ticket: Ticket) -> Option<Result<(), Refused>> {
        self.oracle.asked(id, ticket, &self.nodes);
        self.on(id, |raft, now| raft.read(now, ticket))
    }

    /// Sets the rate of a node's clock from now on, in parts per million off the true one.
    pub(crate) fn skew(&mut self, id: NodeId, ppm: i64) {
        let now = self.now;
        self.nodes.get_mut(&id).unwrap().clock.set_rate(now, ppm);
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leads = |node: &Node| node.raft.as_ref().filter(|raft| raft.is_leader()).map(Raft::term);
        self.nodes.iter().filter_map(|(id, node)| leads(node).map(|term| (term, *id))).max().map(|(_, id)| id)
    }
}

/// Carries a write out on a log.
fn write_log(log: &mut Log, write: &Write) {
    if let Some(reset) = &write.reset {
        log.begin_after(reset.meta.last, reset.keep_tail);
    }
    if let Some(from) = write.truncate_from {
        assert!(from > log.start.index, "a write truncates from {from}, the log begins after {}", log.start);
        log.truncate(from);
    }
    for entry in &write.append {
        assert_eq!(entry.id.index, log.last().index.next(), "a write appends without a gap");
        log.entries.push(entry.clone());
    }
}
