//! What is kept of a request: its outcome, and which content it had.
//!
//! Layout: version (1 byte, 2), number in the session (u64, 0 without one), fingerprint (u128), tag (1 byte), result. Revision and stamp are those of the row's own
//! head. No value of a user is in it, so it is small whatever the request was about.

use bytes::{Buf, BufMut, Bytes};
use kv_types::limits::RECORD_RESULT_BYTES_MAX;
use kv_types::{Fingerprint, Lamport, Revision, Row};

use crate::apply::Answer;
use crate::codec::{DecodeError, end, take_flag, take_u8, take_u64, take_u128};
use crate::increment::IncrementFailure;
use crate::txn::TxnAnswer;

const VERSION: u8 = 2;

const SETTLED: u8 = 0;
const WRITTEN: u8 = 1;
const DELETED: u8 = 2;
const COMPARE_FAILED: u8 = 3;
const INCREMENTED: u8 = 4;
const INCREMENT_FAILED: u8 = 5;
const TXN_COMMITTED: u8 = 6;
const TXN_ABORTED: u8 = 7;
const FENCED: u8 = 8;

const NOT_A_NUMBER: u8 = 0;
const OVERFLOW: u8 = 1;

/// The longest: a tag-sized flag and a number.
const RESULT_BYTES_MAX: usize = 9;

const ENCODED_BYTES_MAX: usize = 26 + RESULT_BYTES_MAX;

/// A record as it is stored: small, so that it needs no memory of its own.
pub(crate) struct Encoded {
    bytes: [u8; ENCODED_BYTES_MAX],
    len: usize,
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The outcome of a request, as it was when it was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// The revision of the entry that decided it: that of the write, if it was one.
    pub revision: Revision,
    /// The stamp of that entry.
    pub stamp: Lamport,
    /// What it came to.
    pub result: RecordedResult,
}

/// What a request came to: the answer of its first attempt, without what would make a record large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordedResult {
    /// The value was written.
    Written,
    /// Keys were removed.
    Deleted {
        /// How many.
        count: u64,
        /// Whether keys were left in the range. Where they began is not kept: the rest is found from its start.
        more: bool,
    },
    /// The key was not as expected; nothing was written.
    CompareFailed {
        /// The revision of what the key was instead; `None` if it was absent.
        found: Option<Revision>,
    },
    /// The number was written.
    Incremented {
        /// The sum.
        value: i64,
    },
    /// Nothing was added.
    IncrementFailed(IncrementFailure),
    /// The transaction is committed.
    TxnCommitted,
    /// The transaction is aborted, and never will be committed.
    TxnAborted,
}

impl RecordedResult {
    /// What is kept of an answer; `None` if it is not the outcome of a request.
    pub fn of(answer: &Answer) -> Option<Self> {
        match answer {
            Answer::Written => Some(Self::Written),
            Answer::Deleted { count, resume } => {
                Some(Self::Deleted { count: *count, more: resume.is_some() })
            }
            Answer::CompareFailed { found } => {
                Some(Self::CompareFailed { found: found.as_ref().map(|row| row.head.modified) })
            }
            Answer::Incremented { value } => Some(Self::Incremented { value: *value }),
            Answer::IncrementFailed(failure) => Some(Self::IncrementFailed(*failure)),
            Answer::Txn(TxnAnswer::Committed) => Some(Self::TxnCommitted),
            Answer::Txn(TxnAnswer::Aborted { .. }) => Some(Self::TxnAborted),
            Answer::Txn(_)
            | Answer::Replayed(_)
            | Answer::Refused(_)
            | Answer::Settled
            | Answer::Cluster(_)
            | Answer::Session(_)
            | Answer::SessionsCollected { .. }
            | Answer::Ticked { .. } => None,
        }
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// The request was settled before it arrived; what it was about is not known.
    Settled,
    /// Whoever waited for its transaction has seen to it that it is not committed. Its client is told so only by a request
    /// that passes the gate: before, it may as well be that everything of it is forgotten.
    Fenced,
    /// The request was decided.
    Decided {
        /// What it was about.
        fingerprint: Fingerprint,
        /// What it came to.
        result: RecordedResult,
    },
}

impl Record {
    /// The record of the request with that number in its session; without one, 0.
    pub(crate) fn encode(&self, seq: u64) -> Encoded {
        let (fingerprint, result) = match self {
            Self::Settled | Self::Fenced => (0, None),
            Self::Decided { fingerprint, result } => (fingerprint.get(), Some(result)),
        };
        let mut bytes = [0; ENCODED_BYTES_MAX];
        let mut out = &mut bytes[..];
        out.put_u8(VERSION);
        out.put_u64_le(seq);
        out.put_u128_le(fingerprint);
        match result {
            None => out.put_u8(if *self == Self::Fenced { FENCED } else { SETTLED }),
            Some(RecordedResult::Written) => out.put_u8(WRITTEN),
            Some(RecordedResult::Deleted { count, more }) => {
                out.put_u8(DELETED);
                out.put_u64_le(*count);
                out.put_u8(u8::from(*more));
            }
            Some(RecordedResult::CompareFailed { found }) => {
                out.put_u8(COMPARE_FAILED);
                out.put_u8(u8::from(found.is_some()));
                out.put_u64_le(found.unwrap_or_default().get());
            }
            Some(RecordedResult::Incremented { value }) => {
                out.put_u8(INCREMENTED);
                out.put_i64_le(*value);
            }
            Some(RecordedResult::TxnCommitted) => out.put_u8(TXN_COMMITTED),
            Some(RecordedResult::TxnAborted) => out.put_u8(TXN_ABORTED),
            Some(RecordedResult::IncrementFailed(failure)) => {
                out.put_u8(INCREMENT_FAILED);
                out.put_u8(match failure {
                    IncrementFailure::NotANumber => NOT_A_NUMBER,
                    IncrementFailure::Overflow => OVERFLOW,
                });
            }
        }
        let left = out.len();
        Encoded { bytes, len: ENCODED_BYTES_MAX - left }
    }

    /// A record, and the number of its request.
    pub(crate) fn decode(bytes: &Bytes) -> Result<(u64, Self), DecodeError> {
        let input = &mut bytes.clone();
        match take_u8(input)? {
            VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let seq = take_u64(input)?;
        let fingerprint = Fingerprint::from_raw(take_u128(input)?);
        let tag = take_u8(input)?;
        let result = match tag {
            SETTLED | FENCED => None,
            TXN_COMMITTED => Some(RecordedResult::TxnCommitted),
            TXN_ABORTED => Some(RecordedResult::TxnAborted),
            WRITTEN => Some(RecordedResult::Written),
            DELETED => Some(RecordedResult::Deleted { count: take_u64(input)?, more: take_flag(input)? }),
            COMPARE_FAILED => {
                let present = take_flag(input)?;
                let found = Revision::new(take_u64(input)?);
                Some(RecordedResult::CompareFailed { found: present.then_some(found) })
            }
            INCREMENTED => Some(RecordedResult::Incremented {
                value: input.try_get_i64_le().map_err(|_| DecodeError::Truncated)?,
            }),
            INCREMENT_FAILED => Some(RecordedResult::IncrementFailed(match take_u8(input)? {
                NOT_A_NUMBER => IncrementFailure::NotANumber,
                OVERFLOW => IncrementFailure::Overflow,
                tag => return Err(DecodeError::Tag { field: "increment failure", tag }),
            })),
            tag => return Err(DecodeError::Tag { field: "record", tag }),
        };
        end(input)?;
        let undecided = if tag == FENCED { Self::Fenced } else { Self::Settled };
        Ok((seq, result.map_or(undecided, |result| Self::Decided { fingerprint, result })))
    }

    /// The outcome, with revision and stamp from the record's row.
    pub(crate) fn recorded(row: &Row, result: RecordedResult) -> Recorded {
        Recorded { revision: row.head.modified, stamp: row.head.stamp, result }
    }
}

const _: () = assert!(RESULT_BYTES_MAX <= RECORD_RESULT_BYTES_MAX, "a record stays small");

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn result() -> impl Strategy<Value = RecordedResult> {
        prop_oneof![
            Just(RecordedResult::Written),
            (any::<u64>(), any::<bool>()).prop_map(|(count, more)| RecordedResult::Deleted { count, more }),
            prop::option::of(any::<u64>())
                .prop_map(|raw| RecordedResult::CompareFailed { found: raw.map(Revision::new) }),
            any::<i64>().prop_map(|value| RecordedResult::Incremented { value }),
            Just(RecordedResult::IncrementFailed(IncrementFailure::NotANumber)),
            Just(RecordedResult::IncrementFailed(IncrementFailure::Overflow)),
            Just(RecordedResult::TxnCommitted),
            Just(RecordedResult::TxnAborted),
        ]
    }

    fn record() -> impl Strategy<Value = Record> {
        prop_oneof![
            Just(Record::Settled),
            Just(Record::Fenced),
            (any::<u128>(), result()).prop_map(|(raw, result)| Record::Decided {
                fingerprint: Fingerprint::from_raw(raw),
                result
            }),
        ]
    }

    proptest! {
        #[test]
        fn records_round_trip_stay_small_and_every_truncation_is_refused(record in record(), seq in any::<u64>()) {
            let bytes = Bytes::copy_from_slice(&record.encode(seq));
            prop_assert_eq!(Record::decode(&bytes), Ok((seq, record)));
            for len in 0..bytes.len() {
                prop_assert!(Record::decode(&bytes.slice(..len)).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Record::decode(&Bytes::from(bytes));
        }
    }
}
