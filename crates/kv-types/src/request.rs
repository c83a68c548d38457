//! What names a request, so that a retry of it is safe.

use std::fmt;
use std::str::FromStr;

use twox_hash::XxHash3_128;

use crate::{ClusterTime, Revision, SessionId};

/// Bits of a [`TimedId`] that are drawn at random.
const RANDOM_BITS: u32 = 88;

/// The id of a request: the same for every attempt of a call, never the same for two calls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestId {
    /// A request of a session.
    Session {
        /// The session.
        session: SessionId,
        /// Its number in the session, from 1.
        seq: u64,
    },
    /// A request without a session.
    Timed(TimedId),
}

/// A transaction: the request of a session that commits it. The number is taken when that is first sent, and fixes the
/// content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxnId {
    /// The session.
    pub session: SessionId,
    /// The number of the request in the session.
    pub seq: u64,
}

/// A request without a session: 40 bits of the addressed shard's cluster time in seconds, then 88 random bits. The time
/// lets the shard tell an id that it may have forgotten from one that it has never seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct TimedId(u128);

/// A request of a session, with what the session's gate needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRequest {
    /// The session.
    pub session: SessionId,
    /// The number of the request in the session, from 1.
    pub seq: u64,
    /// The smallest number of the session that has no definite answer yet and is not given up, as of sending this;
    /// zero if that is not known.
    pub first_incomplete: u64,
    /// Until when the meta group let the session live, as of sending this; in the meta group's cluster time.
    pub lease_until: ClusterTime,
}

/// A request as it travels: its id and what the gate needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Of a session.
    Session(SessionRequest),
    /// Without a session.
    Timed(TimedId),
}

/// XXH3-128 of what a request asks for: one id with two contents is noticed. It guards against mistakes, not against
/// malice: whoever makes two contents collide on purpose harms only the session that is theirs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(u128);

impl TimedId {
    /// Draws an id: the time is the newest that a reply of the addressed shard told, `random` gives the lower bits.
    pub fn new(time: ClusterTime, random: u128) -> Self {
        let mask = (1 << RANDOM_BITS) - 1;
        Self(u128::from(time.seconds()) << RANDOM_BITS | random & mask)
    }

    /// The first id that a second of cluster time could have; `None` beyond the last second.
    pub fn first_of(seconds: u64) -> Option<Self> {
        (seconds <= ClusterTime::MAX.seconds()).then(|| Self(u128::from(seconds) << RANDOM_BITS))
    }

    /// Wraps a raw id that came from a codec.
    pub const fn from_raw(raw: u128) -> Self {
        Self(raw)
    }

    /// The raw id.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// The cluster time it was drawn at, in full seconds.
    pub fn time(self) -> ClusterTime {
        let seconds = u64::try_from(self.0 >> RANDOM_BITS).expect("40 bits are left");
        ClusterTime::from_ms(seconds * 1000).expect("40 bits of seconds are within the limit")
    }

    /// The id after this one; saturates.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Request {
    /// Its id.
    pub fn id(&self) -> RequestId {
        match self {
            Self::Session(request) => RequestId::Session { session: request.session, seq: request.seq },
            Self::Timed(id) => RequestId::Timed(*id),
        }
    }
}

impl Fingerprint {
    /// The fingerprint of an encoded command.
    pub fn of(command: &[u8]) -> Self {
        Self(XxHash3_128::oneshot(command))
    }

    /// The digest of a scan: of the keys that it returned, in order, and their revisions.
    pub fn of_scan<'a>(keys: impl IntoIterator<Item = (&'a [u8], Revision)>) -> Self {
        let mut content = Vec::new();
        for (key, revision) in keys {
            let length = u32::try_from(key.len()).expect("keys are far below 4 GiB");
            content.extend_from_slice(&length.to_le_bytes());
            content.extend_from_slice(key);
            content.extend_from_slice(&revision.get().to_le_bytes());
        }
        Self::of(&content)
    }

    /// Wraps a raw fingerprint that came from a codec.
    pub const fn from_raw(raw: u128) -> Self {
        Self(raw)
    }

    /// The raw fingerprint.
    pub const fn get(self) -> u128 {
        self.0
    }
}

impl TxnId {
    /// The id of the request.
    pub fn request(self) -> RequestId {
        RequestId::Session { session: self.session, seq: self.seq }
    }
}

impl SessionRequest {
    /// The transaction that this request commits, if it commits one.
    pub fn txn(&self) -> TxnId {
        TxnId { session: self.session, seq: self.seq }
    }
}

impl fmt::Display for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.request(), f)
    }
}

impl fmt::Debug for TxnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Session { session, seq } => write!(f, "{session}/{seq}"),
            Self::Timed(id) => write!(f, "{id}"),
        }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TimedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for TimedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Why a request id could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a request id: sesN/SEQ or 32 hexadecimal digits are expected")]
pub struct ParseRequestIdError(String);

impl FromStr for RequestId {
    type Err = ParseRequestIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| text.parse::<u64>().ok()).flatten()
        };
        let of_session = || {
            let (session, seq) = text.strip_prefix("ses")?.split_once('/')?;
            Some(Self::Session { session: SessionId::new(digits(session)?), seq: digits(seq)? })
        };
        let timed = || {
            let plain = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u128::from_str_radix(text, 16).ok()).flatten().map(|raw| Self::Timed(TimedId(raw)))
        };
        of_session().or_else(timed).ok_or_else(|| ParseRequestIdError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ids_print_and_read_back(session in any::<u64>(), seq in any::<u64>(), raw in any::<u128>()) {
            for id in [
                RequestId::Session { session: SessionId::new(session), seq },
                RequestId::Timed(TimedId::from_raw(raw)),
            ] {
                prop_assert_eq!(id.to_string().parse::<RequestId>(), Ok(id));
            }
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = text.parse::<RequestId>();
        }

        #[test]
        fn every_timed_id_has_a_time(raw in any::<u128>()) {
            let id = TimedId::from_raw(raw);
            prop_assert_eq!(TimedId::new(id.time(), raw), id);
            prop_assert!(TimedId::first_of(id.time().seconds()).is_some_and(|first| first <= id));
        }
    }

    #[test]
    fn timed_ids_sort_by_time_first() {
        let later = ClusterTime::ZERO.after(Duration::from_secs(1));
        assert!(TimedId::new(ClusterTime::ZERO, u128::MAX) < TimedId::new(later, 0));
        assert_eq!(TimedId::new(ClusterTime::MAX, u128::MAX).get(), u128::MAX);
        assert_eq!(TimedId::first_of(1 << 40), None);
        for bad in
            ["", "ses1", "ses/1", "ses1/", "ses+1/2", "1/2", "0123", "+1234567812345678123456781234567"]
        {
            assert!(bad.parse::<RequestId>().is_err(), "{bad}");
        }
    }
}
