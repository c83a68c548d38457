//! Why a call failed, and whether it happened.

use bytes::Bytes;
use kv_proto::status::{ApiError, LeaderHint};
use kv_types::{Outcome, RequestId};
use tonic::Code;

/// A failed call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{failure}")]
pub struct Error {
    /// What went wrong last; this error's text is its text.
    pub failure: Failure,
    /// Whether the write took effect; a failed read is always [`Outcome::NotApplied`].
    pub outcome: Outcome,
    /// What named the write, if something did: [`Client::outcome`](crate::Client::outcome) can be asked about it.
    pub request: Option<RequestId>,
}

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// A server refused, or failed to carry out, the call.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// No connection was made; nothing was sent.
    #[error("no node could be reached ({endpoint}: {cause})")]
    Unreachable {
        /// The endpoint tried last.
        endpoint: String,
        /// Why it could not be reached.
        cause: String,
    },
    /// The connection broke after the request was sent.
    #[error("the connection to {0} broke before an answer came")]
    Broken(String),
    /// The deadline passed, or the node said nothing for long, after the request was sent.
    #[error("no answer from {0} in time")]
    TimedOut(String),
    /// The deadline passed, or came near, before the request was sent: what it waited for.
    #[error("nothing was sent in time: {0}")]
    NotSent(String),
    /// This client has too many requests waiting for one node.
    #[error("too many requests are waiting for {0} in this client")]
    QueueFull(String),
    /// An answer that makes no sense.
    #[error("{endpoint} gave a wrong answer: {cause}")]
    BadReply {
        /// Who gave it.
        endpoint: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A scan lost its stream within a shard; to go on would mix two revisions.
    #[error("the scan was cut off ({cause}); begin again")]
    ScanCut {
        /// The first key not delivered.
        resume_key: Bytes,
        /// What cut it.
        cause: String,
    },
    /// The client was told something it cannot use.
    #[error("{0}")]
    Config(String),
}

/// A range deletion that stopped part of the way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source} (after {deleted} keys were deleted)")]
pub struct RangeError {
    /// Keys known to be deleted.
    pub deleted: u64,
    /// Where the rest of the range begins.
    pub resume_key: Bytes,
    /// Why it stopped; its outcome speaks of the keys from `resume_key` on.
    pub source: Error,
}

impl Failure {
    /// Whether a write that failed so took effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Api(error) => error.outcome(),
            Self::Unreachable { .. }
            | Self::NotSent(_)
            | Self::QueueFull(_)
            | Self::ScanCut { .. }
            | Self::Config(_) => Outcome::NotApplied,
            Self::Broken(_) | Self::TimedOut(_) | Self::BadReply { .. } => Outcome::Unknown,
        }
    }

    /// The gRPC code that says the same.
    pub fn code(&self) -> Code {
        match self {
            Self::Api(error) => error.code(),
            Self::Unreachable { .. } | Self::Broken(_) => Code::Unavailable,
            Self::TimedOut(_) | Self::NotSent(_) => Code::DeadlineExceeded,
            Self::QueueFull(_) => Code::ResourceExhausted,
            Self::BadReply { .. } => Code::Internal,
            Self::ScanCut { .. } => Code::OutOfRange,
            Self::Config(_) => Code::InvalidArgument,
        }
    }

    /// One word for programs: the wire's reason in lower case, or what this client saw itself.
    pub fn reason(&self) -> String {
        let own = match self {
            Self::Api(error) => {
                let name = error.reason().as_str_name().trim_start_matches("REASON_").to_ascii_lowercase();
                return if name == "unspecified" { "unnamed".to_owned() } else { name };
            }
            Self::Unreachable { .. } => "unreachable",
            Self::Broken(_) => "broken",
            Self::TimedOut(_) | Self::NotSent(_) => "deadline",
            Self::QueueFull(_) => "overloaded",
            Self::BadReply { .. } => "bad_reply",
            Self::ScanCut { .. } => "scan_cut",
            Self::Config(_) => "invalid",
        };
        own.to_owned()
    }
}

impl Error {
    /// A failure of a call that changes nothing.
    pub(crate) fn of_read(failure: Failure) -> Self {
        Self { failure, outcome: Outcome::NotApplied, request: None }
    }

    /// A failure of a call that may have changed something.
    pub(crate) fn of_write(failure: Failure) -> Self {
        let outcome = failure.outcome();
        Self { failure, outcome, request: None }
    }

    /// Who may know better, if the server said so.
    pub fn hint(&self) -> Option<&LeaderHint> {
        match &self.failure {
            Failure::Api(error) => error.hint(),
            _ => None,
        }
    }

    /// Whether nothing happened and the same call may well succeed later.
    pub fn is_worth_a_retry(&self) -> bool {
        let transient = matches!(
            self.failure.code(),
            Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::OutOfRange
        );
        let is_locked = matches!(self.failure, Failure::Api(ApiError::Locked(_)));
        (transient || is_locked) && self.outcome == Outcome::NotApplied
    }
}
