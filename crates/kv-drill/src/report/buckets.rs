//! Operations gathered in buckets of equal length, so that a chart is as large for fifty thousand of them as for fifty.

use super::scale::{Span, round_step};
use crate::record::Operation;

/// The fewest buckets of a chart; there are at most two and a half times as many.
const BUCKETS_MIN: f64 = 80.0;

/// On which side of a cut a client stood when it called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It could reach a majority.
    Majority,
    /// It was cut off from one.
    Minority,
}

/// How many ended in a bucket, by what came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ended {
    /// They succeeded.
    pub(super) ok: u64,
    /// They did not happen.
    pub(super) failed: u64,
    /// Nobody knows.
    pub(super) unknown: u64,
}

impl Ended {
    /// All of them.
    pub(super) fn sum(self) -> u64 {
        self.ok + self.failed + self.unknown
    }
}

/// How long those that succeeded took that were called in a bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Latency {
    /// How many there were.
    pub(super) operations: usize,
    /// Half of them were no slower.
    pub(super) p50: f64,
    /// Of a hundred, ninety-nine were no slower.
    pub(super) p99: f64,
}

/// What one side did, bucket by bucket.
#[derive(Clone, Debug)]
pub(super) struct Buckets {
    /// How long a bucket is, in milliseconds.
    pub(super) width_ms: f64,
    /// By the time of the end; what never ended counts when it was called.
    pub(super) ended: Vec<Ended>,
    /// By the time of the call; absent where none succeeded.
    pub(super) latency: Vec<Option<Latency>>,
}

impl Buckets {
    /// The operations of a side.
    pub(super) fn of(operations: &[Operation], side: Side, span: Span) -> Self {
        let width_ms = width_ms(span);
        let len = index(span.length() / width_ms * (1.0 - 1e-9), usize::MAX) + 1;
        let mut ended = vec![Ended::default(); len];
        let mut taken: Vec<Vec<f64>> = vec![Vec::new(); len];
        let bucket = |ms: f64| index((ms - span.from) / width_ms, len - 1);
        for op in operations.iter().filter(|op| op.minority == (side == Side::Minority)) {
            if let Some(bucket) = ended.get_mut(bucket(op.return_ms.unwrap_or(op.call_ms))) {
                match op.outcome.as_str() {
                    "ok" => bucket.ok += 1,
                    "failed" => bucket.failed += 1,
                    _ => bucket.unknown += 1,
                }
            }
            if op.outcome == "ok"
                && let (Some(end), Some(bucket)) = (op.return_ms, taken.get_mut(bucket(op.call_ms)))
            {
                bucket.push(end - op.call_ms);
            }
        }
        Self { width_ms, ended, latency: taken.into_iter().map(latency).collect() }
    }

    /// Operations a second that so many in a bucket are.
    pub(super) fn rate(&self, operations: u64) -> f64 {
        operations as f64 * 1000.0 / self.width_ms
    }

    /// Whether the side did anything.
    pub(super) fn is_empty(&self) -> bool {
        self.ended.iter().all(|bucket| bucket.sum() == 0)
    }
}

/// The largest round length that gives enough buckets.
fn width_ms(span: Span) -> f64 {
    let most = span.length() / BUCKETS_MIN;
    let above = round_step(most);
    [1.0, 0.5, 0.4, 0.2]
        .into_iter()
        .map(|part| above * part)
        .find(|width| *width <= most * (1.0 + 1e-9) && is_round(*width))
        .unwrap_or(most)
}

/// Whether it is 1, 2 or 5 times a power of ten.
fn is_round(width: f64) -> bool {
    (round_step(width) / width - 1.0).abs() < 1e-6
}

/// A position as a number of a bucket, at most `max`.
fn index(position: f64, max: usize) -> usize {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and what is no number becomes 0"
    )]
    let index = position as usize;
    index.min(max)
}

/// The percentiles of a bucket.
fn latency(mut taken: Vec<f64>) -> Option<Latency> {
    taken.sort_by(f64::total_cmp);
    Some(Latency { operations: taken.len(), p50: percentile(&taken, 50)?, p99: percentile(&taken, 99)? })
}

/// The smallest of the sorted values that `percent` of a hundred are no greater than.
pub(super) fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn op(minority: bool, call_ms: f64, return_ms: Option<f64>, outcome: &str) -> Operation {
        Operation { minority, call_ms, return_ms, outcome: outcome.into(), ..Default::default() }
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=200).map(f64::from).collect();
        assert_eq!(percentile(&values, 50), Some(100.0));
        assert_eq!(percentile(&values, 99), Some(198.0));
        assert_eq!(percentile(&values[..3], 50), Some(2.0));
        assert_eq!(percentile(&values[..3], 99), Some(3.0));
        assert_eq!(percentile(&values[..1], 50), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }

    #[test]
    fn there_are_80_to_200_buckets_of_a_round_length() {
        for exponent in 1..60 {
            let span = Span { from: 0.0, until: 1.4_f64.powi(exponent) };
            let buckets = Buckets::of(&[], Side::Majority, span);
            assert!((80..=201).contains(&buckets.ended.len()), "{} of {span:?}", buckets.ended.len());
            assert!(is_round(buckets.width_ms), "{}", buckets.width_ms);
        }
        let buckets = Buckets::of(&[], Side::Majority, Span { from: 0.0, until: 20_000.0 });
        assert_eq!((buckets.width_ms, buckets.ended.len()), (200.0, 100));
    }

    #[test]
    fn each_operation_counts_once_where_it_ended_on_its_side() {
        let span = Span { from: 0.0, until: 1000.0 };
        let operations = [
            op(false, 5.0, Some(25.0), "ok"),
            op(false, 6.0, Some(8.0), "ok"),
            op(false, 7.0, Some(1000.0), "failed"),
            op(false, 15.0, None, "unknown"),
            op(true, 5.0, Some(9e9), "unknown"),
            op(true, f64::NAN, Some(f64::NAN), "?"),
        ];
        let majority = Buckets::of(&operations, Side::Majority, span);
        assert_eq!(majority.width_ms, 10.0);
        assert_eq!(majority.ended[0], Ended { ok: 1, ..Default::default() });
        assert_eq!(majority.ended[1], Ended { unknown: 1, ..Default::default() });
        assert_eq!(majority.ended[2], Ended { ok: 1, ..Default::default() });
        assert_eq!(majority.ended[99], Ended { failed: 1, ..Default::default() });
        assert_eq!(majority.latency[0], Some(Latency { operations: 2, p50: 2.0, p99: 20.0 }));
        assert!(majority.latency[1..].iter().all(Option::is_none));
        assert_eq!(majority.rate(3), 300.0);
        let minority = Buckets::of(&operations, Side::Minority, span);
        assert_eq!(minority.ended.iter().map(|b| b.unknown).sum::<u64>(), 2);
        assert!(!minority.is_empty());
    }
}
