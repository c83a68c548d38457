//! Requests with an id, on the wire: what an earlier attempt came to, why an attempt is refused, what is known of one.

use kv_proto::status::ApiError;
use kv_proto::{v1, validate};
use kv_state::gate::{Found, Recorded, RecordedResult, Refusal};
use kv_state::sessions::SessionRefusal;
use kv_state::{Answer, IncrementFailure};
use kv_types::{Request, Row, RowHead};

use crate::answer::{WriteReply, wire_row};
use crate::gateway::{Gateway, ShardHandle};
use crate::rows::PinnedRows;
use crate::waiter::WriteKind;

type Known = v1::get_outcome_reply::Result;

impl Gateway {
    /// The answer to a write that an earlier attempt has carried out.
    pub(crate) fn replay(
        &self,
        kind: WriteKind,
        mut header: v1::Header,
        recorded: &Recorded,
    ) -> Result<WriteReply, ApiError> {
        self.metrics.replayed.inc();
        mark(&mut header, recorded);
        let header = Some(header);
        Ok(match (kind, recorded.result) {
            (WriteKind::Settle, result) => WriteReply::Outcome(decided(header, &result)),
            (WriteKind::Put, RecordedResult::Written) => WriteReply::Put(v1::PutReply { header }),
            (WriteKind::Delete, RecordedResult::Deleted { count, .. }) => {
                WriteReply::Delete(v1::DeleteReply { header, deleted: count })
            }
            (WriteKind::DeleteRange { start, beyond }, RecordedResult::Deleted { count, more }) => {
                // What was deleted is gone, so whoever begins again finds the rest.
                let resume_key = if more { Some(start) } else { beyond };
                WriteReply::DeleteRange(v1::DeleteRangeReply { header, deleted: count, resume_key })
            }
            (WriteKind::CompareAndSet, RecordedResult::Written) => {
                WriteReply::CompareAndSet(v1::CompareAndSetReply {
                    header,
                    swapped: true,
                    ..v1::CompareAndSetReply::default()
                })
            }
            (WriteKind::CompareAndSet, RecordedResult::CompareFailed { found }) => {
                let current = found.map(|modified| {
                    let head = RowHead { modified, ..RowHead::default() };
                    wire_row(bytes::Bytes::new(), Row { head, value: bytes::Bytes::new() }, true)
                });
                let value_omitted = current.is_some();
                WriteReply::CompareAndSet(v1::CompareAndSetReply {
                    header,
                    swapped: false,
                    current,
                    value_omitted,
                })
            }
            (WriteKind::Increment, RecordedResult::Incremented { value }) => {
                WriteReply::Increment(v1::IncrementReply { header, value })
            }
            (WriteKind::Increment, RecordedResult::IncrementFailed(failure)) => {
                return Err(not_incremented(failure));
            }
            // Contents are compared by their hashes, and those of transactions are made another way: two may be equal.
            (kind, other) => {
                let text =
                    format!("the request was another one: a {kind:?} was asked for, {other:?} is recorded");
                return Err(ApiError::RequestMismatch(text));
            }
        })
    }

    /// What a replica knows of a request.
    pub(crate) fn outcome(
        &self,
        shard: &ShardHandle,
        request: &Request,
    ) -> Result<v1::GetOutcomeReply, ApiError> {
        let pin = shard.pin()?;
        let found = kv_state::gate::outcome(&PinnedRows(&pin), request);
        let found = found.map_err(|cause| ApiError::Checksum(cause.to_string()))?;
        let mut header = self.read_header(shard, pin.index(), false);
        Ok(match found {
            Found::Decided(recorded) => {
                mark(&mut header, &recorded);
                decided(Some(header), &recorded.result)
            }
            Found::Settled => state(header, v1::RequestState::Settled),
            Found::NotSeen => state(header, v1::RequestState::NotSeen),
            Found::NoLongerKnown => state(header, v1::RequestState::NoLongerKnown),
        })
    }
}

/// Revision and stamp are those of the attempt that was carried out.
fn mark(header: &mut v1::Header, recorded: &Recorded) {
    header.revision = recorded.revision.get();
    header.lamport = Some(validate::lamport_to_wire(recorded.stamp));
    header.replayed = true;
}

fn state(header: v1::Header, state: v1::RequestState) -> v1::GetOutcomeReply {
    v1::GetOutcomeReply { header: Some(header), state: state.into(), result: None }
}

fn decided(header: Option<v1::Header>, result: &RecordedResult) -> v1::GetOutcomeReply {
    let result = match result {
        RecordedResult::Written => Known::Written(true),
        RecordedResult::Deleted { count, .. } => Known::Deleted(*count),
        RecordedResult::CompareFailed { .. } => Known::CompareFailed(true),
        RecordedResult::Incremented { value } => Known::Incremented(*value),
        RecordedResult::TxnCommitted => Known::Committed(true),
        RecordedResult::TxnAborted => Known::Committed(false),
        RecordedResult::IncrementFailed(failure) => {
            Known::NotIncremented(not_incremented(*failure).reason().into())
        }
    };
    v1::GetOutcomeReply { header, state: v1::RequestState::Decided.into(), result: Some(result) }
}

/// The answer to a settling that found no record.
pub(crate) fn settled(header: v1::Header, answer: Answer) -> Result<WriteReply, ApiError> {
    match answer {
        Answer::Settled => Ok(WriteReply::Outcome(state(header, v1::RequestState::Settled))),
        Answer::Refused(Refusal::Stale { .. } | Refusal::SessionExpired { .. } | Refusal::TooOld { .. }) => {
            Ok(WriteReply::Outcome(state(header, v1::RequestState::NoLongerKnown)))
        }
        Answer::Refused(refusal) => Err(refused(&refusal)),
        other => unreachable!("a settling is answered {other:?}"),
    }
}

/// Why an increment added nothing: the same however often it is tried.
pub(crate) fn not_incremented(failure: IncrementFailure) -> ApiError {
    match failure {
        IncrementFailure::NotANumber => ApiError::NotANumber(failure.to_string()),
        IncrementFailure::Overflow => ApiError::NumberOverflow(failure.to_string()),
    }
}

/// Why an attempt was refused.
pub(crate) fn refused(refusal: &Refusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        Refusal::Mismatch => ApiError::RequestMismatch(text),
        Refusal::SessionExpired { .. } => ApiError::SessionExpired(text),
        Refusal::Stale { .. } => ApiError::RequestStale(text),
        Refusal::WindowOverflow { .. } => ApiError::WindowOverflow(text),
        Refusal::TooOld { .. } => ApiError::RequestTooOld(text),
        Refusal::TooEarly { .. } => ApiError::RequestTooEarly(text),
        Refusal::Locked { .. } => ApiError::Locked(text),
        Refusal::Settled => ApiError::RequestSettled(text),
    }
}

/// Why sessions were not changed.
pub(crate) fn session_refused(refusal: &SessionRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        SessionRefusal::Closed(_) => ApiError::Refused(text),
        SessionRefusal::TooMany => ApiError::Quota(text),
        SessionRefusal::TtlOutOfRange => ApiError::Invalid(text),
    }
}
