//! Applying what is committed, and the rows as the state machine sees them.

use bytes::Bytes;
use kv_state::{ApplyError, ReadError, Rows};
use kv_storage::{AppliedEntry, RowRange, ShardStore, StoreError};
use kv_types::{Body, Entry, KeyRange, LogIndex, Row, RowHead, RowKey, Space};

use crate::proposals::{WriteFailure, Written, shortened};
use crate::replica::{Replica, ReplicaError};

/// Bytes of log read at once when all of it is visited.
const UNAPPLIED_READ_BYTES: u64 = 1 << 20;

impl<W> Replica<W> {
    /// Applies up to `entries_max` committed entries; whether more are waiting. Damage that shows here is
    /// [taken](Replica::damaged) as such. On a full disk nothing is applied, and leading is left to others; ask again later.
    ///
    /// # Errors
    /// [`ReplicaError`]: the replica must stop.
    pub fn apply(&mut self, entries_max: u64, bytes_max: u64) -> Result<bool, ReplicaError> {
        let reach = self.may_apply_to();
        if !self.verified || self.rows_are_doomed() {
            return Ok(false);
        }
        if self.cluster_clock.is_unknown()
            && let Err(cause) = self.look_up_time()
        {
            self.damaged(self.store.base().generation, cause.into_damage()?);
            return Ok(false);
        }
        if reach <= self.applied.index {
            self.lead_time();
            return Ok(false);
        }
        let last = reach.min(self.applied.index.plus(entries_max));
        assert!(last <= self.log.last().index, "{reach} is committed past the log's end {}", self.log.last());
        let mut has_room = true;
        for entry in self.log.read(self.applied.index.next()..=last, bytes_max)? {
            has_room = self.store.has_room()?;
            if !has_room {
                break;
            }
            match self.apply_entry(entry) {
                Ok(()) => {}
                Err(cause) => {
                    self.damaged(self.store.base().generation, cause.into_damage()?);
                    return Ok(false);
                }
            }
        }
        // One that cannot apply serves no reads: others lead meanwhile, if there are any.
        self.raft.set_electable(has_room);
        self.raft.applied(self.applied.index);
        self.lead_time();
        self.release_reads();
        Ok(has_room && self.applied.index < reach)
    }

    /// Visits the commands of the log that are not applied, committed or not: at a start, what the node had heard of.
    ///
    /// # Errors
    /// [`ReplicaError::Log`] if the log cannot be read.
    pub fn unapplied(&self, mut visit: impl FnMut(LogIndex, Bytes)) -> Result<(), ReplicaError> {
        let mut next = self.applied.index.next();
        while next <= self.log.last().index {
            for entry in self.log.read(next..=self.log.last().index, UNAPPLIED_READ_BYTES)? {
                next = entry.id.index.next();
                if let Body::Command(command) = entry.body {
                    visit(entry.id.index, command);
                }
            }
        }
        Ok(())
    }

    fn look_up_time(&mut self) -> Result<(), ReplicaError> {
        let time = kv_state::gate::cluster_time(&self.rows());
        self.cluster_clock.applied(time.map_err(|cause| match cause {
            ReadError::Rows(cause) => ReplicaError::Store(cause),
            ReadError::SystemRow { cause, .. } => {
                ReplicaError::Apply(ApplyError::SystemRow { index: self.applied.index, cause })
            }
        })?);
        Ok(())
    }

    /// A leader's stamps begin where the state stands once an entry of its own term is in it.
    fn lead_time(&mut self) {
        let term = self.raft.term();
        let leads = self.raft.is_leader() && self.applied.term == term;
        self.cluster_clock.lead(leads.then_some(term));
    }

    /// How far effects may go: what is committed, and on a follower what its own WAL holds durably. Effects may reach
    /// the disk before the WAL does. Were they those of an entry that replaced another one, a restart would find the
    /// effects of the one beside the other, and take the wrong entry for committed. A leader's own log was durable when
    /// it was elected, and nothing in it is replaced since: what its WAL lacks, recovery cuts by the index alone.
    fn may_apply_to(&self) -> LogIndex {
        let commit = self.raft.commit().index;
        if self.raft.is_leader() { commit } else { commit.min(self.log.persisted_index()) }
    }

    fn rows(&self) -> StoreRows<'_> {
        StoreRows {
            store: &self.store,
            #[cfg(feature = "planted")]
            planted: self.planted,
            #[cfg(feature = "planted")]
            snapshot: self.snapshot,
        }
    }

    fn apply_entry(&mut self, entry: Entry) -> Result<(), ReplicaError> {
        let id = entry.id;
        assert!(id.index == self.applied.index.next(), "{id} is applied after {}", self.applied);
        let mut superseded = Vec::new();
        let waiter = self.proposals.settle(id, &mut superseded);
        self.fail(superseded, WriteFailure::Superseded);
        let (changes, membership, answer) = match entry.body {
            Body::Blank => (Vec::new(), None, None),
            Body::Config(membership) => (Vec::new(), Some(membership), None),
            Body::Command(command) => {
                // Taken out for the call, as the rows are borrowed with the rest.
                let mut carried = std::mem::take(&mut self.carried);
                let applied = kv_state::apply(&self.rows(), &mut carried, id.index, entry.stamp, &command);
                self.carried = carried;
                let applied = match applied {
                    Ok(applied) => applied,
                    Err(cause) => {
                        self.fail(waiter.into_iter().collect(), WriteFailure::Lost);
                        return Err(cause.into());
                    }
                };
                if let Some(time) = applied.time {
                    self.cluster_clock.applied(time);
                }
                (applied.changes, None, Some(applied.answer))
            }
        };
        let forgets = self.is_planted(crate::planted::Planted::DeletesForgotten);
        for change in &changes {
            if change.key.space() == Space::User && change.row.is_none() && !forgets {
                self.deletes.deleted(&change.key.key(), id.index);
            }
        }
        let may_be_locked = self.carried.may_be_locked();
        if may_be_locked {
            self.locks.raise();
        }
        self.store.apply(AppliedEntry {
            id,
            stamp: entry.stamp,
            membership,
            changes,
            hash: self.carried.hash(),
        })?;
        self.applied = id;
        if !may_be_locked {
            self.locks.clear();
        }
        if let (Some(waiter), Some(answer)) = (waiter, answer) {
            self.effects
                .written
                .push((waiter, Ok(Written { id, stamp: entry.stamp, answer: shortened(answer) })));
        }
        Ok(())
    }
}

/// The newest rows of a store.
struct StoreRows<'a> {
    store: &'a ShardStore,
    #[cfg(feature = "planted")]
    planted: Option<crate::Planted>,
    #[cfg(feature = "planted")]
    snapshot: LogIndex,
}

impl Rows for StoreRows<'_> {
    type Error = StoreError;

    fn get(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        self.store.get(key)
    }

    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, StoreError> {
        self.store.head(key)
    }

    fn heads_in(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(RowKey, RowHead)>, StoreError> {
        self.store.keys(&RowRange::of(space, range), limit)
    }

    #[cfg(feature = "planted")]
    fn planted(&self) -> Option<kv_state::Planted> {
        match self.planted {
            Some(crate::Planted::State(bug)) => Some(bug),
            Some(crate::Planted::LostSaidNotApplied | crate::Planted::DeletesForgotten) | None => None,
        }
    }

    #[cfg(feature = "planted")]
    fn snapshot(&self) -> LogIndex {
        self.snapshot
    }
}
