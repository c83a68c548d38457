//! Rows that are not what they should be, while the log is: the replica gets them anew from a peer.
//!
//! A vote and an acknowledgement speak of the log alone, so a replica with damaged rows goes on giving both. It does not
//! apply, serve reads or campaign, and a leader hands over. Rows of *any* peer help, if this log holds the entry they
//! reach: the peer has applied it, so it is committed, and the rest of the log goes on from there. The group notices
//! nothing, and Raft decides nothing: it works without a leader, too. The record `Damaged` keeps a restart from opening
//! the bad rows.

use kv_state::{ApplyError, Carried};
use kv_storage::{Generation, ReceivedSnapshot, StoreError, WalOp};
use kv_types::Nanos;
use tracing::{error, warn};

use crate::proposals::WriteFailure;
use crate::reads::ReadFailure;
use crate::replica::{Replica, ReplicaError};
use crate::snapshot::Installing;

impl ReplicaError {
    /// What is damaged, if rows are: then the replica need not stop.
    ///
    /// # Errors
    /// Any other error, as it is.
    pub fn into_damage(self) -> Result<String, Self> {
        match self {
            Self::Store(StoreError::Damaged { detail })
            | Self::Apply(ApplyError::Rows { cause: StoreError::Damaged { detail }, .. }) => Ok(detail),
            other => Err(other),
        }
    }
}

impl<W> Replica<W> {
    /// Why its rows cannot be used, until those of a peer are installed.
    pub fn damage(&self) -> Option<&str> {
        self.store.damage()
    }

    /// The rows of a generation are damaged: none of them is read any more, and whoever waits for them is told so. News of
    /// rows that were replaced meanwhile are none.
    pub fn damaged(&mut self, generation: Generation, detail: String) {
        if self.store.damage().is_some() || self.store.base().generation != generation {
            return;
        }
        self.locks.raise();
        let freed = self.store.lose(detail);
        self.effects.freed.push(freed);
        self.applied = self.store.applied().applied;
        self.carried = Carried::of(self.store.applied().hash);
        self.verified = false;
        self.cluster_clock.forget();
        let lost = self.proposals.drain();
        self.fail(lost, WriteFailure::Lost);
        let failure = ReadFailure::NoLeader { hint: None };
        let reads = self.reads.drain();
        self.effects.reads.extend(reads.into_iter().map(|waiter| (waiter, Err(failure))));
        self.note_damage();
    }

    /// Says in the log that the rows are damaged, if they are and there are others, and leaves leading to those.
    pub(crate) fn note_damage(&mut self) {
        let Some(detail) = self.store.damage() else { return };
        error!(shard = %self.shard, detail, "the rows are damaged: they are fetched from another member");
        self.raft.set_electable(false);
        if self.raft.status().membership.members().len() < 2 {
            // Nobody has other rows: an operator may still make these good.
            return;
        }
        self.push_write(None, WalOp::Damaged(self.store.base().generation));
    }

    /// A checkpoint has ended for good without a result, because it found damage.
    pub fn checkpoint_failed(&mut self, now: Nanos, detail: String) {
        // No other rows were installed meanwhile.
        self.damaged(self.store.base().generation, detail);
        self.merging = false;
        self.offer_parked(now);
    }

    /// Rows of a peer have been received beside the damaged ones. They are installed once this log holds the entry they
    /// reach; if they are older than the base was they are dropped.
    pub fn repair_received(&mut self, received: ReceivedSnapshot) {
        if self.store.damage().is_none() || self.installing.is_some() {
            return received.discard();
        }
        self.installing = Some(Installing::Repair(received));
    }

    /// Hands rows of a peer to the core, if it is time for that.
    pub(crate) fn offer_repair(&mut self) {
        let Some(Installing::Repair(received)) = &self.installing else { return };
        let meta = received.base().meta.clone();
        let base = self.store.base().meta.last.index;
        let is_stale = meta.last.index < base;
        let fits = self.log.term(meta.last.index) == Some(meta.last.term);
        // A leader that is about to hand over only appends to its log.
        if !is_stale && (self.merging || self.raft.is_leader() || !fits) {
            return;
        }
        let Some(Installing::Repair(received)) = self.installing.take() else { return };
        if is_stale {
            let (shard, upto) = (self.shard, meta.last);
            warn!(%shard, %upto, %base, "the rows of another member are too old for this log");
            return received.discard();
        }
        self.installing = Some(Installing::Offered(received));
        self.raft.rebuilt(meta);
    }
}
