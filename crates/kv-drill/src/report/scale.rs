//! Axes: which part of time is shown, and where round ticks stand.

use super::place::{self, PLOT_PX};
use crate::record::Record;

/// The most ticks an axis may have; a bound of loops, never reached by the steps chosen here.
const TICKS_MAX: usize = 100;

/// The time that all charts show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Span {
    /// Its beginning, in milliseconds.
    pub(super) from: f64,
    /// Its end, later than its beginning.
    pub(super) until: f64,
}

impl Span {
    /// All that the record knows a time of; a second if that is nothing.
    pub(super) fn of(record: &Record) -> Self {
        Self::measured(record).unwrap_or(Self { from: 0.0, until: 1000.0 })
    }

    /// All that the record knows a time of.
    pub(super) fn measured(record: &Record) -> Option<Self> {
        let operations = record.operations.iter().flat_map(|op| [Some(op.call_ms), op.return_ms]);
        let faults = record.faults.iter().flat_map(|fault| [Some(fault.from_ms), Some(fault.until_ms)]);
        let steps = record.steps.iter().map(|step| step.at_ms);
        let leadership = record.leadership.iter().map(|change| Some(change.at_ms));
        let all = operations.chain(faults).chain(steps).chain(leadership).flatten();
        let (mut from, mut until) = (0.0_f64, 0.0_f64);
        for ms in all.chain([record.drill.duration_ms]).filter(|ms| ms.is_finite()) {
            from = from.min(ms);
            until = until.max(ms);
        }
        if from == until { None } else { Some(Self { from, until: until.max(from + 1.0) }) }
    }

    /// How long it is.
    pub(super) fn length(self) -> f64 {
        self.until - self.from
    }

    /// Where a moment stands, from 0 to 1. What lies outside stands at the edge.
    pub(super) fn fraction(self, ms: f64) -> f64 {
        if ms.is_nan() { 0.0 } else { ((ms - self.from) / self.length()).clamp(0.0, 1.0) }
    }

    /// Ticks at round seconds, with labels that do not touch in the narrowest chart.
    pub(super) fn ticks(self) -> Vec<Tick> {
        let longest = [self.from, self.until].map(|ms| format!("{:.0}", ms / 1000.0).len()).into_iter().max();
        let mut step = round_step(self.length() / 1000.0 / 12.0);
        loop {
            let label_px = place::label_px(longest.unwrap_or(1) + 1 + decimals_of(step));
            if step * 1000.0 / self.length() * PLOT_PX >= label_px * 1.5 + 8.0
                || step * 1000.0 >= self.length()
            {
                break;
            }
            step = round_step(step * 1.5);
        }
        let first = (self.from / 1000.0 / step).ceil();
        let at = |i: usize| (first + i as f64) * step;
        (0..TICKS_MAX)
            .map(at)
            .take_while(|seconds| seconds * 1000.0 <= self.until * (1.0 + 1e-9))
            .map(|seconds| Tick {
                fraction: self.fraction(seconds * 1000.0),
                label: format!("{:.*}", decimals_of(step), seconds + 0.0),
            })
            .collect()
    }
}

/// A mark on an axis.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tick {
    /// Where, from 0 to 1 in the direction of the axis.
    pub(super) fraction: f64,
    /// What stands there.
    pub(super) label: String,
}

/// The smallest of 1, 2, 5 times a power of ten that is no smaller than this.
pub(super) fn round_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1e-12).log10().floor());
    let step =
        [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| step * power >= least * (1.0 - 1e-9)).unwrap_or(10.0);
    step * power
}

/// How many decimals tell multiples of a step apart.
fn decimals_of(step: f64) -> usize {
    (0..9)
        .find(|decimals| step * 10_f64.powi(*decimals) >= 1.0 - 1e-9)
        .map_or(9, |d| usize::try_from(d).unwrap_or(9))
}

/// An axis from zero to a round number that is no smaller than `max`, with about four ticks.
pub(super) fn from_zero(max: f64) -> (f64, Vec<Tick>) {
    let step = round_step(max.max(1.0) / 4.0);
    let steps = (max.max(1.0) / step * (1.0 - 1e-9)).ceil().max(1.0);
    let top = steps * step;
    let ticks = (0..TICKS_MAX)
        .map(|i| i as f64)
        .take_while(|i| *i <= steps)
        .map(|i| Tick { fraction: i / steps, label: grouped(i * step, decimals_of(step)) })
        .collect();
    (top, ticks)
}

/// A number of an axis, with groups of three digits where it has no decimals.
fn grouped(number: f64, decimals: usize) -> String {
    let plain = format!("{number:.decimals$}");
    plain.parse().map_or(plain, super::text::count)
}

/// A logarithmic axis of times.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LogAxis {
    /// The power of ten, in milliseconds, where it begins.
    low: i32,
    /// The power of ten where it ends, greater than `low`.
    high: i32,
}

impl LogAxis {
    /// Whole decades around all of these; nothing if there are none.
    pub(super) fn around(times_ms: impl Iterator<Item = f64>) -> Option<Self> {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for ms in times_ms.filter(|ms| ms.is_finite()) {
            let ms = ms.max(1e-3);
            least = least.min(ms);
            most = most.max(ms);
        }
        if least > most {
            return None;
        }
        let powers = -3..12;
        let low = powers.clone().rev().find(|p| 10_f64.powi(*p) <= least * (1.0 + 1e-9)).unwrap_or(-3);
        let high = powers.clone().find(|p| 10_f64.powi(*p) >= most * (1.0 - 1e-9)).unwrap_or(12);
        Some(Self { low, high: high.max(low + 1) })
    }

    /// Where a time stands, from 0 to 1.
    pub(super) fn fraction(self, ms: f64) -> f64 {
        ((ms.max(1e-3).log10() - f64::from(self.low)) / f64::from(self.high - self.low)).clamp(0.0, 1.0)
    }

    /// A labelled tick a decade.
    pub(super) fn ticks(self) -> Vec<Tick> {
        let label = |p: i32| match p {
            ..=-1 => format!("{:.0} \u{b5}s", 10_f64.powi(p + 3)),
            0..=2 => format!("{:.0} ms", 10_f64.powi(p)),
            3.. => format!("{:.0} s", 10_f64.powi(p - 3)),
        };
        (self.low..=self.high)
            .map(|p| Tick { fraction: self.fraction(10_f64.powi(p)), label: label(p) })
            .collect()
    }

    /// Where thin lines without labels stand: at 2 and 5 of each decade.
    pub(super) fn minor(self) -> Vec<f64> {
        (self.low..self.high).flat_map(|p| [2.0, 5.0].map(|m| self.fraction(m * 10_f64.powi(p)))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn steps_are_round_and_no_smaller_than_asked() {
        assert_eq!(
            [0.3, 1.0, 1.2, 2.0, 4.9, 7.0, 60.0].map(round_step),
            [0.5, 1.0, 2.0, 2.0, 5.0, 10.0, 100.0]
        );
    }

    #[test]
    fn ticks_of_time_are_round_seconds() {
        assert_eq!(
            labels(&Span { from: 0.0, until: 20_000.0 }.ticks()),
            ["0", "2", "4", "6", "8", "10", "12", "14", "16", "18", "20"]
        );
        assert_eq!(
            labels(&Span { from: 0.0, until: 1000.0 }.ticks()),
            ["0.0", "0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1.0"]
        );
        assert_eq!(
            labels(&Span { from: -300.0, until: 2000.0 }.ticks()),
            ["-0.2", "0.0", "0.2", "0.4", "0.6", "0.8", "1.0", "1.2", "1.4", "1.6", "1.8", "2.0"]
        );
    }

    #[test]
    fn labels_of_time_never_touch_however_long_the_run() {
        for exponent in 0..90 {
            for from in [0.0, -2500.0] {
                let ticks = Span { from, until: 1.3_f64.powi(exponent) }.ticks();
                assert!(!ticks.is_empty());
                let boxes: Vec<_> = ticks
                    .iter()
                    .map(|tick| place::centred(tick.fraction * PLOT_PX, place::label_px(tick.label.len())).0)
                    .collect();
                for pair in boxes.windows(2) {
                    assert!(pair[0].right <= pair[1].left, "{exponent}: {pair:?} {ticks:?}");
                }
            }
        }
    }

    #[test]
    fn an_axis_from_zero_ends_at_a_round_number() {
        let (top, ticks) = from_zero(930.0);
        assert_eq!((top, labels(&ticks)), (1000.0, vec!["0", "500", "1,000"]));
        let (top, ticks) = from_zero(0.0);
        assert_eq!((top, labels(&ticks)), (1.0, vec!["0.0", "0.5", "1.0"]));
        assert_eq!(ticks[1].fraction, 0.5);
    }

    #[test]
    fn a_log_axis_has_whole_decades_and_units() {
        let axis = LogAxis::around([0.4, 1200.0, f64::NAN].into_iter()).unwrap();
        assert_eq!(labels(&axis.ticks()), ["100 \u{b5}s", "1 ms", "10 ms", "100 ms", "1 s", "10 s"]);
        assert!((axis.fraction(10.0) - 0.4).abs() < 1e-9);
        assert_eq!(axis.minor().len(), 10);
        assert_eq!(LogAxis::around(std::iter::empty()), None);
        assert_eq!(labels(&LogAxis::around([10.0].into_iter()).unwrap().ticks()), ["10 ms", "100 ms"]);
    }

    #[test]
    fn a_span_holds_all_that_has_a_time() {
        let mut record = Record::default();
        assert_eq!(Span::of(&record), Span { from: 0.0, until: 1000.0 });
        record.drill.duration_ms = 5000.0;
        record.steps.push(crate::record::StepFired { at_ms: Some(f64::INFINITY), ..Default::default() });
        record.leadership.push(crate::record::Leadership { at_ms: -20.0, ..Default::default() });
        let span = Span::of(&record);
        assert_eq!(span, Span { from: -20.0, until: 5000.0 });
        assert_eq!([-100.0, 2490.0, 9e9, f64::NAN].map(|ms| span.fraction(ms)), [0.0, 0.5, 1.0, 0.0]);
    }
}
