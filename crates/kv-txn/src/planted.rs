//! Faults on purpose: each is a duty of a party left out. They exist only with the cargo feature `planted`, which no release
//! is built with.

use crate::shards::Shards;

/// A fault that a party can act with. Each changes one branch, and breaks no rule of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, unreachable_pub, reason = "named where the branches are")
)]
pub enum Planted {
    /// The manager commits though a participant has not said yes.
    CommitsEarly,
    /// The record is forgotten before all have acknowledged it.
    ForgetsEarly,
    /// A refusal is told as *aborted*.
    RefusalIsTold,
    /// The answer *absent* is told as *aborted*.
    AbsentIsTold,
    /// A part that is old is ended without a fence.
    PresumesAbort,
    /// A reader looks at no lock.
    ReaderSkipsLocks,
    /// A reader looks at the value first, then at the lock.
    ValueBeforeLock,
    /// A reader takes *absent* for an answer and does not look at the lock again.
    NoSecondLook,
}

#[cfg(feature = "planted")]
impl Planted {
    /// Every fault.
    pub const ALL: [Self; 8] = [
        Self::CommitsEarly,
        Self::ForgetsEarly,
        Self::RefusalIsTold,
        Self::AbsentIsTold,
        Self::PresumesAbort,
        Self::ReaderSkipsLocks,
        Self::ValueBeforeLock,
        Self::NoSecondLook,
    ];
}

/// Whether whoever asks through these acts with that fault.
#[cfg(feature = "planted")]
pub(crate) fn is_planted<S: Shards>(shards: &S, fault: Planted) -> bool {
    shards.planted() == Some(fault)
}

/// Nobody does without the feature.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is_planted<S: Shards>(_shards: &S, _fault: Planted) -> bool {
    false
}
