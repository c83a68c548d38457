//! The node's own clock.

use std::time::Duration;

use kv_types::Nanos;
use rustix::time::{ClockId, clock_gettime};

/// CLOCK_BOOTTIME now: it counts suspend, which `std::time::Instant` does not, and it never runs back.
pub(crate) fn now() -> Nanos {
    read(ClockId::Boottime)
}

/// CLOCK_REALTIME now: it may be set, and so tells what the other clock has missed.
pub(crate) fn realtime() -> Nanos {
    read(ClockId::Realtime)
}

/// How far one clock may be slewed against the other within one lease.
pub(crate) const SLEW_MAX: Duration = Duration::from_millis(20);

/// A look at both clocks that took longer says little.
const LOOK_MAX: Duration = Duration::from_millis(1);

/// Finds out that this node stood still without CLOCK_BOOTTIME counting it, as a frozen virtual machine does: CLOCK_REALTIME, once
/// it is corrected, has gone on.
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    /// How far CLOCK_REALTIME was ahead at the last look, at most; `None` before the first.
    ahead: Option<i128>,
}

impl Standstill {
    /// Whether it stood still since the last look. A clock that was set forward looks the same.
    pub(crate) fn is_seen(&mut self) -> bool {
        self.look(now(), realtime(), now())
    }

    /// A look at CLOCK_REALTIME, before and after which the other clock was looked at: between two looks the task may wait.
    fn look(&mut self, before: Nanos, realtime: Nanos, after: Nanos) -> bool {
        let ahead_of = |boottime: Nanos| i128::from(realtime.get()) - i128::from(boottime.get());
        let margin = i128::try_from(SLEW_MAX.as_nanos()).unwrap_or(i128::MAX);
        let is_seen = self.ahead.is_some_and(|ahead| ahead_of(after) - ahead > margin);
        if is_seen || self.ahead.is_none() || after.since(before) <= LOOK_MAX {
            self.ahead = Some(ahead_of(before));
        }
        is_seen
    }
}

fn read(clock: ClockId) -> Nanos {
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(time.tv_nsec).unwrap_or(0);
    Nanos::new(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at these milliseconds of the clocks: CLOCK_BOOTTIME before, CLOCK_REALTIME, CLOCK_BOOTTIME after.
    fn seen(looks: &[(u64, u64, u64)]) -> Vec<bool> {
        let mut standstill = Standstill::default();
        let at = |ms: u64| Nanos::new(ms * 1_000_000);
        looks
            .iter()
            .map(|(before, real, after)| standstill.look(at(*before), at(*real), at(*after)))
            .collect()
    }

    #[test]
    fn a_pause_that_one_clock_missed_is_seen_once() {
        assert_eq!(
            seen(&[(100, 5000, 100), (110, 5010, 110), (120, 10_020, 120), (130, 10_030, 130)]),
            [false, false, true, false]
        );
    }

    #[test]
    fn a_pause_that_both_clocks_count_is_none_nor_is_a_slewed_clock_or_one_set_back() {
        assert_eq!(seen(&[(100, 5000, 100), (9100, 14_000, 9100)]), [false, false]);
        assert_eq!(seen(&[(100, 5000, 100), (200, 5115, 200), (300, 5230, 300)]), [false, false, false]);
        assert_eq!(seen(&[(100, 5000, 100), (200, 3000, 200)]), [false, false]);
    }

    #[test]
    fn a_task_that_waits_between_the_clocks_sees_no_pause_and_hides_none() {
        // It waits before it looks at the second clock, and then behind it.
        assert_eq!(seen(&[(100, 5000, 100), (200, 5600, 700), (800, 5700, 800)]), [false, false, false]);
        assert_eq!(seen(&[(100, 5000, 100), (200, 5100, 700), (800, 5700, 800)]), [false, false, false]);
        // The pause is in between, and shows at the next look at the latest.
        assert_eq!(seen(&[(100, 5000, 100), (200, 6100, 1000), (1010, 6910, 1010)])[1..], [true, false]);
        assert_eq!(seen(&[(100, 5000, 100), (200, 5100, 800), (900, 6800, 900)]), [false, false, true]);
    }
}
