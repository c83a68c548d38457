//! Bugs on purpose: each is a rule of exactly once, or of transactions, left out. A check that does not find them would not find ours. They
//! exist only with the cargo feature `planted`, which no release is built with.

use kv_types::RowHead;

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
    /// Records, floors and the horizon are kept and not looked at: somebody else is trusted to have done so before the
    /// entry was proposed.
    GateNotAtApply,
    /// A write looks at no lock of a transaction that writes the key.
    WriteLockIgnored,
    /// A write looks at no lock of transactions that have read the key.
    ReadLockIgnored,
    /// A prepare does not lock the ranges that its transaction has scanned.
    RangesNotLocked,
    /// A prepare does not lock what its transaction has only read.
    ReadsNotLocked,
    /// A fence is told and leaves nothing behind.
    FenceLeavesNothing,
    /// A participant does not note that a transaction was committed.
    CommittedForgotten,
    /// A commit does not pass the gate.
    CommitNotGated,
    /// A resolve passes the gate: it is refused if the client waits for the transaction no more.
    ResolveGated,
    /// The record of a commit is that of the gate alone, which goes by the session's rules.
    RecordNotKept,
    /// Collecting a dead session takes away what it has prepared.
    CollectDropsPrepared,
    /// Records and floors that came with a snapshot are not looked at, as if they were not part of it.
    TableNotInSnapshot,
}

#[cfg(feature = "planted")]
impl Planted {
    /// Every bug of transactions alone.
    pub const OF_TXNS: [Self; 10] = [
        Self::WriteLockIgnored,
        Self::ReadLockIgnored,
        Self::ReadsNotLocked,
        Self::RangesNotLocked,
        Self::FenceLeavesNothing,
        Self::CommittedForgotten,
        Self::CommitNotGated,
        Self::ResolveGated,
        Self::RecordNotKept,
        Self::CollectDropsPrepared,
    ];

    /// Every bug of the gate.
    pub const ALL: [Self; 6] = [
        Self::HorizonForgotten,
        Self::FloorForgotten,
        Self::DoneNotChecked,
        Self::ClosedAheadOfLease,
        Self::GateNotAtApply,
        Self::TableNotInSnapshot,
    ];
}

impl<R: Rows> Step<'_, R> {
    /// Whether this entry is applied with that bug.
    #[cfg(feature = "planted")]
    pub(crate) fn planted(&self, bug: Planted) -> bool {
        self.rows.planted() == Some(bug)
    }

    /// Whether a record, or a floor, is not looked at. Its row is replaced as ever, so that replicas stay the same until
    /// a request is carried out again.
    #[cfg(feature = "planted")]
    pub(crate) fn overlooks(&self, head: Option<&RowHead>) -> bool {
        match self.rows.planted() {
            Some(Planted::GateNotAtApply) => true,
            Some(Planted::TableNotInSnapshot) => {
                head.is_some_and(|head| head.modified.index() <= self.rows.snapshot())
            }
            _ => false,
        }
    }

    /// Nothing is overlooked without the feature.
    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "the same call with and without the feature")]
    pub(crate) const fn overlooks(&self, _head: Option<&RowHead>) -> bool {
        false
    }

    /// No bug is planted without the feature.
    #[cfg(not(feature = "planted"))]
    #[allow(clippy::unused_self, reason = "the same call with and without the feature")]
    pub(crate) const fn planted(&self, _bug: Planted) -> bool {
        false
    }
}
