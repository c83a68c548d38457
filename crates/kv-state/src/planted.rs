//! Bugs on purpose: each is a rule of exactly once left out. A check that does not find them would not find ours. They
//! exist only with the cargo feature `planted`, which no release is built with.

use crate::apply::Rows;
use crate::step::Step;

/// A bug that a state machine can be run with. Each changes one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, unreachable_pub, reason = "named where the branches are")
)]
pub enum Planted {
    /// Collecting dead sessions does not raise the horizon.
    HorizonForgotten,
    /// A request below the floor of its session is executed.
    FloorForgotten,
    /// The record of an outcome is not looked at.
    DoneNotChecked,
    /// A closed session is forgotten while a lease that was issued for it still runs.
    ClosedAheadOfLease,
}

#[cfg(feature = "planted")]
impl Planted {
    /// Every bug.
    pub const ALL: [Self; 4] =
        [Self::HorizonForgotten, Self::FloorForgotten, Self::DoneNotChecked, Self::ClosedAheadOfLease];
}

impl<R: Rows> Step<'_, R> {
    /// Whether this entry is applied with that bug.
    #[cfg(feature = "planted")]
    pub(crate) fn planted(&self, bug: Planted) -> bool {
        self.rows.planted() == Some(bug)
    }

    /// No bug is planted without the feature.
    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "the same call with and without the feature")]
    pub(crate) const fn planted(&self, _bug: Planted) -> bool {
        false
    }
}
