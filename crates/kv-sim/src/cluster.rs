//! The cluster: what can happen to it, one step at a time. Who drives it decides when.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use kv_raft::LeaseUpdate;
use kv_shard::{Effects, Replica, ReplicaError};
use kv_storage::{Generation, WalOp};
use kv_types::{LogIndex, Nanos, NodeId, ShardId};

use crate::clock::NodeClock;
use crate::invariants::{self, Invariant};
use crate::network::{Network, Packet};
use crate::node::{Durable, Life, Mail, Node, StartError};
use crate::oracle::Oracle;
use crate::planted::Planted;
use crate::settings::Settings;
use crate::stream::Stream;
use crate::violation::Violation;
use crate::world::{Seen, World};

pub(crate) mod calls;
mod standing;
mod watch;

/// How much of everything has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Peers that a leader wanted to send a snapshot.
    pub(crate) snapshots_asked: usize,
    pub(crate) snapshots_offered: usize,
    pub(crate) checkpoints: usize,
    /// Bases that were rewritten, and attempts that a snapshot ended.
    pub(crate) regenerations: usize,
    pub(crate) regenerations_replaced: usize,
    pub(crate) elections: usize,
    /// Replicas that found their rows damaged, and those that got them anew.
    pub(crate) damaged: usize,
    pub(crate) repaired: usize,
    pub(crate) lease_reads: usize,
    pub(crate) configs: usize,
    pub(crate) turns: usize,
}

/// Nodes, network, time, and who watches them.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) settings: Settings,
    /// True time.
    pub(crate) now: Nanos,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) network: Network,
    pub(crate) streams: Vec<Stream>,
    pub(crate) oracle: Oracle,
    pub(crate) world: World,
    invariants: Vec<Box<dyn Invariant>>,
    /// The first one.
    pub(crate) violation: Option<Violation>,
    /// Nodes whose disks write nothing at the moment.
    pub(crate) stalled_disks: BTreeSet<NodeId>,
    /// Nodes whose disks were told to fail.
    pub(crate) failing_disks: BTreeSet<NodeId>,
    /// Replicas whose rows a fault has damaged, with the life of the base; until that was replaced.
    pub(crate) spoiled: BTreeMap<(NodeId, ShardId), Generation>,
    /// How often somebody was asked for rows.
    pub(crate) repairs_asked: usize,
    pub(crate) counts: Counts,
    /// Leases that wait to be published, which is wrong: a planted bug.
    pub(crate) late_leases: Vec<(NodeId, ShardId, LeaseUpdate)>,
    /// Replicas that something has happened to since the driver last looked.
    pub(crate) touched: BTreeSet<(NodeId, ShardId)>,
    /// Replicas that have more to apply.
    pub(crate) hungry: BTreeSet<(NodeId, ShardId)>,
    trace: DefaultHasher,
    /// Every event, if wanted.
    pub(crate) log: String,
}

impl Cluster {
    pub(crate) fn new(settings: Settings) -> Self {
        let nodes = settings.nodes().map(|id| (id, Node::new(id))).collect();
        let clocks = settings.nodes().map(|id| (id, NodeClock::default())).collect();
        let world = World { clocks, election_timeout: settings.election_timeout, ..World::default() };
        let mut cluster = Self {
            now: Nanos::new(0),
            nodes,
            network: Network::default(),
            streams: Vec::new(),
            oracle: Oracle::new(settings.has_bug_of_txns()),
            world,
            invariants: invariants::all(),
            violation: None,
            stalled_disks: BTreeSet::new(),
            failing_disks: BTreeSet::new(),
            spoiled: BTreeMap::new(),
            repairs_asked: 0,
            counts: Counts::default(),
            late_leases: Vec::new(),
            touched: BTreeSet::new(),
            hungry: BTreeSet::new(),
            trace: DefaultHasher::new(),
            log: String::new(),
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
        self.of(node).life.is_some()
    }

    pub(crate) fn of(&self, node: NodeId) -> &Node {
        self.nodes.get(&node).expect("every id in use is that of a node")
    }

    pub(crate) fn node(&mut self, node: NodeId) -> &mut Node {
        self.nodes.get_mut(&node).expect("every id in use is that of a node")
    }

    pub(crate) fn life(&mut self, node: NodeId) -> Option<&mut Life> {
        self.node(node).life.as_mut()
    }

    pub(crate) fn replica(&self, node: NodeId, shard: ShardId) -> Option<&Replica<usize>> {
        self.of(node).life.as_ref()?.replicas.get(&shard)
    }

    /// What the clock of a node says.
    pub(crate) fn clock(&self, node: NodeId) -> Nanos {
        self.world.clock_of(node).at(self.now)
    }

    /// When the clock of a node says so.
    pub(crate) fn when(&self, node: NodeId, reading: Nanos) -> Nanos {
        self.world.clock_of(node).when(reading)
    }

    /// The clock of a node, to be changed.
    pub(crate) fn clock_mut(&mut self, node: NodeId) -> &mut NodeClock {
        self.world.clocks.entry(node).or_default()
    }

    /// Starts a node that is down; whether it came up.
    pub(crate) fn restart(&mut self, node: NodeId) -> bool {
        let now = self.clock(node);
        let disks = self
            .world
            .groups
            .iter()
            .filter_map(|(shard, group)| Some((*shard, group.replica(node)?.disk.clone())));
        let holds = disks.collect();
        let starting = self.nodes.get_mut(&node).expect("every id in use is that of a node");
        match starting.start(now, &self.settings, &holds) {
            Ok(found) => {
                for (shard, (held, configs)) in found {
                    self.see(node, shard, Seen::Started(&held, &configs));
                    self.started(node, shard);
                }
                true
            }
            Err(StartError::Broken(violation)) => {
                self.report(Err(violation));
                false
            }
            Err(StartError::Fails(cause)) => {
                if !self.failing_disks.contains(&node) {
                    self.report(Err(Violation::new(
                        "no-replica-stops",
                        format!("{node} does not open: {cause}"),
                    )));
                }
                false
            }
        }
    }

    /// Restarts a node whose power goes after so many changes of its disk; whether it came up.
    pub(crate) fn restart_in_vain(&mut self, node: NodeId, calls: u64) -> bool {
        self.failing_disks.insert(node);
        self.node(node).disk.power_off_after(calls);
        let is_up = self.restart(node);
        self.failing_disks.remove(&node);
        self.node(node).disk.power_on();
        is_up
    }

    fn started(&mut self, node: NodeId, shard: ShardId) {
        let Some(replica) = self.replica(node, shard) else { return };
        let (applied, hash) = (replica.applied(), replica.reader().hash().1);
        let (commit, damage) = (replica.commit(), replica.damage().map(str::to_owned));
        if let Some(detail) = damage {
            self.lost(node, shard, &detail);
        }
        self.see(node, shard, Seen::Commit(commit));
        self.applied(node, shard, applied, hash);
        self.check_rows(node, shard);
        self.turn(node, shard);
    }

    /// The power goes; `choose` decides about everything that was not durable.
    pub(crate) fn crash(&mut self, node: NodeId, choose: &mut dyn FnMut(usize) -> usize) {
        self.node(node).crash(choose);
        self.oracle.node_gone(node);
        for shard in self.settings.shards() {
            self.see(node, shard, Seen::Gone);
        }
    }

    /// The disk of a node that is down is replaced by an empty one.
    pub(crate) fn wipe(&mut self, node: NodeId) {
        self.node(node).wipe();
        // What was durable once stays so for the invariants, unless the node comes back without it.
        if self.settings.is_planted(Planted::WipedDiskVotes) {
            for shard in self.settings.shards() {
                self.world.ghost(node, shard).disk = crate::held::Held::default();
            }
        }
    }

    /// A node stops by itself, and with it what waits for it. Only a failing disk may make it.
    pub(crate) fn stop(&mut self, node: NodeId, cause: &str) {
        if !self.failing_disks.contains(&node) {
            self.report(Err(Violation::new("no-replica-stops", format!("{node}: {cause}"))));
        }
        self.crash(node, &mut |_| 0);
    }

    /// One turn of a replica: what arrived, what is to be done, what is to be applied.
    pub(crate) fn turn(&mut self, node: NodeId, shard: ShardId) {
        self.turn_with(node, shard, |_, _| Ok(()));
    }

    /// A turn with something that is no mail.
    pub(crate) fn turn_with<T>(
        &mut self,
        node: NodeId,
        shard: ShardId,
        control: impl FnOnce(&mut Replica<usize>, Nanos) -> Result<T, ReplicaError>,
    ) -> Option<T> {
        self.counts.turns += 1;
        self.touched.insert((node, shard));
        let reading = self.clock(node);
        let life = self.nodes.get_mut(&node)?.life.as_mut()?;
        let before = life.readings.insert(shard, reading).unwrap_or(reading);
        let now = if self.settings.is_planted(Planted::ClockBeforeMessage) { before } else { reading };
        let mail = std::mem::take(life.mail.get_mut(&shard)?);
        for (message, _) in &mail.messages {
            self.see(node, shard, Seen::Took(message));
        }
        let had_report = mail.persisted.is_some();
        let life = self.nodes.get_mut(&node)?.life.as_mut()?;
        let replica = life.replicas.get_mut(&shard)?;
        let result = feed(replica, mail, now, &life.clock).and_then(|()| {
            let standing = had_report.then(|| (replica.applied(), replica.reader().hash().1));
            let result = control(replica, now)?;
            Ok((result, replica.take()?, standing))
        });
        match result {
            Ok((result, effects, standing)) => {
                let installs = standing.filter(|(id, _)| self.world_applied(node, shard) != id.index);
                self.hand_on(node, shard, effects);
                if let Some((applied, hash)) = installs {
                    self.applied(node, shard, applied, hash);
                }
                self.apply(node, shard);
                Some(result)
            }
            Err(cause) => {
                self.stop(node, &format!("{shard}: {cause:?}"));
                None
            }
        }
    }

    fn world_applied(&self, node: NodeId, shard: ShardId) -> LogIndex {
        let ghost = self.world.groups.get(&shard).and_then(|group| group.replica(node));
        ghost.map_or(LogIndex::ZERO, |ghost| ghost.applied)
    }

    /// Entry by entry, so that every one of them is seen.
    fn apply(&mut self, node: NodeId, shard: ShardId) {
        for _ in 0..self.settings.apply_max {
            let Some(replica) = self.life(node).and_then(|life| life.replicas.get_mut(&shard)) else {
                return;
            };
            let before = replica.applied();
            if before.index == replica.commit() {
                self.hungry.remove(&(node, shard));
                break;
            }
            let result = replica.apply(1, u64::MAX).and_then(|more| {
                let standing = (replica.applied(), replica.reader().hash().1);
                Ok((more, standing, replica.take()?))
            });
            match result {
                Ok((more, (applied, hash), effects)) => {
                    if applied != before {
                        if self.settings.has_meta {
                            self.attempted(node, shard, applied);
                        }
                        self.applied(node, shard, applied, hash);
                    }
                    self.hand_on(node, shard, effects);
                    if !more {
                        self.hungry.remove(&(node, shard));
                        break;
                    }
                    self.hungry.insert((node, shard));
                }
                Err(cause) => {
                    self.stop(node, &format!("{shard}: {cause:?}"));
                    return;
                }
            }
        }
        self.release_lease_reads(node, shard);
    }

    fn hand_on(&mut self, node: NodeId, shard: ShardId, effects: Effects<usize>) {
        let Effects { mut writes, messages, written, reads, snapshots, freed: _, role: _, lease } = effects;
        if self.settings.is_planted(Planted::TailKeptOverConflict) {
            for write in &mut writes {
                if let WalOp::Install { keep_tail, .. } = &mut write.record.op {
                    *keep_tail = true;
                }
            }
        }
        (self.now, node, shard, messages.len(), written.len()).hash(&mut self.trace);
        let is_late = self.settings.is_planted(Planted::LeasePublishedLate);
        self.publish_commit(node, shard);
        if !is_late {
            self.publish_lease(node, shard, lease);
        }
        self.watch_writes(node, shard, &writes);
        let told = self.life(node).map(|life| {
            for write in writes {
                let durable = write.id.map_or(Durable::Nobody, |id| Durable::Replica(shard, id));
                life.queue.push_back((write.record, durable));
            }
            life.clock.now()
        });
        let Some(counter) = told else { return };
        self.node(node).told = counter;
        for message in messages {
            self.see(node, shard, Seen::Sent(&message));
            self.network.packets.push(Packet { shard, message, counter });
        }
        if is_late && let Some(lease) = lease {
            self.late_leases.push((node, shard, lease));
        }
        for (call, result) in written {
            if let Ok(written) = &result {
                self.see(node, shard, Seen::Answered(written.id));
            }
            let result = self.oracle.written(call, result);
            self.report(result);
        }
        for (call, result) in reads {
            match result {
                Ok(()) => self.serve(node, shard, call),
                Err(_) => {
                    let result = self.oracle.read_failed(call);
                    self.report(result);
                }
            }
        }
        for job in snapshots {
            self.counts.snapshots_asked += 1;
            self.begin_stream(node, shard, job, false);
        }
    }

    /// Puts a message that arrived into the mail of its replica; whether anybody was there to take it.
    pub(crate) fn deliver(&mut self, packet: Packet) -> bool {
        let Packet { shard, message, counter } = packet;
        if self.network.is_cut(message.from, message.to) {
            return false;
        }
        let Some(life) = self.life(message.to) else { return false };
        life.mail.entry(shard).or_default().messages.push((message, counter));
        true
    }

    /// Makes records of a node durable, as one group; how many.
    pub(crate) fn write_wal(&mut self, node: NodeId, count: usize) -> usize {
        match self.node(node).write_wal(count) {
            Ok(records) => {
                for record in &records {
                    self.see(node, record.shard, Seen::Durable(&record.op));
                }
                records.len()
            }
            Err(cause) => {
                self.stop(node, &cause);
                0
            }
        }
    }
}

fn feed(
    replica: &mut Replica<usize>,
    mail: Mail,
    now: Nanos,
    clock: &kv_shard::LamportClock,
) -> Result<(), ReplicaError> {
    replica.tick(now);
    if let Some(upto) = mail.persisted {
        replica.persisted(now, upto)?;
    }
    for (message, counter) in mail.messages {
        clock.merge(counter)?;
        replica.step(now, message);
    }
    for call in mail.reads {
        replica.read(now, call);
    }
    if !mail.writes.is_empty() {
        replica.write(mail.writes);
    }
    Ok(())
}
