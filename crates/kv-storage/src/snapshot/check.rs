//! Looking over a generation that was built from a stream: every row is read back.

use std::ops::Bound;

use bytes::Bytes;
use kv_types::{RowHead, StateHash};

use super::receiver::SnapshotError;
use crate::base::{Base, Loaded};
use crate::chunks::{CHUNK_TAG, CHUNKS_TO, ChunkKey, chunk_count};
use crate::row_range::RowRange;

/// Stray chunks looked for at a time.
const STRAY_BATCH: usize = 1024;

/// Removes chunks that no head names, then reads every row; step by step, because a base may be large.
#[derive(Debug)]
pub(crate) struct RowCheck {
    stage: Stage,
    hash: StateHash,
    rows: u64,
}

#[derive(Debug)]
enum Stage {
    /// Chunks after this key: those of rows that a merge replaced while they were streamed have no head.
    Strays(Option<Bytes>),
    Rows(RowRange),
    Done,
}

impl RowCheck {
    pub(crate) fn new() -> Self {
        Self { stage: Stage::Strays(None), hash: StateHash::EMPTY, rows: 0 }
    }

    /// The state hash of the rows and their number, once all have been read.
    pub(crate) fn found(&self) -> (StateHash, u64) {
        (self.hash, self.rows)
    }

    /// Looks at some more of `base`; whether that was all.
    pub(crate) fn step(&mut self, base: &Base) -> Result<bool, SnapshotError> {
        self.stage = match &self.stage {
            Stage::Strays(after) => match drop_strays(base, after.as_ref())? {
                Some(last) => Stage::Strays(Some(last)),
                None => Stage::Rows(RowRange::ALL),
            },
            Stage::Rows(range) => {
                let range = range.clone();
                self.rows(base, range)?
            }
            Stage::Done => Stage::Done,
        };
        Ok(matches!(self.stage, Stage::Done))
    }

    fn rows(&mut self, base: &Base, range: RowRange) -> Result<Stage, SnapshotError> {
        let batch = base.batch(&range)?;
        for (key, stored) in batch.rows {
            let Loaded::Row(row) = base.load(&key, stored)? else {
                return Err(SnapshotError::Stream { detail: format!("row {key:?} lacks chunks") });
            };
            self.hash = self.hash.with(&key, &row.head);
            self.rows += 1;
        }
        let rest = batch.resume_after.map(|key| RowRange { from: Bound::Excluded(key), to: range.to });
        Ok(rest.map_or(Stage::Done, Stage::Rows))
    }
}

/// Removes stray chunks among the next ones; the last key looked at, if there was any.
fn drop_strays(base: &Base, after: Option<&Bytes>) -> Result<Option<Bytes>, SnapshotError> {
    let from = after.map_or(Bound::Included(&[CHUNK_TAG][..]), |key| Bound::Excluded(&key[..]));
    let mut keys = Vec::new();
    for found in base.engine().scan(from, Bound::Excluded(CHUNKS_TO)).take(STRAY_BATCH) {
        keys.push(found?.0);
    }
    let last = keys.last().cloned();
    for key in keys {
        let chunk = ChunkKey::decode(key.clone())?;
        let head = base.stored(&chunk.row)?.map(|stored| stored.head);
        let names = |head: RowHead| head.modified == chunk.revision && chunk.number < chunk_count(&head);
        if !head.is_some_and(names) {
            base.engine().remove(&key)?;
        }
    }
    Ok(last)
}
