//! Termination: when a quorum works and its members reach each other, whatever the others do, the group elects a
//! leader, and new writes and reads are answered within a bounded time.

use std::time::Duration;

use crate::violation::{Holds, hold};

/// The invariant's name.
pub(crate) const NAME: &str = "termination";

/// How many of the shortest election timeouts a working quorum may take to answer: some failed elections, a snapshot,
/// and time for a change of the membership to end.
const TIMEOUTS: u32 = 100;

/// How long a working quorum may take.
pub(crate) fn patience(election_timeout: Duration) -> Duration {
    election_timeout * TIMEOUTS
}

/// Whether everything that was demanded of a working quorum was done in time.
pub(crate) fn check(missing: &[String], summary: &str) -> Holds {
    hold!(missing.is_empty(), NAME, "a quorum works, and yet: {}; {summary}", missing.join(", "));
    Ok(())
}
