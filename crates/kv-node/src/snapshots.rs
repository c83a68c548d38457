//! Snapshots between nodes: one stream each, outside the Raft messages.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kv_proto::sealed::SealError;
use kv_proto::{checksum, sealed, v1, validate};
use kv_storage::{
    EngineFactory, Generation, ReceivedSnapshot, Regeneration, RegenerationError, SnapshotError,
    SnapshotReceiver, SnapshotSource,
};
use kv_types::limits::PEER_FRAME_BYTES_MAX;
use kv_types::{ClusterId, LogId, NodeId, ShardId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use tracing::info;
use v1::snapshot_chunk::Piece;

use crate::gateway::ShardHandle;
use crate::mailbox::{Control, Mailbox};

/// Chunks between the reading thread and the socket, and between the socket and the writing thread.
const CHUNKS_AHEAD: usize = 4;

/// A stream on which nothing moves for this long has failed.
const STALL_MAX: Duration = Duration::from_secs(30);

/// How long the receiver may take for its answer once it has everything: it installs the rows first.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the stream failed: {0}")]
    Stream(#[from] Status),
    #[error("nothing moved for {} s", STALL_MAX.as_secs())]
    Stalled,
    #[error("no answer came within {} s", ANSWER_MAX.as_secs())]
    NoAnswer,
    #[error("the replica has stopped")]
    Stopped,
    #[error("the rows cannot be read")]
    Rows,
    #[error("refused: {0}")]
    Refused(String),
    #[error("it is for {0}")]
    Misdirected(String),
    #[error("a snapshot of {0} is being received already")]
    Busy(ShardId),
    #[error("a part of it is damaged: {0}")]
    Sealed(#[from] SealError),
    #[error("chunk {0} is damaged")]
    Damaged(u64),
    #[error(transparent)]
    Receiver(#[from] SnapshotError),
    #[error("it was not wanted: {0} is applied already")]
    Unwanted(LogId),
}

/// Streams a shard's rows to a peer; the last entry the peer has installed.
pub(crate) async fn send(
    channel: Channel,
    subject: v1::SnapshotSubject,
    mailbox: &Mailbox,
) -> Result<LogId, TransferError> {
    let (shard, to) = (ShardId::new(subject.shard), NodeId::new(subject.to));
    let (asked, source) = oneshot::channel();
    mailbox.control(Control::SnapshotSource(asked));
    let mut source = source.await.map_err(|_| TransferError::Stopped)?;
    let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
    chunks.send(first_chunk(&subject)).await.map_err(|_| TransferError::Stopped)?;
    let (moved, movement) = watch::channel(());
    let reading = tokio::task::spawn_blocking(move || -> Result<u64, TransferError> {
        let mut bytes = 0;
        while let Some(data) = source.next_chunk().map_err(|_| TransferError::Rows)? {
            bytes += data.len() as u64;
            let crc = checksum::body(&data);
            let chunk = v1::SnapshotChunk { piece: Some(Piece::Data(data)), crc, last: false };
            chunks.blocking_send(chunk).map_err(|_| TransferError::Stopped)?;
            moved.send_replace(());
        }
        let last = v1::SnapshotChunk {
            piece: Some(Piece::Data(Bytes::new())),
            crc: checksum::body(&[]),
            last: true,
        };
        chunks.blocking_send(last).map_err(|_| TransferError::Stopped)?;
        Ok(bytes)
    });
    let mut client =
        v1::peer_client::PeerClient::new(channel).max_encoding_message_size(PEER_FRAME_BYTES_MAX);
    info!(%shard, %to, "sending a snapshot");
    let call = client.snapshot_stream(ReceiverStream::new(stream));
    // A call that is given up takes the stream along, and without that the reading thread ends.
    let result = tokio::select! {
        result = call => result,
        error = stall(movement, (STALL_MAX, ANSWER_MAX)) => return Err(error),
    };
    let bytes = reading.await.map_err(|_| TransferError::Rows)?;
    let outcome = sealed::open(result?.into_inner())?;
    match outcome.installed {
        None => Err(TransferError::Refused(outcome.refused)),
        installed => {
            let id = validate::log_id("installed", installed)
                .map_err(|error| TransferError::Refused(error.to_string()))?;
            info!(%shard, %to, %id, bytes = bytes?, "snapshot sent");
            Ok(id)
        }
    }
}

/// The chunk a stream begins with.
fn first_chunk(subject: &v1::SnapshotSubject) -> v1::SnapshotChunk {
    v1::SnapshotChunk { piece: Some(Piece::Header(sealed::seal(subject))), crc: 0, last: false }
}

/// Checks a stream's first chunk and says what the stream is about.
fn subject(first: Option<v1::SnapshotChunk>) -> Result<v1::SnapshotSubject, TransferError> {
    match first {
        Some(v1::SnapshotChunk { piece: Some(Piece::Header(header)), .. }) => Ok(sealed::open(header)?),
        Some(_) | None => Err(TransferError::Misdirected("nobody: the stream has no header".to_owned())),
    }
}

/// Ends when nothing has moved for too long, or when all has been sent and no answer comes.
async fn stall(
    mut movement: watch::Receiver<()>,
    (stall_max, answer_max): (Duration, Duration),
) -> TransferError {
    loop {
        match tokio::time::timeout(stall_max, movement.changed()).await {
            Err(_) => return TransferError::Stalled,
            Ok(Ok(())) => {}
            Ok(Err(_)) => break,
        }
    }
    tokio::time::sleep(answer_max).await;
    TransferError::NoAnswer
}

/// Receives snapshots, one a shard at a time.
#[derive(Debug)]
pub(crate) struct Installer {
    engines: Arc<dyn EngineFactory>,
    receiving: Mutex<BTreeSet<ShardId>>,
    /// The newest generation begun for each shard: none is ever begun twice. A receiver whose call was broken off may
    /// still be at work, and removes its generation at the end; that must not be a later one's.
    begun: Mutex<BTreeMap<ShardId, Generation>>,
}

/// Holds a shard's place while its snapshot is received.
struct Place<'a> {
    installer: &'a Installer,
    shard: ShardId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.installer.receiving.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.shard);
    }
}

impl Installer {
    pub(crate) fn new(engines: Arc<dyn EngineFactory>) -> Self {
        Self { engines, receiving: Mutex::default(), begun: Mutex::default() }
    }

    /// Receives one snapshot and has it installed; the last entry it holds.
    pub(crate) async fn receive(
        &self,
        me: NodeId,
        cluster: ClusterId,
        shards: &BTreeMap<ShardId, ShardHandle>,
        mut stream: Streaming<v1::SnapshotChunk>,
    ) -> Result<LogId, TransferError> {
        let subject = subject(next(&mut stream).await?)?;
        let sound = |error: validate::WireError| TransferError::Refused(error.to_string());
        let from = validate::node("from", subject.from).map_err(sound)?;
        let term = validate::term(subject.term).map_err(sound)?;
        let shard = ShardId::new(subject.shard);
        if subject.to != me.get() || subject.cluster_id != cluster.get() {
            let cluster = ClusterId::new(subject.cluster_id);
            return Err(TransferError::Misdirected(format!(
                "{} of cluster {cluster}",
                NodeId::new(subject.to)
            )));
        }
        let Some(handle) = shards.get(&shard) else {
            return Err(TransferError::Misdirected(format!("{shard}, which is not here")));
        };
        if !self.receiving.lock().unwrap_or_else(PoisonError::into_inner).insert(shard) {
            return Err(TransferError::Busy(shard));
        }
        let _place = Place { installer: self, shard };
        let received = self.store(handle, &mut stream).await?;
        let wanted = received.base().meta.last;
        info!(%shard, upto = %wanted, "snapshot received");
        let (reply, installed) = oneshot::channel();
        handle.mailbox.control(if subject.repair {
            Control::RepairReceived(received, reply)
        } else {
            Control::SnapshotReceived(from, term, received, reply)
        });
        let applied = installed.await.map_err(|_| TransferError::Stopped)?;
        // What follows the snapshot in this log may be applied already.
        if applied.index >= wanted.index { Ok(wanted) } else { Err(TransferError::Unwanted(applied)) }
    }

    /// Whether a snapshot of the shard is arriving.
    pub(crate) fn is_receiving(&self, shard: ShardId) -> bool {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner).contains(&shard)
    }

    fn begin(&self, shard: ShardId, current: Generation) -> Generation {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = begun.entry(shard).or_default();
        *newest = (*newest).max(current).next();
        *newest
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

    /// Writes a snapshot's rows beside the current ones.
    async fn store(
        &self,
        handle: &ShardHandle,
        stream: &mut Streaming<v1::SnapshotChunk>,
    ) -> Result<ReceivedSnapshot, TransferError> {
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        let current = status.await.map_err(|_| TransferError::Stopped)?.generation;
        let generation = self.begin(handle.shard, current);
        let (engines, shard) = (Arc::clone(&self.engines), handle.shard);
        let (chunks, mut queue) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
        let (complete, completed) = oneshot::channel::<()>();
        let (hand_over, written) = oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let write = || -> Result<ReceivedSnapshot, TransferError> {
                let mut receiver = SnapshotReceiver::new(engines, shard, generation)?;
                while let Some(chunk) = queue.blocking_recv() {
                    receiver.push(&chunk)?;
                }
                // The queue also ends when the stream breaks: only a whole one is finished.
                completed.blocking_recv().map_err(|_| TransferError::Stalled)?;
                Ok(receiver.finish()?)
            };
            // The call may have been broken off meanwhile.
            if let Err(Ok(unwanted)) = hand_over.send(write()) {
                unwanted.discard();
            }
        });
        let mut number = 0;
        while let Some(v1::SnapshotChunk { piece, crc, last }) = next(stream).await? {
            number += 1;
            let Some(Piece::Data(data)) = piece else { return Err(TransferError::Damaged(number)) };
            if checksum::body(&data) != crc {
                return Err(TransferError::Damaged(number));
            }
            if last {
                // If the writer is gone, its own error is what is returned below.
                let _ = complete.send(());
                break;
            }
            if chunks.send(data).await.is_err() {
                break;
            }
        }
        drop(chunks);
        written.await.map_err(|_| TransferError::Rows)?
    }
}

async fn next(stream: &mut Streaming<v1::SnapshotChunk>) -> Result<Option<v1::SnapshotChunk>, TransferError> {
    match tokio::time::timeout(STALL_MAX, stream.message()).await {
        Ok(chunk) => Ok(chunk?),
        Err(_) => Err(TransferError::Stalled),
    }
}

#[cfg(test)]
mod tests {
    use kv_storage::TwinFactory;

    use super::*;

    #[tokio::test]
    async fn a_stream_stalls_or_ends_without_an_answer() {
        let (moved, movement) = watch::channel(());
        let never = Duration::from_secs(3600);
        let stalled = stall(movement.clone(), (Duration::ZERO, never)).await;
        assert!(matches!(stalled, TransferError::Stalled));
        moved.send_replace(());
        drop(moved);
        let silent = stall(movement, (never, Duration::ZERO)).await;
        assert!(matches!(silent, TransferError::NoAnswer));
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_refused() {
        use prost::Message as _;
        let sent = v1::SnapshotSubject { shard: 1, from: 2, to: 3, term: 4, cluster_id: 5, repair: true };
        let wire = first_chunk(&sent).encode_to_vec();
        for at in 0..wire.len() {
            for bit in 0..8 {
                let mut bad = wire.clone();
                bad[at] ^= 1 << bit;
                if let Ok(chunk) = v1::SnapshotChunk::decode(&bad[..]) {
                    assert!(subject(Some(chunk)).is_err(), "byte {at}, bit {bit}");
                }
            }
        }
        assert_eq!(subject(Some(first_chunk(&sent))).unwrap(), sent);
    }

    #[test]
    fn no_generation_is_begun_twice() {
        let installer = Installer::new(Arc::new(TwinFactory::new()));
        let (shard, other) = (ShardId::new(1), ShardId::new(2));
        let begin = |shard, current| installer.begin(shard, Generation::new(current)).get();
        assert_eq!((begin(shard, 3), begin(shard, 3), begin(other, 0)), (4, 5, 1));
        assert_eq!(begin(shard, 7), 8);
    }
}
