//! Why a run could not be carried out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::ChaosError;

/// Why a run could not be carried out. It says nothing about the store: whoever gets it has no verdict.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A program is nowhere.
    #[error("there is no program {0}: build it, or name its folder in QUORATE_BIN_DIR")]
    NoProgram(PathBuf),
    /// The operating system refused something.
    #[error("{what}: {cause}")]
    System {
        /// What was to be done.
        what: String,
        /// Why it was not.
        cause: io::Error,
    },
    /// A process ended before it said something.
    #[error("the process ended ({status}) before it said `{wanted}`; it said:\n{output}")]
    Ended {
        /// How it ended.
        status: String,
        /// What was waited for.
        wanted: String,
        /// All that it said.
        output: String,
    },
    /// Something took too long.
    #[error("waited {limit:?} for {what}; in the end: {instead}")]
    Late {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
        /// What there was instead.
        instead: String,
    },
    /// The proxy did not do what it was told.
    #[error(transparent)]
    Chaos(#[from] ChaosError),
    /// The drill needs what this cluster does not have.
    #[error("{0}")]
    Unfit(String),
    /// The cluster did not do what a run needs before anything was broken.
    #[error("{0}")]
    Cluster(String),
    /// What clients did could not be written down, or not be read again.
    #[error("the history makes no sense: {0}")]
    History(#[from] kv_check::HistoryError),
    /// Somebody wanted it to end.
    #[error("interrupted; what the drill broke is mended, and what it started is stopped")]
    Interrupted,
    /// Somebody wanted it to end, and not everything could be undone.
    #[error("interrupted, and not everything that the drill did is undone: {0}")]
    Left(Box<RunError>),
}

impl RunError {
    /// A refusal of the operating system.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |cause| Self::System { what, cause }
    }
}
