//! What a replica does before its own WAL is durable and its rows are sound, and what it must not.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use kv_raft::{Config, Message, MessageKind, Role, Round, WriteId};
use kv_shard::{LamportClock, Opening, Replica, ShardWrite};
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::wal::{Wal, WalOptions};
use kv_storage::{
    CeilingFile, CheckpointStep, Generation, ReceivedSnapshot, ShardStore, SnapshotReceiver, StoreOptions,
    StoreStart, TwinFactory, WalRecord,
};
use kv_types::{
    Body, Entry, Incarnation, Lamport, LogId, LogIndex, Membership, Nanos, NodeId, ShardId, Term,
};

const SHARD: ShardId = ShardId::new(1);
const ME: NodeId = NodeId::new(2);
const NOW: Nanos = Nanos::new(1_000_000_000);

/// Node 2 of three, with a WAL whose writes wait until the test lets them through.
struct Node {
    now: Nanos,
    wal: Wal,
    disk: VirtualDisk,
    engines: Arc<TwinFactory>,
    queue: VecDeque<ShardWrite>,
    replica: Replica<()>,
}

fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 1 << 20,
        reserve_bytes: 0,
        ballast_bytes: 0,
        ..WalOptions::new(Incarnation::new(1))
    }
}

fn config() -> Config {
    Config {
        in_flight_appends_max: 16,
        in_flight_bytes_max: 1 << 20,
        append_entries_max: 100,
        uncommitted_bytes_max: 1 << 20,
        ..Config::new(ME, 7, 7)
    }
}

impl Node {
    /// Opens the replica and finds its rows sound.
    fn open(disk: VirtualDisk, engines: Arc<TwinFactory>) -> Self {
        let mut node = Self::open_unverified(disk, engines);
        node.verify();
        node
    }

    fn verify(&mut self) {
        let mut verification = self.replica.verification();
        while !verification.step().unwrap() {}
        self.replica.verified();
    }

    fn open_unverified(disk: VirtualDisk, engines: Arc<TwinFactory>) -> Self {
        let (wal, mut recovery) = Wal::open(Arc::new(disk.clone()), options()).unwrap();
        CeilingFile::create(&disk).unwrap();
        let ceiling = CeilingFile::open(Arc::new(disk.clone())).unwrap();
        let opening = Opening {
            shard: SHARD,
            raft: config(),
            genesis: Membership::of_voters((1..=3).map(NodeId::new)),
            recovered: recovery.shards.remove(&SHARD).unwrap_or_default(),
            reader: wal.reader(),
            log_cache_bytes: 1 << 20,
            clock: Arc::new(LamportClock::new(ME, Arc::new(ceiling))),
        };
        let (store_disk, store_engines) = (Arc::new(disk.clone()), Arc::clone(&engines));
        let replica = Replica::open(opening, NOW, |recovered| {
            let start = StoreStart::of(SHARD, recovered);
            ShardStore::open(store_disk, store_engines, start, StoreOptions::default())
        });
        Self { now: NOW, wal, disk, engines, queue: VecDeque::new(), replica: replica.unwrap() }
    }

    /// One turn of a host; the messages it sends.
    fn turn(&mut self) -> Vec<Message> {
        let mut effects = self.replica.take().unwrap();
        self.queue.extend(effects.writes);
        self.replica.apply(100, 1 << 20).unwrap();
        let more = self.replica.take().unwrap();
        self.queue.extend(more.writes);
        effects.messages.extend(more.messages);
        effects.messages
    }

    /// Lets all writes reach the disk.
    fn persist(&mut self) {
        let mut upto = WriteId::ZERO;
        for write in self.queue.drain(..) {
            self.wal.write(&[write.record]).unwrap();
            upto = upto.max(write.id.unwrap_or_default());
        }
        self.replica.persisted(self.now, upto).unwrap();
    }

    fn applied(&self) -> u64 {
        self.replica.applied().index.get()
    }

    fn step(&mut self, from: u64, term: u64, kind: MessageKind) {
        let message = Message { from: NodeId::new(from), to: ME, term: Term::new(term), kind };
        self.replica.step(self.now, message);
    }
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

fn append(prev: LogId, ids: &[LogId], commit: u64) -> MessageKind {
    let entry = |id: &LogId| {
        let stamp = Lamport { counter: 10 * id.term.get() + id.index.get(), node: NodeId::new(1) };
        Entry { id: *id, stamp, body: Body::Blank }
    };
    MessageKind::Append {
        prev,
        last: ids.last().copied().unwrap_or(prev),
        entries: ids.iter().map(entry).collect(),
        commit: LogIndex::new(commit),
        round: Round { incarnation: 1, number: 1 },
        promise_ms: 0,
    }
}

#[test]
fn a_follower_does_not_apply_what_its_wal_may_lose() {
    let mut node = Node::open(VirtualDisk::new(), Arc::new(TwinFactory::new()));
    node.step(1, 1, append(id(0, 0), &[id(1, 1)], 0));
    node.turn();
    node.persist();
    // Another leader replaces the entry, and a quorum of others commits that before this disk has it.
    node.step(3, 2, append(id(0, 0), &[id(2, 1)], 1));
    node.turn();
    assert_eq!(node.applied(), 0);
    let Node { disk, engines, replica, wal, .. } = node;
    drop((replica, wal));
    let mut node = Node::open(disk, engines);
    assert_eq!((node.applied(), node.replica.status().raft.commit.get()), (0, 0));
    node.step(3, 2, append(id(0, 0), &[id(2, 1)], 1));
    node.turn();
    node.persist();
    node.turn();
    assert_eq!(node.replica.applied(), id(2, 1));
}

#[test]
fn appends_of_a_restarted_leader_are_whole() {
    let mut node = Node::open(VirtualDisk::new(), Arc::new(TwinFactory::new()));
    let ids: Vec<LogId> = (1..=5).map(|index| id(1, index)).collect();
    node.step(1, 1, append(id(0, 0), &ids, 5));
    node.turn();
    node.persist();
    let Node { disk, engines, replica, wal, .. } = node;
    drop((replica, wal));
    // It restarts and is elected: entries 1 to 5 are on disk only, its blank one in memory only.
    let mut node = Node::open(disk, engines);
    // It may have promised something to a leader before it stopped, and waits as long.
    node.now = NOW.after(Duration::from_millis(500));
    node.replica.campaign(node.now);
    node.turn();
    node.step(3, 1, MessageKind::VoteAck { granted: true, pre: true });
    node.turn();
    node.persist();
    node.turn();
    node.step(3, 2, MessageKind::VoteAck { granted: true, pre: false });
    node.turn();
    node.persist();
    assert_eq!(node.replica.status().raft.role, Role::Leader);
    // Node 3 lags: what it needs begins on disk and ends in memory.
    let conflict = kv_raft::Conflict { prev: LogIndex::new(5), hint: id(1, 2) };
    let round = Round { incarnation: 7, number: 1 };
    node.step(3, 2, MessageKind::AppendAck { round, result: Err(conflict), clock: NOW });
    let sent = node.turn();
    let to_lagging = sent.iter().filter(|message| message.to == NodeId::new(3));
    let appends: Vec<_> = to_lagging
        .filter_map(|message| match &message.kind {
            MessageKind::Append { prev, last, entries, .. } => Some((*prev, *last, entries.len())),
            _ => None,
        })
        .collect();
    assert_eq!(appends, [(id(1, 2), id(2, 6), 4)]);
}

#[test]
fn unverified_rows_serve_nobody_but_votes_and_acks_go_on() {
    let mut node = Node::open(VirtualDisk::new(), Arc::new(TwinFactory::new()));
    node.step(1, 1, append(id(0, 0), &[id(1, 1)], 0));
    node.turn();
    node.persist();
    node.turn();
    let Node { disk, engines, replica, wal, .. } = node;
    drop((replica, wal));
    let mut node = Node::open_unverified(disk, engines);
    let acks = |sent: &[Message]| {
        let acked = |message: &&Message| matches!(message.kind, MessageKind::AppendAck { result: Ok(_), .. });
        sent.iter().filter(acked).count()
    };
    node.step(1, 1, append(id(1, 1), &[id(1, 2)], 2));
    node.turn();
    node.persist();
    assert_eq!(acks(&node.turn()), 1, "it acknowledges");
    assert_eq!((node.applied(), node.replica.status().raft.commit.get()), (0, 2), "it does not apply");
    assert!(node.replica.begin_checkpoint().is_none(), "it does not merge");
    node.replica.read(NOW, ());
    let asked = node.turn();
    let question = asked.iter().find_map(|message| match message.kind {
        MessageKind::ReadIndex { round } => Some(round),
        _ => None,
    });
    let index = LogIndex::new(1);
    node.step(1, 1, MessageKind::ReadIndexAck { round: question.unwrap(), result: Ok(index) });
    assert!(node.replica.take().unwrap().reads.is_empty(), "the read waits");
    node.replica.campaign(NOW);
    assert_eq!(node.replica.status().raft.role, Role::Follower, "it does not campaign");
    let later = NOW.after(Duration::from_secs(9));
    node.now = later;
    let request = MessageKind::Vote { last: id(1, 2), pre: false, by_transfer: false };
    node.replica.tick(later);
    assert_eq!(node.replica.status().raft.role, Role::Follower, "not by time-out either");
    node.replica.step(later, Message { from: NodeId::new(3), to: ME, term: Term::new(2), kind: request });
    node.turn();
    node.persist();
    let granted = node.turn();
    let vote = |message: &Message| matches!(message.kind, MessageKind::VoteAck { granted: true, .. });
    assert!(granted.iter().any(vote), "it votes");
    node.verify();
    node.turn();
    assert_eq!(node.applied(), 2);
    node.replica.campaign(later);
    assert_eq!(node.replica.status().raft.role, Role::PreCandidate);
}

/// The rows of `from`, received beside those of `to`.
fn rows_for(to: &Node, from: &Node, generation: u64) -> ReceivedSnapshot {
    let mut source = from.replica.snapshot_source();
    let engines = Arc::<TwinFactory>::clone(&to.engines);
    let mut receiver = SnapshotReceiver::new(engines, SHARD, Generation::new(generation)).unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        receiver.push(&chunk).unwrap();
    }
    receiver.finish().unwrap()
}

fn ids(range: std::ops::RangeInclusive<u64>) -> Vec<LogId> {
    range.map(|index| id(1, index)).collect()
}

/// A replica that has appended `ids` and applied `commit` of them.
fn with_log(last: u64, commit: u64) -> Node {
    let mut node = Node::open(VirtualDisk::new(), Arc::new(TwinFactory::new()));
    node.step(1, 1, append(id(0, 0), &ids(1..=last), commit));
    node.turn();
    node.persist();
    node.turn();
    node
}

#[test]
fn a_replica_with_damaged_rows_votes_and_acknowledges_and_serves_nothing_over_a_restart() {
    let mut node = with_log(3, 3);
    node.replica.damaged(Generation::new(9), "rows of another life".to_owned());
    assert_eq!(node.replica.damage(), None);
    node.replica.damaged(Generation::new(0), "for the test".to_owned());
    node.replica.read(node.now, ());
    node.replica.write(vec![("x".into(), ())]);
    let effects = node.replica.take().unwrap();
    assert!(effects.reads.iter().all(|(_, result)| result.is_err()) && !effects.reads.is_empty());
    assert!(effects.written.iter().all(|(_, result)| result.is_err()) && !effects.written.is_empty());
    node.queue.extend(effects.writes);
    node.persist();
    let Node { disk, engines, replica, wal, .. } = node;
    drop((replica, wal));
    let mut node = Node::open_unverified(disk, engines);
    assert!(node.replica.damage().is_some(), "the log remembers");
    node.replica.verified();
    assert!(!node.replica.status().verified, "nothing but other rows makes them sound");
    // Its promise to the leader is over.
    node.now = node.now.after(Duration::from_secs(10));
    node.step(1, 1, append(id(1, 3), &ids(4..=4), 4));
    let sent = node.turn();
    node.persist();
    let acked = [sent, node.turn()].concat();
    assert!(acked.iter().any(|message| matches!(message.kind, MessageKind::AppendAck { .. })), "{acked:?}");
    assert_eq!(node.applied(), 0);
    node.now = node.now.after(Duration::from_secs(10));
    node.step(3, 2, MessageKind::Vote { last: id(1, 4), pre: false, by_transfer: false });
    node.turn();
    node.persist();
    let granted = |message: &Message| matches!(message.kind, MessageKind::VoteAck { granted: true, .. });
    assert!(node.turn().iter().any(granted), "it votes");
    node.replica.campaign(node.now);
    node.replica.tick(node.now.after(Duration::from_secs(10)));
    assert_eq!(node.replica.status().raft.role, Role::Follower, "it does not campaign");
}

#[test]
fn rows_of_a_peer_wait_for_the_log_and_leave_its_tail() {
    let peer = with_log(5, 5);
    let mut node = with_log(3, 2);
    node.replica.damaged(Generation::new(0), "for the test".to_owned());
    let rows = rows_for(&node, &peer, 1);
    node.replica.repair_received(rows);
    node.turn();
    node.persist();
    node.turn();
    assert!(node.replica.is_installing() && node.replica.damage().is_some(), "the log ends at 3");
    // The entries come, and two more than the rows reach.
    node.step(1, 1, append(id(1, 3), &ids(4..=7), 7));
    node.turn();
    node.persist();
    node.turn();
    let status = node.replica.status();
    assert_eq!((node.replica.damage(), status.verified, node.applied()), (None, true, 7));
    assert_eq!(
        (status.base, status.base_generation.get(), status.raft.last),
        (LogIndex::new(5), 1, id(1, 7))
    );
    let Node { disk, engines, replica, wal, .. } = node;
    drop((replica, wal));
    let node = Node::open(disk, engines);
    let status = node.replica.status();
    assert_eq!((status.damage, status.base, status.raft.last), (None, LogIndex::new(5), id(1, 7)));
}

#[test]
fn rows_that_are_older_than_the_base_was_and_rows_that_nobody_needs_are_dropped() {
    let (peer, behind) = (with_log(3, 3), with_log(3, 1));
    let mut node = with_log(3, 3);
    let rows = rows_for(&node, &peer, 1);
    node.replica.repair_received(rows);
    assert!(!node.replica.is_installing(), "its own are sound");
    let mut checkpoint = node.replica.begin_checkpoint().unwrap();
    let done = loop {
        match checkpoint.step(node.now).unwrap() {
            CheckpointStep::Wal(op) => node.wal.write(&[WalRecord { shard: SHARD, op }]).unwrap(),
            CheckpointStep::Done(done) => break done,
            CheckpointStep::Again | CheckpointStep::Wait => {}
        }
    };
    node.replica.checkpoint_done(node.now, done);
    node.replica.damaged(Generation::new(0), "for the test".to_owned());
    let rows = rows_for(&node, &behind, 2);
    node.replica.repair_received(rows);
    node.turn();
    assert!(!node.replica.is_installing(), "the base had reached 3");
    let rows = rows_for(&node, &peer, 3);
    node.replica.repair_received(rows);
    node.turn();
    node.persist();
    node.turn();
    assert_eq!((node.replica.damage(), node.applied()), (None, 3));
}
