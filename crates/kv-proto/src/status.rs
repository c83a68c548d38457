//! The one table between causes of failure and gRPC statuses, for server and client alike.

use std::time::Duration;

use bytes::Bytes;
use kv_types::{NodeId, Outcome, ShardId};
use prost::Message as _;
use tonic::{Code, Status};

use crate::v1::{self, Reason};

/// Who may lead a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaderHint {
    /// The node.
    pub node: NodeId,
    /// Its client address, `HOST:PORT`; empty if not known.
    pub client_addr: String,
}

/// The node asked does not lead the shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this node does not lead {shard}{}", hint_text(.hint.as_ref()))]
pub struct NotLeader {
    /// The shard.
    pub shard: ShardId,
    /// Who may lead it.
    pub hint: Option<LeaderHint>,
}

/// What was asked for is no longer kept.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Compacted {
    /// What is gone, for people.
    pub message: String,
    /// Where to begin again, for a scan.
    pub resume_key: Option<Bytes>,
}

/// A queue is full.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Overloaded {
    /// Which queue, for people.
    pub message: String,
    /// When to try again; zero if there is nothing to say about it.
    pub retry_after: Duration,
}

/// A failure that this table cannot name: a status without our detail (a broken connection, a proxy), or a reason of a
/// newer version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Foreign {
    /// The gRPC code.
    pub code: Code,
    /// [`Outcome::Unknown`], but for a detail whose reason alone is not known here.
    pub outcome: Outcome,
    /// The message of the status.
    pub message: String,
}

/// Why a call failed, on both sides of the wire. Texts are for people; nothing branches on them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request is malformed.
    #[error("{0}")]
    Invalid(String),
    /// A key, value, batch or request is over its limit.
    #[error("{0}")]
    TooLarge(String),
    /// The request is meant for another cluster.
    #[error("{0}")]
    WrongCluster(String),
    /// This server does not know what is asked for.
    #[error("{0}")]
    Unsupported(String),
    /// The node does not lead the shard.
    #[error(transparent)]
    NotLeader(NotLeader),
    /// The shard has no leader that this node knows of.
    #[error("{0} has no leader known to this node")]
    NoLeader(ShardId),
    /// The key no longer belongs to the shard.
    #[error("the key does not belong to {0} any more")]
    ShardMoved(ShardId),
    /// The node takes no new calls; the text says why.
    #[error("{0}")]
    Draining(String),
    /// The leader lost its office after it proposed the write.
    #[error("{0} changed its leader while the write was under way")]
    LeadershipLost(ShardId),
    /// The node stopped after it proposed the write.
    #[error("the node stopped while the write was under way")]
    Stopped,
    /// The deadline passed.
    #[error("the deadline passed before an answer came")]
    Deadline,
    /// A transaction met a conflicting write.
    #[error("{0}")]
    Conflict(String),
    /// A transaction in progress holds the key.
    #[error("{0}")]
    Locked(String),
    /// The member exists already.
    #[error("{0}")]
    MemberExists(String),
    /// Another change of membership is under way.
    #[error("{0}")]
    ChangeInProgress(String),
    /// The state of the cluster does not allow it.
    #[error("{0}")]
    Refused(String),
    /// No such shard.
    #[error("there is no shard {0}")]
    UnknownShard(ShardId),
    /// No such member.
    #[error("{0}")]
    UnknownMember(String),
    /// What was asked for is older than what is kept.
    #[error(transparent)]
    Compacted(Compacted),
    /// A queue is full.
    #[error(transparent)]
    Overloaded(Overloaded),
    /// A quota or the disk is full.
    #[error("{0}")]
    Quota(String),
    /// A checksum does not match its content.
    #[error("{0}")]
    Checksum(String),
    /// The request id was used with other content.
    #[error("{0}")]
    RequestMismatch(String),
    /// The request id is further ahead than the cluster's time can be.
    #[error("{0}")]
    RequestTooEarly(String),
    /// The request was settled before it arrived.
    #[error("{0}")]
    RequestSettled(String),
    /// The session may be dead.
    #[error("{0}")]
    SessionExpired(String),
    /// The session has given the request up.
    #[error("{0}")]
    RequestStale(String),
    /// What the request came to may be forgotten.
    #[error("{0}")]
    RequestTooOld(String),
    /// The session has too many requests in flight.
    #[error("{0}")]
    WindowOverflow(String),
    /// The deadline passed before the request was begun.
    #[error("the deadline passed before the request was begun")]
    Expired,
    /// The value is not a number.
    #[error("{0}")]
    NotANumber(String),
    /// The sum does not fit 64 bits.
    #[error("{0}")]
    NumberOverflow(String),
    /// A failure without a name here.
    #[error(transparent)]
    Foreign(Foreign),
}

/// The table: the gRPC code and the outcome of each reason. `None` for the reason that is never sent.
const fn row(reason: Reason) -> Option<(Code, Outcome)> {
    use Outcome::{NotApplied, Unknown};
    Some(match reason {
        Reason::Unspecified => return None,
        Reason::Invalid | Reason::TooLarge | Reason::WrongCluster | Reason::Unsupported => {
            (Code::InvalidArgument, NotApplied)
        }
        Reason::NotLeader | Reason::NoLeader | Reason::ShardMoved | Reason::Draining => {
            (Code::Unavailable, NotApplied)
        }
        Reason::LeadershipLost | Reason::Stopped => (Code::Unavailable, Unknown),
        Reason::Deadline => (Code::DeadlineExceeded, Unknown),
        Reason::Conflict | Reason::Locked => (Code::Aborted, NotApplied),
        Reason::MemberExists | Reason::ChangeInProgress | Reason::Refused => {
            (Code::FailedPrecondition, NotApplied)
        }
        Reason::UnknownShard | Reason::UnknownMember => (Code::NotFound, NotApplied),
        Reason::Compacted => (Code::OutOfRange, NotApplied),
        Reason::Overloaded | Reason::Quota => (Code::ResourceExhausted, NotApplied),
        Reason::Checksum => (Code::DataLoss, Unknown),
        Reason::RequestMismatch | Reason::RequestTooEarly => (Code::InvalidArgument, NotApplied),
        Reason::RequestSettled | Reason::NotANumber | Reason::NumberOverflow => {
            (Code::FailedPrecondition, NotApplied)
        }
        // These attempts did nothing. But whoever sends a request again may have been carried out before, and what would
        // tell is gone.
        Reason::SessionExpired | Reason::RequestStale | Reason::RequestTooOld => {
            (Code::FailedPrecondition, Unknown)
        }
        Reason::WindowOverflow => (Code::ResourceExhausted, NotApplied),
        Reason::Expired => (Code::DeadlineExceeded, NotApplied),
    })
}

impl ApiError {
    /// The reason sent on the wire; `Unspecified` for [`ApiError::Foreign`].
    pub fn reason(&self) -> Reason {
        match self {
            Self::Invalid(_) => Reason::Invalid,
            Self::TooLarge(_) => Reason::TooLarge,
            Self::WrongCluster(_) => Reason::WrongCluster,
            Self::Unsupported(_) => Reason::Unsupported,
            Self::NotLeader(_) => Reason::NotLeader,
            Self::NoLeader(_) => Reason::NoLeader,
            Self::ShardMoved(_) => Reason::ShardMoved,
            Self::Draining(_) => Reason::Draining,
            Self::LeadershipLost(_) => Reason::LeadershipLost,
            Self::Stopped => Reason::Stopped,
            Self::Deadline => Reason::Deadline,
            Self::Conflict(_) => Reason::Conflict,
            Self::Locked(_) => Reason::Locked,
            Self::MemberExists(_) => Reason::MemberExists,
            Self::ChangeInProgress(_) => Reason::ChangeInProgress,
            Self::Refused(_) => Reason::Refused,
            Self::UnknownShard(_) => Reason::UnknownShard,
            Self::UnknownMember(_) => Reason::UnknownMember,
            Self::Compacted(_) => Reason::Compacted,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::Quota(_) => Reason::Quota,
            Self::Checksum(_) => Reason::Checksum,
            Self::RequestMismatch(_) => Reason::RequestMismatch,
            Self::RequestTooEarly(_) => Reason::RequestTooEarly,
            Self::RequestSettled(_) => Reason::RequestSettled,
            Self::SessionExpired(_) => Reason::SessionExpired,
            Self::RequestStale(_) => Reason::RequestStale,
            Self::RequestTooOld(_) => Reason::RequestTooOld,
            Self::WindowOverflow(_) => Reason::WindowOverflow,
            Self::NotANumber(_) => Reason::NotANumber,
            Self::NumberOverflow(_) => Reason::NumberOverflow,
            Self::Expired => Reason::Expired,
            Self::Foreign(_) => Reason::Unspecified,
        }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        match self {
            Self::Foreign(foreign) => foreign.code,
            named => row(named.reason()).map_or(Code::Unknown, |(code, _)| code),
        }
    }

    /// Whether the write took effect.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Foreign(foreign) => foreign.outcome,
            named => row(named.reason()).map_or(Outcome::Unknown, |(_, outcome)| outcome),
        }
    }

    /// Who may lead the shard, for [`ApiError::NotLeader`].
    pub fn hint(&self) -> Option<&LeaderHint> {
        match self {
            Self::NotLeader(NotLeader { hint, .. }) => hint.as_ref(),
            _ => None,
        }
    }

    /// The shard the failure speaks of, if it speaks of one.
    pub fn shard(&self) -> Option<ShardId> {
        match self {
            Self::NotLeader(NotLeader { shard, .. })
            | Self::NoLeader(shard)
            | Self::ShardMoved(shard)
            | Self::LeadershipLost(shard)
            | Self::UnknownShard(shard) => Some(*shard),
            _ => None,
        }
    }

    /// The detail sent on the wire.
    pub fn to_detail(&self) -> v1::ErrorDetail {
        let outcome = match self.outcome() {
            Outcome::NotApplied => v1::Outcome::NotApplied,
            Outcome::Unknown => v1::Outcome::Unknown,
        };
        let (resume_key, retry_after) = match self {
            Self::Compacted(Compacted { resume_key, .. }) => (resume_key.clone(), Duration::ZERO),
            Self::Overloaded(Overloaded { retry_after, .. }) => (None, *retry_after),
            _ => (None, Duration::ZERO),
        };
        v1::ErrorDetail {
            reason: self.reason().into(),
            outcome: outcome.into(),
            message: self.to_string(),
            hint: self
                .hint()
                .map(|hint| v1::LeaderHint { node: hint.node.get(), client_addr: hint.client_addr.clone() }),
            shard: self.shard().map(ShardId::get),
            resume_key,
            retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
        }
    }

    /// Reads a status that a server sent, or that tonic made of a broken connection.
    pub fn from_status(status: &Status) -> Self {
        let detail = match status.details() {
            [] => None,
            details => v1::ErrorDetail::decode(details).ok(),
        };
        Self::from_parts(status.code(), detail, status.message())
    }

    /// Whether what was asked was certainly not sent: there was no connection.
    pub fn was_not_sent(status: &Status) -> bool {
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            if error.is::<tonic::ConnectError>() {
                return true;
            }
            source = error.source();
        }
        false
    }

    /// What a reply within a pipeline says.
    pub fn to_pipeline(&self) -> v1::PipelineError {
        v1::PipelineError { code: u32::from(code_number(self.code())), detail: Some(self.to_detail()) }
    }

    /// Reads what a reply within a pipeline says.
    pub fn from_pipeline(error: v1::PipelineError) -> Self {
        let code = i32::try_from(error.code).map_or(Code::Unknown, Code::from_i32);
        Self::from_parts(code, error.detail, "the server gave no reason")
    }

    fn from_parts(code: Code, detail: Option<v1::ErrorDetail>, message: &str) -> Self {
        let foreign =
            |outcome, message: &str| Self::Foreign(Foreign { code, outcome, message: message.to_owned() });
        let Some(detail) = detail else { return foreign(Outcome::Unknown, message) };
        let stated = match detail.outcome() {
            v1::Outcome::NotApplied => Outcome::NotApplied,
            v1::Outcome::Unknown | v1::Outcome::Unspecified => Outcome::Unknown,
        };
        let text = if detail.message.is_empty() { message.to_owned() } else { detail.message.clone() };
        match Self::named(detail) {
            // Two voices that differ are one that is unsure.
            Some(error) if error.outcome() != stated => foreign(Outcome::Unknown, &text),
            Some(error) => error,
            None => foreign(stated, &text),
        }
    }

    fn named(detail: v1::ErrorDetail) -> Option<Self> {
        let shard = ShardId::new(detail.shard.unwrap_or_default());
        let text = detail.message.clone();
        Some(match detail.reason() {
            Reason::Unspecified => return None,
            Reason::Invalid => Self::Invalid(text),
            Reason::TooLarge => Self::TooLarge(text),
            Reason::WrongCluster => Self::WrongCluster(text),
            Reason::Unsupported => Self::Unsupported(text),
            Reason::NotLeader => {
                let hint = detail
                    .hint
                    .map(|hint| LeaderHint { node: NodeId::new(hint.node), client_addr: hint.client_addr });
                Self::NotLeader(NotLeader { shard, hint })
            }
            Reason::NoLeader => Self::NoLeader(shard),
            Reason::ShardMoved => Self::ShardMoved(shard),
            Reason::Draining => Self::Draining(text),
            Reason::LeadershipLost => Self::LeadershipLost(shard),
            Reason::Stopped => Self::Stopped,
            Reason::Deadline => Self::Deadline,
            Reason::Conflict => Self::Conflict(text),
            Reason::Locked => Self::Locked(text),
            Reason::MemberExists => Self::MemberExists(text),
            Reason::ChangeInProgress => Self::ChangeInProgress(text),
            Reason::Refused => Self::Refused(text),
            Reason::UnknownShard => Self::UnknownShard(shard),
            Reason::UnknownMember => Self::UnknownMember(text),
            Reason::Compacted => Self::Compacted(Compacted { message: text, resume_key: detail.resume_key }),
            Reason::Overloaded => Self::Overloaded(Overloaded {
                message: text,
                retry_after: Duration::from_millis(u64::from(detail.retry_after_ms)),
            }),
            Reason::Quota => Self::Quota(text),
            Reason::Checksum => Self::Checksum(text),
            Reason::RequestMismatch => Self::RequestMismatch(text),
            Reason::RequestTooEarly => Self::RequestTooEarly(text),
            Reason::RequestSettled => Self::RequestSettled(text),
            Reason::SessionExpired => Self::SessionExpired(text),
            Reason::RequestStale => Self::RequestStale(text),
            Reason::RequestTooOld => Self::RequestTooOld(text),
            Reason::WindowOverflow => Self::WindowOverflow(text),
            Reason::NotANumber => Self::NotANumber(text),
            Reason::NumberOverflow => Self::NumberOverflow(text),
            Reason::Expired => Self::Expired,
        })
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let details = Bytes::from(error.to_detail().encode_to_vec());
        Self::with_details(error.code(), error.to_string(), details)
    }
}

fn hint_text(hint: Option<&LeaderHint>) -> String {
    match hint {
        Some(hint) if hint.client_addr.is_empty() => format!("; try {}", hint.node),
        Some(hint) => format!("; try {} at {}", hint.node, hint.client_addr),
        None => String::new(),
    }
}

/// The number of a gRPC code: 0 to 16 by the gRPC specification.
fn code_number(code: Code) -> u8 {
    u8::try_from(i32::from(code)).expect("gRPC codes are 0 to 16")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(addr: &str) -> Option<LeaderHint> {
        Some(LeaderHint { node: NodeId::new(3), client_addr: addr.into() })
    }

    fn every_named() -> Vec<ApiError> {
        let text = || "why".to_owned();
        let shard = ShardId::new(7);
        vec![
            ApiError::Invalid(text()),
            ApiError::TooLarge(text()),
            ApiError::WrongCluster(text()),
            ApiError::Unsupported(text()),
            ApiError::NotLeader(NotLeader { shard, hint: hint("h:1") }),
            ApiError::NotLeader(NotLeader { shard, hint: hint("") }),
            ApiError::NotLeader(NotLeader { shard, hint: None }),
            ApiError::NoLeader(shard),
            ApiError::ShardMoved(shard),
            ApiError::Draining(text()),
            ApiError::LeadershipLost(shard),
            ApiError::Stopped,
            ApiError::Deadline,
            ApiError::Conflict(text()),
            ApiError::Locked(text()),
            ApiError::MemberExists(text()),
            ApiError::ChangeInProgress(text()),
            ApiError::Refused(text()),
            ApiError::UnknownShard(shard),
            ApiError::UnknownMember(text()),
            ApiError::Compacted(Compacted { message: text(), resume_key: Some("k".into()) }),
            ApiError::Overloaded(Overloaded { message: text(), retry_after: Duration::from_millis(20) }),
            ApiError::Quota(text()),
            ApiError::Checksum(text()),
            ApiError::RequestMismatch(text()),
            ApiError::RequestTooEarly(text()),
            ApiError::RequestSettled(text()),
            ApiError::SessionExpired(text()),
            ApiError::RequestStale(text()),
            ApiError::RequestTooOld(text()),
            ApiError::WindowOverflow(text()),
            ApiError::NotANumber(text()),
            ApiError::NumberOverflow(text()),
            ApiError::Expired,
        ]
    }

    #[test]
    fn every_error_survives_status_and_pipeline() {
        let mut reasons = std::collections::BTreeSet::new();
        for error in every_named() {
            reasons.insert(i32::from(error.reason()));
            assert_eq!(ApiError::from_status(&Status::from(error.clone())), error);
            assert_eq!(ApiError::from_pipeline(error.to_pipeline()), error);
        }
        let all = (1..).take_while(|raw| Reason::try_from(*raw).is_ok()).collect();
        assert_eq!(reasons, all, "each reason has an error");
    }

    #[test]
    fn the_table_is_the_documented_one() {
        let of = |error: &ApiError| (error.code(), error.outcome());
        let shard = ShardId::new(1);
        assert_eq!(of(&ApiError::NoLeader(shard)), (Code::Unavailable, Outcome::NotApplied));
        assert_eq!(of(&ApiError::LeadershipLost(shard)), (Code::Unavailable, Outcome::Unknown));
        assert_eq!(of(&ApiError::Deadline), (Code::DeadlineExceeded, Outcome::Unknown));
        assert_eq!(of(&ApiError::Checksum(String::new())), (Code::DataLoss, Outcome::Unknown));
        assert_eq!(of(&ApiError::Quota(String::new())), (Code::ResourceExhausted, Outcome::NotApplied));
        assert_eq!(of(&ApiError::Expired), (Code::DeadlineExceeded, Outcome::NotApplied));
        let stale = ApiError::RequestStale(String::new());
        assert_eq!(of(&stale), (Code::FailedPrecondition, Outcome::Unknown));
    }

    #[test]
    fn a_status_without_our_detail_is_unknown() {
        for status in [
            Status::unavailable("broken pipe"),
            Status::with_details(Code::Unavailable, "proxy", Bytes::from_static(b"\xff\xff")),
        ] {
            let error = ApiError::from_status(&status);
            assert_eq!((error.code(), error.outcome()), (Code::Unavailable, Outcome::Unknown));
        }
    }

    #[test]
    fn a_newer_reason_keeps_its_stated_outcome() {
        let detail = v1::ErrorDetail {
            reason: 9999,
            outcome: v1::Outcome::NotApplied.into(),
            message: "new".into(),
            ..v1::ErrorDetail::default()
        };
        let error = ApiError::from_pipeline(v1::PipelineError { code: 9, detail: Some(detail) });
        assert_eq!((error.code(), error.outcome()), (Code::FailedPrecondition, Outcome::NotApplied));
    }

    #[test]
    fn a_detail_that_contradicts_the_table_is_unknown() {
        let mut detail = ApiError::NoLeader(ShardId::new(1)).to_detail();
        detail.outcome = v1::Outcome::Unknown.into();
        let error = ApiError::from_pipeline(v1::PipelineError { code: 14, detail: Some(detail) });
        assert_eq!(error.outcome(), Outcome::Unknown);
    }
}
