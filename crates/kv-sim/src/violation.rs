//! What a run finds: an invariant that does not hold.

use std::fmt;

use kv_types::Nanos;

/// An invariant that does not hold. A value and no panic: a check that stops the process by accident has found
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant's name.
    pub invariant: &'static str,
    /// What contradicts it.
    pub detail: String,
    /// When, in true time since the start of the run.
    pub at: Nanos,
}

impl Violation {
    /// One that has just been noticed; whoever reports it adds the time.
    pub(crate) fn new(invariant: &'static str, detail: String) -> Self {
        Self { invariant, detail, at: Nanos::default() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} us: {}", self.invariant, self.at.get() / 1000, self.detail)
    }
}

/// Whether an invariant holds.
pub(crate) type Holds = Result<(), Violation>;

/// Ends the check with a violation unless the condition holds.
macro_rules! hold {
    ($condition:expr, $invariant:expr, $($detail:tt)+) => {
        if !$condition {
            return Err($crate::violation::Violation::new($invariant, format!($($detail)+)));
        }
    };
}
pub(crate) use hold;
