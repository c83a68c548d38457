//! The sending end of snapshots.

use std::time::Duration;

use bytes::Bytes;
use kv_proto::{checksum, sealed, v1, validate};
use kv_storage::{SnapshotSource, StoreError};
use kv_types::limits::PEER_FRAME_BYTES_MAX;
use kv_types::{LogId, NodeId, ShardId};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tracing::{debug, info};
use v1::snapshot_chunk::Piece;

use super::{
    ANSWER_MAX, CHUNKS_AHEAD, CHUNKS_IN_FLIGHT_MAX, KEEP_MAX, STALL_MAX, TransferError, first_chunk,
};
use crate::links::damaged;
use crate::mailbox::{Control, Mailbox};
use crate::metrics::Metrics;

/// How often the receiver is asked for its position after a break. The count begins again once a stream has brought
/// the receiver further: a way that breaks ever again is still a way.
const RESUME_TRIES_MAX: u32 = 5;

/// The pause before the first of them; each further one is twice as long. A little is left to chance.
const RESUME_PAUSE_FIRST: Duration = Duration::from_millis(500);

/// How long the receiver may take to say its position.
const POSITION_MAX: Duration = Duration::from_secs(2);

const _: () = {
    let pauses = RESUME_PAUSE_FIRST.as_millis() * ((1 << RESUME_TRIES_MAX) - 1);
    let tries = pauses + POSITION_MAX.as_millis() * RESUME_TRIES_MAX as u128;
    assert!(tries <= 30_000, "the leader learns soon that a snapshot has failed");
    assert!(tries < KEEP_MAX.as_millis(), "what the last try asks for is kept");
};

/// Streams a shard's rows to a peer, over a connection of its own each time that is dialled; the last entry the peer
/// has installed.
pub(crate) async fn send(
    dial: impl Fn() -> Channel,
    mut subject: v1::SnapshotSubject,
    mailbox: &Mailbox,
    metrics: &Metrics,
) -> Result<LogId, TransferError> {
    let (shard, to) = (ShardId::new(subject.shard), NodeId::new(subject.to));
    let (asked, source) = oneshot::channel();
    mailbox.control(Control::SnapshotSource(asked));
    let source = source.await.map_err(|_| TransferError::Stopped)?;
    let mut source = source.rewindable(CHUNKS_IN_FLIGHT_MAX);
    subject.stream = rand::random_range(1..=u64::MAX);
    info!(%shard, %to, "sending a snapshot");
    let (mut channel, mut left) = (dial(), pauses());
    loop {
        let (result, rest) = attempt(channel, &subject, source).await;
        let error = match (result, rest) {
            (Ok((id, bytes)), _) => {
                info!(%shard, %to, %id, bytes, "snapshot sent");
                return Ok(id);
            }
            (Err(error), Some(rest)) if error.is_of_transport() => {
                source = rest;
                error
            }
            (Err(TransferError::Rows(StoreError::Damaged { detail })), Some(rest)) => {
                mailbox.control(Control::Damaged(rest.generation(), detail.clone()));
                return Err(TransferError::Rows(StoreError::Damaged { detail }));
            }
            (Err(error), _) => return Err(error),
        };
        info!(%shard, %to, %error, "a snapshot stream broke");
        let Some((fresh, next)) = resumed_at(&dial, &subject, &mut left, metrics).await else {
            return Err(error);
        };
        if !source.rewind(next) {
            return Err(error);
        }
        if next > subject.first_chunk {
            left = pauses();
        }
        (channel, subject.first_chunk) = (fresh, next);
    }
}

/// The pauses before each question after a break.
fn pauses() -> impl Iterator<Item = Duration> + Send {
    (0..RESUME_TRIES_MAX).map(|nth| RESUME_PAUSE_FIRST * (1 << nth))
}

/// Dials and asks where to go on, until there is an answer; `None` if the snapshot is to begin anew.
async fn resumed_at(
    dial: &impl Fn() -> Channel,
    subject: &v1::SnapshotSubject,
    left: &mut (impl Iterator<Item = Duration> + Send),
    metrics: &Metrics,
) -> Option<(Channel, u32)> {
    for pause in left {
        tokio::time::sleep(pause.mul_f64(0.5 + rand::random::<f64>() / 2.0)).await;
        let channel = dial();
        match position(channel.clone(), subject, metrics).await {
            Ok(next) => return Some((channel, next?)),
            Err(error) if error.is_of_transport() => debug!(to = subject.to, %error, "no position"),
            Err(error) => {
                debug!(to = subject.to, %error, "no position, and there will be none");
                return None;
            }
        }
    }
    None
}

async fn position(
    channel: Channel,
    subject: &v1::SnapshotSubject,
    metrics: &Metrics,
) -> Result<Option<u32>, TransferError> {
    let mut client = v1::peer_client::PeerClient::new(channel);
    let asked = client.snapshot_position(sealed::seal::<v1::SnapshotPositionRequest>(subject));
    let reply = tokio::time::timeout(POSITION_MAX, asked).await.map_err(|_| TransferError::Stalled)??;
    let position = sealed::open(reply.into_inner())
        .map_err(|cause| damaged(metrics, NodeId::new(subject.to), "position of a snapshot", &cause))?;
    Ok(position.next_chunk)
}

/// One call: the stream from where the source is. What came of it, with the bytes read, and the source, if it can be used
/// again.
async fn attempt(
    channel: Channel,
    subject: &v1::SnapshotSubject,
    source: SnapshotSource,
) -> (Result<(LogId, u64), TransferError>, Option<SnapshotSource>) {
    let (chunks, stream) = mpsc::channel(CHUNKS_AHEAD);
    if chunks.send(first_chunk(subject)).await.is_err() {
        return (Err(TransferError::Stopped), Some(source));
    }
    let (moved, movement) = watch::channel(());
    let over = CancellationToken::new();
    // The reading thread ends with this call, whatever becomes of the stream that takes its chunks.
    let guard = over.clone().drop_guard();
    let reading = tokio::task::spawn_blocking(move || read(source, &chunks, &moved, &over));
    let mut client =
        v1::peer_client::PeerClient::new(channel).max_encoding_message_size(PEER_FRAME_BYTES_MAX);
    let result = tokio::select! {
        result = client.snapshot_stream(ReceiverStream::new(stream)) => result.map_err(TransferError::from),
        error = stall(movement, (STALL_MAX, ANSWER_MAX)) => Err(error),
    };
    drop(guard);
    let Ok((source, read)) = reading.await else { return (Err(TransferError::Stopped), None) };
    let result = match read {
        // What the receiver says of a stream that ends early is no news.
        Err(cause @ TransferError::Rows(_)) => Err(cause),
        Ok(bytes) => result.and_then(|reply| Ok((installed(reply.into_inner())?, bytes))),
        Err(_) => result.and_then(|reply| Ok((installed(reply.into_inner())?, 0))),
    };
    (result, Some(source))
}

/// Gives out what is left of a source, until the call is over; the bytes read.
fn read(
    mut source: SnapshotSource,
    chunks: &mpsc::Sender<v1::SnapshotChunk>,
    moved: &watch::Sender<()>,
    over: &CancellationToken,
) -> (SnapshotSource, Result<u64, TransferError>) {
    let runtime = Handle::current();
    let give = |data: Bytes, last| {
        let crc = checksum::body(&data);
        let chunk = v1::SnapshotChunk { piece: Some(Piece::Data(data)), crc, last };
        let given = runtime.block_on(async {
            tokio::select! {
                given = chunks.send(chunk) => given.is_ok(),
                () = over.cancelled() => false,
            }
        });
        moved.send_replace(());
        if given { Ok(()) } else { Err(TransferError::BrokenOff) }
    };
    let mut bytes = 0;
    let result = loop {
        match source.next_chunk() {
            Ok(Some(data)) => {
                bytes += data.len() as u64;
                if let Err(cause) = give(data, false) {
                    break Err(cause);
                }
            }
            Ok(None) => break give(Bytes::new(), true).map(|()| bytes),
            Err(cause) => break Err(TransferError::Rows(cause)),
        }
    };
    (source, result)
}

/// What the receiver has installed.
fn installed(result: v1::SnapshotResult) -> Result<LogId, TransferError> {
    let outcome = sealed::open(result)?;
    match outcome.installed {
        None => Err(TransferError::Refused(outcome.refused)),
        installed => validate::log_id("installed", installed)
            .map_err(|error| TransferError::Refused(error.to_string())),
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

#[cfg(test)]
mod tests {
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
}
