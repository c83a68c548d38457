//! A node's clock: it runs at a rate of its own, and may begin anew or miss a while.

use std::time::Duration;

use kv_types::Nanos;

const MILLION: u128 = 1_000_000;

/// A clock that showed `reads` at the true time `at` and has run at one rate since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeClock {
    at: Nanos,
    reads: Nanos,
    /// Its nanoseconds in a true millisecond.
    rate: u128,
}

impl Default for NodeClock {
    fn default() -> Self {
        Self { at: Nanos::default(), reads: Nanos::default(), rate: MILLION }
    }
}

impl NodeClock {
    /// What it shows at a true time.
    pub(crate) fn read(&self, now: Nanos) -> Nanos {
        let shown = now.since(self.at).as_nanos() * self.rate / MILLION;
        self.reads.after(Duration::from_nanos(u64::try_from(shown).unwrap()))
    }

    /// The first true time at which it shows this, or more.
    pub(crate) fn when(&self, reading: Nanos) -> Nanos {
        let span = (reading.since(self.reads).as_nanos() * MILLION).div_ceil(self.rate);
        self.at.after(Duration::from_nanos(u64::try_from(span).unwrap_or(u64::MAX)))
    }

    /// Runs this much too fast from now on, in parts per million.
    pub(crate) fn set_rate(&mut self, now: Nanos, ppm: i64) {
        let rate = u128::try_from(1_000_000 + ppm).unwrap();
        *self = Self { at: now, reads: self.read(now), rate };
    }

    /// Stands still for the next `span`.
    pub(crate) fn lose(&mut self, now: Nanos, span: Duration) {
        *self = Self { at: now.after(span), reads: self.read(now), ..*self };
    }

    /// Begins anew, as after a start of the machine.
    pub(crate) fn begin_anew(&mut self, now: Nanos) {
        *self = Self { at: now, reads: Nanos::default(), ..*self };
    }
}
