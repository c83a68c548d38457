//! `kv-sim`: runs seeds, and says which of them fail and how to see it again.

#![allow(
    clippy::disallowed_methods,
    reason = "how long a sweep takes, and on how many threads, is no part of what it replays"
)]

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use kv_fault::Drill;
use kv_sim::{Exercise, Expected, Report, Scenario, Tally, run};

/// Runs whole clusters of real replicas on virtual time, network, disks and clocks.
#[derive(Debug, Parser)]
#[command(name = "kv-sim", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs seeds; the last line is `seeds=N failed=M`, and the exit code 1 if any failed
    Run {
        /// The first seed
        #[arg(long, default_value_t = 1, conflicts_with = "seed")]
        from: u64,
        /// How many seeds
        #[arg(long, default_value_t = 100, conflicts_with = "seed", value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// This seed alone
        #[arg(long)]
        seed: Option<u64>,
        /// A file that fixes what the seed would draw
        #[arg(long)]
        scenario: Option<PathBuf>,
        /// A drill to play, as `kvctl drill run` plays it on processes; the exit code is 1 as well if a part of it
        /// met nothing, or if the cluster did not do what it expects
        #[arg(long, conflicts_with = "scenario")]
        drill: Option<PathBuf>,
        /// Print every event of every seed
        #[arg(long)]
        events: bool,
        /// Threads
        #[arg(long)]
        jobs: Option<usize>,
        /// A bug to run with, by its name
        #[cfg(feature = "planted")]
        #[arg(long)]
        plant: Option<String>,
    },
}

fn main() -> ExitCode {
    // A panic inside a replica is a failure of its seed, and told as such.
    std::panic::set_hook(Box::new(|_| {}));
    match sweep(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(cause) => {
            eprintln!("kv-sim: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn sweep(args: Args) -> anyhow::Result<bool> {
    #[cfg(not(feature = "planted"))]
    let Command::Run { from, seeds, seed, scenario: file, drill, events, jobs } = args.command;
    #[cfg(feature = "planted")]
    let Command::Run { from, seeds, seed, scenario: file, drill, events, jobs, plant } = args.command;
    #[cfg(feature = "planted")]
    let bug = match &plant {
        None => None,
        Some(name) => {
            let bug =
                kv_sim::Planted::all().chain(kv_sim::Planted::of_txns()).find(|bug| bug.to_string() == *name);
            Some(bug.with_context(|| format!("there is no bug {name}"))?)
        }
    };
    #[cfg(feature = "planted")]
    let run = |seed, scenario: &Scenario, events| match bug {
        Some(bug) => kv_sim::run_planted(seed, scenario, bug),
        None => run(seed, scenario, events),
    };
    let scenario = scenario(file.as_deref(), drill.as_deref())?;
    let option = match (&file, &drill) {
        (Some(path), _) => format!(" --scenario {}", path.display()),
        (None, Some(path)) => format!(" --drill {}", path.display()),
        (None, None) => String::new(),
    };
    let (from, seeds) = seed.map_or((from, seeds), |seed| (seed, 1));
    let jobs = jobs.or_else(|| std::thread::available_parallelism().ok().map(usize::from)).unwrap_or(1);
    let begin = Instant::now();
    let next = AtomicU64::new(0);
    let printer = Mutex::new(Printer::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= seeds {
                        return;
                    }
                    let report = run(from.saturating_add(number), &scenario, events);
                    let mut printer = printer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    printer.print(&report, seed.is_some(), &option);
                }
            });
        }
    });
    let printer = printer.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let (wall, simulated) = (begin.elapsed(), printer.simulated);
    let speed = simulated.as_secs_f64() / wall.as_secs_f64().max(1e-9);
    eprintln!("{:.1} s simulated in {:.1} s: {speed:.0} times", simulated.as_secs_f64(), wall.as_secs_f64());
    let mut out = std::io::stdout();
    let is_idle = printer.exercises.iter().any(|exercise| exercise.matched == 0)
        || printer.expectations.iter().any(|sum| sum.is_of_exercise && sum.met == 0);
    for exercise in &printer.exercises {
        writeln!(out, "{}", Line(exercise))?;
    }
    for expected in &printer.expectations {
        writeln!(out, "{expected}")?;
    }
    writeln!(out, "{}", printer.tally)?;
    writeln!(out, "seeds={seeds} failed={}", printer.failed)?;
    Ok(printer.failed == 0 && !is_idle)
}

/// What is fixed by a file, or by the drill that is played.
fn scenario(file: Option<&Path>, drill: Option<&Path>) -> anyhow::Result<Scenario> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    if let Some(path) = drill {
        let drill = Drill::parse(&read(path)?).with_context(|| path.display().to_string())?;
        return Scenario::of_drill(drill).with_context(|| path.display().to_string());
    }
    match file {
        Some(path) => {
            Scenario::parse(&read(path)?).with_context(|| format!("{} is no scenario", path.display()))
        }
        None => Ok(Scenario::default()),
    }
}

/// How far a part of a drill was put to use, in a line.
struct Line<'a>(&'a Exercise);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exercise { what, matched, acted } = self.0;
        match what.starts_with("rule ") {
            true => write!(f, "{what} matched={matched} acted={acted}")?,
            false => write!(f, "{what} done={matched}")?,
        }
        if *matched == 0 { f.write_str(" (not exercised)") } else { Ok(()) }
    }
}

/// What became of an expectation in several seeds.
struct Sum {
    what: String,
    is_of_exercise: bool,
    met: u64,
    unmet: u64,
    unknown: u64,
    times: Vec<Duration>,
}

impl Sum {
    fn of(expected: &Expected) -> Self {
        let Expected { what, is_of_exercise, .. } = expected;
        let (what, is_of_exercise) = (what.clone(), *is_of_exercise);
        Self { what, is_of_exercise, met: 0, unmet: 0, unknown: 0, times: Vec::new() }
    }

    fn add(&mut self, expected: &Expected) {
        match expected.met {
            Some(true) => self.met += 1,
            Some(false) => self.unmet += 1,
            None => self.unknown += 1,
        }
        self.times.extend(expected.took);
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, met, unmet, unknown, times, .. } = self;
        write!(f, "expected {what}: met={met} unmet={unmet} unknown={unknown}")?;
        let mut times = times.clone();
        times.sort_unstable();
        match (times.get(times.len() / 2), times.last()) {
            (Some(median), Some(longest)) => {
                write!(f, " median_ms={} longest_ms={}", median.as_millis(), longest.as_millis())
            }
            _ => Ok(()),
        }
    }
}

/// Gathers what the seeds came to.
#[derive(Default)]
struct Printer {
    failed: u64,
    tally: Tally,
    simulated: Duration,
    exercises: Vec<Exercise>,
    expectations: Vec<Sum>,
}

impl Printer {
    fn print(&mut self, report: &Report, is_alone: bool, option: &str) {
        self.tally = self.tally.plus(report.tally);
        self.simulated += report.simulated;
        let has_failed = report.failure.is_some() || report.unmet().next().is_some();
        self.failed += u64::from(has_failed);
        for exercise in &report.exercises {
            match self.exercises.iter_mut().find(|other| other.what == exercise.what) {
                Some(sum) => {
                    sum.matched += exercise.matched;
                    sum.acted += exercise.acted;
                }
                None => self.exercises.push(exercise.clone()),
            }
        }
        for expected in &report.expectations {
            let at = self.expectations.iter().position(|sum| sum.what == expected.what);
            let at = at.unwrap_or_else(|| {
                self.expectations.push(Sum::of(expected));
                self.expectations.len() - 1
            });
            if let Some(sum) = self.expectations.get_mut(at) {
                sum.add(expected);
            }
        }
        let mut text = report.events.clone();
        if is_alone || has_failed {
            let _ = writeln!(text, "{report}");
        }
        if has_failed {
            let _ = writeln!(text, "replay: kv-sim run --seed {}{option}", report.seed);
        }
        // Who closed the pipe wants no more of it.
        let _ = std::io::stdout().write_all(text.as_bytes());
    }
}
