//! Streams between the real services of two nodes, over connections that break.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kv_proto::v1;
use kv_raft::{LeaseStatus, Role, Status};
use kv_shard::ReplicaStatus;
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::wal::RecoveredShard;
use kv_storage::{
    AppliedEntry, CheckpointStep, EngineFactory, Generation, Retired, ShardStore, StoreError, StoreOptions,
    StoreStart, TwinFactory,
};
use kv_types::{
    Lamport, LogId, LogIndex, Membership, Nanos, NodeId, Row, RowChange, RowKey, ShardId, Space, StateHash,
    Term,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};

use super::{Room, TransferError, send};
use crate::fatal::Fatal;
use crate::gateway::{Leadership, ShardHandle};
use crate::leader_lease::PublishedLease;
use crate::mailbox::{Control, Mailbox};
use crate::metrics::Metrics;
use crate::service::peer::PeerService;
use crate::service::peer::tests::service_with;

const SHARD: ShardId = ShardId::new(1);
/// The node that `service` of the peer service's tests is.
const TO: u64 = 1;
const ROWS: u64 = 96;
/// Kept in chunk rows.
const VALUE_BYTES: usize = 100 << 10;
const MIB: usize = 1 << 20;

/// The rows of one shard.
struct Rows {
    disk: VirtualDisk,
    store: ShardStore,
    engines: Arc<TwinFactory>,
    hash: StateHash,
}

impl Rows {
    fn none() -> Self {
        let (disk, engines) = (VirtualDisk::new(), Arc::new(TwinFactory::new()));
        let start = StoreStart::of(SHARD, &RecoveredShard::default());
        let opened: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&engines);
        let options = StoreOptions { effect_file_bytes: 1 << 20, ..StoreOptions::default() };
        let (store, _) = ShardStore::open(Arc::new(disk.clone()), opened, start, options).unwrap();
        Self { disk, store, engines, hash: StateHash::EMPTY }
    }

    /// More than a stream has in flight; half of it only as effects.
    fn many() -> Self {
        let mut rows = Self::none();
        for index in 1..=ROWS {
            rows.put(index);
            if index == ROWS / 2 {
                rows.checkpoint();
            }
        }
        rows
    }

    fn put(&mut self, index: u64) {
        let (index, key) = (LogIndex::new(index), RowKey::new(Space::User, format!("k{index}").as_bytes()));
        let stamp = Lamport { counter: index.get(), node: NodeId::new(2) };
        let value = Bytes::from(vec![u8::try_from(index.get() % 251).unwrap(); VALUE_BYTES]);
        let row = Row::new(index.revision(), index.revision(), 1, stamp, &value);
        self.hash = self.hash.with(&key, &row.head);
        let changes = vec![RowChange { key, row: Some(row), previous: None }];
        let id = LogId::new(Term::new(1), index);
        self.store.apply(AppliedEntry { id, stamp, membership: None, changes, hash: self.hash }).unwrap();
    }

    fn checkpoint(&mut self) {
        let mut checkpoint = self.store.freeze().unwrap();
        loop {
            match checkpoint.step(Nanos::default()).unwrap() {
                CheckpointStep::Again | CheckpointStep::Wait | CheckpointStep::Wal(_) => {}
                CheckpointStep::Done(done) => break drop(self.store.merged(done)),
            }
        }
    }

    fn generations(&self) -> Vec<String> {
        self.engines.list(Path::new("shard-1")).unwrap()
    }
}

/// A replica that does what the tests need: it gives its rows away, and takes those that come.
struct Receiver {
    rows: Arc<Mutex<Rows>>,
    metrics: Arc<Metrics>,
    addr: String,
}

fn status(generation: Generation) -> ReplicaStatus {
    let lease =
        LeaseStatus { until: Nanos::default(), none: None, promise_ms: 0, withhold_until: Nanos::default() };
    let raft = Status {
        id: NodeId::new(TO),
        role: Role::Follower,
        term: Term::new(1),
        vote: None,
        leader: None,
        commit: LogIndex::ZERO,
        applied: LogIndex::ZERO,
        log_start: LogId::ZERO,
        first: LogIndex::new(1),
        last: LogId::ZERO,
        term_starts: Vec::new(),
        durable: LogIndex::ZERO,
        membership: Membership::default(),
        membership_index: LogIndex::ZERO,
        election_deadline: Nanos::default(),
        reads_waiting: 0,
        lease,
        transferring: None,
        peers: std::collections::BTreeMap::new(),
    };
    ReplicaStatus {
        shard: SHARD,
        raft,
        verified: true,
        damage: None,
        installing: false,
        applied: LogId::ZERO,
        hash: StateHash::EMPTY,
        base: LogIndex::ZERO,
        log_start: LogIndex::ZERO,
        base_generation: generation,
        generation,
        memtable_bytes: 0,
        unmerged_bytes: 0,
    }
}

/// Empties a mailbox as a replica does; `then` happens when a stream has begun.
async fn host(mailbox: Arc<Mailbox>, rows: Arc<Mutex<Rows>>, then: fn(&mut Rows)) {
    loop {
        for control in mailbox.take().control {
            let mut rows = rows.lock().unwrap();
            match control {
                Control::Status(reply) => drop(reply.send(status(rows.store.base().generation))),
                Control::SnapshotSource(reply) => {
                    let source = rows.store.snapshot_source();
                    then(&mut rows);
                    drop(reply.send(source));
                }
                Control::SnapshotReceived(_, _, received, reply) => {
                    let (opened, _) = rows.store.install(received).unwrap();
                    rows.store.retired().into_iter().try_for_each(Retired::remove).unwrap();
                    rows.store.verify().unwrap();
                    let _ = reply.send(opened.applied);
                }
                other => panic!("{other:?}"),
            }
        }
        mailbox.arrived().await;
    }
}

fn replica(rows: Rows) -> (ShardHandle, Arc<Mutex<Rows>>) {
    replica_that(rows, |_| {})
}

fn replica_that(rows: Rows, then: fn(&mut Rows)) -> (ShardHandle, Arc<Mutex<Rows>>) {
    let (mailbox, reader) = (Arc::new(Mailbox::new()), rows.store.reader());
    let rows = Arc::new(Mutex::new(rows));
    tokio::spawn(host(Arc::clone(&mailbox), Arc::clone(&rows), then));
    let (leadership, lease) = (Arc::new(Leadership::default()), Arc::new(PublishedLease::default()));
    let (time, locks, deletes) = (Arc::default(), Arc::default(), Arc::default());
    (ShardHandle { shard: SHARD, mailbox, reader, leadership, lease, time, locks, deletes }, rows)
}

impl Receiver {
    async fn start() -> Self {
        let rows = Rows::none();
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&rows.engines);
        let room = Room::new(Arc::new(rows.disk.clone()), 1 << 30);
        let service: PeerService = service_with(&Fatal::default(), (engines, room));
        let (handle, rows) = replica(rows);
        service.shards.set([(SHARD, handle)].into()).unwrap();
        let metrics = Arc::clone(&service.metrics);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let server = Server::builder().add_service(v1::peer_server::PeerServer::new(service));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Self { rows, metrics, addr }
    }

    fn resumed(&self) -> u64 {
        self.metrics.snapshots_resumed.get()
    }
}

/// What happens to what a connection carries from the sender.
#[derive(Clone, Copy)]
enum Fate {
    /// It ends after so many bytes.
    Cut(usize),
    /// After so many bytes nothing moves any more, and nobody is told.
    Silent(usize),
    /// The bit of the byte there is flipped.
    Flipped(usize),
    Whole,
}

/// Carries one connection. All that was taken from the sender before the end reaches the receiver, so that each stream
/// brings it further; and the end waits until the receiver is at work: a server gives up a call that it has not begun yet
/// when its connection ends.
async fn carry(from: TcpStream, to: TcpStream, fate: Fate, is_at_work: impl Fn() -> bool) {
    let (mut from_read, mut from_write) = from.into_split();
    let (mut to_read, mut to_write) = to.into_split();
    let mut left = match fate {
        Fate::Cut(bytes) | Fate::Silent(bytes) | Fate::Flipped(bytes) => bytes,
        Fate::Whole => usize::MAX,
    };
    let onward = async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Ok(read @ 1..) = from_read.read(&mut buffer).await else { return };
            let mut read = &mut buffer[..read];
            if left < read.len() {
                match fate {
                    Fate::Cut(_) => {
                        // It ends here for both.
                        read = &mut read[..left];
                        let _ = to_write.write_all(read).await;
                        while !is_at_work() {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        return;
                    }
                    Fate::Silent(_) => return std::future::pending().await,
                    Fate::Flipped(_) => read[left] ^= 1,
                    Fate::Whole => {}
                }
                left = usize::MAX;
            } else {
                left -= read.len();
            }
            if to_write.write_all(read).await.is_err() {
                return;
            }
        }
    };
    let backward = async move { drop(tokio::io::copy(&mut to_read, &mut from_write).await) };
    // Both go on until the onward way has ended, and what the receiver still says is read, so that nothing is reset.
    tokio::join!(onward, backward);
}

/// Listens, and gives each connection the next of the fates; further ones are whole. Says how many there were.
async fn relay(receiver: &Receiver, fates: Vec<Fate>) -> (String, Arc<AtomicUsize>) {
    let (to, rows, metrics) =
        (receiver.addr.clone(), Arc::clone(&receiver.rows), Arc::clone(&receiver.metrics));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (from, _) = listener.accept().await.unwrap();
            let at = counted.fetch_add(1, Ordering::SeqCst);
            let fate = fates.get(at).copied().unwrap_or(Fate::Whole);
            let to = TcpStream::connect(&to).await.unwrap();
            let (rows, metrics) = (Arc::clone(&rows), Arc::clone(&metrics));
            // The first connection has a stream that begins, each further one that is cut in the middle has the rest of it.
            let is_at_work = move || match (at, fate) {
                (_, Fate::Cut(0)) => true,
                (0, _) => rows.lock().unwrap().generations().iter().any(|name| name == "gen-1"),
                (at, _) => metrics.snapshots_resumed.get() >= at as u64,
            };
            tokio::spawn(carry(from, to, fate, is_at_work));
        }
    });
    (addr, count)
}

fn subject(to: u64) -> v1::SnapshotSubject {
    v1::SnapshotSubject { shard: SHARD.get(), from: 2, to, term: 1, ..v1::SnapshotSubject::default() }
}

fn endpoint(addr: &str) -> Endpoint {
    // As the links have them.
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    endpoint
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
}

/// Sends all rows through a relay; what came of it, how many connections there were, and the rows.
async fn sent(
    receiver: &Receiver,
    fates: Vec<Fate>,
) -> (Result<LogId, TransferError>, usize, Arc<Mutex<Rows>>) {
    let (handle, rows) = replica(Rows::many());
    let (addr, count) = relay(receiver, fates).await;
    let dial = || endpoint(&addr).connect_lazy();
    let result = send(dial, subject(TO), &handle.mailbox, &Metrics::new()).await;
    (result, count.load(Ordering::SeqCst), rows)
}

fn assert_installed(receiver: &Receiver, sender: &Mutex<Rows>, result: Result<LogId, TransferError>) {
    let (sender, rows) = (sender.lock().unwrap(), receiver.rows.lock().unwrap());
    assert_eq!(result.unwrap(), sender.store.applied().applied);
    assert_eq!(rows.store.applied(), sender.store.applied());
    assert_eq!(rows.store.applied().hash, sender.hash);
    assert_eq!(rows.generations(), ["gen-1"], "one generation was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_resumed() {
    let receiver = Receiver::start().await;
    let (result, connections, rows) = sent(&receiver, vec![Fate::Cut(3 * MIB)]).await;
    assert_installed(&receiver, &rows, result);
    assert_eq!((receiver.resumed(), connections), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_more_often_than_is_tried_without_progress_arrives() {
    let receiver = Receiver::start().await;
    let (result, connections, rows) = sent(&receiver, vec![Fate::Cut(MIB + 77); 7]).await;
    assert_installed(&receiver, &rows, result);
    assert_eq!((receiver.resumed(), connections), (7, 8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_goes_silent_is_given_up_by_both_ends() {
    let receiver = Receiver::start().await;
    let (result, _, rows) = sent(&receiver, vec![Fate::Silent(2 * MIB), Fate::Cut(0), Fate::Silent(0)]).await;
    assert_installed(&receiver, &rows, result);
    assert_eq!(receiver.resumed(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_on_the_way_is_a_fault_of_the_way() {
    let receiver = Receiver::start().await;
    let (result, _, rows) = sent(&receiver, vec![Fate::Flipped(2 * MIB + 100)]).await;
    assert_installed(&receiver, &rows, result);
    assert_eq!(receiver.resumed(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_not_tried_again() {
    let receiver = Receiver::start().await;
    let (handle, _) = replica(Rows::many());
    let (addr, count) = relay(&receiver, Vec::new()).await;
    let dial = || endpoint(&addr).connect_lazy();
    let refused = send(dial, subject(TO + 1), &handle.mailbox, &Metrics::new()).await;
    assert!(matches!(refused, Err(TransferError::Refused(_))), "{refused:?}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert_eq!(receiver.rows.lock().unwrap().generations(), ["gen-0"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_nearly_full_takes_no_snapshot() {
    let receiver = Receiver::start().await;
    receiver.rows.lock().unwrap().disk.set_capacity(256 << 20);
    let (result, _, rows) = sent(&receiver, Vec::new()).await;
    assert_installed(&receiver, &rows, result);
    receiver.rows.lock().unwrap().disk.set_capacity((256 << 20) - 1);
    let (result, connections, _) = sent(&receiver, Vec::new()).await;
    assert!(matches!(&result, Err(TransferError::Refused(why)) if why.contains("bytes free")), "{result:?}");
    assert_eq!(connections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_whose_effects_were_given_up_is_not_tried_again() {
    let receiver = Receiver::start().await;
    let (handle, _) = replica_that(Rows::many(), |rows| {
        rows.checkpoint();
        rows.disk.set_capacity(0);
        rows.store.purge_effects(LogIndex::new(u64::MAX));
    });
    let (addr, count) = relay(&receiver, Vec::new()).await;
    let dial = || endpoint(&addr).connect_lazy();
    let unread = send(dial, subject(TO), &handle.mailbox, &Metrics::new()).await;
    assert!(matches!(unread, Err(TransferError::Rows(StoreError::Compacted { .. }))), "{unread:?}");
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_resumed_where_nothing_is_kept() {
    let (first, second) = (Receiver::start().await, Receiver::start().await);
    let (handle, _) = replica(Rows::many());
    let (addr, _) = relay(&first, vec![Fate::Cut(2 * MIB)]).await;
    let dialled = AtomicUsize::new(0);
    let dial = || match dialled.fetch_add(1, Ordering::SeqCst) {
        0 => endpoint(&addr).connect_lazy(),
        _ => endpoint(&second.addr).connect_lazy(),
    };
    let broken = send(dial, subject(TO), &handle.mailbox, &Metrics::new()).await;
    assert!(matches!(broken, Err(TransferError::Stream(_))), "{broken:?}");
    assert_eq!(dialled.load(Ordering::SeqCst), 2);
    assert_eq!(second.rows.lock().unwrap().generations(), ["gen-0"]);
    // The next snapshot begins anew where the first one is kept.
    let dial = || endpoint(&first.addr).connect_lazy();
    let result = send(dial, subject(TO), &handle.mailbox, &Metrics::new()).await;
    assert!(result.is_ok(), "{result:?}");
    assert_eq!((first.resumed(), first.rows.lock().unwrap().generations()), (0, vec!["gen-2".to_owned()]));
}

#[test]
fn every_flipped_bit_of_a_header_is_refused() {
    use prost::Message as _;
    let sent = v1::SnapshotSubject {
        shard: 1,
        from: 2,
        to: 3,
        term: 4,
        cluster_id: 5,
        repair: true,
        stream: 6,
        first_chunk: 7,
    };
    let wire = super::first_chunk(&sent).encode_to_vec();
    for at in 0..wire.len() {
        for bit in 0..8 {
            let mut bad = wire.clone();
            bad[at] ^= 1 << bit;
            if let Ok(chunk) = v1::SnapshotChunk::decode(&bad[..]) {
                assert!(super::subject(Some(chunk)).is_err(), "byte {at}, bit {bit}");
            }
        }
    }
    assert_eq!(super::subject(Some(super::first_chunk(&sent))).unwrap(), sent);
}
