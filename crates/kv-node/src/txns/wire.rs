//! Steps of transactions between nodes.

use bytes::Bytes;
use kv_proto::status::{ApiError, Foreign};
use kv_proto::v1;
use kv_state::txn::{Known, TxnAnswer, TxnCommand};
use kv_state::{Command, Opened};
use kv_txn::Named;
use kv_types::{Fingerprint, Outcome, Revision, SessionId, TxnId};
use tonic::Code;

/// What another node asks for.
pub(crate) enum Asked {
    /// That this is replicated, given also as it is encoded.
    Step(Command, Bytes),
    /// What is known of a transaction.
    Known(Named),
}

impl Asked {
    /// What kind of step it is, for the answer.
    pub(crate) fn kind(&self) -> v1::StepKind {
        match self {
            Self::Known(_) => v1::StepKind::Known,
            Self::Step(Command::Txn(step), _) => match step {
                TxnCommand::Prepare { .. } => v1::StepKind::Prepare,
                TxnCommand::Resolve { .. } => v1::StepKind::Resolve,
                TxnCommand::Commit { .. } | TxnCommand::Abort { .. } | TxnCommand::Fence { .. } => {
                    v1::StepKind::Decide
                }
                TxnCommand::Forget { .. } => v1::StepKind::Unspecified,
            },
            Self::Step(..) => v1::StepKind::Unspecified,
        }
    }
}

/// Reads what another node asks for.
pub(crate) fn read(step: &v1::StepTxn) -> Result<Asked, ApiError> {
    match &step.ask {
        None => Err(ApiError::Invalid("nothing is asked".to_owned())),
        Some(v1::step_txn::Ask::Known(name)) => Ok(Asked::Known(name_from_wire(name)?)),
        Some(v1::step_txn::Ask::Step(step)) => {
            let opened = Opened::decode(step.clone());
            let opened = opened.map_err(|cause| ApiError::Invalid(cause.to_string()))?;
            Ok(Asked::Step(opened.into_command(), step.clone()))
        }
    }
}

/// What an answer comes to that makes no sense: the step may have been taken.
pub(crate) fn meaningless(what: &str) -> ApiError {
    let message = format!("{what}: is the other node of a newer version?");
    ApiError::Foreign(Foreign { code: Code::Internal, outcome: Outcome::Unknown, message })
}

/// An answer for another node.
pub(crate) fn answer_to_wire(answer: TxnAnswer) -> v1::StepTxnOutcome {
    let (answer, key, found) = match answer {
        TxnAnswer::Prepared => (v1::TxnAnswer::Prepared, None, None),
        TxnAnswer::Conflict { key, found } => (v1::TxnAnswer::Conflict, Some(key), found),
        TxnAnswer::Committed | TxnAnswer::Decided { committed: true } => {
            (v1::TxnAnswer::Committed, None, None)
        }
        TxnAnswer::Aborted { .. } | TxnAnswer::Decided { committed: false } => {
            (v1::TxnAnswer::Aborted, None, None)
        }
        TxnAnswer::Absent => (v1::TxnAnswer::Absent, None, None),
        TxnAnswer::Resolved => (v1::TxnAnswer::Resolved, None, None),
        TxnAnswer::Forgotten => (v1::TxnAnswer::Forgotten, None, None),
    };
    v1::StepTxnOutcome {
        answer: answer.into(),
        key: key.unwrap_or_default(),
        found: found.map_or(0, Revision::get),
    }
}

/// What another node has answered to a step.
pub(crate) fn answer_to(step: &Command, wire: v1::StepTxnOutcome) -> Result<TxnAnswer, ApiError> {
    let answer = answer_from_wire(wire)?;
    let fits = match step {
        Command::Txn(TxnCommand::Commit { .. } | TxnCommand::Abort { .. }) => {
            matches!(answer, TxnAnswer::Decided { .. })
        }
        Command::Txn(TxnCommand::Fence { .. }) => {
            matches!(answer, TxnAnswer::Decided { .. } | TxnAnswer::Absent)
        }
        // Of the others whoever asks looks for one answer, and takes any other for none.
        _ => true,
    };
    if fits { Ok(answer) } else { Err(meaningless(&format!("{answer:?} in answer to a decision"))) }
}

fn answer_from_wire(wire: v1::StepTxnOutcome) -> Result<TxnAnswer, ApiError> {
    Ok(match wire.answer() {
        v1::TxnAnswer::Unspecified => {
            return Err(meaningless("an answer without a name"));
        }
        v1::TxnAnswer::Prepared => TxnAnswer::Prepared,
        v1::TxnAnswer::Conflict => {
            let found = (wire.found > 0).then(|| Revision::new(wire.found));
            TxnAnswer::Conflict { key: wire.key, found }
        }
        v1::TxnAnswer::Committed => TxnAnswer::Decided { committed: true },
        v1::TxnAnswer::Aborted => TxnAnswer::Decided { committed: false },
        v1::TxnAnswer::Absent => TxnAnswer::Absent,
        v1::TxnAnswer::Resolved => TxnAnswer::Resolved,
        v1::TxnAnswer::Forgotten => TxnAnswer::Forgotten,
    })
}

pub(crate) fn known_to_wire(known: Known) -> v1::StepTxnOutcome {
    let answer = match known {
        Known::Committed => v1::TxnAnswer::Committed,
        Known::Aborted => v1::TxnAnswer::Aborted,
        Known::Absent => v1::TxnAnswer::Absent,
    };
    v1::StepTxnOutcome { answer: answer.into(), key: Bytes::new(), found: 0 }
}

pub(crate) fn known_from_wire(wire: &v1::StepTxnOutcome) -> Result<Known, ApiError> {
    match wire.answer() {
        v1::TxnAnswer::Committed => Ok(Known::Committed),
        v1::TxnAnswer::Aborted => Ok(Known::Aborted),
        v1::TxnAnswer::Absent => Ok(Known::Absent),
        other => Err(meaningless(&format!("{} is no knowledge of a transaction", other.as_str_name()))),
    }
}

pub(crate) fn name_to_wire(Named { txn, fingerprint }: Named) -> v1::TxnName {
    let content = Bytes::copy_from_slice(&fingerprint.get().to_be_bytes());
    v1::TxnName { session: txn.session.get(), seq: txn.seq, content }
}

pub(crate) fn name_from_wire(wire: &v1::TxnName) -> Result<Named, ApiError> {
    let content = <[u8; 16]>::try_from(&wire.content[..]);
    let content = content.map_err(|_| ApiError::Invalid("a fingerprint has 16 bytes".to_owned()))?;
    Ok(Named {
        txn: TxnId { session: SessionId::new(wire.session), seq: wire.seq },
        fingerprint: Fingerprint::from_raw(u128::from_be_bytes(content)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_fit_the_question_is_an_error() {
        let (txn, fingerprint) = (TxnId { session: SessionId::new(5), seq: 17 }, Fingerprint::from_raw(1));
        let abort = Command::Txn(TxnCommand::Abort { fingerprint });
        let fence = Command::Txn(TxnCommand::Fence { txn, fingerprint, first_incomplete: 17 });
        let answered = |step: &Command, answer: v1::TxnAnswer| {
            answer_to(step, v1::StepTxnOutcome { answer: answer.into(), key: Bytes::new(), found: 0 })
        };
        for step in [&abort, &fence] {
            assert_eq!(answered(step, v1::TxnAnswer::Committed), Ok(TxnAnswer::Decided { committed: true }));
            assert_eq!(answered(step, v1::TxnAnswer::Aborted), Ok(TxnAnswer::Decided { committed: false }));
            for other in [
                v1::TxnAnswer::Unspecified,
                v1::TxnAnswer::Prepared,
                v1::TxnAnswer::Conflict,
                v1::TxnAnswer::Resolved,
                v1::TxnAnswer::Forgotten,
            ] {
                assert_eq!(answered(step, other).unwrap_err().outcome(), Outcome::Unknown, "{other:?}");
            }
        }
        assert_eq!(answered(&fence, v1::TxnAnswer::Absent), Ok(TxnAnswer::Absent));
        assert!(answered(&abort, v1::TxnAnswer::Absent).is_err());
    }
}
