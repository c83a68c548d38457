//! What can go wrong with the WAL.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use kv_types::{Incarnation, LogIndex, ShardId};

use super::layout::{SegmentNo, VERSION};

/// Why the WAL cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The operating system says no. After a failed write or sync the WAL takes no further record.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// Bytes that were durable are not what was written.
    #[error("the write-ahead log is damaged: {0}")]
    Corrupt(Box<Corruption>),
    /// The segments belong to another data directory.
    #[error("{segment} was written by incarnation {found}, not by {expected}: this is another node's data")]
    WrongIncarnation {
        /// The segment.
        segment: SegmentNo,
        /// Who wrote it.
        found: Incarnation,
        /// Who reads it.
        expected: Incarnation,
    },
    /// The segments were written by a later release.
    #[error("{segment} has format {found}; this release reads format {VERSION}")]
    Version {
        /// The segment.
        segment: SegmentNo,
        /// Its format.
        found: u16,
    },
    /// No room for these records; nothing was written, and records without entries may still fit.
    #[error("the disk is full: no room for another segment of the write-ahead log")]
    Full,
    /// The records together are longer than a segment; nothing was written.
    #[error("a group of {bytes} bytes is too long; a segment has room for {bytes_max}")]
    TooLarge {
        /// Length of the group.
        bytes: u64,
        /// The limit.
        bytes_max: u64,
    },
    /// An earlier write or sync failed, and what is durable is no longer known.
    #[error("an earlier write to the write-ahead log failed; the node must stop")]
    Failed,
    /// The log does not hold this entry: compacted, or not written yet.
    #[error("the log of {shard} does not hold {index}")]
    NotHeld {
        /// The shard.
        shard: ShardId,
        /// The entry.
        index: LogIndex,
    },
}

/// Where the WAL is damaged and whose records it was. If no shard is named, nothing else is known of the one whose
/// record it was: it must be taken for any shard of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corruption {
    /// The segment.
    pub segment: SegmentNo,
    /// Where in it.
    pub offset: u64,
    /// What is wrong.
    pub what: &'static str,
    /// Shards whose records are certainly damaged: a legible header, or a gap in the sequence numbers.
    pub touched: BTreeSet<ShardId>,
    /// Shards of which nothing was read after the damage, so that their last records may have stood there.
    pub possible: BTreeSet<ShardId>,
}

impl Corruption {
    pub(super) fn new(segment: SegmentNo, offset: u64, what: &'static str) -> Self {
        Self { segment, offset, what, touched: BTreeSet::new(), possible: BTreeSet::new() }
    }

    pub(super) fn of_shard(segment: SegmentNo, offset: u64, what: &'static str, shard: ShardId) -> Self {
        Self { touched: BTreeSet::from([shard]), ..Self::new(segment, offset, what) }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", self.segment, self.offset, self.what)?;
        for (label, shards) in [("touched", &self.touched), ("possibly touched", &self.possible)] {
            if !shards.is_empty() {
                write!(f, "; {label}:")?;
                for shard in shards {
                    write!(f, " {shard}")?;
                }
            }
        }
        Ok(())
    }
}

impl From<Corruption> for WalError {
    fn from(corruption: Corruption) -> Self {
        Self::Corrupt(Box::new(corruption))
    }
}

/// Names what was tried, for `map_err`.
pub(super) fn io_error(doing: &'static str, path: impl fmt::Display) -> impl FnOnce(io::Error) -> WalError {
    move |source| WalError::Io { doing, path: path.to_string(), source }
}
