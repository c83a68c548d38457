//! The sixth section, what cannot be explained, and the last, what an operator does.

use super::text::{absent, escape, or_absent, reasons, section as wrap};
use crate::record::Record;

/// How much of a counterexample is shown; a larger one is read in its file.
const CHARS_MAX: usize = 200_000;

/// The smallest part of the history that cannot be explained.
pub(super) fn counterexample(record: &Record) -> String {
    let check = &record.check;
    let history = if check.history.is_empty() {
        absent("the history was not kept")
    } else {
        format!("<code>{}</code>", escape(&check.history))
    };
    let shown: String = check.counterexample.chars().take(CHARS_MAX).collect();
    let body = if shown.is_empty() {
        let why = if record.verdict == "VALID" {
            "none: the history can be explained"
        } else {
            "the checker gave none"
        };
        format!("<p>{}</p>\n", absent(why))
    } else {
        let cut = if shown.len() < check.counterexample.len() {
            format!("<p>{}</p>\n", absent("the rest is in the record"))
        } else {
            String::new()
        };
        format!(
            "<p>The smallest part of the history for which the checker ({}) found no explanation:</p>\n<pre class=\"example\">{}</pre>\n{cut}{}",
            or_absent(&check.model, "its model was not recorded"),
            escape(&shown),
            reasons(&record.reasons)
        )
    };
    wrap("counterexample", "Counterexample", &format!("{body}<p>The whole history: {history}</p>\n"))
}

/// What an operator does about such a fault.
pub(super) fn runbook(record: &Record) -> String {
    wrap(
        "runbook",
        "Runbook",
        &format!(
            "<p class=\"runbook\">{}</p>\n",
            or_absent(&record.drill.runbook, "the drill names no runbook")
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counterexample_is_shown_as_it_is() {
        let mut record = Record::default();
        assert!(counterexample(&record).contains("the checker gave none"));
        record.check.counterexample = "c1 <write 1>\n  c2 [read 0]".into();
        record.check.history = "history.jsonl".into();
        let html = counterexample(&record);
        assert!(html.contains("<pre class=\"example\">c1 &lt;write 1&gt;\n  c2 [read 0]</pre>"));
        assert!(html.contains("<code>history.jsonl</code>"));
        record.check.counterexample = "x".repeat(CHARS_MAX + 1);
        assert!(counterexample(&record).contains("the rest is in the record"));
    }
}
