//! Programs that run to their end: `kvctl`, and `kvnode` with a verb or a mistake.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

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

/// A `kvctl` that is under way and is told what to do line by line.
#[derive(Debug)]
pub struct Told {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Told {
    /// Starts `kvctl` against these endpoints.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(endpoints: &str, args: &[&str]) -> anyhow::Result<Self> {
        let mut child = Command::new(binaries::path_of("kvctl")?)
            .args(args)
            .env("NO_COLOR", "1")
            .env("KVCTL_ENDPOINTS", endpoints)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().context("it is a pipe")?);
        Ok(Self { child, answers })
    }

    /// Says a line.
    ///
    /// # Errors
    /// If it has ended.
    pub fn say(&mut self, line: &str) -> anyhow::Result<()> {
        let input = self.child.stdin.as_mut().context("it is a pipe")?;
        Ok(writeln!(input, "{line}")?)
    }

    /// Says a line and waits for a line that answers it, which is empty if the program ends instead.
    ///
    /// # Errors
    /// If it has ended.
    pub fn ask(&mut self, line: &str) -> anyhow::Result<String> {
        self.say(line)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        Ok(answer.trim_end().to_owned())
    }

    /// Closes its input and waits for its end; standard output is what was not read yet.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn end(mut self) -> anyhow::Result<Ended> {
        drop(self.child.stdin.take());
        let mut stdout = String::new();
        self.answers.read_to_string(&mut stdout)?;
        let output = self.child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok(Ended { code: output.status.code(), stdout, stderr })
    }
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
