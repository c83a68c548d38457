//! Commands as bytes.
//!
//! Layout: version (1 byte, 1), tag (1 byte), fields in order. Numbers are little endian; a byte string is its length
//! (u32) and its bytes. Tags are never reused; a new shape is a new tag. A change of this layout is an ADR. What one
//! command looks like never changes either: the fingerprint of a request is that of these bytes, and a retry may be
//! encoded by another build than the first attempt.
//!
//! Version 2 is an envelope around a command; see [`crate::envelope`].

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kv_types::{ClusterTime, Key, KeyError, KeyRange, RangeError, Revision, SessionId, Value, ValueError};

use crate::cluster::ClusterCommand;
use crate::command::{Command, Expect};
use crate::sessions::{SessionBatch, SessionCommand};
use crate::txn::TxnCommand;

pub(crate) const VERSION: u8 = 1;

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_RANGE: u8 = 3;
const COMPARE_AND_SET: u8 = 4;
const CLUSTER: u8 = 5;
const INCREMENT: u8 = 6;
const SETTLE: u8 = 7;
const SESSION: u8 = 8;
const GC_SESSIONS: u8 = 9;
const TICK: u8 = 10;
const TRIM_SESSIONS: u8 = 11;
const TXN: u8 = 12;

const EXPECT_ABSENT: u8 = 0;
const EXPECT_VALUE: u8 = 1;
const EXPECT_REVISION: u8 = 2;

const END_OPEN: u8 = 0;
const END_KEY: u8 = 1;

/// Why bytes are no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than the layout needs.
    #[error("the command ends early")]
    Truncated,
    /// Bytes follow the last field.
    #[error("{0} bytes follow the command")]
    Trailing(usize),
    /// Written by a newer build.
    #[error("command version {0} is unknown to this build")]
    Version(u8),
    /// Written by a newer build.
    #[error("{field} tag {tag} is unknown to this build")]
    Tag {
        /// The field.
        field: &'static str,
        /// Its tag.
        tag: u8,
    },
    /// A key outside its limits.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A value outside its limit.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// Bounds that are no range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// A field that no correct node writes.
    #[error("{0} makes no sense")]
    Field(&'static str),
}

impl Command {
    /// The command as bytes, in one allocation.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.encoded_len());
        self.put(&mut out);
        out.freeze()
    }

    pub(crate) fn put(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        match self {
            Self::Put { key, value } => {
                out.put_u8(PUT);
                put_bytes(out, key.as_ref());
                put_bytes(out, value.as_ref());
            }
            Self::Delete { key } => {
                out.put_u8(DELETE);
                put_bytes(out, key.as_ref());
            }
            Self::DeleteRange { range } => {
                out.put_u8(DELETE_RANGE);
                put_range(out, range);
            }
            Self::CompareAndSet { key, expect, value } => {
                out.put_u8(COMPARE_AND_SET);
                put_bytes(out, key.as_ref());
                put_expect(out, expect);
                put_bytes(out, value.as_ref());
            }
            Self::Cluster(command) => {
                out.put_u8(CLUSTER);
                command.put(out);
            }
            Self::Increment { key, delta } => {
                out.put_u8(INCREMENT);
                put_bytes(out, key.as_ref());
                out.put_i64_le(*delta);
            }
            Self::Settle => out.put_u8(SETTLE),
            Self::Session(command) => {
                out.put_u8(SESSION);
                command.put(out);
            }
            Self::GcSessions { sessions, until } => {
                out.put_u8(GC_SESSIONS);
                put_sessions(out, sessions);
                out.put_u64_le(until.ms());
            }
            Self::TrimSessions { sessions } => {
                out.put_u8(TRIM_SESSIONS);
                put_sessions(out, sessions);
            }
            Self::Txn(command) => {
                out.put_u8(TXN);
                command.put(out);
            }
            Self::Tick => out.put_u8(TICK),
        }
    }

    /// Reads a command; keys and values share the memory of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; no input panics.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes;
        match take_u8(input)? {
            VERSION => {}
            version => return Err(DecodeError::Version(version)),
        }
        let command = match take_u8(input)? {
            PUT => Self::Put { key: take_key(input)?, value: Value::new(take_bytes(input)?)? },
            DELETE => Self::Delete { key: take_key(input)? },
            DELETE_RANGE => Self::DeleteRange { range: take_range(input)? },
            COMPARE_AND_SET => Self::CompareAndSet {
                key: take_key(input)?,
                expect: take_expect(input)?,
                value: Value::new(take_bytes(input)?)?,
            },
            CLUSTER => Self::Cluster(ClusterCommand::take(input)?),
            INCREMENT => Self::Increment { key: take_key(input)?, delta: take_u64(input)?.cast_signed() },
            SETTLE => Self::Settle,
            SESSION => Self::Session(SessionCommand::take(input)?),
            GC_SESSIONS => Self::GcSessions { sessions: take_sessions(input)?, until: take_time(input)? },
            TICK => Self::Tick,
            TXN => Self::Txn(TxnCommand::take(input)?),
            TRIM_SESSIONS => Self::TrimSessions { sessions: take_sessions(input)? },
            tag => return Err(DecodeError::Tag { field: "command", tag }),
        };
        end(input)?;
        Ok(command)
    }

    pub(crate) fn encoded_len(&self) -> usize {
        let fields = match self {
            Self::Put { key, value } => 8 + key.as_ref().len() + value.as_ref().len(),
            Self::Delete { key } => 4 + key.as_ref().len(),
            Self::DeleteRange { range } => {
                5 + range.start().len() + range.end().map_or(0, |end| 4 + end.len())
            }
            Self::CompareAndSet { key, expect, value } => {
                let expected = match expect {
                    Expect::Absent => 0,
                    Expect::Value(value) => 4 + value.as_ref().len(),
                    Expect::Revision(_) => 8,
                };
                9 + key.as_ref().len() + expected + value.as_ref().len()
            }
            Self::Increment { key, .. } => 12 + key.as_ref().len(),
            Self::Settle | Self::Tick => 0,
            Self::GcSessions { sessions, .. } => 12 + 8 * sessions.len(),
            Self::TrimSessions { sessions } => 4 + 8 * sessions.len(),
            // Rare, so measured by doing it.
            Self::Cluster(command) => written(|out| command.put(out)),
            Self::Session(command) => written(|out| command.put(out)),
            Self::Txn(command) => command.room(),
        };
        2 + fields
    }
}

fn written(put: impl FnOnce(&mut BytesMut)) -> usize {
    let mut out = BytesMut::new();
    put(&mut out);
    out.len()
}

pub(crate) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).expect("keys and values are far below 4 GiB"));
    out.put_slice(bytes);
}

pub(crate) fn put_range(out: &mut BytesMut, range: &KeyRange) {
    put_bytes(out, range.start());
    match range.end() {
        None => out.put_u8(END_OPEN),
        Some(end) => {
            out.put_u8(END_KEY);
            put_bytes(out, end);
        }
    }
}

pub(crate) fn take_range(input: &mut Bytes) -> Result<KeyRange, DecodeError> {
    let start = take_bytes(input)?;
    let end = match take_u8(input)? {
        END_OPEN => None,
        END_KEY => Some(take_bytes(input)?),
        tag => return Err(DecodeError::Tag { field: "range end", tag }),
    };
    Ok(KeyRange::new(start, end)?)
}

/// A number in as few bytes as it needs.
pub(crate) fn put_varint(out: &mut BytesMut, number: u64) {
    out.put_slice(unsigned_varint::encode::u64(number, &mut unsigned_varint::encode::u64_buffer()));
}

pub(crate) fn take_varint(input: &mut Bytes) -> Result<u64, DecodeError> {
    let (number, rest) = unsigned_varint::decode::u64(input).map_err(|cause| match cause {
        unsigned_varint::decode::Error::Insufficient => DecodeError::Truncated,
        _ => DecodeError::Field("a number"),
    })?;
    let taken = input.len() - rest.len();
    input.advance(taken);
    Ok(number)
}

pub(crate) fn take_u32(input: &mut Bytes) -> Result<u32, DecodeError> {
    input.try_get_u32_le().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn take_u64(input: &mut Bytes) -> Result<u64, DecodeError> {
    input.try_get_u64_le().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn take_u128(input: &mut Bytes) -> Result<u128, DecodeError> {
    input.try_get_u128_le().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn take_time(input: &mut Bytes) -> Result<ClusterTime, DecodeError> {
    ClusterTime::from_ms(take_u64(input)?).ok_or(DecodeError::Field("a cluster time"))
}

pub(crate) fn put_sessions(out: &mut BytesMut, sessions: &SessionBatch) {
    out.put_u32_le(u32::try_from(sessions.len()).expect("a batch is small"));
    for session in sessions.iter() {
        out.put_u64_le(session.get());
    }
}

pub(crate) fn take_sessions(input: &mut Bytes) -> Result<SessionBatch, DecodeError> {
    let count = take_u32(input)?;
    let mut sessions = Vec::new();
    for _ in 0..count {
        let session = SessionId::new(take_u64(input)?);
        if sessions.last().is_some_and(|last| *last >= session) {
            return Err(DecodeError::Field("sessions out of order"));
        }
        sessions.push(session);
    }
    SessionBatch::new(sessions).map_err(|_| DecodeError::Field("the number of sessions"))
}

/// Nothing may follow.
pub(crate) fn end(input: &Bytes) -> Result<(), DecodeError> {
    if input.has_remaining() { Err(DecodeError::Trailing(input.remaining())) } else { Ok(()) }
}

fn put_expect(out: &mut BytesMut, expect: &Expect) {
    match expect {
        Expect::Absent => out.put_u8(EXPECT_ABSENT),
        Expect::Value(value) => {
            out.put_u8(EXPECT_VALUE);
            put_bytes(out, value.as_ref());
        }
        Expect::Revision(revision) => {
            out.put_u8(EXPECT_REVISION);
            out.put_u64_le(revision.get());
        }
    }
}

pub(crate) fn take_u8(input: &mut Bytes) -> Result<u8, DecodeError> {
    input.try_get_u8().map_err(|_| DecodeError::Truncated)
}

pub(crate) fn take_flag(input: &mut Bytes) -> Result<bool, DecodeError> {
    match take_u8(input)? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(DecodeError::Tag { field: "flag", tag }),
    }
}

pub(crate) fn take_bytes(input: &mut Bytes) -> Result<Bytes, DecodeError> {
    let len = take_u32(input)? as usize;
    if input.len() < len { Err(DecodeError::Truncated) } else { Ok(input.split_to(len)) }
}

pub(crate) fn take_key(input: &mut Bytes) -> Result<Key, DecodeError> {
    Ok(Key::new(take_bytes(input)?)?)
}

fn take_expect(input: &mut Bytes) -> Result<Expect, DecodeError> {
    match take_u8(input)? {
        EXPECT_ABSENT => Ok(Expect::Absent),
        EXPECT_VALUE => Ok(Expect::Value(Value::new(take_bytes(input)?)?)),
        EXPECT_REVISION => Ok(Expect::Revision(Revision::new(take_u64(input)?))),
        tag => Err(DecodeError::Tag { field: "expect", tag }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| Key::new(bytes).unwrap())
    }

    fn value() -> impl Strategy<Value = Value> {
        prop::collection::vec(any::<u8>(), 0..40).prop_map(|bytes| Value::new(bytes).unwrap())
    }

    fn range() -> impl Strategy<Value = KeyRange> {
        (prop::collection::vec(any::<u8>(), 0..9), prop::option::of(prop::collection::vec(any::<u8>(), 0..9)))
            .prop_filter_map("an empty range", |(start, end)| KeyRange::new(start, end.map(Bytes::from)).ok())
    }

    fn expect() -> impl Strategy<Value = Expect> {
        prop_oneof![
            Just(Expect::Absent),
            value().prop_map(Expect::Value),
            any::<u64>().prop_map(|raw| Expect::Revision(Revision::new(raw))),
        ]
    }

    fn command() -> impl Strategy<Value = Command> {
        prop_oneof![
            (key(), value()).prop_map(|(key, value)| Command::Put { key, value }),
            key().prop_map(|key| Command::Delete { key }),
            range().prop_map(|range| Command::DeleteRange { range }),
            (key(), expect(), value()).prop_map(|(key, expect, value)| Command::CompareAndSet {
                key,
                expect,
                value
            }),
            (key(), any::<i64>()).prop_map(|(key, delta)| Command::Increment { key, delta }),
            Just(Command::Settle),
            Just(Command::Tick),
            session_command().prop_map(Command::Session),
            (batch(), time()).prop_map(|(sessions, until)| Command::GcSessions { sessions, until }),
            batch().prop_map(|sessions| Command::TrimSessions { sessions }),
        ]
    }

    fn batch() -> impl Strategy<Value = SessionBatch> {
        prop::collection::btree_set(any::<u64>().prop_map(SessionId::new), 0..5)
            .prop_map(|sessions| SessionBatch::new(sessions).unwrap())
    }

    fn time() -> impl Strategy<Value = ClusterTime> {
        (0..=ClusterTime::MAX.ms()).prop_map(|ms| ClusterTime::from_ms(ms).unwrap())
    }

    fn session_command() -> impl Strategy<Value = SessionCommand> {
        prop_oneof![
            (any::<u128>(), any::<u64>()).prop_map(|(nonce, ms)| SessionCommand::Open {
                nonce,
                ttl: std::time::Duration::from_millis(ms)
            }),
            batch().prop_map(|sessions| SessionCommand::Renew { sessions }),
            any::<u64>().prop_map(|raw| SessionCommand::Close { session: SessionId::new(raw) }),
            batch().prop_map(|sessions| SessionCommand::Expire { sessions }),
        ]
    }

    proptest! {
        #[test]
        fn round_trip_is_exact_and_sized(command in command()) {
            let bytes = command.encode();
            prop_assert_eq!(bytes.len(), command.encoded_len());
            prop_assert_eq!(Command::decode(bytes), Ok(command));
        }

        #[test]
        fn every_truncation_and_every_tail_is_refused(command in command()) {
            let bytes = command.encode();
            for len in 0..bytes.len() {
                prop_assert!(Command::decode(bytes.slice(..len)).is_err());
            }
            let mut longer = BytesMut::from(&bytes[..]);
            longer.put_u8(0);
            prop_assert_eq!(Command::decode(longer.freeze()), Err(DecodeError::Trailing(1)));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Command::decode(Bytes::from(bytes));
        }
    }

    #[test]
    fn the_bytes_of_a_command_never_change() {
        let (key, value) = (|| Key::new("k").unwrap(), || Value::new("v").unwrap());
        let golden: [(Command, &[u8]); 10] = [
            (Command::Put { key: key(), value: value() }, b"\x01\x01\x01\0\0\0k\x01\0\0\0v"),
            (Command::Delete { key: key() }, b"\x01\x02\x01\0\0\0k"),
            (
                Command::DeleteRange { range: KeyRange::new("a", Some("b".into())).unwrap() },
                b"\x01\x03\x01\0\0\0a\x01\x01\0\0\0b",
            ),
            (
                Command::CompareAndSet { key: key(), expect: Expect::Absent, value: value() },
                b"\x01\x04\x01\0\0\0k\0\x01\0\0\0v",
            ),
            (
                Command::Increment { key: key(), delta: -2 },
                b"\x01\x06\x01\0\0\0k\xfe\xff\xff\xff\xff\xff\xff\xff",
            ),
            (Command::Settle, b"\x01\x07"),
            (
                Command::Session(SessionCommand::Close { session: SessionId::new(9) }),
                b"\x01\x08\x03\x09\0\0\0\0\0\0\0",
            ),
            (
                Command::GcSessions {
                    sessions: SessionBatch::new([SessionId::new(9)]).unwrap(),
                    until: ClusterTime::from_ms(5).unwrap(),
                },
                b"\x01\x09\x01\0\0\0\x09\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0",
            ),
            (Command::Tick, b"\x01\x0a"),
            (
                Command::TrimSessions { sessions: SessionBatch::new([SessionId::new(9)]).unwrap() },
                b"\x01\x0b\x01\0\0\0\x09\0\0\0\0\0\0\0",
            ),
        ];
        for (command, bytes) in golden {
            assert_eq!(command.encode(), bytes, "{command:?}");
            assert_eq!(Command::decode(Bytes::from_static(bytes)), Ok(command));
        }
    }

    #[test]
    fn a_newer_build_is_named() {
        assert_eq!(Command::decode(Bytes::from_static(&[9, 1])), Err(DecodeError::Version(9)));
        let unknown = DecodeError::Tag { field: "command", tag: 99 };
        assert_eq!(Command::decode(Bytes::from_static(&[1, 99])), Err(unknown));
    }
}
