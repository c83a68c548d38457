//! One cluster at a time on this machine.

use std::fs::File;

use anyhow::Context as _;

/// The right to run a cluster. Tests of all processes wait for one another: five nodes and their clients have all the
/// cores to themselves, so that a limit in milliseconds says something about the nodes.
#[derive(Debug)]
pub struct Turn {
    /// Holds the lock; the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl Turn {
    /// Waits until no other test has it. Blocks the thread, which has nothing else to do.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn take() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join("quorate-e2e.turn");
        let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { _lock: lock })
    }
}
