//! The base: one generation of a shard's rows in its engine.

use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use kv_types::limits::CHUNK_BYTES;
use kv_types::{LogIndex, Row, RowHead, RowKey, ShardId};

use crate::chunks::{
    CHUNKS_TO, ChunkKey, NOTE_KEY, ROWS_FROM, StoredNote, StoredRow, chunk_count, chunk_prefix, decode_head,
    decode_note, decode_row, encode_note, encode_row, is_chunked, seal, unseal,
};
use crate::engine::{Engine, Lost};
use crate::notes::Generation;
use crate::row_range::RowRange;
use crate::store_error::StoreError;

/// Rows a base scan gives at a time.
const SCAN_ROWS_MAX: usize = 256;

/// Where the bases and the effect log of a shard live.
pub(crate) fn shard_dir(shard: ShardId) -> PathBuf {
    PathBuf::from(format!("shard-{}", shard.get()))
}

/// Where one generation of a shard lives.
pub(crate) fn generation_dir(shard: ShardId, generation: Generation) -> PathBuf {
    shard_dir(shard).join(generation.to_string())
}

/// Whose generation lives in a directory.
pub fn generation_of(dir: &Path) -> Option<(ShardId, Generation)> {
    let shard = dir.parent()?.to_str()?.strip_prefix("shard-")?.parse().ok()?;
    let generation = dir.file_name()?.to_str()?.strip_prefix("gen-")?.parse().ok()?;
    Some((ShardId::new(shard), Generation::new(generation)))
}

/// An open generation.
#[derive(Debug)]
pub(crate) struct Base {
    engine: Arc<dyn Engine>,
    dir: PathBuf,
    generation: Generation,
    /// How far merges begun so far reach: raised before the first row is touched.
    merging_to: AtomicU64,
}

/// A value in the base.
#[derive(Debug)]
pub(crate) enum Loaded {
    /// Whole.
    Row(Row),
    /// The head is there, its chunks are not: a merge replaced the row between the two looks, or the base is damaged.
    Torn(RowHead),
}

/// What a write did to the engine.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) writes: usize,
    pub(crate) bytes: usize,
}

impl Base {
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        dir: PathBuf,
        generation: Generation,
        merging_to: LogIndex,
    ) -> Self {
        Self { engine, dir, generation, merging_to: AtomicU64::new(merging_to.get()) }
    }

    /// In the place of one that is damaged.
    pub(crate) fn lost(shard: ShardId, generation: Generation, detail: String) -> Self {
        let dir = generation_dir(shard, generation);
        Self::new(Arc::new(Lost::new(detail)), dir, generation, LogIndex::ZERO)
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn generation(&self) -> Generation {
        self.generation
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Says that rows up to `to` may appear from now on.
    pub(crate) fn merge_begins(&self, to: LogIndex) {
        self.merging_to.fetch_max(to.get(), Ordering::SeqCst);
    }

    /// Up to where rows may have appeared.
    pub(crate) fn merging_to(&self) -> LogIndex {
        LogIndex::new(self.merging_to.load(Ordering::SeqCst))
    }

    /// The note, if one was ever written.
    pub(crate) fn note(&self) -> Result<Option<StoredNote>, StoreError> {
        let Some(sealed) = self.engine.get(NOTE_KEY)? else { return Ok(None) };
        Ok(Some(decode_note(&sealed)?))
    }

    pub(crate) fn put_note(&self, stored: &StoredNote) -> Result<(), StoreError> {
        self.engine.insert(NOTE_KEY, &encode_note(stored))?;
        Ok(())
    }

    pub(crate) fn stored(&self, key: &RowKey) -> Result<Option<StoredRow>, StoreError> {
        let Some(sealed) = self.engine.get(key.encoded())? else { return Ok(None) };
        Ok(Some(decode_row(key.encoded(), &sealed)?))
    }

    /// Completes a row with its value.
    pub(crate) fn load(&self, key: &RowKey, stored: StoredRow) -> Result<Loaded, StoreError> {
        let StoredRow { head, inline } = stored;
        let value = match inline {
            Some(value) => value,
            None => match self.chunks(key, &head)? {
                Some(value) => value,
                None => return Ok(Loaded::Torn(head)),
            },
        };
        let row = Row { head, value };
        if row.is_sound() {
            Ok(Loaded::Row(row))
        } else {
            Err(StoreError::damaged(format!("value of {key:?} is not the one its head names")))
        }
    }

    fn chunks(&self, key: &RowKey, head: &RowHead) -> Result<Option<Bytes>, StoreError> {
        let mut value = BytesMut::with_capacity(head.value_bytes as usize);
        for number in 0..chunk_count(head) {
            let chunk = ChunkKey { row: key.clone(), revision: head.modified, number }.encode();
            let Some(sealed) = self.engine.get(&chunk)? else { return Ok(None) };
            value.extend_from_slice(unseal(&chunk, &sealed)?);
        }
        Ok(Some(value.freeze()))
    }

    /// The next rows of a range, without long values; and the last key looked at, if more may follow it.
    pub(crate) fn batch(&self, range: &RowRange) -> Result<StoredBatch, StoreError> {
        let mut batch = StoredBatch::default();
        if range.is_empty() {
            return Ok(batch);
        }
        let from = match &range.from {
            Bound::Unbounded => Bound::Included(ROWS_FROM),
            Bound::Included(key) => Bound::Included(key.encoded()),
            Bound::Excluded(key) => Bound::Excluded(key.encoded()),
        };
        let to = range.to.as_ref().map(RowKey::encoded);
        for found in self.engine.scan(from, to) {
            let (key, sealed) = found?;
            let stored = decode_row(&key, &sealed)?;
            batch.rows.push((row_key(key)?, stored));
            if batch.rows.len() == SCAN_ROWS_MAX {
                batch.resume_after = batch.rows.last().map(|(key, _)| key.clone());
                break;
            }
        }
        Ok(batch)
    }

    /// Shows `visit` the heads of rows in key order, after `after`, at most `rows_max` of them; the last key seen, if
    /// more may follow it. Every row is checked, its value included; nothing is copied but chunks.
    pub(crate) fn visit_heads(
        &self,
        after: Option<&[u8]>,
        rows_max: usize,
        mut visit: impl FnMut(&[u8], &RowHead),
    ) -> Result<Option<Bytes>, StoreError> {
        let from = after.map_or(Bound::Included(ROWS_FROM), Bound::Excluded);
        let (mut rows, mut last, mut failed) = (0, None, None);
        self.engine.visit(from, &mut |key, sealed| {
            match self.checked_head(key, sealed) {
                Ok(head) => visit(key, &head),
                Err(cause) => {
                    failed = Some(cause);
                    return ControlFlow::Break(());
                }
            }
            rows += 1;
            if rows < rows_max {
                return ControlFlow::Continue(());
            }
            last = Some(Bytes::copy_from_slice(key));
            ControlFlow::Break(())
        })?;
        failed.map_or(Ok(last), Err)
    }

    fn checked_head(&self, key: &[u8], sealed: &[u8]) -> Result<RowHead, StoreError> {
        let head = decode_head(key, sealed)?;
        if is_chunked(&head) {
            let key = row_key(Bytes::copy_from_slice(key))?;
            if let Loaded::Torn(_) = self.load(&key, StoredRow { head, inline: None })? {
                return Err(StoreError::damaged(format!("row {key:?} lacks chunks")));
            }
        }
        Ok(head)
    }

    /// Writes a row: chunks first, then the head. Gives the head it replaced, whose chunks are still there.
    pub(crate) fn put(&self, key: &RowKey, row: &Row) -> Result<(Option<RowHead>, Effort), StoreError> {
        assert!(row.value.len() == row.head.value_bytes as usize, "row {key:?} does not fit its head");
        let mut effort = Effort::default();
        if is_chunked(&row.head) {
            for (number, chunk) in (0..).zip(row.value.chunks(CHUNK_BYTES)) {
                let at = ChunkKey { row: key.clone(), revision: row.head.modified, number }.encode();
                let sealed = seal(&at, chunk.to_vec());
                effort.add(at.len() + sealed.len());
                self.engine.insert(&at, &sealed)?;
            }
        }
        let sealed = encode_row(key, &row.head, &row.value);
        effort.add(key.encoded().len() + sealed.len());
        let old = self.engine.insert(key.encoded(), &sealed)?;
        Ok((old_head(key, old)?, effort))
    }

    /// Removes a row; gives the head it had, whose chunks are still there.
    pub(crate) fn remove(&self, key: &RowKey) -> Result<(Option<RowHead>, Effort), StoreError> {
        let old = self.engine.remove(key.encoded())?;
        Ok((old_head(key, old)?, Effort { writes: 1, bytes: key.encoded().len() }))
    }

    /// Removes the chunks of a row that was replaced or removed.
    pub(crate) fn drop_chunks(&self, key: &RowKey, old: &RowHead) -> Result<Effort, StoreError> {
        let mut effort = Effort::default();
        for number in 0..chunk_count(old) {
            let at = ChunkKey { row: key.clone(), revision: old.modified, number }.encode();
            effort.add(at.len());
            self.engine.remove(&at)?;
        }
        Ok(effort)
    }

    /// Removes all chunks of a row but those of `live`: what an interrupted merge may have left.
    pub(crate) fn drop_stray_chunks(
        &self,
        key: &RowKey,
        live: Option<&RowHead>,
    ) -> Result<Effort, StoreError> {
        let prefix = chunk_prefix(key);
        let mut stray = Vec::new();
        for found in self.engine.scan(Bound::Included(&prefix), Bound::Excluded(CHUNKS_TO)) {
            let (at, _) = found?;
            if !at.starts_with(&prefix) {
                break;
            }
            let revision = ChunkKey::decode(at.clone())?.revision;
            if live.is_none_or(|head| !is_chunked(head) || head.modified != revision) {
                stray.push(at);
            }
        }
        let mut effort = Effort::default();
        for at in stray {
            effort.add(at.len());
            self.engine.remove(&at)?;
        }
        Ok(effort)
    }
}

/// Stored rows found by one scan.
#[derive(Debug, Default)]
pub(crate) struct StoredBatch {
    pub(crate) rows: Vec<(RowKey, StoredRow)>,
    pub(crate) resume_after: Option<RowKey>,
}

impl Effort {
    fn add(&mut self, bytes: usize) {
        self.writes += 1;
        self.bytes += bytes;
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self { writes: self.writes + other.writes, bytes: self.bytes + other.bytes }
    }
}

fn row_key(encoded: Bytes) -> Result<RowKey, StoreError> {
    RowKey::decode(encoded).ok_or_else(|| StoreError::damaged("a row outside both key spaces"))
}

fn old_head(key: &RowKey, old: Option<Bytes>) -> Result<Option<RowHead>, StoreError> {
    let Some(sealed) = old else { return Ok(None) };
    Ok(Some(decode_row(key.encoded(), &sealed)?.head))
}
