//! The receiving side of a snapshot.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kv_types::{RowHead, RowKey, ShardId, StateHash};

use super::frame::{Tag, Trailer, payload, take_item};
use crate::base::{Base, Loaded, generation_dir};
use crate::chunks::{CHUNK_TAG, CHUNKS_TO, ChunkKey, StoredNote, chunk_count, decode_row, unseal};
use crate::effect::AppliedEntry;
use crate::encoding::{Malformed, Reader};
use crate::engine::{EngineError, EngineFactory};
use crate::notes::{BaseNote, Generation};
use crate::row_range::RowRange;
use crate::store_error::StoreError;

/// sled queues what was never flushed without bound.
const SYNC_BYTES: usize = 4 << 20;

/// Stray chunks looked for at a time.
const STRAY_BATCH: usize = 1024;

/// Why a snapshot was not received. Nothing of it is installed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The stream is not one that a sender gives.
    #[error("snapshot stream: {detail}")]
    Stream {
        /// What was seen.
        detail: String,
    },
    /// The rows are not those the trailer speaks of.
    #[error("the snapshot has the hash {found}, its trailer says {expected}")]
    Hash {
        /// Of the rows received.
        found: StateHash,
        /// Of the trailer.
        expected: StateHash,
    },
    /// The new generation could not be written or read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<Malformed> for SnapshotError {
    fn from(error: Malformed) -> Self {
        Self::Stream { detail: error.to_string() }
    }
}

impl From<EngineError> for SnapshotError {
    fn from(error: EngineError) -> Self {
        Self::Store(error.into())
    }
}

/// Builds a new generation from chunks. Dropped before [`SnapshotReceiver::finish`], it removes what it has built.
#[derive(Debug)]
pub struct SnapshotReceiver {
    shard: ShardId,
    engines: Arc<dyn EngineFactory>,
    dir: PathBuf,
    /// `None` once handed on.
    base: Option<Base>,
    /// The number of the next chunk.
    number: u32,
    pending: BytesMut,
    unsynced_bytes: usize,
    progress: Progress,
    /// What was received so far.
    received: Trailer,
}

/// Which items may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progress {
    Header,
    Rows,
    Effects,
    Complete,
}

/// A generation that is complete and durable, and that no WAL record names yet.
///
/// Dropped it stays on disk until the next start, since a record that names it may be on its way;
/// [`ReceivedSnapshot::discard`] removes it.
#[derive(Debug)]
pub struct ReceivedSnapshot {
    note: BaseNote,
    base: Base,
    engines: Arc<dyn EngineFactory>,
}

impl ReceivedSnapshot {
    /// What the WAL's `Install` record has to say.
    pub fn base(&self) -> &BaseNote {
        &self.note
    }

    /// Removes it: nobody wants it, and no WAL record will ever name it.
    pub fn discard(self) {
        let Self { base, engines, .. } = self;
        let dir = base.dir().to_owned();
        drop(base);
        remove(&*engines, &dir);
    }

    pub(crate) fn into_parts(self) -> (BaseNote, Base) {
        (self.note, self.base)
    }
}

impl SnapshotReceiver {
    /// Begins generation `generation`, which is not the current one; what an earlier attempt left is removed.
    ///
    /// # Errors
    /// [`SnapshotError::Store`] if it cannot be created.
    pub fn new(
        engines: Arc<dyn EngineFactory>,
        shard: ShardId,
        generation: Generation,
    ) -> Result<Self, SnapshotError> {
        let dir = generation_dir(shard, generation);
        engines.remove(&dir)?;
        let engine = engines.open(&dir, true)?;
        let base = Base::new(engine, dir.clone(), generation, kv_types::LogIndex::ZERO);
        Ok(Self {
            shard,
            engines,
            dir,
            base: Some(base),
            number: 0,
            pending: BytesMut::new(),
            unsynced_bytes: 0,
            progress: Progress::Header,
            received: Trailer::default(),
        })
    }

    /// Takes the next chunk.
    ///
    /// # Errors
    /// [`SnapshotError`]; the whole snapshot is to be given up.
    pub fn push(&mut self, chunk: &Bytes) -> Result<(), SnapshotError> {
        let payload = payload(self.number, chunk)?;
        self.number += 1;
        self.pending.extend_from_slice(&payload);
        while let Some((tag, body)) = take_item(&mut self.pending)? {
            self.unsynced_bytes += body.len();
            self.item(tag, body)?;
        }
        if self.unsynced_bytes >= SYNC_BYTES {
            self.unsynced_bytes = 0;
            self.open_base().engine().sync()?;
        }
        Ok(())
    }

    fn item(&mut self, tag: Tag, body: Bytes) -> Result<(), SnapshotError> {
        match (self.progress, tag) {
            (Progress::Header, Tag::Header) => self.header(body),
            (Progress::Rows, Tag::Row) => self.row(body),
            (Progress::Rows | Progress::Effects, Tag::Effect) => self.effect(body),
            (Progress::Rows | Progress::Effects, Tag::Trailer) => self.trailer(body),
            (progress, tag) => Err(stream(format!("a {tag:?} where it cannot be: {progress:?}"))),
        }
    }

    fn header(&mut self, body: Bytes) -> Result<(), SnapshotError> {
        let mut reader = Reader::new(body, "snapshot header");
        let shard = ShardId::new(reader.u32()?);
        if shard != self.shard {
            return Err(stream(format!("it is of {shard}, not of {}", self.shard)));
        }
        self.received.note = reader.base_note()?;
        reader.end()?;
        self.progress = Progress::Rows;
        Ok(())
    }

    fn row(&mut self, body: Bytes) -> Result<(), SnapshotError> {
        let mut reader = Reader::new(body, "snapshot row");
        let key = reader.sized()?;
        let malformed = reader.malformed();
        let value = reader.rest();
        if key.first() == Some(&CHUNK_TAG) {
            ChunkKey::decode(key.clone())?;
            unseal(&key, &value)?;
        } else {
            RowKey::decode(key.clone()).ok_or(malformed)?;
            decode_row(&key, &value)?;
        }
        self.open_base().engine().insert(&key, &value)?;
        self.received.rows += 1;
        Ok(())
    }

    fn effect(&mut self, body: Bytes) -> Result<(), SnapshotError> {
        self.progress = Progress::Effects;
        let entry = AppliedEntry::decode(body)?;
        let last = self.received.note.meta.last.index;
        if entry.id.index != last.next() {
            return Err(stream(format!("the effects of {} follow those of {last}", entry.id.index)));
        }
        let base = self.open_base();
        for change in &entry.changes {
            let (old, _) = match &change.row {
                Some(row) => base.put(&change.key, row)?,
                None => base.remove(&change.key)?,
            };
            let live = change.row.as_ref().map(|row| row.head.modified);
            if let Some(old) = old.filter(|old| live != Some(old.modified)) {
                base.drop_chunks(&change.key, &old)?;
            }
        }
        self.received.effects += 1;
        let note = &mut self.received.note;
        note.meta.last = entry.id;
        note.stamp = entry.stamp;
        note.hash = entry.hash;
        if let Some(membership) = entry.membership {
            note.meta.membership = membership;
        }
        Ok(())
    }

    fn trailer(&mut self, body: Bytes) -> Result<(), SnapshotError> {
        let trailer = Trailer::decode(body)?;
        if trailer != self.received {
            return Err(stream(format!("received {:?}, the trailer says {trailer:?}", self.received)));
        }
        self.progress = Progress::Complete;
        Ok(())
    }

    /// Checks every row and makes the generation durable.
    ///
    /// # Errors
    /// [`SnapshotError::Hash`] if the rows are not the sender's, [`SnapshotError::Stream`] if the stream has no end.
    pub fn finish(mut self) -> Result<ReceivedSnapshot, SnapshotError> {
        if self.progress != Progress::Complete || !self.pending.is_empty() {
            return Err(stream(format!("it ends in {:?}", self.progress)));
        }
        let base = self.open_base();
        drop_strays(base)?;
        let (found, rows) = hash_rows(base)?;
        let expected = self.received.note.hash;
        if found != expected {
            return Err(SnapshotError::Hash { found, expected });
        }
        let note = BaseNote { generation: base.generation(), ..self.received.note.clone() };
        base.put_note(&StoredNote { note: note.clone(), rows })?;
        base.engine().check()?;
        base.engine().sync()?;
        base.merge_begins(note.meta.last.index);
        let base = self.base.take().expect("the base is handed on once, here");
        Ok(ReceivedSnapshot { note, base, engines: Arc::clone(&self.engines) })
    }

    fn open_base(&self) -> &Base {
        self.base.as_ref().expect("the base is handed on by finish, which consumes the receiver")
    }
}

impl Drop for SnapshotReceiver {
    fn drop(&mut self) {
        if let Some(base) = self.base.take() {
            drop(base);
            remove(&*self.engines, &self.dir);
        }
    }
}

fn remove(engines: &dyn EngineFactory, dir: &Path) {
    if let Err(error) = engines.remove(dir) {
        tracing::warn!(%error, dir = %dir.display(), "an abandoned snapshot stays until the next start");
    }
}

fn stream(detail: String) -> SnapshotError {
    SnapshotError::Stream { detail }
}

/// Removes chunks that no head names: of rows that a merge replaced while they were streamed.
fn drop_strays(base: &Base) -> Result<(), SnapshotError> {
    let mut after: Option<Bytes> = None;
    loop {
        let from = after.as_ref().map_or(Bound::Included(&[CHUNK_TAG][..]), |key| Bound::Excluded(&key[..]));
        let mut keys = Vec::new();
        for found in base.engine().scan(from, Bound::Excluded(CHUNKS_TO)).take(STRAY_BATCH) {
            keys.push(found?.0);
        }
        let Some(last) = keys.last().cloned() else { return Ok(()) };
        for key in keys {
            let chunk = ChunkKey::decode(key.clone())?;
            let head = base.stored(&chunk.row)?.map(|stored| stored.head);
            let names = |head: RowHead| head.modified == chunk.revision && chunk.number < chunk_count(&head);
            if !head.is_some_and(names) {
                base.engine().remove(&key)?;
            }
        }
        after = Some(last);
    }
}

/// The state hash of all rows, each with its value checked, and their number.
fn hash_rows(base: &Base) -> Result<(StateHash, u64), SnapshotError> {
    let (mut hash, mut rows) = (StateHash::EMPTY, 0);
    let mut rest = Some(RowRange::ALL);
    while let Some(range) = rest.take() {
        let batch = base.batch(&range)?;
        for (key, stored) in batch.rows {
            let Loaded::Row(row) = base.load(&key, stored)? else {
                return Err(stream(format!("row {key:?} lacks chunks")));
            };
            hash = hash.with(&key, &row.head);
            rows += 1;
        }
        rest = batch.resume_after.map(|key| RowRange { from: Bound::Excluded(key), to: range.to });
    }
    Ok((hash, rows))
}
