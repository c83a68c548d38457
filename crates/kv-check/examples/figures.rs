//! Prints how long checks take: a million operations, and histories that are hard to decide.
//!
//! `cargo run --release -p kv-check --example figures`

#![allow(clippy::print_stdout, reason = "figures are for people")]
#![allow(clippy::disallowed_methods, reason = "an example may look at the clock")]

use std::time::{Duration, Instant};

use kv_check::workload::Workload;
use kv_check::{Budget, History, ModelKind, Recorder, Verdict, check, read};

fn main() {
    million();
    hard();
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
        let mut recorder = Recorder::new();
        let mut text = String::new();
        for event in workload.events() {
            if let Ok(line) = recorder.line(&event) {
                text.push_str(&line);
                text.push('\n');
            }
        }
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
