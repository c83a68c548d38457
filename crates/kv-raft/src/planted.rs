//! Bugs on purpose: each is one of the mistakes that implementations of Raft have made. A check that does not find them
//! would not find ours. They exist only with the cargo feature `planted`, which no release is built with.

/// A bug that a replica can be run with. Each changes one branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, unreachable_pub, reason = "named where the branches are")
)]
pub enum Planted {
    /// A leader commits entries of earlier terms by counting copies.
    CommitsOldTerm,
    /// A candidate asks for votes before its own is durable.
    VoteRequestBeforeDurable,
    /// A vote is sent before it is durable.
    VoteBeforeDurable,
    /// A leader counts its own copy of an entry before it is durable.
    SelfAckBeforeDurable,
    /// Votes are given while a leader is live.
    NoWithholding,
    /// A lease counts from when a round was answered.
    LeaseFromAck,
    /// A leader whose transfer failed takes a lease again.
    LeaseAfterTransfer,
    /// A lease is as long as the promise, as if clocks had no drift.
    LeaseBeyondBound,
    /// A replica that starts does not sit its promise out.
    PromiseForgotten,
    /// An answer to any round confirms the newest one.
    ReadTokenReuse,
    /// A replica that does not lead answers read-index requests.
    ReadWithoutLeader,
    /// A membership is in force when applied, not when appended.
    ConfigAtApply,
    /// A second change of the membership is taken before the first is committed.
    SecondConfigEarly,
    /// A snapshot leaves a contradicting tail of the log on disk.
    SnapshotOverConflict,
    /// An append removes what follows it in the log.
    AppendCutsTail,
    /// A candidate that falls back in its term forgets its vote.
    VoteCleared,
    /// The end of a lease is reported one `take` late.
    LeaseDropLate,
}

#[cfg(feature = "planted")]
impl Planted {
    /// Every bug.
    pub const ALL: [Self; 17] = [
        Self::CommitsOldTerm,
        Self::VoteRequestBeforeDurable,
        Self::VoteBeforeDurable,
        Self::SelfAckBeforeDurable,
        Self::NoWithholding,
        Self::LeaseFromAck,
        Self::LeaseAfterTransfer,
        Self::LeaseBeyondBound,
        Self::PromiseForgotten,
        Self::ReadTokenReuse,
        Self::ReadWithoutLeader,
        Self::ConfigAtApply,
        Self::SecondConfigEarly,
        Self::SnapshotOverConflict,
        Self::AppendCutsTail,
        Self::VoteCleared,
        Self::LeaseDropLate,
    ];
}

impl crate::core::Core {
    /// Whether this replica runs with that bug.
    #[cfg(feature = "planted")]
    pub(crate) fn planted(&self, bug: Planted) -> bool {
        self.config.planted == Some(bug)
    }

    /// No bug is planted without the feature.
    #[cfg(not(feature = "planted"))]
    pub(crate) const fn planted(&self, _bug: Planted) -> bool {
        false
    }
}
