//! The clock of a node, as a function of true time.

use std::time::Duration;

use kv_types::Nanos;

/// One millionth of real time; a rate of so many is real time.
pub(crate) const MILLION: u64 = 1_000_000;

/// A clock that runs straight until its rate is changed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeClock {
    since: Nanos,
    shown: Nanos,
    ppm: u64,
}

impl Default for NodeClock {
    fn default() -> Self {
        Self { since: Nanos::default(), shown: Nanos::default(), ppm: MILLION }
    }
}

impl NodeClock {
    /// What it shows at a true time.
    pub(crate) fn at(&self, now: Nanos) -> Nanos {
        let passed = u128::from(now.get().saturating_sub(self.since.get())) * u128::from(self.ppm);
        let shown = u128::from(self.shown.get()) + passed / u128::from(MILLION);
        Nanos::new(u64::try_from(shown).unwrap_or(u64::MAX))
    }

    /// The first true time at which it shows at least this; the end of time if it stands.
    pub(crate) fn when(&self, reading: Nanos) -> Nanos {
        let missing = u128::from(reading.get().saturating_sub(self.shown.get())) * u128::from(MILLION);
        let passed = match (missing, self.ppm) {
            (0, _) => 0,
            (_, 0) => u128::from(u64::MAX),
            (missing, ppm) => missing.div_ceil(u128::from(ppm)),
        };
        let when = u128::from(self.since.get()) + passed;
        Nanos::new(u64::try_from(when).unwrap_or(u64::MAX))
    }

    /// From now on it runs at this rate, in parts per million of real time; 0 and it stands.
    pub(crate) fn set_rate(&mut self, now: Nanos, ppm: u64) {
        *self = Self { since: now, shown: self.at(now), ppm };
    }

    /// It leaps ahead.
    pub(crate) fn jump(&mut self, now: Nanos, by: Duration) {
        *self = Self { since: now, shown: self.at(now).after(by), ppm: self.ppm };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_met_at_the_first_moment_that_shows_it() {
        for ppm in [700_000, 990_000, MILLION, 1_010_000, 1_500_000] {
            let mut clock = NodeClock::default();
            clock.set_rate(Nanos::new(12_345), ppm);
            let deadline = Nanos::new(999_999);
            let when = clock.when(deadline);
            assert!(clock.at(when) >= deadline, "{ppm}");
            assert!(clock.at(Nanos::new(when.get() - 1)) < deadline, "{ppm}");
        }
    }

    #[test]
    fn a_clock_that_stands_meets_no_deadline_and_one_that_leaps_meets_it_at_once() {
        let mut clock = NodeClock::default();
        clock.set_rate(Nanos::new(100), 0);
        assert_eq!(clock.when(Nanos::new(101)), Nanos::new(u64::MAX));
        assert_eq!(clock.at(Nanos::new(5000)), Nanos::new(100));
        clock.jump(Nanos::new(5000), Duration::from_nanos(7));
        assert_eq!(clock.when(Nanos::new(107)), Nanos::new(5000));
    }
}
