//! The second section: what was expected, what was measured, and how long things took.

use super::text::{absent, duration_or, escape, or_absent, section as wrap};
use crate::record::Record;

/// Two tables beside each other.
pub(super) fn section(record: &Record) -> String {
    let body = format!(
        "<div class=\"pair\">\n<div class=\"scroll\">{}</div>\n<div class=\"scroll\">{}</div>\n</div>\n",
        expectations(record),
        times(record)
    );
    wrap("expectations", "Expectations", &body)
}

/// A row for each expectation.
fn expectations(record: &Record) -> String {
    if record.expectations.is_empty() {
        return format!("<p>{}</p>", absent("the drill declares none"));
    }
    let row = |expectation: &crate::record::Expectation| {
        let (class, word) = match expectation.met {
            Some(true) => ("met", "&#10003; met"),
            Some(false) => ("unmet", "&#10007; not met"),
            None => ("unsaid", "? cannot tell"),
        };
        format!(
            "<tr class=\"{class}\"><td>{}</td><td>{}</td><td class=\"word\">{word}</td></tr>\n",
            escape(&expectation.text),
            or_absent(&expectation.measured, "not measured")
        )
    };
    let rows: String = record.expectations.iter().map(row).collect();
    format!(
        "<table><thead><tr><th>Expected</th><th>Measured</th><th>Outcome</th></tr></thead>\n<tbody>\n{rows}</tbody></table>"
    )
}

/// How long things took, with what each counts from.
fn times(record: &Record) -> String {
    let times = &record.times;
    let none = if record.faults.is_empty() { "no fault" } else { "it did not happen" };
    let rows = [
        (
            "First error",
            "from the first fault to the first operation that failed or is unknown",
            times.first_error_ms,
        ),
        ("New leader", "from the first fault to the first new leader", times.new_leader_ms),
        (
            "First success",
            "from the first fault to the first write of the majority that was called after it and succeeded",
            times.first_success_ms,
        ),
        ("Recovery", "from the last healing until writes of all clients succeed again", times.recovery_ms),
    ];
    let rows: String = rows
        .iter()
        .map(|(name, what, ms)| {
            format!(
                "<tr><td>{name}<small>{what}</small></td><td class=\"num\">{}</td></tr>\n",
                duration_or(*ms, none)
            )
        })
        .collect();
    format!(
        "<table><thead><tr><th>Time</th><th class=\"num\">Measured</th></tr></thead>\n<tbody>\n{rows}</tbody></table>"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Expectation;

    #[test]
    fn three_outcomes_have_three_words() {
        let expectation = |met| Expectation { text: "a < b".into(), met, measured: String::new() };
        let record = Record {
            expectations: [Some(true), Some(false), None].map(expectation).into(),
            ..Default::default()
        };
        let html = section(&record);
        for text in ["10003; met", "not met", "cannot tell", "a &lt; b", "not measured", "no fault"] {
            assert!(html.contains(text), "{text}");
        }
    }
}
