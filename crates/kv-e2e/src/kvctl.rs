//! Programs that run to their end: `kvctl`, and `kvnode` with a verb or a mistake.

use std::ffi::OsStr;
use std::io::{Seek as _, Write as _};
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use crate::binaries;

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` if a signal killed it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Runs `kvctl` against these endpoints.
///
/// # Errors
/// If it cannot be started.
pub fn kvctl(endpoints: &str, args: &[&str]) -> anyhow::Result<Ended> {
    kvctl_fed(endpoints, args, &[])
}

/// Runs `kvctl` against these endpoints with something on its standard input.
///
/// # Errors
/// If it cannot be started.
pub fn kvctl_fed(endpoints: &str, args: &[&str], input: &[u8]) -> anyhow::Result<Ended> {
    run(&binaries::path_of("kvctl")?, args, &[("KVCTL_ENDPOINTS", endpoints)], input)
}

/// Runs `kvnode` until it ends.
///
/// # Errors
/// If it cannot be started.
pub fn kvnode(args: &[impl AsRef<OsStr>]) -> anyhow::Result<Ended> {
    run(&binaries::path_of("kvnode")?, args, &[], &[])
}

/// `kvnode verify-data`.
///
/// # Errors
/// If it cannot be started.
pub fn verify_data(dir: &Path) -> anyhow::Result<Ended> {
    kvnode(&["verify-data", "--data-dir", dir.to_str().context("the path is no text")?])
}

fn run(
    program: &Path,
    args: &[impl AsRef<OsStr>],
    env: &[(&str, &str)],
    input: &[u8],
) -> anyhow::Result<Ended> {
    let mut stdin = tempfile::tempfile()?;
    stdin.write_all(input)?;
    stdin.rewind()?;
    let output = Command::new(program)
        .args(args)
        .env("NO_COLOR", "1")
        .envs(env.iter().copied())
        .stdin(stdin)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    Ok(Ended {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
