//! Numbers with a meaning.

use std::fmt;
use std::str::FromStr;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident, $int:ty, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name($int);

        impl $name {
            /// The smallest value, written where nothing has happened yet.
            pub const ZERO: Self = Self(0);

            /// Wraps a raw number that came from a codec or the command line.
            pub const fn new(raw: $int) -> Self {
                Self(raw)
            }

            /// The raw number, for codecs and arithmetic that has no name here.
            pub const fn get(self) -> $int {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

number!(
    /// A node of the cluster, from 1. Zero is never a node; codecs use it for "none".
    NodeId, u64, "n"
);
number!(
    /// A shard: one Raft group over one key range. Shard 0 is the meta group, which owns no user key.
    ShardId, u32, "s"
);
number!(
    /// A Raft term. Towards users it is called *epoch*.
    Term, u64, "t"
);
number!(
    /// A position in a shard's log, from 1; 0 is before the first entry.
    LogIndex, u64, "i"
);
number!(
    /// The log index of the entry that wrote a key. Revisions of two shards are not comparable.
    Revision, u64, "r"
);
number!(
    /// An exactly-once session: the revision of the meta group's entry that opened it, so no two ever share one.
    SessionId, u64, "ses"
);

/// The life of one data directory: drawn at random when the directory is first written, never changed. Peers remember
/// it, so that a wiped disk under a known node id is recognised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Incarnation(u64);

/// Names a cluster for good: a hash of the members, incarnations and shards it was formed with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterId(u64);

macro_rules! hex_id {
    ($name:ident) => {
        impl $name {
            /// Wraps a raw number.
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number.
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

hex_id!(Incarnation);
hex_id!(ClusterId);

impl ShardId {
    /// The meta group: shard map, members and sessions.
    pub const META: Self = Self(0);
}

impl Term {
    /// The term a candidate campaigns in. A term that could overflow is refused by the codecs long before.
    ///
    /// # Panics
    /// At `u64::MAX`, which no cluster reaches.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 elections never happen"))
    }
}

impl LogIndex {
    /// The index of the first entry of a log.
    pub const FIRST: Self = Self(1);

    /// The index after this one.
    ///
    /// # Panics
    /// At `u64::MAX`, which no log reaches.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^64 entries are never written"))
    }

    /// The index before this one; zero stays zero.
    #[must_use]
    pub fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The index `count` further on.
    ///
    /// # Panics
    /// Past `u64::MAX`, which no log reaches.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.checked_add(count).expect("2^64 entries are never written"))
    }

    /// How many entries lie in `(earlier, self]`; 0 if `earlier` is not earlier.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The revision that the entry at this index gives to the keys it writes.
    pub fn revision(self) -> Revision {
        Revision(self.0)
    }
}

impl Revision {
    /// The log index of the entry that made this revision.
    pub fn index(self) -> LogIndex {
        LogIndex(self.0)
    }
}

impl Revision {
    /// The session that the meta group's entry of this revision opened.
    pub const fn session(self) -> SessionId {
        SessionId(self.0)
    }
}

/// Why a node id could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a node id: a whole number from 1 is expected")]
pub struct ParseNodeIdError(String);

impl FromStr for NodeId {
    type Err = ParseNodeIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().parse::<u64>() {
            Ok(raw) if raw > 0 => Ok(Self(raw)),
            _ => Err(ParseNodeIdError(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_print_short() {
        let text = format!(
            "{} {} {} {} {}",
            NodeId::new(1),
            ShardId::META,
            Term::new(3),
            LogIndex::new(42),
            LogIndex::new(42).revision()
        );
        assert_eq!(text, "n1 s0 t3 i42 r42");
        assert_eq!(Incarnation::new(255).to_string(), "00000000000000ff");
    }

    #[test]
    fn node_id_zero_is_refused() {
        assert!("0".parse::<NodeId>().is_err());
        assert!("x".parse::<NodeId>().is_err());
        assert_eq!("7".parse::<NodeId>(), Ok(NodeId::new(7)));
    }

    #[test]
    fn index_arithmetic_is_saturating_below_and_checked_above() {
        assert_eq!(LogIndex::ZERO.prev(), LogIndex::ZERO);
        assert_eq!(LogIndex::new(9).since(LogIndex::new(4)), 5);
        assert_eq!(LogIndex::new(4).since(LogIndex::new(9)), 0);
    }
}
