//! The receiving end of snapshots.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::{checksum, v1, validate};
use kv_storage::disk::Disk;
use kv_storage::{
    EngineFactory, Generation, ReceivedSnapshot, Regeneration, RegenerationError, SnapshotReceiver,
    SnapshotSource,
};
use kv_types::limits::DISK_FREE_MERGE_MIN;
use kv_types::{ClusterId, LogId, NodeId, ShardId};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Streaming;
use tracing::info;
use v1::snapshot_chunk::Piece;

use super::places::{Holder, Places, StreamName};
use super::{CHUNKS_AHEAD, KEEP_MAX, STALL_MAX, TransferError, subject};
use crate::gateway::ShardHandle;
use crate::mailbox::Control;
use crate::metrics::Metrics;

/// Receives snapshots, one a shard at a time.
#[derive(Debug)]
pub(crate) struct Installer {
    engines: Arc<dyn EngineFactory>,
    room: Room,
    metrics: Arc<Metrics>,
    places: Arc<Places>,
    /// The newest generation begun for each shard: none is ever begun twice. A receiver whose call was broken off may
    /// still be at work, and removes its generation at the end; that must not be a later one's.
    begun: Mutex<BTreeMap<ShardId, Generation>>,
}

/// What the rows of a stream go into.
enum Destination {
    /// A new generation; what is kept of another stream goes first.
    Generation(Generation, Option<Box<SnapshotReceiver>>),
    /// What an earlier call of the same stream has built.
    Kept(Box<SnapshotReceiver>),
}

/// After so long a snapshot that found no room is tried again although there is no more: it may have become smaller.
const NO_ROOM_PAUSE: Duration = Duration::from_secs(300);

/// The disk, and what snapshots leave free on it: the log and what is applied need room, too.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    disk: Arc<dyn Disk>,
    least: u64,
    attempts: Arc<Mutex<BTreeMap<ShardId, Attempt>>>,
}

/// The last snapshot of a shard that had room to begin.
#[derive(Debug)]
struct Attempt {
    /// Bytes that were free then.
    free: u64,
    /// When they were used up.
    ran_out: Option<Instant>,
}

impl Room {
    /// Of a disk that is nearly full below `disk_free_min` bytes.
    pub(crate) fn new(disk: Arc<dyn Disk>, disk_free_min: u64) -> Self {
        Self { disk, least: disk_free_min.min(DISK_FREE_MERGE_MIN), attempts: Arc::default() }
    }

    /// Whether a snapshot may begin. One that found no room would find none again, unless there is noticeably more.
    fn begin(&self, shard: ShardId) -> Result<(), TransferError> {
        let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
        let attempt = attempts.get(&shard);
        let in_vain = attempt.filter(|last| last.ran_out.is_some_and(|at| at.elapsed() < NO_ROOM_PAUSE));
        let needed = in_vain.map_or(0, |last| last.free.saturating_add(DISK_FREE_MERGE_MIN));
        let free = self.free(needed.max(self.least))?;
        attempts.insert(shard, Attempt { free, ran_out: None });
        Ok(())
    }

    /// Whether one may go on.
    fn go_on(&self, shard: ShardId) -> Result<(), TransferError> {
        self.free(self.least).map(drop).inspect_err(|_| {
            let mut attempts = self.attempts.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(attempt) = attempts.get_mut(&shard) {
                attempt.ran_out = Some(Instant::now());
            }
        })
    }

    fn free(&self, needed: u64) -> Result<u64, TransferError> {
        // A disk that does not say how much is free will say so when it is full.
        let free = self.disk.free_bytes().unwrap_or(u64::MAX);
        if free < needed { Err(TransferError::NoRoom { free, needed }) } else { Ok(free) }
    }
}

/// How a stream has ended, if it did not break.
enum End {
    Whole,
    /// The sender has ended it early.
    Short,
}

impl Installer {
    pub(crate) fn new(
        (engines, room): (Arc<dyn EngineFactory>, Room),
        metrics: Arc<Metrics>,
        tasks: (TaskTracker, CancellationToken),
    ) -> Self {
        Self { engines, room, metrics, places: Places::new(KEEP_MAX, tasks), begun: Mutex::default() }
    }

    /// Receives one snapshot, or the rest of one, and has it installed; the last entry it holds.
    pub(crate) async fn receive(
        &self,
        me: NodeId,
        cluster: ClusterId,
        shards: &BTreeMap<ShardId, ShardHandle>,
        mut stream: Streaming<v1::SnapshotChunk>,
    ) -> Result<LogId, TransferError> {
        let subject = subject(next(&mut stream).await?)?;
        let (shard, name) = addressed(&subject, me, cluster)?;
        let term = validate::term(subject.term).map_err(unsound)?;
        let Some(handle) = shards.get(&shard) else {
            return Err(TransferError::Misdirected(format!("{shard}, which is not here")));
        };
        let (holder, into) = match subject.first_chunk {
            0 => {
                let (holder, kept) = self.places.take(shard, name, term)?;
                (holder, Destination::Generation(self.next_generation(handle).await?, kept))
            }
            chunk => {
                let (holder, kept) = self.places.take_up(shard, name, chunk)?;
                info!(%shard, from = %name.from, chunk, "a snapshot is resumed");
                self.metrics.snapshots_resumed.inc();
                (holder, Destination::Kept(kept))
            }
        };
        let received = self.store(shard, &holder, into, (subject.first_chunk, &mut stream)).await?;
        let wanted = received.base().meta.last;
        info!(%shard, upto = %wanted, "snapshot received");
        if subject.repair {
            // It may wait there for the log, and keeps no other snapshot out meanwhile.
            handle.mailbox.control(Control::RepairReceived(received));
            return Ok(wanted);
        }
        let (reply, installed) = oneshot::channel();
        handle.mailbox.control(Control::SnapshotReceived(name.from, term, received, reply));
        let applied = installed.await.map_err(|_| TransferError::Stopped)?;
        // What follows the snapshot in this log may be applied already.
        if applied.index < wanted.index {
            return Err(TransferError::Unwanted(applied));
        }
        self.metrics.snapshots_installed.inc();
        Ok(wanted)
    }

    /// How many chunks of a stream that broke were taken in; `None` if nothing of it is kept.
    pub(crate) async fn position(
        &self,
        me: NodeId,
        cluster: ClusterId,
        subject: &v1::SnapshotSubject,
    ) -> Result<Option<u32>, TransferError> {
        let (shard, name) = addressed(subject, me, cluster)?;
        self.places.position(shard, name).await
    }

    /// Whether a snapshot of the shard is arriving.
    pub(crate) fn is_receiving(&self, shard: ShardId) -> bool {
        self.places.is_taken(shard)
    }

    fn begin(&self, shard: ShardId, current: Generation) -> Generation {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = begun.entry(shard).or_default();
        *newest = (*newest).max(current).next();
        *newest
    }

    async fn next_generation(&self, handle: &ShardHandle) -> Result<Generation, TransferError> {
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        let current = status.await.map_err(|_| TransferError::Stopped)?.generation;
        Ok(self.begin(handle.shard, current))
    }

    /// Begins to rewrite a base into a generation of its own.
    pub(crate) fn rewrite(
        &self,
        shard: ShardId,
        source: SnapshotSource,
        current: Generation,
    ) -> Result<Regeneration, RegenerationError> {
        Regeneration::begin(source, Arc::clone(&self.engines), self.begin(shard, current))
    }

    /// Writes a snapshot's rows beside the current ones. If this ends, or is given up, before the stream has ended, the
    /// thread that writes keeps what came.
    async fn store(
        &self,
        shard: ShardId,
        holder: &Arc<Holder>,
        into: Destination,
        (mut number, stream): (u32, &mut Streaming<v1::SnapshotChunk>),
    ) -> Result<ReceivedSnapshot, TransferError> {
        let storage = (Arc::clone(&self.engines), self.room.clone());
        let (chunks, queue) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
        let (end, ended) = oneshot::channel::<End>();
        let (hand_over, written) = oneshot::channel();
        let writing = Arc::clone(holder);
        tokio::task::spawn_blocking(move || {
            let result = write(storage, shard, into, queue, (ended, writing));
            // The call may have been broken off meanwhile.
            if let Err(Ok(unwanted)) = hand_over.send(result) {
                unwanted.discard();
            }
        });
        let how = loop {
            let chunk = tokio::select! {
                chunk = next(stream) => chunk?,
                () = holder.broken_off.cancelled() => return Err(TransferError::BrokenOff),
            };
            let Some(v1::SnapshotChunk { piece, crc, last }) = chunk else { break End::Short };
            let Some(Piece::Data(data)) = piece else { return Err(TransferError::Damaged(number)) };
            if checksum::body(&data) != crc {
                return Err(TransferError::Damaged(number));
            }
            if last {
                break End::Whole;
            }
            // If the writer is gone, its own error is what is returned below.
            if chunks.send(data).await.is_err() {
                break End::Short;
            }
            number = number.saturating_add(1);
        };
        let _ = end.send(how);
        drop(chunks);
        written.await.map_err(|_| TransferError::Stopped)?
    }
}

/// Takes chunks in until the queue ends. What comes then depends on how the stream has ended, which nobody says if it
/// broke.
fn write(
    (engines, room): (Arc<dyn EngineFactory>, Room),
    shard: ShardId,
    into: Destination,
    mut queue: mpsc::Receiver<Bytes>,
    (ended, holder): (oneshot::Receiver<End>, Arc<Holder>),
) -> Result<ReceivedSnapshot, TransferError> {
    let mut receiver = match into {
        Destination::Generation(generation, kept) => {
            drop(kept);
            room.begin(shard)?;
            Box::new(SnapshotReceiver::new(engines, shard, generation)?)
        }
        Destination::Kept(receiver) => receiver,
    };
    while let Some(chunk) = queue.blocking_recv() {
        room.go_on(shard)?;
        receiver.push(&chunk)?;
    }
    match ended.blocking_recv() {
        Ok(End::Whole) => {
            holder.whole();
            // If the call is given up from here on, the place is free although this thread is still at work.
            drop(holder);
            Ok(receiver.finish()?)
        }
        Ok(End::Short) => Err(TransferError::Short),
        Err(_) => {
            holder.keep(receiver);
            Err(TransferError::BrokenOff)
        }
    }
}

fn unsound(error: validate::WireError) -> TransferError {
    TransferError::Refused(error.to_string())
}

/// Checks that a snapshot is for this node; whose it is.
fn addressed(
    subject: &v1::SnapshotSubject,
    me: NodeId,
    cluster: ClusterId,
) -> Result<(ShardId, StreamName), TransferError> {
    let from = validate::node("from", subject.from).map_err(unsound)?;
    if subject.to != me.get() || subject.cluster_id != cluster.get() {
        let (to, cluster) = (NodeId::new(subject.to), ClusterId::new(subject.cluster_id));
        return Err(TransferError::Misdirected(format!("{to} of cluster {cluster}")));
    }
    Ok((ShardId::new(subject.shard), StreamName { from, number: subject.stream }))
}

async fn next(stream: &mut Streaming<v1::SnapshotChunk>) -> Result<Option<v1::SnapshotChunk>, TransferError> {
    match tokio::time::timeout(STALL_MAX, stream.message()).await {
        Ok(chunk) => Ok(chunk?),
        Err(_) => Err(TransferError::Stalled),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use kv_storage::TwinFactory;
    use kv_storage::disk::faulty::VirtualDisk;
    use kv_types::Term;

    use super::*;

    const SHARD: ShardId = ShardId::new(1);

    /// Takes in one chunk, which is none, if there is room for it.
    fn receive(engines: &Arc<TwinFactory>, room: &Room) -> Result<ReceivedSnapshot, TransferError> {
        let places = Places::new(Duration::MAX, (TaskTracker::new(), CancellationToken::new()));
        let name = StreamName { from: NodeId::new(2), number: 7 };
        let (holder, _) = places.take(SHARD, name, Term::new(1)).unwrap();
        let (chunks, queue) = mpsc::channel(1);
        chunks.try_send(Bytes::from_static(b"no chunk")).unwrap();
        let (_end, ended) = oneshot::channel();
        let into = Destination::Generation(Generation::new(1), None);
        let storage: (Arc<dyn EngineFactory>, _) = (Arc::<TwinFactory>::clone(engines), room.clone());
        write(storage, SHARD, into, queue, (ended, holder))
    }

    #[test]
    fn a_snapshot_that_finds_no_room_leaves_nothing_and_is_not_begun_again_at_once() {
        let (disk, engines) = (Arc::new(VirtualDisk::new()), Arc::new(TwinFactory::new()));
        let free = |bytes| disk.set_capacity(bytes);
        let room = Room::new(Arc::<VirtualDisk>::clone(&disk), 10);
        let refused = |needed| match receive(&engines, &room) {
            Err(TransferError::NoRoom { needed: found, .. }) => assert_eq!(found, needed),
            other => panic!("{other:?}"),
        };
        free(9);
        refused(10);
        room.begin(SHARD).unwrap_err();
        free(100);
        room.begin(SHARD).unwrap();
        free(9);
        room.go_on(SHARD).unwrap_err();
        free(100);
        refused(100 + DISK_FREE_MERGE_MIN);
        room.begin(ShardId::new(2)).unwrap();
        free(100 + DISK_FREE_MERGE_MIN);
        assert!(matches!(receive(&engines, &room), Err(TransferError::Receiver(_))), "there was room");
        assert!(
            matches!(receive(&engines, &room), Err(TransferError::Receiver(_))),
            "it was not for want of it"
        );
        assert_eq!(engines.list(Path::new("shard-1")).unwrap().len(), 0);
    }

    #[test]
    fn no_generation_is_begun_twice() {
        let tasks = (TaskTracker::new(), CancellationToken::new());
        let room = Room::new(Arc::new(VirtualDisk::new()), 0);
        let installer = Installer::new((Arc::new(TwinFactory::new()), room), Arc::new(Metrics::new()), tasks);
        let (shard, other) = (ShardId::new(1), ShardId::new(2));
        let begin = |shard, current| installer.begin(shard, Generation::new(current)).get();
        assert_eq!((begin(shard, 3), begin(shard, 3), begin(other, 0)), (4, 5, 1));
        assert_eq!(begin(shard, 7), 8);
    }
}
