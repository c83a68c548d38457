//! Snapshots between nodes: one stream each, outside the Raft messages.
//!
//! A shard may be large, and a connection need not last as long as its snapshot takes. So a stream has a name, drawn by
//! the sender, and its chunks have numbers. When it breaks, the receiver keeps what it has built for a while; the sender
//! keeps its source, dials anew, asks how many chunks were taken in, rewinds to there and goes on, a bounded number of
//! times. What is no fault of the transport is not tried again: a receiver that refuses, rows that cannot be read, a
//! stream that is not what its trailer says. Then, and when nothing is kept any more, the snapshot has failed, and
//! Raft begins another.

mod places;
mod receiving;
mod sending;
#[cfg(test)]
mod tests;

use std::time::Duration;

use kv_proto::sealed::SealError;
use kv_proto::{sealed, v1};
use kv_storage::{SnapshotError, StoreError};
use kv_types::limits::{PEER_FRAME_BYTES_MAX, SNAPSHOT_CHUNK_BYTES};
use kv_types::{LogId, ShardId};
use tonic::{Code, Status};
use v1::snapshot_chunk::Piece;

pub(crate) use self::receiving::{Installer, Room};
pub(crate) use self::sending::send;

/// Chunks between the reading thread and the socket, and between the socket and the writing thread.
const CHUNKS_AHEAD: usize = 4;

/// How far a source can go back: as many chunks as may have been read and not been taken in when a stream breaks.
const CHUNKS_IN_FLIGHT_MAX: usize = 96;

const _: () = {
    // Both queues, and a chunk in the hands of the thread at each end.
    let queued = 2 * (CHUNKS_AHEAD + 1);
    // The window of a stream is given back when the receiver's task reads: it covers all buffers of both kernels.
    let window = PEER_FRAME_BYTES_MAX.div_ceil(SNAPSHOT_CHUNK_BYTES);
    // What the sender's HTTP/2 holds before the window lets it go (1 MiB), a chunk being encoded, a chunk being decoded.
    let buffered = (1_usize << 20).div_ceil(SNAPSHOT_CHUNK_BYTES) + 2;
    assert!(
        queued + window + buffered <= CHUNKS_IN_FLIGHT_MAX,
        "a source goes back over all that may be lost"
    );
};

/// A stream on which nothing moves for this long has failed.
const STALL_MAX: Duration = Duration::from_secs(30);

/// How long the receiver may take for its answer once it has everything: it installs the rows first.
const ANSWER_MAX: Duration = Duration::from_secs(300);

/// How long a receiver keeps what it has of a stream that broke.
const KEEP_MAX: Duration = Duration::from_secs(60);

/// Why a snapshot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    #[error("the stream failed: {0}")]
    Stream(#[from] Status),
    #[error("nothing moved for {} s", STALL_MAX.as_secs())]
    Stalled,
    #[error("no answer came within {} s", ANSWER_MAX.as_secs())]
    NoAnswer,
    #[error("the sender has given it up")]
    BrokenOff,
    #[error("it ends before its last chunk")]
    Short,
    #[error("the replica has stopped")]
    Stopped,
    #[error("the rows cannot be read: {0}")]
    Rows(#[source] StoreError),
    #[error("refused: {0}")]
    Refused(String),
    #[error("it is for {0}")]
    Misdirected(String),
    #[error("a snapshot of {0} is being received already")]
    Busy(ShardId),
    #[error("it cannot go on with chunk {0}: what came before is not here")]
    Gone(u32),
    #[error("a part of it is damaged: {0}")]
    Sealed(#[from] SealError),
    #[error("chunk {0} is damaged")]
    Damaged(u32),
    #[error(transparent)]
    Receiver(#[from] SnapshotError),
    #[error("the disk has {free} bytes free, not the {needed} that a snapshot leaves")]
    NoRoom { free: u64, needed: u64 },
    #[error("it was not wanted: {0} is applied already")]
    Unwanted(LogId),
}

impl TransferError {
    /// Whether only the way to the peer has failed, so that the rest of a stream may still arrive.
    fn is_of_transport(&self) -> bool {
        match self {
            // What a broken connection looks like here, and what a receiver answers who saw damage on the way.
            Self::Stream(status) => matches!(
                status.code(),
                Code::Unavailable
                    | Code::Unknown
                    | Code::Cancelled
                    | Code::Internal
                    | Code::Aborted
                    | Code::DeadlineExceeded
                    | Code::DataLoss
            ),
            Self::Stalled | Self::BrokenOff | Self::Damaged(_) => true,
            Self::NoAnswer
            | Self::Short
            | Self::Stopped
            | Self::Rows(_)
            | Self::Refused(_)
            | Self::Misdirected(_)
            | Self::Busy(_)
            | Self::Gone(_)
            | Self::Sealed(_)
            | Self::Receiver(_)
            | Self::NoRoom { .. }
            | Self::Unwanted(_) => false,
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
