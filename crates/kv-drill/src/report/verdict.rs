//! The first section: what came of the run, and how to play it again.

use super::text::{absent, count, duration, duration_or, escape, or_absent, reasons};
use crate::record::Record;

/// The verdict in large letters, with the drill, the reasons and the circumstances.
pub(super) fn section(record: &Record) -> String {
    let drill = &record.drill;
    let (class, sign) = looks(&record.verdict);
    let reasons = reasons(&record.reasons);
    format!(
        "<header id=\"verdict\" class=\"{class}\">\n<div class=\"stamp\">{sign}<strong>{}</strong></div>\n<h1>{}</h1>\n<p class=\"about\">{}</p>\n{reasons}\
         {}\n{}</header>\n",
        or_absent(&record.verdict, "no verdict"),
        or_absent(&drill.name, "a drill without a name"),
        or_absent(&drill.about, "no description"),
        command(&drill.repro),
        circumstances(record)
    )
}

/// The class and the sign of a verdict: it is told by shape and word, not by colour alone.
fn looks(verdict: &str) -> (&'static str, String) {
    let (class, paths) = match verdict {
        "VALID" => ("valid", "<path d=\"M9 17l6 6 10-13\"/>"),
        "VIOLATION" => ("violation", "<path d=\"M10 10l13 13M23 10l-13 13\"/>"),
        "NOT EXERCISED" => ("idle", "<path d=\"M9 16.5h15\"/>"),
        _ => ("unclear", "<path d=\"M12 13a4.5 4.5 0 1 1 6.5 4c-1.5.8-2 1.5-2 3M16.5 24v.6\"/>"),
    };
    let ring = if class == "idle" { " stroke-dasharray=\"3 3\"" } else { "" };
    (
        class,
        format!(
            "<svg class=\"sign\" width=\"33\" height=\"33\" aria-hidden=\"true\"><circle cx=\"16.5\" cy=\"16.5\" r=\"15\"{ring}/>{paths}</svg>"
        ),
    )
}

/// The command that plays the drill again, in a box to copy from.
fn command(repro: &str) -> String {
    if repro.is_empty() {
        return format!("<p>{}</p>", absent("no command was recorded"));
    }
    format!(
        "<div class=\"copy\"><pre id=\"repro\">{}</pre><button type=\"button\" data-copy=\"repro\" hidden>Copy</button></div>",
        escape(repro)
    )
}

/// A length of time that cannot be nothing.
fn length(ms: f64) -> String {
    duration_or(Some(ms).filter(|ms| *ms > 0.0), "not recorded")
}

/// Names and values.
fn circumstances(record: &Record) -> String {
    let (drill, check) = (&record.drill, &record.check);
    let looked_at = if check.operations == 0 {
        absent("no operation was looked at")
    } else {
        format!(
            "{} operations: <b>{}</b> ok, <b>{}</b> failed, <b>{}</b> unknown",
            count(check.operations),
            count(check.ok),
            count(check.failed),
            count(check.unknown)
        )
    };
    let model = if check.model.is_empty() {
        absent("nothing was checked")
    } else {
        format!("{}, in {}", escape(&check.model), duration(check.took_ms))
    };
    let workload = if drill.workload.is_empty() {
        absent("no workload")
    } else {
        format!(
            "{}: {} clients, {} keys, {}",
            escape(&drill.workload),
            count(drill.clients.into()),
            count(drill.keys.into()),
            length(drill.duration_ms)
        )
    };
    let cluster = if drill.nodes == 0 {
        absent("no cluster")
    } else {
        let (nodes, shards) = (count(drill.nodes), count(drill.shards.into()));
        format!("{nodes} nodes, {shards} shards, longest election timeout E = {}", length(drill.election_ms))
    };
    let pairs = [
        ("Operations", looked_at),
        ("Checked against", model),
        ("Workload", workload),
        ("Cluster", cluster),
        ("Seed", drill.seed.to_string()),
        ("Version", or_absent(&drill.version, "not recorded")),
        ("Begun", or_absent(&drill.begun, "not recorded")),
        ("Record", format!("format {}", record.format)),
    ];
    let rows: String =
        pairs.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n")).collect();
    format!("<dl class=\"facts\">\n{rows}</dl>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_verdict_has_a_sign_of_its_own() {
        let signs: std::collections::BTreeSet<String> =
            ["VALID", "VIOLATION", "UNKNOWN", "NOT EXERCISED"].map(|verdict| looks(verdict).1).into();
        assert_eq!(signs.len(), 4);
        assert_eq!(looks("<odd>").0, "unclear");
    }

    #[test]
    fn an_empty_record_says_what_is_missing() {
        let html = section(&Record::default());
        for why in [
            "no verdict",
            "no workload",
            "nothing was checked",
            "no operation was looked at",
            "no command was recorded",
        ] {
            assert!(html.contains(why), "{why}");
        }
    }
}
