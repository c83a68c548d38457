//! Sessions and what changes them as bytes; the layout rules are those of commands.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::SessionId;

use super::{Session, SessionCommand};
use crate::codec::{DecodeError, end, put_sessions, take_sessions, take_time, take_u8, take_u64, take_u128};

const ROW_VERSION: u8 = 1;

const OPEN: u8 = 1;
const RENEW: u8 = 2;
const CLOSE: u8 = 3;
const EXPIRE: u8 = 4;

impl SessionCommand {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Open { nonce, ttl } => {
                out.put_u8(OPEN);
                out.put_u128_le(*nonce);
                put_span(out, *ttl);
            }
            Self::Renew { sessions } => {
                out.put_u8(RENEW);
                put_sessions(out, sessions);
            }
            Self::Close { session } => {
                out.put_u8(CLOSE);
                out.put_u64_le(session.get());
            }
            Self::Expire { sessions } => {
                out.put_u8(EXPIRE);
                put_sessions(out, sessions);
            }
        }
    }

    pub(crate) fn take(input: &mut Bytes) -> Result<Self, DecodeError> {
        Ok(match take_u8(input)? {
            OPEN => Self::Open { nonce: take_u128(input)?, ttl: take_span(input)? },
            RENEW => Self::Renew { sessions: take_sessions(input)? },
            CLOSE => Self::Close { session: SessionId::new(take_u64(input)?) },
            EXPIRE => Self::Expire { sessions: take_sessions(input)? },
            tag => return Err(DecodeError::Tag { field: "session command", tag }),
        })
    }
}

impl Session {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(42);
        out.put_u8(ROW_VERSION);
        out.put_u128_le(self.nonce);
        put_span(&mut out, self.ttl);
        out.put_u64_le(self.opened.ms());
        out.put_u64_le(self.lease_until.ms());
        out.put_u8(u8::from(self.closed));
        out.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut versioned(bytes)?;
        let session = Self {
            nonce: take_u128(input)?,
            ttl: take_span(input)?,
            opened: take_time(input)?,
            lease_until: take_time(input)?,
            closed: match take_u8(input)? {
                0 => false,
                1 => true,
                tag => return Err(DecodeError::Tag { field: "closed", tag }),
            },
        };
        end(input)?;
        Ok(session)
    }
}

/// A row that holds one number: the session of a nonce, or how many sessions there are.
pub(super) fn encode_number(number: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(ROW_VERSION);
    out.put_u64_le(number);
    out.freeze()
}

pub(super) fn decode_number(bytes: &Bytes) -> Result<u64, DecodeError> {
    let input = &mut versioned(bytes)?;
    let number = take_u64(input)?;
    end(input)?;
    Ok(number)
}

fn versioned(bytes: &Bytes) -> Result<Bytes, DecodeError> {
    let mut input = bytes.clone();
    match take_u8(&mut input)? {
        ROW_VERSION => Ok(input),
        version => Err(DecodeError::Version(version)),
    }
}

/// Spans travel in milliseconds; one that has more than 64 bits of them is out of every range anyway.
fn put_span(out: &mut BytesMut, span: Duration) {
    out.put_u64_le(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
}

fn take_span(input: &mut Bytes) -> Result<Duration, DecodeError> {
    take_u64(input).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use kv_types::ClusterTime;
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = ClusterTime> {
        (0..=ClusterTime::MAX.ms()).prop_map(|ms| ClusterTime::from_ms(ms).unwrap())
    }

    proptest! {
        #[test]
        fn rows_round_trip_and_every_truncation_is_refused(
            nonce in any::<u128>(), ttl in any::<u64>(), opened in time(), lease_until in time(), closed: bool
        ) {
            let ttl = Duration::from_millis(ttl);
            let session = Session { nonce, ttl, opened, lease_until, closed };
            let bytes = session.encode();
            prop_assert_eq!(Session::decode(&bytes), Ok(session));
            for len in 0..bytes.len() {
                prop_assert!(Session::decode(&bytes.slice(..len)).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let bytes = Bytes::from(bytes);
            let _ = Session::decode(&bytes);
            if let Ok(number) = decode_number(&bytes) {
                prop_assert_eq!(encode_number(number), bytes);
            }
        }
    }
}
