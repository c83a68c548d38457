//! Time: a reading of the node's own clock, and order without clocks.

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
    fn stamps_order_by_counter_then_node() {
        let a = Lamport { counter: 1, node: NodeId::new(9) };
        let b = Lamport { counter: 2, node: NodeId::new(1) };
        let c = Lamport { counter: 2, node: NodeId::new(2) };
        assert!(Lamport::ZERO < a && a < b && b < c);
        assert_eq!(c.to_string(), "2@n2");
    }
}
