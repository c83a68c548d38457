//! Snapshots: what another replica streams becomes this one's base.

use kv_raft::{Reset, WriteId};
use kv_storage::{ReceivedSnapshot, WalOp};
use kv_types::{HardState, LogId, Nanos, NodeId, Term};

use crate::proposals::WriteFailure;
use crate::replica::{Replica, ReplicaError};

/// A snapshot on its way to become the base.
#[derive(Debug)]
pub(crate) enum Installing {
    /// The core decides whether it wants it.
    Offered(ReceivedSnapshot),
    /// The record that installs it is on its way to the disk.
    Writing(WriteId, ReceivedSnapshot),
}

impl<W> Replica<W> {
    /// A whole snapshot has been received beside the current rows. Whether it is installed is the core's decision;
    /// a stale one is dropped, which removes its files.
    pub fn snapshot_received(&mut self, now: Nanos, from: NodeId, term: Term, received: ReceivedSnapshot) {
        if self.installing.is_some() {
            return;
        }
        let meta = received.base().meta.clone();
        self.installing = Some(Installing::Offered(received));
        self.raft.snapshot_received(now, from, term, meta);
    }

    /// A snapshot stream to a peer has ended: installed up to an entry, or failed.
    pub fn snapshot_sent(&mut self, now: Nanos, to: NodeId, result: Result<LogId, ()>) {
        self.raft.snapshot_sent(now, to, result);
    }

    /// Whether a received snapshot is still on its way to the disk.
    pub fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// Drops a snapshot the core did not want.
    pub(crate) fn drop_refused_snapshot(&mut self) {
        if matches!(self.installing, Some(Installing::Offered(_))) {
            self.installing = None;
        }
    }

    pub(crate) fn hand_out_install(
        &mut self,
        id: WriteId,
        hard: Option<HardState>,
        reset: Reset,
        more: bool,
    ) {
        let Some(Installing::Offered(received)) = self.installing.take() else {
            // The core resets only to what it was offered.
            unreachable!("a reset to {} without a received snapshot", reset.meta.last);
        };
        let base = received.base().clone();
        assert!(
            base.meta == reset.meta,
            "a reset to {} but {} was received",
            reset.meta.last,
            base.meta.last
        );
        self.log.reset(reset.meta.last, reset.keep_tail);
        if !reset.keep_tail {
            self.log_stamp = base.stamp;
        }
        self.log_stamp = self.log_stamp.max(base.stamp);
        let named = (!more).then_some(id);
        self.push_write(named, WalOp::Install { hard, base, keep_tail: reset.keep_tail });
        self.installing = Some(Installing::Writing(id, received));
    }

    /// The record is durable: the received rows become the rows.
    pub(crate) fn finish_install(&mut self, upto: WriteId) -> Result<(), ReplicaError> {
        match self.installing.take() {
            Some(Installing::Writing(id, received)) if id <= upto => {
                let (opened, freed) = self.store.install(received)?;
                self.effects.freed.push(freed);
                self.applied = opened.applied;
                self.hash = opened.hash;
                let skipped = self.proposals.skip_to(opened.applied.index);
                self.fail(skipped, WriteFailure::Lost);
                self.raft.applied(opened.applied.index);
                self.release_reads();
            }
            other => self.installing = other,
        }
        Ok(())
    }
}
