//! A checkpoint: merging a frozen table into the base, in small durable steps.
//!
//! The order of the steps is what makes a crash at any point harmless:
//!
//! 1. no pin lies below the table's end, and the effect log is durable through it;
//! 2. the WAL says that a merge begins, durably, before the first row is touched;
//! 3. rows in key order, a sync after each step: what a power cut leaves is the old base and a prefix of the changes,
//!    and every one of these is in the effect log to be done again;
//! 4. the note, last; then the WAL says that the base has moved.

use std::sync::Arc;

use kv_types::{LogIndex, Nanos, Revision, RowHead, RowKey};

use crate::base::{Base, Effort};
use crate::chunks::{Fresh, StoredNote, chunk_count};
use crate::effect_log::EffectLog;
use crate::memtable::{Memtable, MergeRow};
use crate::notes::{BaseNote, Generation, MergeNote, WalOp};
use crate::options::StoreOptions;
use crate::pins::PinSet;
use crate::regeneration::{Regeneration, RegenerationError, RegenerationStep};
use crate::store_error::StoreError;

/// A merge under way. It belongs to the host's merge thread.
#[derive(Debug)]
pub struct Checkpoint {
    pub(crate) base: Arc<Base>,
    pub(crate) table: Arc<Memtable>,
    pub(crate) effects: EffectLog,
    pub(crate) pins: Arc<PinSet>,
    pub(crate) options: StoreOptions,
    pub(crate) from: LogIndex,
    pub(crate) to: BaseNote,
    /// An earlier merge reached up to here at most, and was cut by a crash.
    pub(crate) interrupted: Option<LogIndex>,
    /// Where the rows go instead of into the base: a new generation that has come this far.
    pub(crate) regeneration: Option<Box<Regeneration>>,
    /// The WAL knows how far the base reached when this began.
    pub(crate) settled: bool,
    /// What the base's note says of this, to be said again.
    pub(crate) fresh: Fresh,
    pub(crate) stage: Stage,
}

/// How far a checkpoint is.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Pins below the table's end are waited for.
    Waiting,
    /// Rows are written.
    Merging(Merging),
    /// All rows are durable.
    Noting {
        /// Rows in the base.
        rows: u64,
    },
    /// Base and note are durable.
    Noted,
    /// The new generation is durable.
    Rewritten {
        /// What it says of itself.
        note: BaseNote,
        base: Arc<Base>,
    },
}

#[derive(Debug)]
pub(crate) struct Merging {
    after: Option<RowKey>,
    rows: u64,
    /// The count of rows is that of the base as it lies there, not that of the base at `from`.
    recounted: bool,
}

/// What the host has to do before it calls [`Checkpoint::step`] again.
#[derive(Debug)]
pub enum CheckpointStep {
    /// Nothing.
    Again,
    /// Nothing can be done while a pin is held, or the disk has no room for effects; call again a little later.
    Wait,
    /// Write this to the WAL, durably.
    Wal(WalOp),
    /// Hand this to [`ShardStore::merged`](crate::ShardStore::merged).
    Done(CheckpointDone),
}

/// A base that has moved, and the WAL knows.
#[derive(Debug)]
pub struct CheckpointDone {
    pub(crate) note: BaseNote,
    pub(crate) table: Arc<Memtable>,
    /// The generation that was current when it began.
    pub(crate) of: Generation,
    /// The new generation, if it was rewritten.
    pub(crate) rewritten: Option<Arc<Base>>,
}

impl CheckpointDone {
    /// What the base holds now.
    pub fn note(&self) -> &BaseNote {
        &self.note
    }

    /// Whether the base was rewritten into a new generation.
    pub fn is_regeneration(&self) -> bool {
        self.rewritten.is_some()
    }
}

impl Checkpoint {
    /// The last entry the base will hold. The host's duty: the own WAL is durable through it before the first step.
    pub fn upto(&self) -> LogIndex {
        self.to.meta.last.index
    }

    /// Does a little: at most one sync. `now` lets pins expire.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the base holds other rows than it should; any other error is final, too.
    pub fn step(&mut self, now: Nanos) -> Result<CheckpointStep, StoreError> {
        if let Some(regeneration) = self.regeneration.take() {
            return self.regenerate(regeneration);
        }
        match &mut self.stage {
            Stage::Waiting => self.begin(now),
            Stage::Merging(_) => self.merge(),
            Stage::Noting { rows } => {
                let rows = *rows;
                self.note(rows)
            }
            Stage::Noted => {
                let note = self.to.clone();
                Ok(self.done(note, None))
            }
            Stage::Rewritten { note, base } => {
                let (note, base) = (note.clone(), Arc::clone(base));
                Ok(self.done(note, Some(base)))
            }
        }
    }

    fn done(&self, note: BaseNote, rewritten: Option<Arc<Base>>) -> CheckpointStep {
        let (table, of) = (Arc::clone(&self.table), self.to.generation);
        CheckpointStep::Done(CheckpointDone { note, table, of, rewritten })
    }

    /// Brings a new generation to the table's end. If its disk refuses or has no room, the table is merged into the base
    /// that is.
    fn regenerate(&mut self, mut regeneration: Box<Regeneration>) -> Result<CheckpointStep, StoreError> {
        let ended = match regeneration.step() {
            Ok(RegenerationStep::Again) => {
                self.regeneration = Some(regeneration);
                return Ok(CheckpointStep::Again);
            }
            Ok(RegenerationStep::CaughtUp) => {
                // What the WAL names next is preceded by durable effects, as after any merge.
                if !self.sync_effects()? {
                    self.regeneration = Some(regeneration);
                    return Ok(CheckpointStep::Wait);
                }
                regeneration.seal(&self.to)
            }
            Err(cause) => Err(cause),
        };
        match ended {
            Ok((note, base)) => {
                self.stage = Stage::Rewritten { note: note.clone(), base: Arc::new(base) };
                Ok(CheckpointStep::Wal(WalOp::Regenerated(note)))
            }
            Err(RegenerationError::Damaged(cause)) => Err(cause),
            Err(
                cause @ (RegenerationError::Io(_)
                | RegenerationError::Replaced
                | RegenerationError::Outrun { .. }),
            ) => {
                tracing::warn!(%cause, "the base is not rewritten");
                Ok(CheckpointStep::Again)
            }
        }
    }

    /// Makes effects durable; `false` if the disk has no room for them.
    fn sync_effects(&self) -> Result<bool, StoreError> {
        match self.effects.sync() {
            Err(cause) if cause.is_no_room() => Ok(false),
            synced => synced.map(|()| true),
        }
    }

    fn begin(&mut self, now: Nanos) -> Result<CheckpointStep, StoreError> {
        if !self.pins.clear_below(self.upto(), now) || !self.sync_effects()? {
            return Ok(CheckpointStep::Wait);
        }
        let note = self.base.note()?;
        let moved = note.as_ref().filter(|stored| stored.note.meta.last.index != self.from);
        let recounted = moved.is_some();
        let from = moved.map_or(self.from, |stored| stored.note.meta.last.index);
        if let Some(stored) = moved
            && !self.settled
        {
            // A crash cut an earlier merge between its note and the record that tells the WAL. The record is made up
            // for before the next merge begins: the WAL names one open merge, so a second crash would leave a note
            // that it knows nothing of.
            self.settled = true;
            return Ok(CheckpointStep::Wal(WalOp::BaseAt(stored.note.clone())));
        }
        let (rows, fresh) = note.map_or((0, Fresh::default()), |stored| (stored.rows, stored.fresh));
        self.fresh = fresh;
        self.base.merge_begins(self.upto());
        self.stage = Stage::Merging(Merging { after: None, rows, recounted });
        let begin = MergeNote { generation: self.to.generation, from, to: self.upto() };
        Ok(CheckpointStep::Wal(WalOp::MergeBegin(begin)))
    }

    fn merge(&mut self) -> Result<CheckpointStep, StoreError> {
        let Stage::Merging(merging) = &self.stage else { return Ok(CheckpointStep::Again) };
        let (mut rows, recounted) = (merging.rows, merging.recounted);
        let batch = self.table.merge_rows(merging.after.as_ref(), self.options.step_rows_max);
        let Some(mut after) = batch.first().map(|row| row.key.clone()) else {
            self.stage = Stage::Noting { rows };
            return Ok(CheckpointStep::Again);
        };
        let mut effort = Effort::default();
        for row in batch {
            if effort.writes > 0 && !self.has_room(effort, &row) {
                break;
            }
            let (old, cost) = self.merge_row(&row)?;
            let was = if recounted { old.is_some() } else { row.previous.is_some() };
            rows = rows.saturating_add(u64::from(row.row.is_some())).saturating_sub(u64::from(was));
            effort = effort.and(cost);
            after = row.key;
        }
        self.base.engine().sync()?;
        self.stage = Stage::Merging(Merging { after: Some(after), rows, recounted });
        Ok(CheckpointStep::Again)
    }

    /// Whether a row fits into the step beside what was written.
    fn has_room(&self, effort: Effort, next: &MergeRow) -> bool {
        let writes = 1 + next.row.as_ref().map_or(0, |row| chunk_count(&row.head) as usize);
        let bytes = next.key.encoded().len() + next.row.as_ref().map_or(0, |row| row.value.len());
        effort.writes + writes <= self.options.step_rows_max
            && effort.bytes + bytes <= self.options.step_bytes_max
    }

    fn merge_row(&self, merge: &MergeRow) -> Result<(Option<RowHead>, Effort), StoreError> {
        let MergeRow { key, previous, row } = merge;
        let (old, effort) = match row {
            Some(row) => self.base.put(key, row)?,
            None => self.base.remove(key)?,
        };
        self.check_old(key, *previous, old.as_ref())?;
        let live = row.as_ref().map(|row| &row.head);
        let dropped = match &old {
            _ if self.interrupted.is_some() => self.base.drop_stray_chunks(key, live)?,
            Some(old) => self.base.drop_chunks(key, old)?,
            None => Effort::default(),
        };
        Ok((old, effort.and(dropped)))
    }

    /// The base must have held what the first change of the key replaced; or, where an interrupted merge has been,
    /// what that may have left.
    fn check_old(
        &self,
        key: &RowKey,
        previous: Option<Revision>,
        old: Option<&RowHead>,
    ) -> Result<(), StoreError> {
        let found = old.map(|head| head.modified);
        let left_over = self.interrupted.is_some_and(|to| match found {
            None => true,
            Some(revision) => self.from < revision.index() && revision.index() <= to,
        });
        if found == previous || left_over {
            return Ok(());
        }
        Err(StoreError::damaged(format!(
            "row {key:?} of the base has revision {found:?}, the effect log replaced {previous:?}"
        )))
    }

    fn note(&mut self, rows: u64) -> Result<CheckpointStep, StoreError> {
        self.base.put_note(&StoredNote {
            note: self.to.clone(),
            rows,
            effects: self.effects.generation(),
            fresh: self.fresh,
        })?;
        self.base.engine().check()?;
        self.base.engine().sync()?;
        self.stage = Stage::Noted;
        Ok(CheckpointStep::Wal(WalOp::BaseAt(self.to.clone())))
    }
}
