//! The node's Lamport clock (Lamport 1978), shared by all its replicas.

use std::sync::atomic::{AtomicU64, Ordering};

use kv_types::{Lamport, NodeId};

/// A counter that every message carries and every stamp raises.
///
/// # Invariants
/// - it never runs back;
/// - a stamp is larger than every counter merged before it.
#[derive(Debug)]
pub struct LamportClock {
    node: NodeId,
    counter: AtomicU64,
}

impl LamportClock {
    /// The clock of a node that has seen `counter`.
    pub fn new(node: NodeId, counter: u64) -> Self {
        Self { node, counter: AtomicU64::new(counter) }
    }

    /// The largest counter seen so far.
    pub fn now(&self) -> u64 {
        self.counter.load(Ordering::Acquire)
    }

    /// Takes note of a counter that came with a message or an entry.
    pub fn merge(&self, counter: u64) {
        self.counter.fetch_max(counter, Ordering::AcqRel);
    }

    /// A new stamp, above everything seen and above `floor`.
    ///
    /// # Panics
    /// When the counter would pass `u64::MAX`; merging checks keep it far below.
    pub fn stamp(&self, floor: Lamport) -> Lamport {
        self.merge(floor.counter);
        let before = self.counter.fetch_add(1, Ordering::AcqRel);
        let counter = before.checked_add(1).expect("a Lamport counter stays far below 2^64");
        assert!(counter > floor.counter, "stamp {counter} must be above {floor}");
        Lamport { counter, node: self.node }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_rise_above_floor_and_merged() {
        let clock = LamportClock::new(NodeId::new(1), 5);
        let first = clock.stamp(Lamport::ZERO);
        assert_eq!(first.counter, 6);
        clock.merge(40);
        let second = clock.stamp(first);
        assert_eq!(second.counter, 41);
        let third = clock.stamp(Lamport { counter: 100, node: NodeId::new(9) });
        assert!(third.counter > 100 && clock.now() == third.counter);
    }
}
