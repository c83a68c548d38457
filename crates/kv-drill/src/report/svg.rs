//! Pieces of SVG. Horizontal places are fractions of the width and become percentages; vertical ones are pixels.

use super::place::Anchor;
use super::text::escape;

/// The width of the coordinates that curves are drawn in, which stretch with the chart.
const CURVE_WIDTH: f64 = 1000.0;

/// A drawing as wide as its column.
pub(super) fn plot(height: f64, label: &str, body: &str) -> String {
    format!(
        "<svg class=\"plot\" width=\"100%\" height=\"{}\" role=\"img\" aria-label=\"{}\">{body}</svg>",
        number(height),
        escape(label)
    )
}

/// A fraction of the width.
pub(super) fn percent(fraction: f64) -> String {
    format!("{}%", number(fraction * 100.0))
}

/// A number with two decimals at most.
pub(super) fn number(number: f64) -> String {
    let text = format!("{number:.2}");
    let short = text.trim_end_matches('0').trim_end_matches('.');
    if short == "-0" { "0".to_owned() } else { short.to_owned() }
}

/// A rectangle from one fraction of the width to another, with what is said under the pointer.
pub(super) fn rect(class: &str, (from, until): (f64, f64), (y, height): (f64, f64), title: &str) -> String {
    let tail =
        if title.is_empty() { "/>".to_owned() } else { format!("><title>{}</title></rect>", escape(title)) };
    format!(
        "<rect class=\"{class}\" x=\"{}\" width=\"{}\" y=\"{}\" height=\"{}\"{tail}",
        percent(from),
        percent((until - from).max(0.0)),
        number(y),
        number(height)
    )
}

/// A line across the whole width.
pub(super) fn horizontal(class: &str, y: f64) -> String {
    format!("<line class=\"{class}\" x1=\"0\" x2=\"100%\" y1=\"{0}\" y2=\"{0}\"/>", number(y))
}

/// A line from top to bottom.
pub(super) fn vertical(class: &str, x: f64, (top, bottom): (f64, f64)) -> String {
    format!(
        "<line class=\"{class}\" x1=\"{0}\" x2=\"{0}\" y1=\"{1}\" y2=\"{2}\"/>",
        percent(x),
        number(top),
        number(bottom)
    )
}

/// Text that begins or ends `dx` pixels right of a place.
pub(super) fn text(class: &str, x: f64, dx: f64, y: f64, anchor: Anchor, content: &str) -> String {
    let anchor = match anchor {
        Anchor::Start => "",
        Anchor::Middle => " text-anchor=\"middle\"",
        Anchor::End => " text-anchor=\"end\"",
    };
    let dx = if dx == 0.0 { String::new() } else { format!(" dx=\"{}\"", number(dx)) };
    format!(
        "<text class=\"{class}\" x=\"{}\"{dx} y=\"{}\"{anchor}>{}</text>",
        percent(x),
        number(y),
        escape(content)
    )
}

/// Curves, whose lines keep their thickness while they stretch.
pub(super) fn curves(height: f64, paths: &str) -> String {
    let height = number(height);
    format!(
        "<svg width=\"100%\" height=\"{height}\" viewBox=\"0 0 {CURVE_WIDTH} {height}\" preserveAspectRatio=\"none\">{paths}</svg>"
    )
}

/// A curve of steps: each value spans its bucket; where a value is absent, the line is broken.
pub(super) fn step_line(class: &str, width: f64, heights: &[Option<f64>]) -> String {
    let mut path = String::new();
    let mut joined = false;
    for (i, height) in heights.iter().enumerate() {
        let Some(y) = height else {
            joined = false;
            continue;
        };
        let (left, right) = (i as f64 * width, ((i + 1) as f64 * width).min(1.0));
        let (left, right, y) = (number(left * CURVE_WIDTH), number(right * CURVE_WIDTH), number(*y));
        path.push_str(&if joined { format!("V{y}H{right}") } else { format!("M{left} {y}H{right}") });
        joined = true;
    }
    if path.is_empty() { path } else { format!("<path class=\"{class}\" d=\"{path}\"/>") }
}

/// Columns side by side, each from one height to another; those without height are left out.
pub(super) fn columns(class: &str, width: f64, spans: &[(f64, f64)]) -> String {
    let mut path = String::new();
    for (i, (low, high)) in spans.iter().enumerate().filter(|(_, (low, high))| low > high) {
        let (left, right) = (i as f64 * width, ((i + 1) as f64 * width).min(1.0));
        path.push_str(&format!(
            "M{} {}V{}H{}V{}z",
            number(left * CURVE_WIDTH),
            number(*low),
            number(*high),
            number(right * CURVE_WIDTH),
            number(*low)
        ));
    }
    if path.is_empty() { path } else { format!("<path class=\"{class}\" d=\"{path}\"/>") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!([0.0, -0.001, 12.5, 33.333_333].map(number), ["0", "0", "12.5", "33.33"]);
    }

    #[test]
    fn a_step_line_breaks_where_a_value_is_absent() {
        let path = step_line("c", 0.25, &[Some(3.0), Some(4.0), None, Some(5.0)]);
        assert_eq!(path, "<path class=\"c\" d=\"M0 3H250V4H500M750 5H1000\"/>");
        assert_eq!(step_line("c", 0.5, &[None, None]), "");
    }

    #[test]
    fn columns_without_height_are_left_out() {
        assert_eq!(
            columns("c", 0.5, &[(9.0, 9.0), (9.0, 2.0)]),
            "<path class=\"c\" d=\"M500 9V2H1000V9z\"/>"
        );
    }

    #[test]
    fn what_is_said_under_the_pointer_is_escaped() {
        assert!(
            rect("c", (0.0, 0.5), (1.0, 2.0), "<b>")
                .ends_with("width=\"50%\" y=\"1\" height=\"2\"><title>&lt;b&gt;</title></rect>")
        );
    }
}
