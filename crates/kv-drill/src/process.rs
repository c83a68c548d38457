//! One process, its log and its end.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::error::RunError;

/// How the names of settings begin that our programs read from the environment.
const SETTINGS: [&str; 3] = ["KVNODE_", "KVCTL_", "KVCHAOS_"];

/// How often a process is looked at.
const POLL: Duration = Duration::from_millis(20);

/// How often a process is looked at that was told to stand still.
const STILL_POLL: Duration = Duration::from_millis(1);

/// How long a process may take to obey a signal that it cannot catch.
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
    pub fn spawn(program: &Path, args: &[impl AsRef<OsStr>], log: &Path) -> Result<Self, RunError> {
        let out = OpenOptions::new().create(true).append(true).open(log);
        let unwritable = || format!("cannot write {}", log.display());
        let out = out.map_err(RunError::system(unwritable()))?;
        let begin = out.metadata().map_err(RunError::system(unwritable()))?.len();
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| SETTINGS.iter().any(|own| name.starts_with(own))) {
                command.env_remove(name);
            }
        }
        command.args(args).env("NO_COLOR", "1").stdin(Stdio::null());
        let unrunnable = || format!("cannot run {}", program.display());
        let twin = out.try_clone().map_err(RunError::system(unrunnable()))?;
        let child = command.stdout(twin).stderr(out).spawn().map_err(RunError::system(unrunnable()))?;
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
    pub fn output(&self) -> Result<String, RunError> {
        let read = || {
            let mut log = File::open(&self.log)?;
            log.seek(SeekFrom::Start(self.begin))?;
            let mut bytes = Vec::new();
            log.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(RunError::system(format!("cannot read {}", self.log.display())))
    }

    /// Its exit status, if it has ended.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>, RunError> {
        self.child.try_wait().map_err(RunError::system("cannot wait for a process"))
    }

    /// Waits for a line of this run that holds `wanted`; a process that ends instead ends the wait.
    ///
    /// # Errors
    /// If the line does not come within `limit`.
    pub async fn says(&mut self, wanted: &str, limit: Duration) -> Result<String, RunError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            // In this order: what a process says last is seen before its end.
            let ended = self.ended()?;
            let output = self.output()?;
            if let Some(line) = output.lines().find(|line| line.contains(wanted)) {
                return Ok(line.to_owned());
            }
            if let Some(status) = ended {
                return Err(RunError::Ended {
                    status: status.to_string(),
                    wanted: wanted.to_owned(),
                    output,
                });
            }
            if tokio::time::Instant::now() >= deadline {
                let what = format!("a process to say `{wanted}`");
                return Err(RunError::Late { what, limit, instead: output });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub async fn ends(&mut self, limit: Duration) -> Result<ExitStatus, RunError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if tokio::time::Instant::now() >= deadline {
                let (what, instead) = ("the end of a process".to_owned(), "it runs".to_owned());
                return Err(RunError::Late { what, limit, instead });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<(), RunError> {
        let failed = || RunError::system(format!("cannot signal process {}", self.pid()));
        let Some(pid) = i32::try_from(self.pid()).ok().and_then(Pid::from_raw) else {
            return Err(failed()(std::io::ErrorKind::NotFound.into()));
        };
        kill_process(pid, signal).map_err(|cause| failed()(cause.into()))
    }

    /// SIGSTOP; returns when it stands still. The kernel stops a process when one of its threads gets to see the signal, and
    /// on a busy machine the others run on for some milliseconds: long enough to acknowledge what was sent after the call.
    ///
    /// # Errors
    /// If it has ended, or runs on for ten seconds.
    pub async fn pause(&mut self) -> Result<(), RunError> {
        self.signal(Signal::STOP)?;
        let deadline = tokio::time::Instant::now() + DEATH_MAX;
        while !self.stands_still() {
            if tokio::time::Instant::now() >= deadline {
                let (what, limit) = ("a process to stand still".to_owned(), DEATH_MAX);
                return Err(RunError::Late { what, limit, instead: "it runs".to_owned() });
            }
            tokio::time::sleep(STILL_POLL).await;
        }
        Ok(())
    }

    /// Whether the kernel has stopped all its threads; where it does not tell (other than Linux), it is taken to have.
    fn stands_still(&self) -> bool {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.pid())) else { return true };
        // A thread that has ended in the meantime has no state any more.
        let states =
            tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
        states.map(|stat| state_of(&stat)).all(|state| matches!(state, Some('T' | 'Z' | 'X')))
    }

    /// SIGKILL; returns when it is gone.
    ///
    /// # Errors
    /// Of the operating system.
    pub async fn kill(&mut self) -> Result<(), RunError> {
        self.child.kill().map_err(RunError::system("cannot kill a process"))?;
        self.ends(DEATH_MAX).await?;
        Ok(())
    }
}

/// The state of a thread, from its line in `/proc`: after its name, which is in parentheses and may hold any character.
fn state_of(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended needs no killing, and nobody is left to be told of a failure.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
