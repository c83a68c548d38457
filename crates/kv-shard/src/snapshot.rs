//! Snapshots: what another replica streams becomes this one's base.

use kv_raft::{Reset, WriteId};
use kv_state::Carried;
use kv_storage::{Generation, ReceivedSnapshot, WalOp};
use kv_types::{HardState, LogId, Nanos, NodeId, Term};

use crate::proposals::WriteFailure;
use crate::replica::{Replica, ReplicaError};

/// A snapshot on its way to become the base.
#[derive(Debug)]
pub(crate) enum Installing {
    /// A checkpoint of the current rows is under way. Its records speak of rows that the snapshot would replace, so
    /// none of them may follow the one that installs it.
    Parked { from: NodeId, term: Term, received: ReceivedSnapshot },
    /// Rows of a peer in the place of damaged ones: they wait until the log holds the entry they reach.
    Repair(ReceivedSnapshot),
    /// The core decides whether it wants it.
    Offered(ReceivedSnapshot),
    /// The record that installs it is on its way to the disk.
    Writing(WriteId, ReceivedSnapshot),
}

impl Installing {
    fn generation(&self) -> Generation {
        match self {
            Self::Parked { received, .. }
            | Self::Repair(received)
            | Self::Offered(received)
            | Self::Writing(_, received) => received.base().generation,
        }
    }
}

impl<W> Replica<W> {
    /// A whole snapshot has been received beside the current rows. Whether it is installed is the core's decision,
    /// which waits for the end of a checkpoint under way; a stale one is dropped.
    pub fn snapshot_received(&mut self, now: Nanos, from: NodeId, term: Term, received: ReceivedSnapshot) {
        match self.installing.take() {
            None => {}
            // What the leader sends is newer than what this log waits for.
            Some(Installing::Repair(older)) => older.discard(),
            other => {
                self.installing = other;
                return received.discard();
            }
        }
        if self.merging {
            self.installing = Some(Installing::Parked { from, term, received });
        } else {
            self.offer(now, from, term, received);
        }
    }

    /// The checkpoint that a snapshot has waited for is complete.
    pub(crate) fn offer_parked(&mut self, now: Nanos) {
        match self.installing.take() {
            Some(Installing::Parked { from, term, received }) => self.offer(now, from, term, received),
            other => self.installing = other,
        }
    }

    fn offer(&mut self, now: Nanos, from: NodeId, term: Term, received: ReceivedSnapshot) {
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

    /// Whether the rows applied now are about to be replaced.
    pub(crate) fn rows_are_doomed(&self) -> bool {
        match &self.installing {
            None | Some(Installing::Parked { .. } | Installing::Repair(_)) => false,
            Some(Installing::Offered(_) | Installing::Writing(..)) => true,
        }
    }

    /// The newest life of the base that is spoken for, also one that is still on its way: another snapshot needs a
    /// later one.
    pub(crate) fn newest_generation(&self) -> Generation {
        let current = self.store.base().generation;
        self.installing.as_ref().map_or(current, |installing| installing.generation().max(current))
    }

    /// Removes a snapshot the core did not want.
    pub(crate) fn drop_refused_snapshot(&mut self) {
        match self.installing.take() {
            Some(Installing::Offered(received)) => received.discard(),
            other => self.installing = other,
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
                self.locks.raise();
                self.deletes.unknown_to(received.base().meta.last.index);
                let (opened, freed) = self.store.install(received)?;
                self.effects.freed.push(freed);
                self.applied = opened.applied;
                self.carried = Carried::of(opened.hash);
                #[cfg(feature = "planted")]
                {
                    self.snapshot = opened.applied.index;
                }
                self.cluster_clock.forget();
                // The stream was compared with its hash before it was offered.
                self.verified();
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
