//! `kvctl`: the command line of Quorate.
//!
//! # How it works
//!
//! [`args`] parses; [`command`] has one file per verb, each of which calls `kv-client` and says what it found by a
//! [`console::Console`], the only way to standard output; [`failure`] turns what went wrong into one line on standard
//! error and an exit code. `docs/cli.md` lists all of it and is tested against `--help`.
//!
//! # What it does not do
//!
//! It holds no logic of the cluster: routing, retries and outcomes are `kv-client`'s.

mod args;
mod bytes_text;
mod command;
mod console;
mod failure;
mod json;

use std::process::ExitCode;

use crate::args::Args;
use crate::failure::Exit;

fn main() -> ExitCode {
    let args = Args::read();
    let format = args.global.output;
    let exit = command::run(args).unwrap_or_else(|failure| {
        failure.report(format);
        failure.exit
    });
    ExitCode::from(match exit {
        Exit::Ok => 0,
        Exit::Error => 1,
        Exit::Usage => 2,
        Exit::Absent => 3,
        Exit::Unknown => 4,
        Exit::CompareFailed => 5,
        Exit::WorthARetry => 6,
        Exit::Aborted => 7,
        Exit::Violation => 10,
        Exit::Undecided => 11,
        Exit::NotExercised => 12,
    })
}
