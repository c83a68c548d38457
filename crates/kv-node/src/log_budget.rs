//! What the write-ahead log may take on the disk, asked by whoever is about to make it longer.

use std::sync::atomic::{AtomicBool, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// The log's length and its limit.
#[derive(Debug)]
pub(crate) struct LogBudget {
    /// Bytes it takes now, as its thread sees it: no copy, for the log can grow by a segment in the time that a look at
    /// all replicas takes.
    taken: Gauge,
    segment_bytes: u64,
    bytes_max: u64,
    /// Waiting would free nothing.
    stuck: AtomicBool,
}

impl LogBudget {
    pub(crate) fn new(taken: Gauge, segment_bytes: u64, bytes_max: u64) -> Self {
        Self { taken, segment_bytes, bytes_max, stuck: AtomicBool::new(false) }
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// How much of it may wait for merges before it is full: beside the segment that is written to, the next one is made ready.
    pub(crate) fn unmerged_max(&self) -> u64 {
        self.bytes_max.saturating_sub(2 * self.segment_bytes).max(self.segment_bytes)
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Whether one more segment would be beyond the limit.
    pub(crate) fn is_full(&self) -> bool {
        self.with_segments(1) > self.bytes_max
    }

    /// Whether it is full after one more segment: time to free something, while nobody has to wait for it.
    pub(crate) fn is_nearly_full(&self) -> bool {
        self.with_segments(2) > self.bytes_max
    }

    fn with_segments(&self, more: u64) -> u64 {
        u64::try_from(self.taken.get()).unwrap_or(0).saturating_add(more * self.segment_bytes)
    }

    /// Whether what peers send has to wait until a merge frees something.
    pub(crate) fn puts_off(&self) -> bool {
        self.is_full() && !self.stuck.load(Ordering::Acquire)
    }

    /// Says whether a merge is about to free something. If none is, the log is full of entries that no quorum has yet,
    /// and nodes that wait for each other's would wait for ever.
    pub(crate) fn set_stuck(&self, stuck: bool) {
        self.stuck.store(stuck, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_puts_off_what_peers_send_while_that_helps() {
        let taken = Gauge::default();
        let budget = LogBudget::new(taken.clone(), 64, 192);
        taken.set(64);
        assert!(!budget.is_nearly_full() && !budget.is_full());
        taken.set(128);
        assert!(budget.is_nearly_full() && !budget.is_full() && !budget.puts_off());
        taken.set(129);
        assert!(budget.is_full() && budget.puts_off());
        budget.set_stuck(true);
        assert!(budget.is_full() && !budget.puts_off());
    }
}
