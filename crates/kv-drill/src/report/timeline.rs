//! The third section: panels on one time axis.

use super::place::{PLOT_PX, centred, label_px};
use super::scale::{Span, Tick};
use super::text::{absent, duration, section as wrap};
use super::{faults, leaders, load, svg};
use crate::record::Record;

/// How high a row of axis labels is.
const AXIS_HEIGHT: f64 = 18.0;

/// All panels, and the faults once more as a table.
pub(super) fn section(record: &Record) -> String {
    let measured = Span::measured(record);
    let span = Span::of(record);
    let axis = |side| measured.map_or_else(String::new, |span| axis(span, side));
    let panels = [
        axis("top"),
        faults::steps_panel(record, span),
        faults::panel(record, span),
        load::panels(record, span),
        leaders::panel(record, span),
        axis("bottom"),
    ]
    .concat();
    let body = format!(
        "<p class=\"note\">Horizontal axis of every panel: seconds since the workload began, {} in all. Shaded: a fault is in force. \
         An operation that never ended counts when it was called.</p>\n<p id=\"readout\"></p>\n\
         <div class=\"chart\" data-from=\"{}\" data-until=\"{}\">\n{panels}</div>\n{}",
        measured.map_or_else(|| absent("no time is known"), |span| duration(span.length())),
        svg::number(span.from),
        svg::number(span.until),
        faults::table(record)
    );
    wrap("timeline", "Timeline", &body)
}

/// A panel: a title with a legend above, labels of the vertical axis left, and the drawing.
pub(super) fn framed(title: &str, legend: &str, gutter: &str, plot: &str) -> String {
    format!(
        "<div class=\"panel\"><div class=\"cap\"><b>{title}</b>{legend}</div><div class=\"gutter\">{gutter}</div><div class=\"view\">{plot}</div></div>\n"
    )
}

/// A panel that has nothing to draw, and why.
pub(super) fn empty_panel(title: &str, why: &str) -> String {
    format!("<div class=\"panel\"><div class=\"cap\"><b>{title}</b>{}</div></div>\n", absent(why))
}

/// A legend: a swatch and a word each.
pub(super) fn legend<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let entries: String = entries
        .into_iter()
        .map(|(class, word)| format!("<span><svg class=\"swatch\" width=\"18\" height=\"10\" aria-hidden=\"true\"><rect class=\"{class}\" width=\"18\" height=\"10\"/></svg>{word}</span>"))
        .collect();
    format!("<span class=\"legend\">{entries}</span>")
}

/// The vertical lines of the time axis, behind a drawing of this height.
pub(super) fn grid(span: Span, height: f64) -> String {
    span.ticks().iter().map(|tick| svg::vertical("grid", tick.fraction, (0.0, height))).collect()
}

/// Shades when at least one fault was in force, once however many there were.
pub(super) fn shade(record: &Record, span: Span, height: f64) -> String {
    let mut times: Vec<(f64, f64)> = record
        .faults
        .iter()
        .map(|fault| (span.fraction(fault.from_ms), span.fraction(fault.until_ms)))
        .filter(|(from, until)| from <= until)
        .collect();
    times.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<(f64, f64)> = Vec::new();
    for (from, until) in times {
        match joined.last_mut() {
            Some(last) if from <= last.1 => last.1 = last.1.max(until),
            _ => joined.push((from, until)),
        }
    }
    joined.into_iter().map(|extent| svg::rect("shade", extent, (0.0, height), "")).collect()
}

/// Labels of a vertical axis, and the lines to them.
pub(super) fn vertical_axis(ticks: &[Tick], height: f64, top: f64) -> (String, String) {
    let y = |tick: &Tick| height - tick.fraction * (height - top);
    let labels: String = ticks
        .iter()
        .map(|tick| {
            format!(
                "<text x=\"100%\" dx=\"-6\" y=\"{}\" text-anchor=\"end\">{}</text>",
                svg::number(y(tick) + 4.0),
                tick.label
            )
        })
        .collect();
    let lines = ticks.iter().map(|tick| svg::horizontal("grid", y(tick))).collect();
    (
        format!(
            "<svg class=\"plot\" width=\"100%\" height=\"{}\" aria-hidden=\"true\">{labels}</svg>",
            svg::number(height)
        ),
        lines,
    )
}

/// A row of axis labels.
fn axis(span: Span, side: &str) -> String {
    let (mark, base) = if side == "top" { ((13.0, AXIS_HEIGHT), 10.0) } else { ((0.0, 5.0), 16.0) };
    let labels: String = span
        .ticks()
        .iter()
        .map(|tick| {
            let (_, hangs) = centred(tick.fraction * PLOT_PX, label_px(tick.label.len()));
            svg::vertical("tick", tick.fraction, mark)
                + &svg::text("axis", tick.fraction, 0.0, base, hangs, &tick.label)
        })
        .collect();
    let edge = svg::horizontal("tick", if side == "top" { AXIS_HEIGHT - 0.5 } else { 0.5 });
    let gutter = "<svg class=\"plot\" width=\"100%\" height=\"18\" aria-hidden=\"true\"><text x=\"100%\" dx=\"-10\" y=\"YY\" text-anchor=\"end\">seconds</text></svg>"
        .replace("YY", &svg::number(base));
    format!(
        "<div class=\"panel axis-{side}\"><div class=\"gutter\">{gutter}</div><div class=\"view\">{}</div></div>\n",
        svg::plot(AXIS_HEIGHT, "seconds since the workload began", &(labels + &edge))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Fault;

    #[test]
    fn faults_that_overlap_are_shaded_once() {
        let fault = |from_ms, until_ms| Fault { from_ms, until_ms, ..Default::default() };
        let record = Record {
            faults: vec![fault(500.0, 800.0), fault(100.0, 300.0), fault(200.0, 400.0)],
            ..Default::default()
        };
        let shaded = shade(&record, Span { from: 0.0, until: 1000.0 }, 10.0);
        assert_eq!(shaded.matches("<rect").count(), 2);
        assert!(shaded.contains("x=\"10%\" width=\"30%\""), "{shaded}");
    }
}
