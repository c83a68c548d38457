//! Throughput and latency, the sides of a cut apart.

use super::buckets::{Buckets, Ended, Latency, Side};
use super::scale::{LogAxis, Span, from_zero};
use super::svg;
use super::text::{count, duration, moment};
use super::timeline::{empty_panel, framed, grid, legend, shade, vertical_axis};
use crate::record::Record;

/// How high the larger drawings are.
const HEIGHT: f64 = 110.0;

/// Room for half a label above the highest tick.
const TOP: f64 = 8.0;

/// How the two sides are called.
const SIDES: [(Side, &str); 2] = [(Side::Majority, "majority"), (Side::Minority, "minority")];

/// A panel of throughput for each side, on a scale of its own, for the sides differ by far, and one of latency.
pub(super) fn panels(record: &Record, span: Span) -> String {
    if record.operations.is_empty() {
        return empty_panel("Throughput", "no operation was recorded")
            + &empty_panel("Latency", "no operation was recorded");
    }
    let sides = SIDES.map(|(side, word)| (word, Buckets::of(&record.operations, side, span)));
    let throughput: String =
        sides.iter().map(|(word, buckets)| throughput(record, span, word, buckets)).collect();
    throughput + &latency(record, span, &sides)
}

/// Operations a second of a side, by what came of them.
fn throughput(record: &Record, span: Span, word: &str, buckets: &Buckets) -> String {
    let title = format!("Throughput, clients on the {word} side, operations/s");
    if buckets.is_empty() {
        return empty_panel(&title, &format!("no client was on the {word} side"));
    }
    let most = buckets.ended.iter().map(|bucket| buckets.rate(bucket.sum())).fold(0.0, f64::max);
    let (top, ticks) = from_zero(most);
    let (gutter, lines) = vertical_axis(&ticks, HEIGHT, TOP);
    let y = |operations: u64| HEIGHT - buckets.rate(operations) / top * (HEIGHT - TOP);
    let stack = |from: fn(&Ended) -> u64, own: fn(&Ended) -> u64| -> Vec<(f64, f64)> {
        buckets.ended.iter().map(|bucket| (y(from(bucket)), y(from(bucket) + own(bucket)))).collect()
    };
    let width = buckets.width_ms / span.length();
    let curves = [
        svg::columns("ok", width, &stack(|_| 0, |b| b.ok)),
        svg::columns("failed", width, &stack(|b| b.ok, |b| b.failed)),
        svg::columns("unknown", width, &stack(|b| b.ok + b.failed, |b| b.unknown)),
    ]
    .concat();
    let hover = |i: usize| {
        let bucket = buckets.ended.get(i)?;
        (bucket.sum() > 0).then(|| {
            format!(
                "{word}: {} ok/s, {} failed/s, {} unknown/s",
                rate(buckets, bucket.ok),
                rate(buckets, bucket.failed),
                rate(buckets, bucket.unknown)
            )
        })
    };
    let body = [
        shade(record, span, HEIGHT),
        grid(span, HEIGHT),
        lines,
        svg::curves(HEIGHT, &curves),
        hovers(buckets, span, hover),
    ]
    .concat();
    let legend = legend([("ok", "ok"), ("failed", "failed: did not happen"), ("unknown", "unknown")])
        + &format!(
            "<span class=\"legend\"><span>by time of end, per {}; a scale of its own</span></span>",
            duration(buckets.width_ms)
        );
    framed(&title, &legend, &gutter, &svg::plot(HEIGHT + 1.0, &title, &body))
}

/// A rate in words.
fn rate(buckets: &Buckets, operations: u64) -> String {
    svg::number((buckets.rate(operations) * 10.0).round() / 10.0)
}

/// Percentiles of both sides on a logarithmic axis.
fn latency(record: &Record, span: Span, sides: &[(&str, Buckets); 2]) -> String {
    let title = "Latency of operations that succeeded, p50 and p99";
    let all =
        sides.iter().flat_map(|(_, buckets)| buckets.latency.iter().flatten().flat_map(|l| [l.p50, l.p99]));
    let Some(axis) = LogAxis::around(all) else {
        return empty_panel(title, "no operation succeeded");
    };
    let (gutter, lines) = vertical_axis(&axis.ticks(), HEIGHT, TOP);
    let y = |ms: f64| HEIGHT - axis.fraction(ms) * (HEIGHT - TOP);
    let minor: String =
        axis.minor().into_iter().map(|at| svg::horizontal("minor", HEIGHT - at * (HEIGHT - TOP))).collect();
    let line = |(word, buckets): &(&str, Buckets), name: &str, pick: fn(&Latency) -> f64| {
        let heights: Vec<Option<f64>> =
            buckets.latency.iter().map(|l| l.as_ref().map(|l| y(pick(l)))).collect();
        svg::step_line(&format!("line {word} {name}"), buckets.width_ms / span.length(), &heights)
    };
    let curves: String =
        sides.iter().map(|side| line(side, "p50", |l| l.p50) + &line(side, "p99", |l| l.p99)).collect();
    let hover = |i: usize| {
        let words: Vec<String> = sides
            .iter()
            .filter_map(|(word, buckets)| {
                let l = buckets.latency.get(i)?.as_ref()?;
                Some(format!(
                    "{word}: p50 {}, p99 {} of {}",
                    duration(l.p50),
                    duration(l.p99),
                    count(l.operations as u64)
                ))
            })
            .collect();
        (!words.is_empty()).then(|| words.join("; "))
    };
    let [(_, first), _] = sides;
    let body = [
        shade(record, span, HEIGHT),
        minor,
        grid(span, HEIGHT),
        lines,
        svg::curves(HEIGHT, &curves),
        hovers(first, span, hover),
    ]
    .concat();
    let legend = legend_of_lines(sides)
        + "<span class=\"legend\"><span>by time of call, log scale; p99 of fewer than 100 is their maximum</span></span>";
    framed(title, &legend, &gutter, &svg::plot(HEIGHT + 1.0, title, &body))
}

/// The kinds of line that occur.
fn legend_of_lines(sides: &[(&str, Buckets); 2]) -> String {
    let entries: String = sides
        .iter()
        .filter(|(_, buckets)| buckets.latency.iter().any(Option::is_some))
        .flat_map(|(word, _)| ["p50", "p99"].map(|name| (*word, name)))
        .map(|(word, name)| {
            format!("<span><svg class=\"swatch\" width=\"22\" height=\"10\" aria-hidden=\"true\"><path class=\"line {word} {name}\" d=\"M0 5H22\"/></svg>{word} {name}</span>")
        })
        .collect();
    format!("<span class=\"legend\">{entries}</span>")
}

/// Fields that say under the pointer what a bucket holds.
fn hovers(buckets: &Buckets, span: Span, words: impl Fn(usize) -> Option<String>) -> String {
    let width = buckets.width_ms / span.length();
    (0..buckets.ended.len())
        .filter_map(|i| {
            let from = i as f64 * width;
            let title = format!("{}: {}", moment(span.from + i as f64 * buckets.width_ms), words(i)?);
            Some(svg::rect("hover", (from, (from + width).min(1.0)), (0.0, HEIGHT), &title))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Operation;

    #[test]
    fn sides_and_outcomes_are_apart() {
        let op = |minority, outcome: &str| Operation {
            minority,
            outcome: outcome.into(),
            call_ms: 10.0,
            return_ms: Some(12.0),
            ..Default::default()
        };
        let mut record =
            Record { operations: vec![op(false, "ok"), op(true, "unknown")], ..Default::default() };
        record.drill.duration_ms = 1000.0;
        let html = panels(&record, Span::of(&record));
        assert!(html.contains("majority: 100 ok/s, 0 failed/s, 0 unknown/s"));
        assert!(html.contains("minority: 0 ok/s, 0 failed/s, 100 unknown/s"));
        assert!(html.contains("majority: p50 2.00 ms, p99 2.00 ms of 1"));
        assert!(!html.contains("minority: p50"));
    }

    #[test]
    fn without_operations_it_says_so() {
        let record = Record::default();
        assert_eq!(panels(&record, Span::of(&record)).matches("no operation was recorded").count(), 2);
    }
}
