//! Why a transaction is not committed, or not known to be.

use bytes::Bytes;
use kv_types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX, TXN_SCANNED_KEYS_MAX};
use kv_types::{Key, Outcome, RequestId};

use crate::error::Error;

/// A transaction that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TxnError {
    /// It is aborted: none of its writes took effect, and none will. To try it anew is to read all of it anew.
    #[error(transparent)]
    Aborted(#[from] Aborted),
    /// It would be too large. What was asked for was not done, and nothing was sent; the transaction is as it was.
    #[error(transparent)]
    Limit(#[from] LimitExceeded),
    /// A read failed, or the commit did without taking effect; its outcome is [`Outcome::NotApplied`].
    #[error(transparent)]
    Failed(Error),
    /// It may be committed or not. The same must not be tried under another number before that is known:
    /// [`Client::outcome`](crate::Client::outcome) with the request id of `source` and with `anchor` says it.
    #[error("whether the transaction is committed is unknown: {source}")]
    Unknown {
        /// The key whose shard decides it.
        anchor: Key,
        /// What went wrong last; its outcome is [`Outcome::Unknown`], and it has the request id.
        source: Box<Error>,
    },
}

/// Why a transaction is aborted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the transaction is aborted: {cause}{}", place(.at.as_ref()))]
pub struct Aborted {
    /// What was in the way.
    pub cause: AbortCause,
    /// The key that was in the way, if one was and it is known; of a range, its start.
    pub at: Option<Bytes>,
    /// What named it; `None` if it was not sent.
    pub request: Option<RequestId>,
}

/// What was in the way of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AbortCause {
    /// A key is not as the transaction has read it.
    #[error("what it has read has changed")]
    Conflict,
    /// Another transaction has locked a key, and did not let it go in time.
    #[error("another transaction holds a key")]
    Locked,
    /// A shard did not answer in time.
    #[error("a shard did not answer in time")]
    Unreachable,
    /// It was decided by another party or by an earlier attempt, of which the reason is not known.
    #[error("it was decided before")]
    DecidedBefore,
}

/// A limit of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitExceeded {
    /// Too many reads, scanned ranges and writes together.
    #[error("a transaction has at most {TXN_OPERATIONS_MAX} reads, scanned ranges and writes")]
    Operations,
    /// Too many bytes: the keys read, the bounds of the ranges scanned, and the keys and values written.
    #[error("a transaction has at most {TXN_BYTES_MAX} bytes of keys and values, this would have {0}")]
    Bytes(usize),
    /// Its scans found too many keys.
    #[error("the scans of a transaction find at most {TXN_SCANNED_KEYS_MAX} keys")]
    ScannedKeys,
}

fn place(at: Option<&Bytes>) -> String {
    at.map_or_else(String::new, |at| format!(" (at {})", at.escape_ascii()))
}

impl TxnError {
    /// Whether the transaction took effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Aborted(_) | Self::Limit(_) | Self::Failed(_) => Outcome::NotApplied,
            Self::Unknown { .. } => Outcome::Unknown,
        }
    }

    /// What named the transaction, if it was sent.
    pub fn request(&self) -> Option<RequestId> {
        match self {
            Self::Aborted(aborted) => aborted.request,
            Self::Limit(_) => None,
            Self::Failed(error) => error.request,
            Self::Unknown { source, .. } => source.request,
        }
    }

    /// Whether nothing happened and the same, begun anew, may well succeed.
    pub fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::Aborted(_) => true,
            Self::Limit(_) | Self::Unknown { .. } => false,
            Self::Failed(error) => error.is_worth_a_retry(),
        }
    }
}
