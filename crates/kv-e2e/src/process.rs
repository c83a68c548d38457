//! One process, its log and its end.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How long a process may take to die of a signal that it cannot catch.
const DEATH_MAX: Duration = Duration::from_secs(10);

/// A running process whose output goes to a file. It dies with the value.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    /// Where in the log the output of this run begins.
    begin: u64,
}

impl Process {
    /// Starts `program`; its output is appended to `log`. Settings of the environment it might read are removed.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(program: &Path, args: &[impl AsRef<OsStr>], log: &Path) -> anyhow::Result<Self> {
        let out = OpenOptions::new().create(true).append(true).open(log);
        let out = out.with_context(|| format!("cannot write {}", log.display()))?;
        let begin = out.metadata()?.len();
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("KVNODE_") || name.starts_with("KVCTL_")) {
                command.env_remove(name);
            }
        }
        command.args(args).env("NO_COLOR", "1").stdin(Stdio::null());
        let child = command.stdout(out.try_clone()?).stderr(out).spawn();
        let child = child.with_context(|| format!("cannot run {}", program.display()))?;
        Ok(Self { child, log: log.to_owned(), begin })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What this run has written so far.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn output(&self) -> anyhow::Result<String> {
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(self.begin))?;
        let mut bytes = Vec::new();
        log.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for a line of this run that holds `wanted`; a process that ends instead ends the wait.
    ///
    /// # Errors
    /// If the line does not come within `limit`.
    pub async fn says(&mut self, wanted: &str, limit: Duration) -> anyhow::Result<String> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            // In this order: what a process says last is seen before its end.
            let ended = self.ended()?;
            let output = self.output()?;
            if let Some(line) = output.lines().find(|line| line.contains(wanted)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                bail!("the process ended ({status}) before it said `{wanted}`; it said:\n{output}");
            }
            if tokio::time::Instant::now() >= deadline {
                bail!("the process does not say `{wanted}` within {limit:?}; it says:\n{output}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub async fn ends(&mut self, limit: Duration) -> anyhow::Result<ExitStatus> {
        let mut look = || self.ended().map_err(|cause| cause.to_string())?.ok_or("it runs".to_owned());
        wait::until("the end of a process", limit, || std::future::ready(look())).await
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, signal).with_context(|| format!("cannot signal process {pid:?}"))
    }

    /// SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// Of the operating system.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.ends(DEATH_MAX).await?;
        Ok(())
    }
}

/// The CPU time a process has used, user and system, from `/proc`.
///
/// # Errors
/// If it is gone.
pub fn cpu_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 and 15, after the name, which is in brackets and may hold anything; in ticks of 10 ms.
    let (_, after_name) = stat.rsplit_once(')').context("a name")?;
    let ticks = after_name.split_whitespace().skip(11).take(2);
    let ticks = ticks.map(|field| Ok(field.parse::<u64>()?)).sum::<anyhow::Result<u64>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no killing, and nobody is left to be told of a failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
