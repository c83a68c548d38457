//! Bugs on purpose, in a whole daemon: a drill that does not find them would not find ours. They exist only with the cargo
//! feature `planted`, which no release is built with; the variable `QUORATE_PLANTED` then names the bug.
//!
//! `scripts/planted-drills` builds such a daemon and plays the drills that must find them.

/// A bug that a daemon can be run with. Each changes one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, reason = "named where the branches are, or by the feature alone")
)]
pub enum Planted {
    /// A leader reads on when its lease has run out, until it hears of a newer term.
    LeaseIgnored,
    /// Who has ever led a shard goes on reading as if it still did.
    DeposedReads,
    /// A request is carried out again although its outcome is on record.
    DedupOff,
    /// A write is called durable before it is written. (A sync that is left out alone would show only when the machine
    /// itself goes down, because the kernel keeps what a killed process has written.)
    FsyncSkipped,
    /// Writes look at no lock of a transaction.
    LockIgnored,
}

/// For so long, what was called durable is only in the memory of the process.
pub(crate) const UNWRITTEN: std::time::Duration = std::time::Duration::from_millis(150);

#[cfg(feature = "planted")]
mod chosen {
    use std::sync::OnceLock;

    use super::Planted;

    static CHOSEN: OnceLock<Option<Planted>> = OnceLock::new();

    /// Takes the bug that the environment names; to be called once, before a node starts.
    ///
    /// # Errors
    /// If there is no such bug.
    pub fn choose() -> Result<Option<Planted>, String> {
        let bug = match std::env::var("QUORATE_PLANTED").as_deref() {
            Err(_) | Ok("") => None,
            Ok("lease-ignored") => Some(Planted::LeaseIgnored),
            Ok("deposed-reads") => Some(Planted::DeposedReads),
            Ok("dedup-off") => Some(Planted::DedupOff),
            Ok("fsync-skipped") => Some(Planted::FsyncSkipped),
            Ok("lock-ignored") => Some(Planted::LockIgnored),
            Ok(other) => return Err(format!("QUORATE_PLANTED: there is no bug `{other}`")),
        };
        Ok(*CHOSEN.get_or_init(|| bug))
    }

    fn chosen() -> Option<Planted> {
        CHOSEN.get().copied().flatten()
    }

    /// Whether this process runs with that bug.
    pub(crate) fn is_planted(bug: Planted) -> bool {
        chosen() == Some(bug)
    }

    /// The bug of every replica.
    pub(crate) fn of_replicas() -> Option<kv_shard::Planted> {
        match chosen()? {
            Planted::DedupOff => Some(kv_shard::Planted::State(kv_state::Planted::GateNotAtApply)),
            Planted::LockIgnored => Some(kv_shard::Planted::State(kv_state::Planted::WriteLockIgnored)),
            Planted::LeaseIgnored | Planted::DeposedReads | Planted::FsyncSkipped => None,
        }
    }
}

#[cfg(feature = "planted")]
pub use chosen::choose;
#[cfg(feature = "planted")]
pub(crate) use chosen::{is_planted, of_replicas};

/// No bug is planted without the feature.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is_planted(_bug: Planted) -> bool {
    false
}
