//! `drill check`.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::Instant;

use kv_check::{Budget, Exhausted, ModelKind, Report, TransactionReport, TransactionVerdict, Verdict};
use kv_drill::Word;
use serde_json::json;

use crate::args::{DrillCheck, Format, HistoryModel};
use crate::bytes_text::harmless;
use crate::command::Ended;
use crate::console::Console;
use crate::failure::{CommandError, Exit};

pub(crate) fn check(args: &DrillCheck, console: &mut Console) -> Ended {
    let begun = Instant::now();
    let stop = || begun.elapsed() >= args.deadline;
    let name = args.history.display().to_string();
    let bytes = read(&args.history).map_err(|error| {
        CommandError::own(Exit::Error, "NOT_FOUND", "history", format!("{name}: {error}"))
    })?;
    let Some(model) = model(args.model) else {
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            CommandError::own(Exit::Error, "INVALID_ARGUMENT", "history", format!("{name}: {error}"))
        })?;
        return match args.model {
            HistoryModel::Bank => bank(&name, text, console),
            _ => transactions(&name, text, console),
        };
    };
    let report = kv_check::read_bytes(&bytes)
        .and_then(|history| kv_check::check(&history, model, &Budget::until(&stop)))
        .map_err(|error| bad_history(&name, &error))?;
    match console.format {
        Format::Json => console.json(&to_json(&report))?,
        Format::Plain | Format::Table => {
            for line in to_text(&report).lines() {
                console.line(&harmless(line))?;
            }
        }
    }
    Ok(match report.verdict {
        Verdict::Valid => Exit::Ok,
        Verdict::Violation(_) => Exit::Violation,
        Verdict::Unknown { .. } => Exit::Undecided,
        Verdict::NotExercised { .. } => Exit::NotExercised,
    })
}

/// Says whether transactions over lists are strictly serialisable.
fn transactions(name: &str, text: &str, console: &mut Console) -> Ended {
    let history = kv_check::read_transactions(text).map_err(|error| bad_history(name, &error))?;
    let TransactionReport { verdict, committed, failed, open, keys } = kv_check::check_transactions(&history);
    let operations = committed + open;
    let (exit, anomalies, missing) = match &verdict {
        TransactionVerdict::Valid => (Exit::Ok, None, None),
        TransactionVerdict::Violation(anomalies) => (Exit::Violation, Some(anomalies), None),
        TransactionVerdict::NotExercised { missing } => (Exit::NotExercised, None, Some(*missing)),
    };
    if console.format == Format::Json {
        console.json(&json!({
            "verdict": verdict.word(),
            "reason": missing,
            "model": "append",
            "operations": operations,
            "open": open,
            "failed": failed,
            "keys": keys,
            "anomalies": anomalies.map(|anomalies| anomalies.to_json()),
        }))?;
        return Ok(exit);
    }
    console.line(verdict.word())?;
    for line in anomalies.map(ToString::to_string).unwrap_or_default().lines() {
        console.line(&harmless(line))?;
    }
    if let Some(missing) = missing {
        console.line(&format!("no {missing} succeeded: there is nothing to explain"))?;
    }
    console.line(&format!("model=append operations={operations} open={open} failed={failed} keys={keys}"))?;
    Ok(exit)
}

/// Says whether money was neither lost nor made, and every transfer counts once.
fn bank(name: &str, text: &str, console: &mut Console) -> Ended {
    let events = kv_check::read_events(text).map_err(|error| bad_history(name, &error))?;
    let (exit, verdict, why) = match kv_drill::check_bank(&events) {
        Word::Valid => (Exit::Ok, "VALID", None),
        Word::Violation(why) => (Exit::Violation, "VIOLATION", Some(why)),
        Word::Unknown(why) => (Exit::Undecided, "UNKNOWN", Some(why)),
        Word::NotExercised(missing) => {
            (Exit::NotExercised, "NOT EXERCISED", Some(format!("no {missing} succeeded")))
        }
    };
    if console.format == Format::Json {
        console
            .json(&json!({ "verdict": verdict, "reason": why, "model": "bank", "events": events.len() }))?;
        return Ok(exit);
    }
    console.line(verdict)?;
    if let Some(why) = why {
        console.line(&harmless(&why))?;
    }
    console.line(&format!("model=bank events={}", events.len()))?;
    Ok(exit)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path != Path::new("-") {
        return fs::read(path);
    }
    let mut bytes = Vec::new();
    io::stdin().read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn bad_history(name: &str, error: &kv_check::HistoryError) -> CommandError {
    CommandError::own(Exit::Error, "INVALID_ARGUMENT", "history", format!("{name}: {error}"))
}

/// The model of single operations; `None` if they are transactions.
fn model(model: HistoryModel) -> Option<ModelKind> {
    Some(match model {
        HistoryModel::Register => ModelKind::Register,
        HistoryModel::CasRegister => ModelKind::CasRegister,
        HistoryModel::Kv => ModelKind::Kv,
        HistoryModel::KvAppend => ModelKind::KvAppend,
        HistoryModel::Set => ModelKind::Set,
        HistoryModel::Lock => ModelKind::Lock,
        HistoryModel::Counter => ModelKind::Counter,
        HistoryModel::Append | HistoryModel::Bank => return None,
    })
}

fn to_text(report: &Report) -> String {
    let Report { verdict, model, operations, open, failed, keys, witnessed, steps } = report;
    let explanation = match verdict {
        Verdict::Valid => String::new(),
        Verdict::Violation(counterexample) => format!("{counterexample}\n"),
        Verdict::Unknown { reason, undecided } => {
            format!("{}; {undecided} of {keys} keys are undecided\n", reason.reason())
        }
        Verdict::NotExercised { missing } => format!("no {missing} succeeded: there is nothing to explain\n"),
    };
    format!(
        "{}\n{explanation}model={model} operations={operations} open={open} failed={failed} keys={keys} \
         by_revision={witnessed} steps={steps}\n",
        verdict.word()
    )
}

fn to_json(report: &Report) -> serde_json::Value {
    let Report { verdict, model, operations, open, failed, keys, witnessed, steps } = report;
    let (counterexample, undecided, reason) = match verdict {
        Verdict::Violation(counterexample) => (Some(counterexample.to_json()), 0, None),
        Verdict::Unknown { reason, undecided } => (None, *undecided, Some(why(*reason))),
        Verdict::NotExercised { missing } => (None, 0, Some(*missing)),
        Verdict::Valid => (None, 0, None),
    };
    json!({
        "verdict": verdict.word(),
        "reason": reason,
        "model": model,
        "operations": operations,
        "open": open,
        "failed": failed,
        "keys": keys,
        "by_revision": witnessed,
        "undecided": undecided,
        "steps": steps,
        "counterexample": counterexample,
    })
}

/// The word for why there is no verdict.
fn why(reason: Exhausted) -> &'static str {
    match reason {
        Exhausted::Stopped => "deadline",
        Exhausted::Steps => "steps",
        Exhausted::Configurations => "memory",
    }
}
