//! What can go wrong with a shard's state.

use kv_types::{LogIndex, RowKey};

use crate::disk::is_no_room;
use crate::encoding::Malformed;
use crate::engine::EngineError;

/// Why state could not be read or written. None is tried again: damage means a new base from a peer, anything else
/// stops the replica; only [`StoreError::Compacted`] is an answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// What is stored is not what was written.
    #[error("state damaged: {detail}")]
    Damaged {
        /// What was seen.
        detail: String,
    },
    /// The disk refused.
    #[error("state: {0}")]
    Io(#[from] std::io::Error),
    /// The effect log begins later.
    #[error("effects before {first} are gone")]
    Compacted {
        /// The first entry it still has.
        first: LogIndex,
    },
}

impl StoreError {
    pub(crate) fn damaged(detail: impl Into<String>) -> Self {
        Self::Damaged { detail: detail.into() }
    }

    /// Whether there was only no room: it may be tried again once there is.
    pub fn is_no_room(&self) -> bool {
        matches!(self, Self::Io(error) if is_no_room(error))
    }
}

impl From<EngineError> for StoreError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Damaged { detail } => Self::Damaged { detail },
            EngineError::Io(error) => Self::Io(error),
        }
    }
}

impl From<Malformed> for StoreError {
    fn from(error: Malformed) -> Self {
        Self::damaged(error.to_string())
    }
}

/// Why a read gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The pin grew too old, or held too much: what it saw is gone.
    #[error("the pinned view has expired")]
    PinExpired {
        /// The first key a scan did not return; a new pin may go on from there.
        resume: Option<RowKey>,
    },
    /// As many pins as the shard allows are held.
    #[error("too many pinned views")]
    TooManyPins,
    /// Damaged rows were replaced by older ones of another node, and the log is not applied to them yet.
    #[error("the rows were replaced by older ones: entries up to {reached} are being applied again")]
    Behind {
        /// What was read here before may have seen as much.
        reached: LogIndex,
    },
    /// The state could not be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}
