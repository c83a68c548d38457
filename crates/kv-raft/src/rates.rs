//! At which rate the clock of a peer runs: a lease rests on a bound of it, so the bound is checked.
//!
//! A peer's answer to a heartbeat carries a reading of its clock, taken between two readings of ours: when we began the
//! round and when the answer came. Two such answers bound how much of our time passed between the peer's readings, and
//! so the ratio of the two rates. Nothing is compared but spans, so the clocks need not agree.

use std::time::Duration;

use kv_types::Nanos;

/// What one span between two answers must be at most off, for the next span to begin at its end.
const SHARP_PPM: i64 = 1_000;

/// Windows after which a span ends in any case.
const WINDOWS_MAX: u32 = 20;

/// The rate of a peer's clock, as seen by one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockRate {
    /// It gains at least this many parts per million on ours; negative if it loses.
    pub low_ppm: i64,
    /// And at most this many.
    pub high_ppm: i64,
}

impl ClockRate {
    /// Whether it certainly gains or loses more than `bound_ppm`.
    pub fn exceeds(&self, bound_ppm: u32) -> bool {
        let bound = i64::from(bound_ppm);
        self.low_ppm > bound || self.high_ppm < -bound
    }

    fn between(first: Sample, second: Sample) -> Self {
        let theirs = second.clock.since(first.clock).as_nanos();
        let least = second.begun.since(first.received).as_nanos();
        let most = second.received.since(first.begun).as_nanos();
        Self { low_ppm: gain(theirs, most), high_ppm: gain(theirs, least).saturating_add(1) }
    }
}

/// What `theirs` is ahead of `ours`, in parts per million, rounded down.
fn gain(theirs: u128, ours: u128) -> i64 {
    let ratio = theirs.saturating_mul(1_000_000) / ours.max(1);
    i64::try_from(ratio).unwrap_or(i64::MAX).saturating_sub(1_000_000)
}

/// A reading of the peer's clock, and the readings of ours before and after it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    begun: Nanos,
    received: Nanos,
    clock: Nanos,
}

/// Watches one peer.
#[derive(Debug, Default)]
pub(crate) struct RateWatch {
    /// The round whose answer is waited for, and when it was begun.
    asked: Option<(u64, Nanos)>,
    anchor: Option<Sample>,
    pub(crate) rate: Option<ClockRate>,
}

impl RateWatch {
    /// Whether the peer's clock certainly gains or loses more than `bound_ppm`.
    pub(crate) fn exceeds(&self, bound_ppm: u32) -> bool {
        self.rate.is_some_and(|rate| rate.exceeds(bound_ppm))
    }

    /// A heartbeat of this round, begun now, is sent to the peer.
    pub(crate) fn ask(&mut self, round: u64, now: Nanos) {
        self.asked.get_or_insert((round, now));
    }

    /// The peer answered `round`; its clock said `clock` when it took the message.
    pub(crate) fn answer(&mut self, round: u64, now: Nanos, clock: Nanos, window: Duration) {
        let Some((asked, begun)) = self.asked.filter(|(asked, _)| *asked <= round) else { return };
        self.asked = None;
        if asked < round {
            // The answer that was waited for got lost.
            return;
        }
        let sample = Sample { begun, received: now, clock };
        match self.anchor {
            Some(anchor) if clock >= anchor.clock => {
                let span = begun.since(anchor.received);
                if span >= window {
                    let rate = ClockRate::between(anchor, sample);
                    let sharp = rate.high_ppm.saturating_sub(rate.low_ppm) <= SHARP_PPM;
                    if sharp || span >= window.saturating_mul(WINDOWS_MAX) {
                        self.anchor = Some(sample);
                    }
                    self.rate = Some(rate);
                }
            }
            // The first answer, or the peer's clock began anew.
            Some(_) | None => {
                self.anchor = Some(sample);
                self.rate = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(5);

    fn ms(millis: u64) -> Nanos {
        Nanos::new(millis * 1_000_000)
    }

    /// Answers every second for `seconds`; the peer's clock gains `ppm`, a message takes `trip` milliseconds each way.
    fn watch(seconds: u64, ppm: i64, trip: u64) -> RateWatch {
        let mut watch = RateWatch::default();
        for second in 1..=seconds {
            let (begun, read) = (second * 1000, second * 1000 + trip);
            watch.ask(second, ms(begun));
            let clock = u64::try_from(i64::try_from(read).unwrap() * (1_000_000 + ppm)).unwrap() + 77;
            watch.answer(second, ms(begun + 2 * trip), Nanos::new(clock), WINDOW);
        }
        watch
    }

    #[test]
    fn a_rate_is_bounded_by_two_answers() {
        assert_eq!(watch(5, 0, 1).rate, None, "the window is not over");
        for ppm in [-12_000, -4_000, 0, 4_000, 12_000] {
            let rate = watch(7, ppm, 1).rate.unwrap();
            assert!(rate.low_ppm <= ppm && ppm <= rate.high_ppm, "{ppm}: {rate:?}");
            assert_eq!(rate.exceeds(5_000), ppm.abs() > 5_000, "{ppm}: {rate:?}");
        }
    }

    #[test]
    fn slow_answers_decide_nothing_at_first_and_more_with_time() {
        assert!(!watch(7, 12_000, 200).rate.unwrap().exceeds(5_000));
        assert!(watch(60, 12_000, 200).rate.unwrap().exceeds(5_000));
    }

    #[test]
    fn a_clock_that_begins_anew_is_measured_anew() {
        let mut watch = watch(7, 12_000, 1);
        watch.ask(8, ms(8000));
        watch.answer(8, ms(8002), Nanos::new(1), WINDOW);
        assert_eq!(watch.rate, None);
    }

    #[test]
    fn only_the_answer_to_the_round_asked_counts() {
        let mut watch = RateWatch::default();
        watch.ask(5, ms(10));
        watch.ask(6, ms(20));
        watch.answer(4, ms(30), ms(1), WINDOW);
        assert!(watch.asked.is_some() && watch.anchor.is_none());
        watch.answer(6, ms(30), ms(1), WINDOW);
        assert!(watch.asked.is_none() && watch.anchor.is_none());
    }
}
