//! The shard's cluster time as this replica knows it.
//!
//! The time is a part of the replicated state; entries that carry a stamp move it on. Whoever leads stamps: from the
//! time that the state had when the first entry of the leader's own term was applied, its own clock counts on. Until
//! then it stamps zero, which moves nothing. So time without a leader does not count, and neither does time in which
//! the leader stood still: whoever wanted to be heard then had nobody to speak to.

use std::time::Duration;

use kv_types::{ClusterTime, Nanos, Term};

/// A leader counts in steps of so much: each step is a write of the row that holds the time, beside the entry that brings it,
/// and what the time decides takes seconds.
const STEP_MS: u64 = 10;

/// The time of the state, and of a leader's stamps.
///
/// # Invariants
/// The stamps of one leader never run back. Asserted in [`ClusterClock::tick`].
#[derive(Debug)]
pub(crate) struct ClusterClock {
    /// The time after the last entry applied; `None` until the rows are looked at.
    applied: Option<ClusterTime>,
    running: Option<Running>,
    /// The last reading of the node's clock.
    now: Nanos,
    /// Between two readings further apart than this the node stood still.
    stall: Duration,
}

/// A leader's count.
#[derive(Debug)]
struct Running {
    term: Term,
    base: ClusterTime,
    /// What the node's clock has counted since the time was `base`.
    counted: Duration,
}

impl ClusterClock {
    pub(crate) fn new(now: Nanos, stall: Duration) -> Self {
        Self { applied: None, running: None, now, stall }
    }

    /// Reads the node's clock.
    pub(crate) fn tick(&mut self, now: Nanos) {
        assert!(now >= self.now, "the clock runs back from {:?} to {now:?}", self.now);
        let span = now.since(self.now);
        self.now = now;
        if let Some(running) = &mut self.running
            && span <= self.stall
        {
            running.counted += span;
        }
    }

    /// Whether the state's time has yet to be looked up.
    pub(crate) fn is_unknown(&self) -> bool {
        self.applied.is_none()
    }

    /// The state's time is this.
    pub(crate) fn applied(&mut self, time: ClusterTime) {
        self.applied = Some(time);
    }

    /// The rows were replaced.
    pub(crate) fn forget(&mut self) {
        self.applied = None;
        self.running = None;
    }

    /// This replica leads in `term` and has applied an entry of it, or does not lead.
    pub(crate) fn lead(&mut self, term: Option<Term>) {
        if self.running.as_ref().map(|running| running.term) == term {
            return;
        }
        let begun = term.zip(self.applied);
        self.running = begun.map(|(term, base)| Running { term, base, counted: Duration::ZERO });
    }

    /// What an entry proposed now is stamped with.
    pub(crate) fn stamp(&self) -> ClusterTime {
        let Some(Running { base, counted, .. }) = &self.running else { return ClusterTime::ZERO };
        let now = base.after(*counted).ms();
        ClusterTime::from_ms(now - now % STEP_MS).map_or(*base, |step| step.max(*base))
    }

    /// The newest time known: of a leader its next stamp, else that of the state.
    pub(crate) fn time(&self) -> Option<ClusterTime> {
        self.applied.map(|applied| applied.max(self.stamp()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STALL: Duration = Duration::from_millis(500);

    fn ms(ms: u64) -> ClusterTime {
        ClusterTime::from_ms(ms).unwrap()
    }

    fn tick(clock: &mut ClusterClock, span_ms: u64) {
        clock.tick(clock.now.after(Duration::from_millis(span_ms)));
    }

    #[test]
    fn a_leader_counts_on_from_the_state() {
        let mut clock = ClusterClock::new(Nanos::new(7), STALL);
        clock.lead(Some(Term::new(1)));
        assert_eq!((clock.stamp(), clock.time()), (ClusterTime::ZERO, None));
        clock.applied(ms(1_000));
        clock.lead(Some(Term::new(1)));
        tick(&mut clock, 40);
        tick(&mut clock, 60);
        assert_eq!((clock.stamp(), clock.time()), (ms(1_100), Some(ms(1_100))));
        clock.lead(None);
        tick(&mut clock, 60);
        assert_eq!((clock.stamp(), clock.time()), (ClusterTime::ZERO, Some(ms(1_000))));
        clock.applied(ms(1_203));
        clock.lead(Some(Term::new(3)));
        assert_eq!(clock.stamp(), ms(1_203), "another leader's time is at least what it applied");
    }

    #[test]
    fn time_in_which_the_node_stood_still_does_not_count() {
        let mut clock = ClusterClock::new(Nanos::new(0), STALL);
        clock.applied(ms(5));
        clock.lead(Some(Term::new(1)));
        tick(&mut clock, 500);
        tick(&mut clock, 60_000);
        tick(&mut clock, 10);
        assert_eq!(clock.stamp(), ms(510), "510 ms after 5, in steps of 10");
    }

    #[test]
    fn other_rows_have_another_time() {
        let mut clock = ClusterClock::new(Nanos::new(0), STALL);
        clock.applied(ms(5));
        clock.lead(Some(Term::new(1)));
        clock.forget();
        assert!(clock.is_unknown() && clock.time().is_none());
    }
}
