//! Comparing what is stored with what it should be.

use std::ops::Bound;
use std::path::Path;

use kv_types::{ShardId, StateHash};

use crate::base::{Base, Loaded, generation_dir};
use crate::engine::EngineFactory;
use crate::notes::{BaseNote, Generation};
use crate::reader::{PageLimit, Pin};
use crate::row_range::RowRange;
use crate::store_error::{ReadError, StoreError};

/// Rows and bytes of one step.
const STEP: PageLimit = PageLimit { rows: 1024, bytes: 4 << 20 };

/// A comparison of all rows of a pinned state with its hash; it may run on any thread, and applying goes on meanwhile.
#[derive(Debug)]
pub struct Verification {
    pin: Pin,
    rest: RowRange,
    hash: StateHash,
    expected: StateHash,
}

impl Verification {
    pub(crate) fn new(pin: Pin, expected: StateHash) -> Self {
        Self { pin, rest: RowRange::ALL, hash: StateHash::EMPTY, expected }
    }

    /// Reads some rows; whether that was all and they fit.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] in [`ReadError::Store`] if a row is bad, or if all together have another hash.
    pub fn step(&mut self) -> Result<bool, ReadError> {
        let page = self.pin.scan(&self.rest, STEP, kv_types::Nanos::default())?;
        for (key, row) in &page.rows {
            self.hash = self.hash.with(key, &row.head);
        }
        if let Some(key) = page.resume {
            self.rest = self.rest.starting_at(key);
            return Ok(false);
        }
        if self.hash == self.expected {
            return Ok(true);
        }
        let detail = format!(
            "the rows at {} have the hash {}, the effect log says {}",
            self.pin.index(),
            self.hash,
            self.expected
        );
        Err(StoreError::damaged(detail).into())
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
    let base = Base::new(engine, dir, generation, kv_types::LogIndex::ZERO);
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
