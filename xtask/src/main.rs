//! Checks and fixes for the whole workspace: `cargo xtask ci | fix | tidy | dist`.
//!
//! # What it is
//!
//! `ci` verifies and never edits; `fix` edits what a machine can edit; `tidy` holds the rules that rustc and clippy
//! cannot see (which crate may name which, how long a file may grow, what every golden script opens with); `dist`
//! builds the static binaries.
//!
//! # How it works
//!
//! [`ci`] is a list of [`command::Step`]s run in order, each with its duration. [`tidy`] reads every file of the working
//! copy once into a [`tidy::tree::Tree`], hands it to one pure check a module, and prints every [`tidy::Problem`], not only
//! the first. The rules themselves are data: [`tidy::layers`] for the crates, `xtask/ratchet.txt` for long files.
//!
//! # What it does not do
//!
//! No network of its own, no formatting rules (rustfmt has those), no lint that clippy offers.

mod ci;
mod command;
mod fix;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// Checks and fixes for the whole workspace.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Verify everything; edits nothing
    Ci,
    /// Format, and apply what clippy can fix by itself
    Fix,
    /// Check the rules of the house that no compiler knows
    Tidy,
    /// Build the static binaries into dist/
    Dist,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: the step itself has said the rest, and a backtrace of this program helps nobody.
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> anyhow::Result<()> {
    let root = workspace_root()?;
    match task {
        Task::Ci => ci::run(&root),
        Task::Fix => fix::run(&root),
        Task::Tidy => tidy::run(&root),
        Task::Dist => command::Step::new("static binaries", "scripts/build-static", &[]).run(&root),
    }
}

/// The workspace root is the parent of this package's folder, wherever `cargo xtask` was called.
fn workspace_root() -> anyhow::Result<PathBuf> {
    let manifest =
        std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`, cargo names the folder")?;
    let root = PathBuf::from(manifest);
    Ok(root.parent().context("xtask/ lies inside the workspace")?.to_path_buf())
}
