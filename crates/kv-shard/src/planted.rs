//! Bugs on purpose, in a replica and in the state machine that it runs. They exist only with the cargo feature `planted`,
//! which no release is built with.

use crate::replica::Replica;

/// A bug that a replica can be run with. Each changes one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, unreachable_pub, reason = "named where the branches are")
)]
pub enum Planted {
    /// A bug of the state machine.
    #[cfg(feature = "planted")]
    State(kv_state::Planted),
    /// A leader that loses its office says of what it has proposed that it was not applied.
    LostSaidNotApplied,
    /// Nobody remembers that a key was deleted: one that is absent again is taken for one that was absent all the time.
    DeletesForgotten,
}

impl<W> Replica<W> {
    /// Plants a bug.
    #[cfg(feature = "planted")]
    pub fn plant(&mut self, bug: Option<Planted>) {
        self.planted = bug;
    }

    /// Whether this replica runs with that bug.
    #[cfg(feature = "planted")]
    pub(crate) fn is_planted(&self, bug: Planted) -> bool {
        self.planted == Some(bug)
    }

    /// No bug is planted without the feature.
    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "the same call with and without the feature")]
    pub(crate) const fn is_planted(&self, _bug: Planted) -> bool {
        false
    }
}
