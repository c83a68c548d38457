//! Who leads and who belongs to the group: what operators and the host decide, handed to the Raft core.

use kv_raft::{Corrupt, LeaseConfig, Refused, Target};
use kv_types::{LogIndex, Nanos, NodeId};

use crate::replica::Replica;

impl<W> Replica<W> {
    /// Serves reads by a lease from now on, or by a round each.
    ///
    /// # Errors
    /// [`Corrupt::Setting`] if the bound on clocks leaves nothing of a lease.
    pub fn set_lease(&mut self, now: Nanos, lease: Option<LeaseConfig>) -> Result<(), Corrupt> {
        self.raft.set_lease(now, lease)
    }

    /// The node may have stood still without its clock noticing: only rounds begun after this earn a lease again.
    pub fn clock_jumped(&mut self, now: Nanos) {
        self.raft.clock_jumped(now);
    }

    /// A voter for whose clock, which certainly runs too fast or too slow, this leader has no lease.
    pub fn clock_off(&self) -> Option<NodeId> {
        self.raft.clock_off()
    }

    /// Hands leadership to `to`.
    ///
    /// # Errors
    /// [`Refused`]; nothing was begun.
    pub fn transfer(&mut self, now: Nanos, to: NodeId) -> Result<(), Refused> {
        self.raft.transfer(now, to)
    }

    /// Begins to change the membership to `target`; the index of the entry that begins the change.
    ///
    /// # Errors
    /// [`Refused`]; nothing was appended.
    pub fn reconfigure(&mut self, now: Nanos, target: Target) -> Result<LogIndex, Refused> {
        self.raft.reconfigure(now, target)
    }

    /// How many messages were sent in this life only because somebody reads.
    pub fn read_messages(&self) -> u64 {
        self.raft.read_messages()
    }

    /// What is committed as far as this replica knows. Published before [`Replica::apply`], and before the messages of
    /// [`Replica::take`] leave, it is never behind an answer, of this node or of another.
    pub fn commit(&self) -> LogIndex {
        self.raft.commit().index
    }
}
