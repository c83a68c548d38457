//! Who led which shard when.

use std::collections::{BTreeMap, BTreeSet};

use super::place::{Anchor, PLOT_PX, label_px};
use super::scale::Span;
use super::svg;
use super::text::{self, moment};
use super::timeline::{empty_panel, framed, grid, legend};
use crate::record::{Leadership, Record};

/// How high a row is.
const ROW: f64 = 20.0;

/// Rows that are drawn; of more shards it is said how many they are.
const ROWS_MAX: usize = 64;

/// What is narrower than this part of the width is drawn together with its neighbours of the same kind.
const NARROW: f64 = 0.002;

/// How many colours there are; nodes beyond that share them, and the labels tell them apart.
const COLOURS: u64 = 9;

/// A time in which nothing changed.
#[derive(Clone, Debug, PartialEq)]
struct Segment {
    from: f64,
    until: f64,
    state: State,
    title: String,
}

/// What is known of a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A node leads in an epoch.
    Led { node: u64, epoch: u64 },
    /// Nobody is known to lead.
    Unled,
    /// Too many changes for the room.
    Many,
}

/// A row for each shard: the labels and the drawing.
fn rows_of(record: &Record, span: Span) -> Option<(String, String)> {
    let mut shards: BTreeMap<u32, Vec<&Leadership>> = BTreeMap::new();
    for id in 1..=record.drill.shards.min(u32::try_from(ROWS_MAX).unwrap_or(u32::MAX)) {
        shards.entry(id).or_default();
    }
    for change in &record.leadership {
        shards.entry(change.shard).or_default().push(change);
    }
    if shards.is_empty() {
        return None;
    }
    let height = shards.len().min(ROWS_MAX) as f64 * ROW;
    let (mut labels, mut rows) = (String::new(), grid(span, height));
    for (i, (id, changes)) in shards.iter().take(ROWS_MAX).enumerate() {
        let top = i as f64 * ROW;
        labels.push_str(&format!(
            "<text x=\"100%\" dx=\"-6\" y=\"{}\" text-anchor=\"end\">{}</text>",
            svg::number(top + 14.0),
            text::shard(*id)
        ));
        rows.push_str(&row(changes, span, top));
    }
    let gutter = format!(
        "<svg class=\"plot\" width=\"100%\" height=\"{}\" aria-hidden=\"true\">{labels}</svg>",
        svg::number(height)
    );
    Some((gutter, svg::plot(height, "leaders", &rows)))
}

/// The leadership strip.
pub(super) fn panel(record: &Record, span: Span) -> String {
    let title = "Leaders, node and epoch";
    let Some((gutter, plot)) = rows_of(record, span) else {
        return empty_panel(title, "no shard was seen");
    };
    let nodes: BTreeSet<u64> = record.leadership.iter().filter_map(|change| change.leader).collect();
    let entries: Vec<(String, String)> =
        nodes.iter().take(16).map(|node| (format!("node {}", colour(*node)), text::node(*node))).collect();
    let entries = entries.iter().map(|(class, word)| (class.as_str(), word.as_str()));
    let legend = legend(entries.chain([("unled", "no leader known")]));
    let more = record
        .leadership
        .iter()
        .map(|change| change.shard)
        .collect::<BTreeSet<_>>()
        .len()
        .saturating_sub(ROWS_MAX);
    let legend = if more == 0 {
        legend
    } else {
        format!("{legend}<span class=\"absent\">{more} more shards are in the record</span>")
    };
    framed(title, &legend, &gutter, &plot)
}

/// The class that colours a node.
fn colour(node: u64) -> String {
    format!("c{}", node % COLOURS)
}

/// A shard's row.
fn row(changes: &[&Leadership], span: Span, top: f64) -> String {
    let seen = segments(changes, span);
    let first = seen.first().map_or(1.0, |segment| segment.from);
    let mut out = String::new();
    if first > 0.0 {
        let word = if seen.is_empty() { "no leader was ever seen" } else { "not seen" };
        let fits = label_px(word.len()) + 8.0 <= first * PLOT_PX;
        out.push_str(&if fits {
            svg::text("mono soft", 0.0, 4.0, top + 14.0, Anchor::Start, word)
        } else {
            svg::rect("unseen", (0.0, first), (top + 9.0, 1.0), "not seen yet")
        });
    }
    for segment in &seen {
        let extent = (segment.from, segment.until);
        let box_ = (top + 2.0, ROW - 4.0);
        match segment.state {
            State::Led { node, epoch } => {
                out.push_str(&svg::rect(&format!("node {}", colour(node)), extent, box_, &segment.title));
                out.push_str(&svg::vertical(
                    &format!("edge {}", colour(node)),
                    segment.from,
                    (top + 2.0, top + ROW - 2.0),
                ));
                out.push_str(&label(
                    "mono on",
                    segment,
                    top,
                    &[format!("{} e{epoch}", text::node(node)), text::node(node)],
                ));
            }
            State::Unled => {
                out.push_str(&svg::rect("unled", extent, box_, &segment.title));
                out.push_str(&label("mono halo", segment, top, &["no leader".to_owned()]));
            }
            State::Many => out.push_str(&svg::rect("many", extent, box_, &segment.title)),
        }
    }
    out
}

/// The longest of the labels that fits into a segment, if any does.
fn label(class: &str, segment: &Segment, top: f64, labels: &[String]) -> String {
    let room = (segment.until - segment.from) * PLOT_PX - 7.0;
    labels.iter().find(|label| label_px(label.len()) <= room).map_or_else(String::new, |label| {
        svg::text(class, segment.from, 5.0, top + 14.0, Anchor::Start, label)
    })
}

/// Changes of a shard as times in which nothing changed; what is too narrow to see is drawn together.
fn segments(changes: &[&Leadership], span: Span) -> Vec<Segment> {
    let mut changes: Vec<&&Leadership> = changes.iter().collect();
    changes.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
    let mut out: Vec<Segment> = Vec::new();
    for (i, change) in changes.iter().enumerate() {
        let until_ms = changes.get(i + 1).map_or(span.until, |next| next.at_ms);
        let (from, until) = (span.fraction(change.at_ms), span.fraction(until_ms));
        let state = change.leader.map_or(State::Unled, |node| State::Led { node, epoch: change.epoch });
        if until <= from && i + 1 < changes.len() {
            continue;
        }
        let who = change.leader.map_or("no leader known".to_owned(), |node| {
            format!("{} leads in epoch {}", text::node(node), change.epoch)
        });
        let title =
            format!("{}, {} to {}: {who}", text::shard(change.shard), moment(change.at_ms), moment(until_ms));
        push(&mut out, Segment { from, until, state, title });
    }
    out
}

/// Adds a segment, to the one before if it continues that.
fn push(out: &mut Vec<Segment>, next: Segment) {
    let Some(last) = out.last_mut() else { return out.push(next) };
    let narrow = next.until - next.from < NARROW;
    if last.state == next.state {
        last.until = next.until;
    } else if narrow && (last.until - last.from < NARROW || last.state == State::Many) {
        *last = Segment {
            until: next.until,
            state: State::Many,
            title: "several changes, too close to draw".to_owned(),
            ..last.clone()
        };
    } else {
        out.push(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(at_ms: f64, epoch: u64, leader: Option<u64>) -> Leadership {
        Leadership { shard: 1, at_ms, epoch, leader }
    }

    fn of(changes: &[Leadership]) -> Vec<(f64, f64, State)> {
        let changes: Vec<&Leadership> = changes.iter().collect();
        segments(&changes, Span { from: 0.0, until: 1000.0 })
            .into_iter()
            .map(|s| (s.from, s.until, s.state))
            .collect()
    }

    #[test]
    fn a_change_lasts_until_the_next() {
        let seen = of(&[
            change(100.0, 2, Some(1)),
            change(400.0, 2, None),
            change(500.0, 3, Some(2)),
            change(700.0, 3, Some(2)),
        ]);
        let led = |node, epoch| State::Led { node, epoch };
        assert_eq!(seen, [(0.1, 0.4, led(1, 2)), (0.4, 0.5, State::Unled), (0.5, 1.0, led(2, 3))]);
    }

    #[test]
    fn a_thousand_elections_do_not_make_a_thousand_rectangles() {
        let changes: Vec<Leadership> = (0..1000).map(|i| change(i as f64, i, Some(i % 3))).collect();
        let seen = of(&changes);
        assert!(seen.len() < 10, "{}", seen.len());
        assert!(seen.iter().any(|(_, _, state)| *state == State::Many));
    }

    #[test]
    fn labels_stay_inside_their_segments() {
        for i in 1..60 {
            let changes: Vec<Leadership> =
                (0..i).map(|k| change(k as f64 * 1000.0 / i as f64, k * 1000, Some(k))).collect();
            for (from, until, _) in of(&changes) {
                let segment = Segment { from, until, state: State::Unled, title: String::new() };
                let drawn = label("", &segment, 0.0, &["n1 e1000".to_owned(), "n1".to_owned()]);
                let room = (until - from) * PLOT_PX;
                assert_eq!(drawn.contains("e1000"), label_px(8) + 7.0 <= room);
                assert_eq!(drawn.is_empty(), label_px(2) + 7.0 > room);
            }
        }
    }

    #[test]
    fn shards_that_nobody_saw_have_a_row_that_says_so() {
        let mut record = Record::default();
        assert!(panel(&record, Span::of(&record)).contains("no shard was seen"));
        record.drill.shards = 2;
        record.leadership.push(change(0.0, 1, Some(1)));
        let html = panel(&record, Span::of(&record));
        assert!(html.contains("n1 e1") && html.contains("no leader was ever seen"));
        record.drill.shards = u32::MAX;
        assert!(panel(&record, Span::of(&record)).len() < 100_000);
    }
}
