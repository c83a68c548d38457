//! Comparing what is stored with what it should be.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kv_types::{LogIndex, ShardId, StateHash};

use crate::base::{Base, Loaded, generation_dir};
use crate::engine::EngineFactory;
use crate::memtable::Memtable;
use crate::notes::{BaseNote, Generation};
use crate::row_range::RowRange;
use crate::store_error::StoreError;
use crate::view::View;

/// Rows of one step.
const STEP_ROWS: usize = 4096;

/// A comparison of all rows of a state with its hash, on any thread. Nothing may be applied meanwhile.
///
/// The rows of the base are looked at where they lie, those that memory hides left out; then come the rows in memory.
/// The hash is a sum, so their order does not matter, and no row has to be copied or merged.
#[derive(Debug)]
pub struct Verification {
    view: Arc<View>,
    index: LogIndex,
    stage: Stage,
    hash: StateHash,
    expected: StateHash,
}

#[derive(Debug)]
enum Stage {
    /// Rows of the base after this key.
    Base(Option<Bytes>),
    /// Rows in memory.
    Tables,
}

impl Verification {
    pub(crate) fn new(view: Arc<View>, index: LogIndex, expected: StateHash) -> Self {
        Self { view, index, stage: Stage::Base(None), hash: StateHash::EMPTY, expected }
    }

    /// Reads some rows; whether that was all and they fit.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if a row is bad, or if all together have another hash.
    pub fn step(&mut self) -> Result<bool, StoreError> {
        match &mut self.stage {
            Stage::Base(after) => {
                let (view, hash) = (&self.view, &mut self.hash);
                let last = view.base.visit_heads(after.as_deref(), STEP_ROWS, |key, head| {
                    if !view.tables().any(|table| table.knows(key)) {
                        *hash = hash.with_encoded(key, head);
                    }
                })?;
                match last {
                    Some(last) => *after = Some(last),
                    None => self.stage = Stage::Tables,
                }
                Ok(false)
            }
            Stage::Tables => {
                self.add_tables();
                if self.hash == self.expected {
                    return Ok(true);
                }
                Err(StoreError::damaged(format!(
                    "the rows at {} have the hash {}, the effect log says {}",
                    self.index, self.hash, self.expected
                )))
            }
        }
    }

    fn add_tables(&mut self) {
        let (tables, hash): (Vec<&Arc<Memtable>>, _) = (self.view.tables().collect(), &mut self.hash);
        for (nth, table) in tables.iter().enumerate() {
            let newer = tables.get(..nth).unwrap_or_default();
            table.visit_newest(|key, row| {
                if !newer.iter().any(|table| table.knows(key.encoded())) {
                    *hash = hash.with(key, &row.head);
                }
            });
        }
    }
}

/// What a base holds, for a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseReport {
    /// What it says of itself; `None` before its first merge.
    pub note: Option<BaseNote>,
    /// Rows it should have.
    pub rows_noted: u64,
    /// Rows it has.
    pub rows: u64,
    /// Bytes of their values.
    pub value_bytes: u64,
    /// Their hash. It is the note's unless a merge was under way.
    pub hash: StateHash,
    /// Bytes on disk.
    pub disk_bytes: u64,
}

impl BaseReport {
    /// Whether the rows are those the note speaks of.
    pub fn is_sound(&self) -> bool {
        let noted = self.note.as_ref().map_or(StateHash::EMPTY, |note| note.hash);
        self.hash == noted && self.rows == self.rows_noted
    }
}

/// Reads a whole base that nobody has open.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be opened or a row is bad.
pub fn verify_base(
    engines: &dyn EngineFactory,
    shard: ShardId,
    generation: Generation,
) -> Result<BaseReport, StoreError> {
    let dir = generation_dir(shard, generation);
    let engine = engines.open(Path::new(&dir), false)?;
    let base = Base::new(engine, dir, generation, LogIndex::ZERO);
    let note = base.note()?;
    let mut report = BaseReport {
        rows_noted: note.as_ref().map_or(0, |stored| stored.rows),
        note: note.map(|stored| stored.note),
        rows: 0,
        value_bytes: 0,
        hash: StateHash::EMPTY,
        disk_bytes: base.engine().disk_bytes()?,
    };
    let mut rest = Some(RowRange::ALL);
    while let Some(range) = rest.take() {
        let batch = base.batch(&range)?;
        for (key, stored) in batch.rows {
            let Loaded::Row(row) = base.load(&key, stored)? else {
                return Err(StoreError::damaged(format!("row {key:?} lacks chunks")));
            };
            report.rows += 1;
            report.value_bytes += u64::from(row.head.value_bytes);
            report.hash = report.hash.with(&key, &row.head);
        }
        rest = batch.resume_after.map(|key| RowRange { from: Bound::Excluded(key), to: range.to });
    }
    Ok(report)
}
