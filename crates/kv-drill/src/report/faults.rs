//! Fault lanes and step marks.

use super::place::{self, Anchor, Bar, Extent, PLOT_PX, Placed, chars_of, label_px};
use super::scale::Span;
use super::svg;
use super::text::{self, absent, clip, count, escape, moment};
use super::timeline::{empty_panel, framed, grid, legend};
use crate::record::{Fault, Record};

/// Faults that are drawn and listed; of more it is said how many they are.
const FAULTS_MAX: usize = 300;

/// How high a lane is: a line of text over a bar.
const LANE_HEIGHT: f64 = 25.0;

/// How high the row of step marks is: numbers over marks.
const STEPS_HEIGHT: f64 = 22.0;

/// The least width of a bar, as a part of the whole: what was done at one moment is still seen.
const BAR_MIN: f64 = 0.004;

/// The longest name in a label; the rest is under the pointer and in the table.
const NAME_CHARS_MAX: usize = 34;

/// The faults that are shown, in the order of their beginning.
fn shown(record: &Record) -> Vec<&Fault> {
    let mut faults: Vec<&Fault> = record.faults.iter().collect();
    faults.sort_by(|a, b| a.from_ms.total_cmp(&b.from_ms));
    faults.truncate(FAULTS_MAX);
    faults
}

/// A remark when not all are shown.
fn left_out(record: &Record) -> String {
    match record.faults.len().checked_sub(FAULTS_MAX) {
        None | Some(0) => String::new(),
        Some(more) => format!(
            "<span class=\"absent\">the first {FAULTS_MAX} are shown, {more} more are in the record</span>"
        ),
    }
}

/// Whether a rule was in force and met no message.
fn idle(fault: &Fault) -> bool {
    fault.plane == "message" && fault.matched == 0
}

/// What a lane's label says.
fn label(fault: &Fault) -> String {
    // Letters beyond ASCII may be twice as wide.
    let chars_max = if fault.name.is_ascii() { NAME_CHARS_MAX } else { NAME_CHARS_MAX / 2 };
    let name = clip(&fault.name, chars_max);
    let number = |n: u64| if n < 1_000_000_000 { count(n) } else { text::short_count(n) };
    if idle(fault) {
        format!("! {name}: matched no message")
    } else if fault.plane == "message" {
        format!("{name}: {} matched, {} acted", number(fault.matched), number(fault.acted))
    } else if fault.plane == "process" {
        name
    } else {
        format!("{name} ({})", clip(&fault.plane, 12))
    }
}

/// What a bar covers, as fractions of the width.
fn extent(fault: &Fault, span: Span) -> (f64, f64) {
    let (from, until) = (span.fraction(fault.from_ms), span.fraction(fault.until_ms));
    let from = from.min(1.0 - BAR_MIN);
    (from, until.max(from + BAR_MIN))
}

/// What wants a place in the lanes.
fn bars_of(faults: &[&Fault], span: Span) -> Vec<Bar> {
    let bar = |fault: &&Fault| {
        let (from, until) = extent(fault, span);
        Bar {
            name: format!("{}\n{}", fault.plane, fault.name),
            extent: Extent { left: from * PLOT_PX, right: until * PLOT_PX },
            label_px: label_px(chars_of(&label(fault))),
        }
    };
    faults.iter().map(bar).collect()
}

/// A lane for each fault; faults of one name share one, and many faults share lanes where they leave room.
pub(super) fn panel(record: &Record, span: Span) -> String {
    let faults = shown(record);
    if faults.is_empty() {
        return empty_panel("Faults", "no fault was in force");
    }
    let placed = place::rows(&bars_of(&faults, span));
    let rows = placed.iter().map(|place| place.row + 1).max().unwrap_or(1);
    let height = rows as f64 * LANE_HEIGHT + 4.0;
    let bars: String = faults.iter().zip(&placed).map(|(fault, place)| lane(fault, place, span)).collect();
    let plot = svg::plot(height, "faults", &(grid(span, height) + &bars));
    let legend = legend([
        ("bar", "rule on messages"),
        ("bar wire", "rule on connections"),
        ("bar process", "done to a process"),
        ("bar idle", "! matched no message"),
    ]) + &left_out(record);
    panel_of("Faults", &legend, &plot)
}

/// A panel without a vertical axis.
fn panel_of(title: &str, legend: &str, plot: &str) -> String {
    framed(title, legend, "", plot)
}

/// A bar with its label above.
fn lane(fault: &Fault, place: &Placed, span: Span) -> String {
    let top = place.row as f64 * LANE_HEIGHT + 3.0;
    let class = match fault.plane.as_str() {
        _ if idle(fault) => "bar idle",
        "message" => "bar",
        "process" => "bar process",
        _ => "bar wire",
    };
    let (from, until) = extent(fault, span);
    let title = format!(
        "{} ({}): {}; {} to {}; {} matched, {} acted; {} client operations under way",
        fault.name,
        fault.plane,
        fault.text,
        moment(fault.from_ms),
        moment(fault.until_ms),
        count(fault.matched),
        count(fault.acted),
        count(fault.concurrent)
    );
    let bar = svg::rect(class, (from, until), (top + 13.0, 7.0), &title);
    let Some((extent, anchor)) = place.label else { return bar };
    let at = if anchor == Anchor::End { extent.right } else { extent.left };
    let class = if idle(fault) { "mono warn" } else { "mono" };
    bar + &svg::text(class, at / PLOT_PX, 0.0, top + 10.0, anchor, &label(fault))
}

/// Where steps fired: a mark each, numbered as far as there is room.
pub(super) fn steps_panel(record: &Record, span: Span) -> String {
    let mut marks: Vec<(f64, u32)> = record
        .steps
        .iter()
        .filter_map(|step| {
            Some((span.fraction(step.at_ms.filter(|ms| ms.is_finite())?) * PLOT_PX, step.number))
        })
        .collect();
    if marks.is_empty() {
        return empty_panel("Steps", "no step fired");
    }
    marks.sort_by(|a, b| a.0.total_cmp(&b.0));
    let lines: String =
        marks.iter().map(|(at, _)| svg::vertical("step", at / PLOT_PX, (14.0, STEPS_HEIGHT))).collect();
    let labels: String = place::clusters(&marks)
        .iter()
        .map(|cluster| {
            let dx = if cluster.anchor() == Anchor::Start { -1.0 } else { 1.0 };
            svg::text("mono", cluster.at / PLOT_PX, dx, 11.0, cluster.anchor(), &cluster.label())
        })
        .collect();
    let plot = svg::plot(STEPS_HEIGHT, "steps", &(grid(span, STEPS_HEIGHT) + &lines + &labels));
    panel_of("Steps", "<span class=\"legend\"><span>numbered as in the table of steps</span></span>", &plot)
}

/// All faults in words and numbers.
pub(super) fn table(record: &Record) -> String {
    let faults = shown(record);
    if faults.is_empty() {
        return String::new();
    }
    let row = |fault: &&Fault| {
        let counted = fault.plane == "message";
        let number = |n: u64| if counted { count(n) } else { absent("not counted") };
        format!(
            "<tr{}><td><code>{}</code></td><td><code>{}</code></td><td>{}</td><td class=\"num\">{}</td><td class=\"num\">{}</td>\
             <td class=\"num\">{}{}</td><td class=\"num\">{}</td><td class=\"num\">{}</td></tr>\n",
            if idle(fault) { " class=\"unmet\"" } else { "" },
            escape(&fault.name),
            escape(&fault.text),
            text::or_absent(&fault.plane, "not recorded"),
            moment(fault.from_ms),
            moment(fault.until_ms),
            if idle(fault) { "! " } else { "" },
            number(fault.matched),
            number(fault.acted),
            count(fault.concurrent)
        )
    };
    let rows: String = faults.iter().map(row).collect();
    let open = if faults.len() <= 12 { " open" } else { "" };
    format!(
        "<details{open}><summary>Faults in numbers ({})</summary>\n<div class=\"scroll\"><table><thead><tr><th>Name</th><th>What</th><th>Plane</th>\
         <th class=\"num\">From</th><th class=\"num\">Until</th><th class=\"num\">Matched</th><th class=\"num\">Acted</th>\
         <th class=\"num\" title=\"client operations under way while it was in force\">Operations under way</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n{}</details>\n",
        count(record.faults.len() as u64),
        left_out(record)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(i: u32, matched: u64) -> Fault {
        Fault {
            name: format!("rule-{i}"),
            plane: "message".into(),
            from_ms: f64::from(i) * 37.0 % 900.0,
            until_ms: f64::from(i) * 37.0 % 900.0 + f64::from(i % 7) * 60.0,
            matched,
            acted: matched / 2,
            ..Default::default()
        }
    }

    #[test]
    fn no_two_label_boxes_overlap_on_a_page_with_1_to_40_faults() {
        let span = Span { from: 0.0, until: 1000.0 };
        for faults in 1..=40 {
            let record = Record {
                faults: (0..faults).map(|i| fault(i, u64::from(i) * 999)).collect(),
                ..Default::default()
            };
            let shown = shown(&record);
            let placed = place::rows(&bars_of(&shown, span));
            for (i, a) in placed.iter().enumerate() {
                for b in placed.iter().skip(i + 1).filter(|b| b.row == a.row) {
                    if let (Some((a, _)), Some((b, _))) = (a.label, b.label) {
                        assert!(a.right <= b.left || b.right <= a.left, "{faults} faults: {a:?} {b:?}");
                    }
                }
            }
            assert_eq!(placed.iter().filter(|place| place.label.is_some()).count(), shown.len());
        }
    }

    #[test]
    fn the_longest_label_fits_into_the_narrowest_chart() {
        for name in ["x".repeat(99), "\u{6f22}".repeat(99)] {
            let fault = Fault {
                name,
                matched: u64::MAX,
                acted: 999_999_999,
                plane: "message".into(),
                ..Default::default()
            };
            assert!(label_px(chars_of(&label(&fault))) < PLOT_PX, "{}", label(&fault));
        }
    }

    #[test]
    fn a_rule_that_met_no_message_is_a_warning() {
        let record = Record { faults: vec![fault(1, 0)], ..Default::default() };
        let html = panel(&record, Span::of(&record)) + &table(&record);
        assert!(html.contains("! rule-1: matched no message") && html.contains("class=\"bar idle\""));
        let process = Fault { plane: "process".into(), name: "kill n2".into(), ..fault(1, 0) };
        let record = Record { faults: vec![process], ..Default::default() };
        assert!(
            !lane(&record.faults[0], &Placed { row: 0, label: None }, Span::of(&record)).contains("idle")
        );
        assert!(table(&record).contains("not counted"));
    }

    #[test]
    fn of_very_many_faults_the_first_are_shown() {
        let record = Record { faults: (0..400).map(|i| fault(i, 5)).collect(), ..Default::default() };
        let html = panel(&record, Span::of(&record));
        assert!(html.contains("100 more are in the record"));
        assert_eq!(shown(&record).len(), FAULTS_MAX);
    }
}
