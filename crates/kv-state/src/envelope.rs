//! What stands around a command in the log: the cluster time of its entry, and the request that it is an attempt of.
//!
//! # How it works
//!
//! A command that needs neither is an entry by itself, as it always was: [`Command::encode`]. Any other is put in an
//! [`Envelope`]. Whoever receives the request encodes it, without a time; the leader writes the time into the encoded
//! bytes when it proposes them ([`stamp`]), which copies nothing. The time is a part of the entry, not of the log around
//! it, because it is a matter of the state machine alone: no other part of a replica reads it, blank and configuration
//! entries need none, and an entry that says nothing of time costs nothing for it.
//!
//! # Layout
//!
//! Version (1 byte, 3), cluster time in ms (u64), kind (1 byte), then for kind 1 the session, seq, how far below it first
//! incomplete is, and lease (variable length each: every replica writes and every link carries them), for kind 2 the timed id (u128),
//! for kind 0 nothing; then a whole command, its version included. Little endian.
//!
//! # What it does not do
//!
//! The fingerprint of a request does not travel: it is computed at apply from the command's own bytes.

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::{ClusterTime, Fingerprint, Request, SessionId, SessionRequest, TimedId};

use crate::codec::{self, DecodeError, put_varint, take_time, take_u8, take_u128, take_varint};
use crate::command::Command;

const VERSION: u8 = 3;

const NO_REQUEST: u8 = 0;
const OF_SESSION: u8 = 1;
const TIMED: u8 = 2;

/// Where the time stands.
const TIME: std::ops::Range<usize> = 1..9;

/// Version, time, kind and the longest request: four numbers of ten bytes.
const HEADER_BYTES_MAX: usize = 1 + 8 + 1 + 40;

/// A command as it is proposed.
///
/// # Invariants
/// Checked by its constructors and the codec: a request stands only beside a command of a client, and
/// what needs one only beside a request: [`Command::Settle`], and what a client asks for of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    request: Option<Request>,
    command: Command,
}

/// A command and a request that cannot stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("only what a client asks for carries a request id, and a transaction that of a session")]
pub struct NotOfClient;

impl Envelope {
    /// A command with an id that makes its retry safe.
    ///
    /// # Errors
    /// [`NotOfClient`] if the command is no client's.
    pub fn once(request: Request, command: Command) -> Result<Self, NotOfClient> {
        if command.is_of_client() && has_session(&request, &command) {
            Ok(Self { request: Some(request), command })
        } else {
            Err(NotOfClient)
        }
    }

    /// A command that moves the cluster time on and has no id: what concerns sessions, and ticks.
    ///
    /// # Errors
    /// [`NotOfClient`] if the command needs a request id.
    pub fn timed(command: Command) -> Result<Self, NotOfClient> {
        if command.needs_request() { Err(NotOfClient) } else { Ok(Self { request: None, command }) }
    }

    /// What is asked for.
    pub fn command(&self) -> &Command {
        &self.command
    }

    /// The envelope as bytes, in one allocation; its time is zero until it is [stamped](stamp).
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES_MAX + self.command.encoded_len());
        out.put_u8(VERSION);
        out.put_u64_le(ClusterTime::ZERO.ms());
        match &self.request {
            None => out.put_u8(NO_REQUEST),
            Some(Request::Session(request)) => {
                out.put_u8(OF_SESSION);
                put_varint(&mut out, request.session.get());
                put_varint(&mut out, request.seq);
                put_varint(&mut out, request.seq.wrapping_sub(request.first_incomplete));
                put_varint(&mut out, request.lease_until.ms());
            }
            Some(Request::Timed(id)) => {
                out.put_u8(TIMED);
                out.put_u128_le(id.get());
            }
        }
        self.command.put(&mut out);
        out.freeze()
    }
}

/// Writes the cluster time into an encoded command, if it has a place for one: the duty of a leader that proposes it.
/// Copies only bytes that somebody else holds, too.
pub fn stamp(command: Bytes, time: ClusterTime) -> Bytes {
    if command.first() != Some(&VERSION) {
        return command;
    }
    let mut bytes = command.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
    if let Some(place) = bytes.get_mut(TIME) {
        place.copy_from_slice(&time.ms().to_le_bytes());
    }
    bytes.freeze()
}

/// An entry's command, taken out of what it came in. Whoever checks a log from outside reads it by this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// A command by itself.
    Plain(Command),
    /// A command with a time.
    Timed {
        /// The leader's stamp.
        time: ClusterTime,
        /// The command.
        command: Command,
    },
    /// An attempt of a request.
    Once {
        /// The leader's stamp.
        time: ClusterTime,
        /// The request.
        request: Request,
        /// What it is about, by the command's own bytes.
        fingerprint: Fingerprint,
        /// The command.
        command: Command,
    },
}

impl Opened {
    /// Reads a command with or without an envelope; keys and values share the memory of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] says what is wrong; no input panics.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        if bytes.first() != Some(&VERSION) {
            let command = Command::decode(bytes)?;
            needs_request(&command)?;
            return Ok(Self::Plain(command));
        }
        let input = &mut bytes;
        take_u8(input)?;
        let time = take_time(input)?;
        let request = match take_u8(input)? {
            NO_REQUEST => None,
            OF_SESSION => {
                let (session, seq) = (SessionId::new(take_varint(input)?), take_varint(input)?);
                let first_incomplete = seq.wrapping_sub(take_varint(input)?);
                let lease_until = ClusterTime::from_ms(take_varint(input)?);
                let lease_until = lease_until.ok_or(DecodeError::Field("the end of a lease"))?;
                Some(Request::Session(SessionRequest { session, seq, first_incomplete, lease_until }))
            }
            TIMED => Some(Request::Timed(TimedId::from_raw(take_u128(input)?))),
            tag => return Err(DecodeError::Tag { field: "request", tag }),
        };
        let Some(request) = request else {
            let command = Command::decode(bytes)?;
            needs_request(&command)?;
            return Ok(Self::Timed { time, command });
        };
        let fingerprint = Fingerprint::of(&bytes);
        let command = Command::decode(bytes)?;
        if !command.is_of_client() || !has_session(&request, &command) {
            return Err(DecodeError::Field("a request id on what no client asks for"));
        }
        Ok(Self::Once { time, request, fingerprint, command })
    }

    /// The command alone.
    pub fn into_command(self) -> Command {
        match self {
            Self::Plain(command) | Self::Timed { command, .. } | Self::Once { command, .. } => command,
        }
    }
}

/// A transaction is named by a session's request.
fn has_session(request: &Request, command: &Command) -> bool {
    matches!(request, Request::Session(_)) || !matches!(command, Command::Txn(_))
}

fn needs_request(command: &Command) -> Result<(), DecodeError> {
    if command.needs_request() {
        Err(DecodeError::Field("a command that needs a request id, without one"))
    } else {
        Ok(())
    }
}

const _: () = assert!(VERSION != codec::VERSION, "a command by itself is told from an envelope");

#[cfg(test)]
mod tests {
    use kv_types::{Key, Value};
    use proptest::prelude::*;

    use super::*;
    use crate::txn::TxnCommand;

    fn time() -> impl Strategy<Value = ClusterTime> {
        (0..=ClusterTime::MAX.ms()).prop_map(|ms| ClusterTime::from_ms(ms).unwrap())
    }

    fn request() -> impl Strategy<Value = Request> {
        prop_oneof![
            (any::<u64>(), any::<u64>(), any::<u64>(), time()).prop_map(
                |(session, seq, first_incomplete, lease_until)| Request::Session(SessionRequest {
                    session: SessionId::new(session),
                    seq,
                    first_incomplete,
                    lease_until
                })
            ),
            any::<u128>().prop_map(|raw| Request::Timed(TimedId::from_raw(raw))),
        ]
    }

    fn put() -> Command {
        Command::Put { key: Key::new("k").unwrap(), value: Value::new("v").unwrap() }
    }

    proptest! {
        #[test]
        fn round_trip_is_exact_and_every_truncation_is_refused(request in request(), time in time()) {
            let bytes = stamp(Envelope::once(request, put()).unwrap().encode(), time);
            let fingerprint = Fingerprint::of(&put().encode());
            let opened = Opened::Once { time, request, fingerprint, command: put() };
            prop_assert_eq!(Opened::decode(bytes.clone()), Ok(opened));
            for len in 0..bytes.len() {
                prop_assert!(Opened::decode(bytes.slice(..len)).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..80), envelope in any::<bool>()) {
            if envelope && let Some(first) = bytes.first_mut() {
                *first = VERSION;
            }
            let bytes = stamp(Bytes::from(bytes.clone()), ClusterTime::MAX);
            let _ = Opened::decode(bytes);
        }
    }

    #[test]
    fn a_command_by_itself_is_as_it_was_and_is_never_stamped() {
        let bytes = put().encode();
        assert_eq!(stamp(bytes.clone(), ClusterTime::MAX), bytes);
        let opened = Opened::decode(bytes).unwrap();
        assert_eq!((opened.clone(), opened.into_command()), (Opened::Plain(put()), put()));
    }

    #[test]
    fn stamping_copies_nothing_that_is_not_shared() {
        let time = ClusterTime::from_ms(7).unwrap();
        let bytes = Envelope::timed(Command::Tick).unwrap().encode();
        let place = bytes.as_ptr();
        let stamped = stamp(bytes, time);
        assert_eq!(stamped.as_ptr(), place);
        let shared = stamped.clone();
        let again = stamp(stamped, ClusterTime::MAX);
        assert_ne!(again.as_ptr(), place);
        assert_eq!(Opened::decode(shared), Ok(Opened::Timed { time, command: Command::Tick }));
    }

    #[test]
    fn the_bytes_of_an_envelope_never_change() {
        let request = SessionRequest {
            session: SessionId::new(3),
            seq: 4,
            first_incomplete: 2,
            lease_until: ClusterTime::from_ms(6).unwrap(),
        };
        let envelope = Envelope::once(Request::Session(request), Command::Settle).unwrap();
        let bytes = stamp(envelope.encode(), ClusterTime::from_ms(258).unwrap());
        let golden = b"\x03\x02\x01\0\0\0\0\0\0\x01\x03\x04\x02\x06\x01\x07";
        assert_eq!(bytes, &golden[..]);
        let timed = Envelope::once(Request::Timed(TimedId::from_raw(1)), Command::Settle).unwrap().encode();
        assert_eq!(timed, &b"\x03\0\0\0\0\0\0\0\0\x02\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\x07"[..]);
    }

    #[test]
    fn what_cannot_stand_together_is_refused() {
        let id = Request::Timed(TimedId::from_raw(1));
        assert_eq!(Envelope::once(id, Command::Tick), Err(NotOfClient));
        assert_eq!(Envelope::timed(Command::Settle), Err(NotOfClient));
        let lone = Opened::decode(Command::Settle.encode());
        assert_eq!(lone, Err(DecodeError::Field("a command that needs a request id, without one")));
        let abort = Command::Txn(TxnCommand::Abort { fingerprint: Fingerprint::from_raw(1) });
        assert_eq!(Envelope::once(id, abort.clone()), Err(NotOfClient), "only a session names a transaction");
        assert_eq!(Envelope::timed(abort.clone()), Err(NotOfClient));
        assert!(Opened::decode(abort.encode()).is_err());
        let mut bytes = BytesMut::from(&Envelope::once(id, put()).unwrap().encode()[..26]);
        Command::Tick.put(&mut bytes);
        let odd = Opened::decode(bytes.freeze());
        assert_eq!(odd, Err(DecodeError::Field("a request id on what no client asks for")));
        let late = stamp(Envelope::once(id, put()).unwrap().encode(), ClusterTime::ZERO);
        let mut late = BytesMut::from(&late[..]);
        late[TIME].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Opened::decode(late.freeze()), Err(DecodeError::Field("a cluster time")));
        let mut unknown = BytesMut::from(&Envelope::timed(Command::Tick).unwrap().encode()[..]);
        unknown[9] = 9;
        assert_eq!(Opened::decode(unknown.freeze()), Err(DecodeError::Tag { field: "request", tag: 9 }));
    }
}
