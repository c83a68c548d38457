//! `drill run`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use kv_drill::record::Record;
use kv_drill::{Options, RunError, Where};
use kv_fault::Drill;
use serde_json::json;

use crate::args::{DEFAULT_ENDPOINTS, DrillRun, Format};
use crate::bytes_text::{harmless, plain_word};
use crate::command::Ended;
use crate::console::Console;
use crate::failure::{CommandError, Exit};

/// Where the chaos proxies of `kvnode dev --chaos` and of the compose file are controlled.
const USUAL_CONTROL: &str = "127.0.0.1:7600";

pub(crate) fn run(args: &DrillRun, console: &mut Console) -> Ended {
    let text = std::fs::read_to_string(&args.file).map_err(|error| {
        let why = format!("{}: {error}", args.file.display());
        CommandError::own(Exit::Error, "NOT_FOUND", "drill", why)
    })?;
    let place = place(args)?;
    let drill = parse(args, &text, args.seed)?;
    let first = drill.seed;
    let (mut runs, mut failure) = (Vec::new(), None);
    for nth in 0..args.repeat {
        let drill = if nth == 0 { drill.clone() } else { parse(args, &text, Some(first.wrapping_add(nth)))? };
        let options = Options {
            place: place.clone(),
            report: folder(args, &drill),
            repro: repro(args, drill.seed),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let runtime = tokio::runtime::Runtime::new()?;
        let played = runtime.block_on(kv_drill::run(&drill, &options, &mut progress));
        let record = match played {
            Ok(record) => record,
            Err(error) => {
                failure = Some(failed(args, error));
                break;
            }
        };
        if args.repeat > 1 {
            progress(&format!("{} with seed {}: {}", drill.name, drill.seed, record.verdict));
        }
        runs.push((record, options.report));
    }
    // The worst counts.
    let worst = runs.iter().max_by_key(|(record, _)| severity(&record.verdict));
    let verdict = worst.map_or_else(String::new, |(record, _)| record.verdict.clone());
    if let Some(failure) = failure {
        // A violation that was found stays one, whatever became of the runs after it.
        if verdict != "VIOLATION" {
            return Err(failure);
        }
        progress(failure.message());
    }
    match console.format {
        Format::Json => {
            let all: Vec<_> = runs.iter().map(|(record, folder)| to_json(record, folder)).collect();
            console.json(&match all.as_slice() {
                [one] => one.clone(),
                all => json!({ "verdict": verdict, "runs": all }),
            })?;
        }
        Format::Plain | Format::Table => {
            console.line(&verdict)?;
            for (record, folder) in &runs {
                for line in to_text(record, folder).lines() {
                    console.line(&harmless(line))?;
                }
            }
        }
    }
    Ok(exit(&verdict))
}

fn parse(args: &DrillRun, text: &str, seed: Option<u64>) -> Result<Drill, CommandError> {
    let drill = match seed {
        Some(seed) => Drill::parse_with_seed(text, seed),
        None => Drill::parse(text),
    };
    drill.map_err(|error| CommandError::usage(format!("{}: {error}", args.file.display())))
}

fn place(args: &DrillRun) -> Result<Where, CommandError> {
    match (args.cluster.as_str(), &args.chaos) {
        ("local", None) => Ok(Where::Local),
        ("dev" | "compose", chaos) => {
            let endpoints = DEFAULT_ENDPOINTS.split(',').map(ToOwned::to_owned).collect();
            let chaos = chaos.clone().unwrap_or_else(|| USUAL_CONTROL.to_owned());
            Ok(Where::Running { endpoints, chaos })
        }
        ("local", Some(_)) => Err(CommandError::usage(
            "--chaos goes with --cluster ENDPOINTS: a local cluster has a proxy of its own",
        )),
        (_, None) => {
            Err(CommandError::usage("--cluster ENDPOINTS needs --chaos ADDR, the cluster's chaos proxy"))
        }
        (endpoints, Some(chaos)) => {
            let endpoints = endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect();
            Ok(Where::Running { endpoints, chaos: chaos.clone() })
        }
    }
}

/// Where the report of a run goes.
fn folder(args: &DrillRun, drill: &Drill) -> PathBuf {
    let own = format!("drill-{}-{}", drill.name, drill.seed);
    match &args.report {
        None => PathBuf::from(own),
        Some(folder) if args.repeat > 1 => folder.join(own),
        Some(folder) => folder.clone(),
    }
}

/// The command that plays the same again.
fn repro(args: &DrillRun, seed: u64) -> String {
    let file = args.file.display().to_string();
    let file = if plain_word(file.as_bytes()).is_some() { file } else { format!("'{file}'") };
    let on = match (&args.chaos, args.cluster.as_str()) {
        (Some(chaos), place) => format!(" --cluster {place} --chaos {chaos}"),
        (None, "local") => String::new(),
        (None, place) => format!(" --cluster {place}"),
    };
    format!("kvctl drill run {file} --seed {seed}{on}")
}

/// A line for people, at once.
fn progress(line: &str) {
    // If standard error is gone there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{}", harmless(line));
}

fn failed(args: &DrillRun, error: RunError) -> CommandError {
    let reason = match &error {
        RunError::Unfit(_) | RunError::NoProgram(_) => "unfit",
        RunError::Interrupted | RunError::Left(_) => "interrupted",
        RunError::System { .. }
        | RunError::Ended { .. }
        | RunError::Late { .. }
        | RunError::Chaos(_)
        | RunError::Cluster(_)
        | RunError::History(_) => "harness",
    };
    CommandError::own(Exit::Error, "ABORTED", reason, format!("{}: {error}", args.file.display()))
}

fn exit(verdict: &str) -> Exit {
    match verdict {
        "VALID" => Exit::Ok,
        "VIOLATION" => Exit::Violation,
        "NOT EXERCISED" => Exit::NotExercised,
        _ => Exit::Undecided,
    }
}

fn severity(verdict: &str) -> u8 {
    match verdict {
        "VALID" => 0,
        "NOT EXERCISED" => 1,
        "VIOLATION" => 3,
        _ => 2,
    }
}

fn to_json(record: &Record, folder: &Path) -> serde_json::Value {
    json!({
        "verdict": record.verdict,
        "reasons": record.reasons,
        "drill": record.drill,
        "check": record.check,
        "expectations": record.expectations,
        "times": record.times,
        "converged": record.converged,
        "report": folder.display().to_string(),
    })
}

fn to_text(record: &Record, folder: &Path) -> String {
    let mut lines: Vec<String> = record.reasons.iter().map(|reason| format!("because {reason}")).collect();
    for expectation in &record.expectations {
        let met = match expectation.met {
            Some(true) => "met",
            Some(false) => "NOT MET",
            None => "not known",
        };
        lines.push(format!("expected {}: {met} ({})", expectation.text, expectation.measured));
    }
    if !record.check.counterexample.is_empty() {
        lines.push(record.check.counterexample.clone());
    }
    for fault in &record.faults {
        lines.push(format!(
            "fault {} from {:.0} to {:.0} ms: matched {}, acted {}, {} operations under way",
            fault.name, fault.from_ms, fault.until_ms, fault.matched, fault.acted, fault.concurrent
        ));
    }
    let times = &record.times;
    let named = [
        ("first_error", times.first_error_ms),
        ("new_leader", times.new_leader_ms),
        ("first_success", times.first_success_ms),
        ("recovery", times.recovery_ms),
    ];
    let known = named.iter().filter_map(|(name, ms)| Some(format!("{name}_ms={:.0}", (*ms)?)));
    lines.push(format!("times {}", known.collect::<Vec<_>>().join(" ")));
    let check = &record.check;
    lines.push(format!(
        "model={} operations={} ok={} failed={} unknown={} seed={}",
        check.model, check.operations, check.ok, check.failed, check.unknown, record.drill.seed
    ));
    lines.push(format!("report {}", folder.join("report.json").display()));
    lines.join("\n")
}
