//! `kvbench`: loads a cluster and says how it fared.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use kv_bench::{Args, Report, run};

fn main() -> ExitCode {
    match load(Args::parse()) {
        Ok(code) => code,
        Err(cause) => {
            // One line, and never a backtrace: what is wrong is the cluster or the command.
            eprintln!("kvbench: {cause:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(args: Args) -> anyhow::Result<ExitCode> {
    // One thread: the load generator shares the machine with the servers, and wakes across threads cost more than they
    // bring.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let json = args.json();
    let report: Report = runtime.block_on(run(args))?;
    let line = if json { serde_json::to_string(&report)? } else { report.to_string() };
    writeln!(std::io::stdout(), "{line}")?;
    if let Some(error) = report.first_error() {
        writeln!(std::io::stderr(), "first error: {}", error.escape_debug())?;
    }
    Ok(if report.all_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
