//! The honest answer to *did it happen?*

use std::fmt;

/// What a failed write knows about itself. When unsure, a failure says [`Outcome::Unknown`]; it never guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The write did not take effect and never will by this attempt.
    NotApplied,
    /// The write may have taken effect, or may still.
    Unknown,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotApplied => "not applied",
            Self::Unknown => "unknown",
        })
    }
}
