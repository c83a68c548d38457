//! The receiving side of a snapshot.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kv_types::{Row, RowChange, RowHead, RowKey, ShardId, StateHash};

use super::check::RowCheck;
use super::frame::{Tag, Trailer, payload, take_item};
use crate::base::{Base, generation_dir};
use crate::chunks::{CHUNK_TAG, ChunkKey, Fresh, StoredNote, decode_row, unseal};
use crate::effect::AppliedEntry;
use crate::encoding::{Malformed, Reader};
use crate::engine::{EngineError, EngineFactory};
use crate::notes::{BaseNote, Generation};
use crate::store_error::StoreError;

/// sled queues what was never flushed without bound.
const SYNC_BYTES: usize = 4 << 20;

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

/// What several entries change: each row once, from what it was before all of them to what it is after.
#[derive(Debug, Default)]
pub(crate) struct NetChanges {
    rows: BTreeMap<RowKey, RowChange>,
    bytes: usize,
}

impl NetChanges {
    fn add(&mut self, change: RowChange) {
        let bytes = |row: &Option<Row>| row.as_ref().map_or(0, |row| row.value.len());
        self.bytes += bytes(&change.row);
        match self.rows.entry(change.key.clone()) {
            Entry::Vacant(place) => drop(place.insert(change)),
            Entry::Occupied(mut place) => {
                let replaced = std::mem::replace(&mut place.get_mut().row, change.row);
                self.bytes -= bytes(&replaced);
            }
        }
    }

    /// Bytes of the values to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
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
    /// How large the rows of the stream are, before its effects add to them or take away.
    fresh: Fresh,
    /// The last entry but one, for a planted bug: the snapshot is labelled with that.
    #[cfg(feature = "planted")]
    labelled: Option<kv_types::LogId>,
    #[cfg(feature = "planted")]
    labels_older: bool,
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
            fresh: Fresh::default(),
            #[cfg(feature = "planted")]
            labelled: None,
            #[cfg(feature = "planted")]
            labels_older: false,
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
        Ok(self.sync_if_long()?)
    }

    /// The number of the chunk it takes next: it has taken in so many.
    pub fn next_number(&self) -> u32 {
        self.number
    }

    fn item(&mut self, tag: Tag, body: Bytes) -> Result<(), SnapshotError> {
        match (self.progress, tag) {
            (Progress::Header, Tag::Header) => self.header(body),
            (Progress::Rows, Tag::Row) => self.row(body),
            (Progress::Rows, Tag::Effect | Tag::Trailer) => {
                self.rows_end()?;
                self.item(tag, body)
            }
            (Progress::Effects, Tag::Effect) => self.effect(body),
            (Progress::Effects, Tag::Trailer) => self.trailer(body),
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
            self.fresh.rows += 1;
        }
        self.base().engine().insert(&key, &value)?;
        self.received.rows += 1;
        Ok(())
    }

    /// Measures what was copied: effects overwrite and delete it, and a file keeps the length that it once had.
    fn rows_end(&mut self) -> Result<(), EngineError> {
        let engine = self.base().engine();
        engine.sync()?;
        self.fresh.bytes = engine.disk_bytes()?;
        self.progress = Progress::Effects;
        Ok(())
    }

    fn effect(&mut self, body: Bytes) -> Result<(), SnapshotError> {
        let entry = AppliedEntry::decode(body)?;
        let last = self.received.note.meta.last.index;
        if entry.id.index != last.next() {
            return Err(stream(format!("the effects of {} follow those of {last}", entry.id.index)));
        }
        for change in &entry.changes {
            self.change(change)?;
        }
        self.received.effects += 1;
        self.moved_to(&entry);
        Ok(())
    }

    /// Writes a changed row; gives the head of the one it replaced.
    fn change(&self, change: &RowChange) -> Result<Option<RowHead>, StoreError> {
        let base = self.base();
        let (old, _) = match &change.row {
            Some(row) => base.put(&change.key, row)?,
            None => base.remove(&change.key)?,
        };
        let live = change.row.as_ref().map(|row| row.head.modified);
        if let Some(old) = old.filter(|old| live != Some(old.modified)) {
            base.drop_chunks(&change.key, &old)?;
        }
        Ok(old)
    }

    /// Labels what is received with an older entry than it holds, from now on: a planted bug.
    #[cfg(feature = "planted")]
    pub fn label_older(&mut self) {
        self.labels_older = true;
    }

    fn moved_to(&mut self, entry: &AppliedEntry) {
        #[cfg(feature = "planted")]
        {
            self.labelled = Some(self.received.note.meta.last).filter(|_| self.received.effects > 1);
        }
        let note = &mut self.received.note;
        note.meta.last = entry.id;
        note.stamp = entry.stamp;
        note.hash = entry.hash;
        if let Some(membership) = &entry.membership {
            note.meta.membership = membership.clone();
        }
    }

    /// Takes note of the next entries; what they change is added to `changes`, and is still to be [written](Self::follow).
    pub(crate) fn gather(&mut self, entries: Vec<AppliedEntry>, changes: &mut NetChanges) {
        for entry in entries {
            self.moved_to(&entry);
            entry.changes.into_iter().for_each(|change| changes.add(change));
        }
    }

    /// Writes what the entries gathered have changed over rows that are known to be the state before them, whose hash
    /// is `hash`; by how many rows it grew.
    pub(crate) fn follow(&mut self, mut hash: StateHash, changes: &NetChanges) -> Result<i64, StoreError> {
        let mut grown = 0;
        for change in changes.rows.values() {
            let old = self.change(change)?;
            let (replaced, found) = (change.previous, old.map(|head| head.modified));
            if replaced != found {
                let key = &change.key;
                let detail =
                    format!("the effects replace {replaced:?} of {key:?}, the new base has {found:?}");
                return Err(StoreError::damaged(detail));
            }
            hash = hash.replaced(&change.key, old.as_ref(), change.row.as_ref().map(|row| &row.head));
            if old.is_some() {
                grown -= 1;
            }
            if let Some(row) = &change.row {
                grown += 1;
                self.unsynced_bytes += row.value.len();
            }
            self.sync_if_long()?;
        }
        let reached = self.received.note.hash;
        if hash != reached {
            return Err(StoreError::damaged(format!("the effects lead to {hash}, not to {reached}")));
        }
        Ok(grown)
    }

    /// What is not synced is not written for long.
    fn sync_if_long(&mut self) -> Result<(), EngineError> {
        if self.unsynced_bytes >= SYNC_BYTES {
            self.unsynced_bytes = 0;
            self.base().engine().sync()?;
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
    pub fn finish(self) -> Result<ReceivedSnapshot, SnapshotError> {
        self.check_complete()?;
        let mut check = RowCheck::new();
        while !check.step(self.base())? {}
        let rows = self.compare(&check)?;
        let generation = self.base().generation();
        Ok(self.seal(rows, generation)?)
    }

    /// Whether the stream has ended as it should.
    pub(crate) fn check_complete(&self) -> Result<(), SnapshotError> {
        if self.progress == Progress::Complete && self.pending.is_empty() {
            return Ok(());
        }
        Err(stream(format!("it ends in {:?}", self.progress)))
    }

    /// The number of rows, if they are those the trailer speaks of.
    pub(crate) fn compare(&self, check: &RowCheck) -> Result<u64, SnapshotError> {
        let (found, rows) = check.found();
        let expected = self.received.note.hash;
        if found != expected {
            return Err(SnapshotError::Hash { found, expected });
        }
        Ok(rows)
    }

    /// Makes the generation durable, with its note; `effects` is the effect log that goes on above it.
    pub(crate) fn seal(mut self, rows: u64, effects: Generation) -> Result<ReceivedSnapshot, StoreError> {
        #[cfg(feature = "planted")]
        if let Some(older) = self.labelled.filter(|_| self.labels_older) {
            self.received.note.meta.last = older;
        }
        let base = self.base();
        let note = BaseNote { generation: base.generation(), ..self.received.note.clone() };
        let fresh = self.fresh;
        base.put_note(&StoredNote { note: note.clone(), rows, effects, fresh })?;
        base.engine().check()?;
        base.engine().sync()?;
        base.merge_begins(note.meta.last.index);
        let base = self.base.take().expect("the base is handed on once, here");
        Ok(ReceivedSnapshot { note, base, engines: Arc::clone(&self.engines) })
    }

    /// What was received so far.
    pub(crate) fn note(&self) -> &BaseNote {
        &self.received.note
    }

    pub(crate) fn base(&self) -> &Base {
        self.base.as_ref().expect("the base is handed on by seal, which consumes the receiver")
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
