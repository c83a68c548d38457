//! Time: a reading of the node's own clock, the time of a shard, and order without clocks.

use std::fmt;
use std::time::Duration;

use crate::NodeId;

/// A reading of the node's own clock in nanoseconds: CLOCK_BOOTTIME in the daemon (it counts suspend), virtual time in
/// the simulator. Readings of two nodes are never compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Nanos(u64);

impl Nanos {
    /// Wraps a reading.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The reading in nanoseconds.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// This reading and a span; saturates.
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this reading is; zero if it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The time of a shard in milliseconds: stamped into entries by its leader, part of the replicated state,
/// never running back. It stands still while there is no leader. Times of two shards are not comparable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ClusterTime(u64);

impl ClusterTime {
    /// Before every entry.
    pub const ZERO: Self = Self(0);

    /// The last time there is: its seconds fill the 40 bits that a [`TimedId`](crate::TimedId) has for them.
    pub const MAX: Self = Self(((1 << 40) - 1) * 1000);

    /// Wraps milliseconds that came from a codec; `None` beyond [`ClusterTime::MAX`].
    pub const fn from_ms(ms: u64) -> Option<Self> {
        if ms <= Self::MAX.0 { Some(Self(ms)) } else { None }
    }

    /// The milliseconds.
    pub const fn ms(self) -> u64 {
        self.0
    }

    /// The full seconds.
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }

    /// This time and a span; saturates at [`ClusterTime::MAX`].
    #[must_use]
    pub fn after(self, span: Duration) -> Self {
        let ms = self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
        Self(ms).min(Self::MAX)
    }

    /// This time less a span; `None` before zero.
    pub fn before(self, span: Duration) -> Option<Self> {
        u64::try_from(span.as_millis()).ok().and_then(|ms| self.0.checked_sub(ms)).map(Self)
    }
}

impl fmt::Display for ClusterTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

impl fmt::Debug for ClusterTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A Lamport stamp: ordered by counter, ties broken by node (Lamport 1978). Every log entry carries one, and stamps
/// rise strictly along a shard's log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lamport {
    /// The counter: larger than that of every event this one could know of.
    pub counter: u64,
    /// The node that stamped; zero for "never stamped".
    pub node: NodeId,
}

impl Lamport {
    /// Before every event; what an entry carries until its leader stamps it.
    pub const ZERO: Self = Self { counter: 0, node: NodeId::ZERO };
}

impl fmt::Display for Lamport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.counter, self.node)
    }
}

impl fmt::Debug for Lamport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_time_saturates_and_never_goes_below_zero() {
        assert_eq!(ClusterTime::from_ms(ClusterTime::MAX.ms()), Some(ClusterTime::MAX));
        assert_eq!(ClusterTime::from_ms(ClusterTime::MAX.ms() + 1), None);
        assert_eq!(ClusterTime::MAX.seconds(), (1 << 40) - 1);
        assert_eq!(ClusterTime::MAX.after(Duration::MAX), ClusterTime::MAX);
        assert_eq!(ClusterTime::ZERO.before(Duration::from_millis(1)), None);
        let later = ClusterTime::ZERO.after(Duration::from_secs(2));
        assert_eq!(later.before(Duration::from_millis(500)).map(ClusterTime::ms), Some(1500));
        assert_eq!(later.to_string(), "2000ms");
    }

    #[test]
    fn stamps_order_by_counter_then_node() {
        let a = Lamport { counter: 1, node: NodeId::new(9) };
        let b = Lamport { counter: 2, node: NodeId::new(1) };
        let c = Lamport { counter: 2, node: NodeId::new(2) };
        assert!(Lamport::ZERO < a && a < b && b < c);
        assert_eq!(c.to_string(), "2@n2");
    }
}
