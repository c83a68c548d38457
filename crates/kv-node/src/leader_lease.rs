//! The leader's lease as readers see it: two clocks to compare with, and what was committed.
//!
//! A reader goes through no queue: it loads the end of the lease, *then* reads the clock, and if the lease still stands it
//! loads the commit index and reads the rows once that is applied. The order is what makes it right: at the moment the
//! clock was read, nobody else could lead, so everything that anybody had been shown by then was committed here, and is in the
//! commit index: that is published before a message leaves that tells another node of it.
//!
//! The lease runs by CLOCK_BOOTTIME, which counts suspend. A pause it misses (a frozen virtual machine) shows in
//! CLOCK_REALTIME once that is corrected, so the same end stands beside it by that clock, with a margin; both must hold. The
//! replica looks at both before it takes anything in, and after such a pause only rounds that begin then earn a lease. If
//! both clocks freeze and neither is corrected, nothing here can notice.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kv_raft::LeaseUpdate;
use kv_storage::ShardReader;
use kv_types::{LogIndex, Nanos};

use crate::clock::{self, SLEW_MAX};
use crate::planted::{Planted, is_planted};

/// What a replica publishes. Everything zero: no lease.
#[derive(Debug, Default)]
pub(crate) struct PublishedLease {
    boottime_end: AtomicU64,
    realtime_end: AtomicU64,
    commit: AtomicU64,
    /// The newest term that a bug has heard of.
    #[cfg(feature = "planted")]
    term: AtomicU64,
}

impl PublishedLease {
    /// Whether a bug does not see that a lease has ended.
    #[cfg(feature = "planted")]
    fn reads_on(&self, lease: &LeaseUpdate) -> bool {
        let is_newer = self.term.fetch_max(lease.term.get(), Ordering::SeqCst) < lease.term.get();
        let is_over = lease.until == Nanos::default();
        is_over && (is_planted(Planted::DeposedReads) || is_planted(Planted::LeaseIgnored) && !is_newer)
    }

    /// The lease changed. To be called before anything else of the same turn leaves the replica.
    pub(crate) fn publish(&self, lease: &LeaseUpdate) {
        #[cfg(feature = "planted")]
        if self.reads_on(lease) {
            return;
        }
        // In this order: who waits between the two makes the end early, not late.
        let realtime = clock::realtime();
        let left = lease.until.since(clock::now());
        let realtime_end = realtime.after(left).after(SLEW_MAX);
        // The end that counts goes last: whoever sees it sees the other one, too.
        self.realtime_end.store(realtime_end.get(), Ordering::SeqCst);
        self.boottime_end.store(lease.until.get(), Ordering::SeqCst);
    }

    /// There is none any more.
    pub(crate) fn withdraw(&self) {
        self.boottime_end.store(0, Ordering::SeqCst);
    }

    /// Entries up to this one are committed. To be called before they are applied, and before a message leaves that says so.
    pub(crate) fn committed(&self, commit: LogIndex) {
        self.commit.fetch_max(commit.get(), Ordering::SeqCst);
    }

    /// Whether the rows may be read now, without a round.
    pub(crate) fn covers(&self, reader: &ShardReader) -> bool {
        let boottime_end = self.boottime_end.load(Ordering::SeqCst);
        if boottime_end == 0 {
            return false;
        }
        let realtime_end = self.realtime_end.load(Ordering::SeqCst);
        let is_unasked = is_planted(Planted::LeaseIgnored) || is_planted(Planted::DeposedReads);
        if is_unasked || !is_over(boottime_end, realtime_end, clock::now(), clock::realtime()) {
            let commit = self.commit.load(Ordering::SeqCst);
            return reader.applied().get() >= commit;
        }
        false
    }

    /// What is left of it.
    pub(crate) fn left(&self) -> Duration {
        Nanos::new(self.boottime_end.load(Ordering::SeqCst)).since(clock::now())
    }
}

fn is_over(boottime_end: u64, realtime_end: u64, boottime: Nanos, realtime: Nanos) -> bool {
    boottime.get() >= boottime_end || realtime.get() >= realtime_end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_ends_by_whichever_clock_is_first() {
        let at = Nanos::new;
        assert!(!is_over(100, 1000, at(99), at(999)));
        assert!(is_over(100, 1000, at(100), at(999)));
        assert!(is_over(100, 1000, at(99), at(1000)), "a pause that the first clock missed");
    }

    #[test]
    fn what_is_withdrawn_covers_nothing() {
        let lease = PublishedLease::default();
        assert_eq!(lease.left(), Duration::ZERO);
        let until = clock::now().after(Duration::from_secs(60));
        lease.publish(&LeaseUpdate { until, ..LeaseUpdate::default() });
        assert!(lease.left() > Duration::from_secs(30));
        lease.withdraw();
        assert_eq!(lease.left(), Duration::ZERO);
    }
}
