//! Prints how long checks take: a million operations, histories that are hard to decide, and transactions.
//!
//! `cargo run --release -p kv-check --example figures`

#![allow(clippy::print_stdout, reason = "figures are for people")]
#![allow(clippy::disallowed_methods, reason = "an example may look at the clock")]

use std::time::{Duration, Instant};

use kv_check::workload::{TransactionWorkload, Workload};
use kv_check::{
    Budget, Event, History, ModelKind, Recorder, TransactionVerdict, Verdict, check, check_transactions,
    read, read_transactions,
};

fn main() {
    transactions();
    million();
    hard();
}

/// From text to verdict: valid ones, some of which end without an answer; then few that are not isolated, which puts few
/// into circles; then so many that nearly all are in one component; then lists that contradict each other.
fn transactions() {
    let shapes = [
        (100_000, 20, 0, 0),
        (1_000_000, 20, 0, 0),
        (100_000, 20, 1, 0),
        (100_000, 20, 1000, 0),
        (100_000, 1000, 1000, 0),
        (100_000, 20, 0, 500),
    ];
    for (count, keys, skews, lies) in shapes {
        let shape = TransactionWorkload::new(64, keys, count);
        let workload = TransactionWorkload { open: 5, failed: 20, skews, lies, ..shape };
        let text = recorded(&workload.events());
        let start = Instant::now();
        let history = match read_transactions(&text) {
            Ok(history) => history,
            Err(error) => return println!("{error}"),
        };
        let reading = start.elapsed();
        let start = Instant::now();
        let report = check_transactions(&history);
        println!(
            "list-append {count} transactions 64 clients {keys} keys at a time skews={skews} lies={lies}: read {} MB in {:.2} s, {} in \
             {:.3} s, {} keys",
            text.len() / 1_000_000,
            reading.as_secs_f64(),
            report.verdict.word(),
            start.elapsed().as_secs_f64(),
            report.keys,
        );
        if let TransactionVerdict::Violation(found) = &report.verdict {
            let counts: Vec<_> = found.counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            println!("  {}", counts.join(", "));
        }
    }
}

fn recorded(events: &[Event]) -> String {
    let mut recorder = Recorder::new();
    let mut text = String::new();
    for line in events.iter().filter_map(|event| recorder.line(event).ok()) {
        text.push_str(&line);
        text.push('\n');
    }
    text
}

/// From text to verdict, as `kvctl drill check` goes.
fn million() {
    let shapes = [
        (ModelKind::Kv, false),
        (ModelKind::Kv, true),
        (ModelKind::CasRegister, false),
        (ModelKind::KvAppend, false),
        (ModelKind::Counter, false),
    ];
    for (model, has_revisions) in shapes {
        let workload = Workload { open: 1, has_revisions, ..Workload::new(model, 100, 1000, 1_000_000) };
        let text = recorded(&workload.events());
        let start = Instant::now();
        let history = match read(&text) {
            Ok(history) => history,
            Err(error) => return println!("{error}"),
        };
        let reading = start.elapsed();
        let name =
            format!("{} 1M ops 1000 keys{}", model.name(), if has_revisions { " revisions" } else { "" });
        println!("{name}: read {} MB in {:.2} s", text.len() / 1_000_000, reading.as_secs_f64());
        verdict(&name, &history, model);
    }
}

fn hard() {
    for model in ModelKind::ALL {
        for keys in [2, 5, 10] {
            for (values, open, stale) in
                [(0, 0, 0), (0, 10, 0), (5, 10, 0), (0, 0, 5), (0, 10, 5), (5, 10, 5)]
            {
                let shape = Workload::new(model, 50, keys, 2000);
                let workload = Workload { values, open, stale, ..shape };
                let name = format!(
                    "{} 2000 ops 50 clients {keys} keys values={values} open={open} stale={stale}",
                    model.name()
                );
                match History::from_events(workload.events()) {
                    Ok(history) => verdict(&name, &history, model),
                    Err(error) => println!("{name}: {error}"),
                }
            }
        }
    }
}

fn verdict(name: &str, history: &History, model: ModelKind) {
    let start = Instant::now();
    let stop = || start.elapsed() > Duration::from_secs(20);
    match check(history, model, &Budget::until(&stop)) {
        Ok(report) => {
            let core = match &report.verdict {
                Verdict::Violation(core) => {
                    format!(" core={}{}", core.operations.len(), if core.is_minimal { "" } else { "?" })
                }
                _ => String::new(),
            };
            println!(
                "{name}: {} in {:.3} s, {} steps, {} of {} keys by revision{core}",
                report.verdict.word(),
                start.elapsed().as_secs_f64(),
                report.steps,
                report.witnessed,
                report.keys,
            );
        }
        Err(error) => println!("{name}: {error}"),
    }
}
