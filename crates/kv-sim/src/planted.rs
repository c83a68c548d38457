//! Bugs on purpose, in the Raft core, in what stands above it, and in the driver around both. They exist only with the cargo feature `planted`,
//! which no release is built with.

use std::fmt;

/// A bug that a whole cluster can be run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "planted"),
    allow(dead_code, unreachable_pub, reason = "named where the branches are")
)]
pub enum Planted {
    /// A bug of the Raft core.
    #[cfg(feature = "planted")]
    Core(kv_raft::Planted),
    /// A bug of the state machine.
    #[cfg(feature = "planted")]
    State(kv_state::Planted),
    /// A fault of a party of transactions.
    #[cfg(feature = "planted")]
    Party(kv_txn::Planted),
    /// A bug of a replica.
    #[cfg(feature = "planted")]
    Shard(kv_shard::Planted),
    /// A reader compares the lease with what the clock showed at the replica's last turn.
    LeaseOnCachedClock,
    /// A replica takes a message at the time that its clock showed before the message was there.
    ClockBeforeMessage,
    /// The end of a lease is published after the messages of its turn have left.
    LeasePublishedLate,
    /// A node whose disk was replaced by an empty one takes part under its old id.
    WipedDiskVotes,
    /// A snapshot leaves on the disk what followed in a log that contradicts it.
    TailKeptOverConflict,
    /// A node cuts its WAL where it is damaged, and goes on.
    WalCutAtDamage,
    /// A snapshot holds the effects of a newer entry than the one it is labelled with.
    SnapshotNewerThanIndex,
    /// A leader looks at its rows when a request arrives, and then the log is trusted to hold no request twice.
    GateBeforeLog,
    /// What a transaction came to is told by the rows of whichever node is asked, without a lease and without a round.
    AnchorUnconfirmed,
}

#[cfg(feature = "planted")]
impl Planted {
    /// Every bug.
    pub fn all() -> impl Iterator<Item = Self> {
        let driver = [
            Self::LeaseOnCachedClock,
            Self::ClockBeforeMessage,
            Self::LeasePublishedLate,
            Self::WipedDiskVotes,
            Self::TailKeptOverConflict,
            Self::WalCutAtDamage,
            Self::SnapshotNewerThanIndex,
            Self::GateBeforeLog,
            Self::Shard(kv_shard::Planted::LostSaidNotApplied),
        ];
        // Above the core's own version of the kept tail, an assertion of the log in memory stands; that on disk is
        // planted below it.
        let core =
            kv_raft::Planted::ALL.into_iter().filter(|bug| *bug != kv_raft::Planted::SnapshotOverConflict);
        // Without a look before the log nothing would be left of a gate.
        let state =
            kv_state::Planted::ALL.into_iter().filter(|bug| *bug != kv_state::Planted::GateNotAtApply);
        core.map(Self::Core).chain(state.map(Self::State)).chain(driver)
    }

    /// Every bug of transactions: of a shard, of parties, and of whoever answers them.
    pub fn of_txns() -> impl Iterator<Item = Self> {
        let state = kv_state::Planted::OF_TXNS.into_iter().map(Self::State);
        let parties = kv_txn::Planted::ALL.into_iter().map(Self::Party);
        let others = [Self::AnchorUnconfirmed, Self::Shard(kv_shard::Planted::DeletesForgotten)];
        state.chain(parties).chain(others)
    }
}

/// The bug's name alone.
impl fmt::Display for Planted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(feature = "planted")]
            Self::Core(bug) => fmt::Debug::fmt(bug, f),
            #[cfg(feature = "planted")]
            Self::State(bug) => fmt::Debug::fmt(bug, f),
            #[cfg(feature = "planted")]
            Self::Party(fault) => fmt::Debug::fmt(fault, f),
            #[cfg(feature = "planted")]
            Self::Shard(bug) => fmt::Debug::fmt(bug, f),
            driver => fmt::Debug::fmt(driver, f),
        }
    }
}
