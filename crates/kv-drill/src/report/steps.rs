//! The fifth section: what the drill did, step by step.

use super::text::{absent, escape, moment, node, section as wrap};
use crate::record::{Record, StepFired};

/// Steps that are listed; of more it is said how many they are.
const STEPS_MAX: usize = 500;

/// A row for each step.
pub(super) fn section(record: &Record) -> String {
    if record.steps.is_empty() {
        return wrap("steps", "Steps", &format!("<p>{}</p>\n", absent("the drill has no steps")));
    }
    let rows: String = record.steps.iter().take(STEPS_MAX).map(row).collect();
    let more = match record.steps.len().checked_sub(STEPS_MAX) {
        None | Some(0) => String::new(),
        Some(more) => format!("<p>{}</p>\n", absent(&format!("{more} more are in the record"))),
    };
    let head = "<th class=\"num\">No.</th><th>Step</th><th class=\"num\">Planned</th><th class=\"num\">Fired</th><th>Roles</th><th>Sides</th><th>Error</th>";
    wrap(
        "steps",
        "Steps",
        &format!(
            "<div class=\"scroll\"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n{more}"
        ),
    )
}

/// A step's row.
fn row(step: &StepFired) -> String {
    let chosen: Vec<String> = step
        .chosen
        .iter()
        .map(|(role, id)| format!("<code>{}</code>&nbsp;=&nbsp;{}", escape(role), node(*id)))
        .collect();
    let sides: Vec<String> = step
        .sides
        .iter()
        .map(|side| format!("{{{}}}", side.iter().map(|id| node(*id)).collect::<Vec<_>>().join(" ")))
        .collect();
    let bad = !step.error.is_empty() || step.at_ms.is_none();
    format!(
        "<tr{}><td class=\"num\">{}</td><td><code>{}</code></td><td class=\"num\">{}</td><td class=\"num\">{}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
        if bad { " class=\"unmet\"" } else { "" },
        step.number,
        escape(&step.text),
        step.planned_ms.map_or_else(|| absent("none recorded"), moment),
        step.at_ms.map_or_else(|| absent("never"), moment),
        if chosen.is_empty() { absent("none") } else { chosen.join("<br>") },
        if sides.is_empty() { absent("no partition") } else { sides.join(" | ") },
        if step.error.is_empty() { absent("none") } else { format!("&#10007; {}", escape(&step.error)) }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_says_whom_it_meant_and_what_went_wrong() {
        let step = StepFired {
            number: 2,
            text: "cut leader-of(1)".into(),
            planned_ms: Some(1000.0),
            at_ms: Some(1004.0),
            chosen: [("leader-of(1)".to_owned(), 3)].into(),
            sides: vec![vec![1, 2], vec![3]],
            error: "<refused>".into(),
        };
        let html = section(&Record { steps: vec![step, StepFired::default()], ..Default::default() });
        for text in [
            "leader-of(1)</code>&nbsp;=&nbsp;n3",
            "{n1 n2} | {n3}",
            "&lt;refused&gt;",
            "1.00 s",
            "none recorded",
            "never",
        ] {
            assert!(html.contains(text), "{text} in {html}");
        }
    }
}
