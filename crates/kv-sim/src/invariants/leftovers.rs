//! Leftovers: when everybody works and reaches each other, no lock, no prepared part and no record of a transaction is left
//! within a bounded time, whoever has died on the way.

use std::time::Duration;

use crate::violation::{Holds, hold};

/// The invariant's name.
pub(crate) const NAME: &str = "leftovers";

/// How long what is left may take: the age at which a part is unblocked, and some failures.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Whether nothing is left.
pub(crate) fn check(left: &[String], summary: &str) -> Holds {
    hold!(left.is_empty(), NAME, "all work, and yet there is left: {}; {summary}", left.join("; "));
    Ok(())
}
