//! Reading a shard's state, on any thread.

use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use kv_types::{Lamport, LogIndex, Nanos, Row, RowKey, StateHash};

use crate::base::Loaded;
use crate::chunks::Fresh;
use crate::effect::AppliedEntry;
use crate::effect_log::EffectLog;
use crate::memtable::{Below, Memtable, Position};
use crate::notes::Generation;
use crate::options::StoreOptions;
use crate::pins::{PinId, PinSet};
use crate::regeneration::{BaseSize, LiveBytes};
use crate::row_range::RowRange;
use crate::store_error::{ReadError, StoreError};
use crate::verify::Verification;
use crate::view::View;

/// Sees every version.
pub(crate) const NEWEST: LogIndex = LogIndex::new(u64::MAX);

/// Reads one shard's newest state, or pins it.
#[derive(Debug)]
pub struct ShardReader {
    view: RwLock<Arc<View>>,
    applied: AtomicU64,
    /// The newest entry that was ever applied here.
    reached: AtomicU64,
    /// How often rows of another node have replaced these.
    installs: AtomicU64,
    pins: Arc<PinSet>,
    effects: EffectLog,
    options: StoreOptions,
}

impl ShardReader {
    pub(crate) fn new(view: View, applied: LogIndex, effects: EffectLog, options: StoreOptions) -> Self {
        Self {
            view: RwLock::new(Arc::new(view)),
            applied: AtomicU64::new(applied.get()),
            reached: AtomicU64::new(applied.get()),
            installs: AtomicU64::new(0),
            pins: Arc::default(),
            effects,
            options,
        }
    }

    /// The last entry whose effects every read from now on sees.
    pub fn applied(&self) -> LogIndex {
        LogIndex::new(self.applied.load(Ordering::Acquire))
    }

    /// How often rows of another node have replaced these; `None` while they are older than what was read here before,
    /// as those that replace damaged ones may be. If it is the same before and after a read, nothing older was read.
    pub fn installs(&self) -> Option<u64> {
        let reached = self.reached();
        let installs = self.installs.load(Ordering::Acquire);
        (self.applied() >= reached).then_some(installs)
    }

    fn reached(&self) -> LogIndex {
        LogIndex::new(self.reached.load(Ordering::Acquire))
    }

    /// The stamp of the newest entry applied.
    pub fn stamp(&self) -> Lamport {
        self.view().active.position().stamp
    }

    /// The newest entry applied, and the state hash after it.
    pub fn hash(&self) -> (LogIndex, StateHash) {
        let position = self.view().active.position();
        (position.id.index, position.hash)
    }

    /// The state hash after an entry, as long as it is known.
    ///
    /// # Errors
    /// [`StoreError`] if the effect log cannot be read.
    pub fn hash_after(&self, index: LogIndex) -> Result<Option<StateHash>, StoreError> {
        if index > self.applied() || index < self.effects.first() {
            return Ok(None);
        }
        let entries = match self.effects.read(index, index, 1) {
            Err(StoreError::Compacted { .. }) => Vec::new(),
            read => read?,
        };
        Ok(entries.first().map(|entry| entry.hash))
    }

    /// The work of comparing the rows of the base with the hash that its note names, while nothing is merged into it.
    /// None before there is a note, or while rows beyond it may be there: in a merge, or
    /// after one that a crash cut short.
    ///
    /// # Errors
    /// [`StoreError`] if the note cannot be read.
    pub fn base_verification(&self) -> Result<Option<Verification>, StoreError> {
        let view = self.view();
        if !view.frozen.is_empty() {
            return Ok(None);
        }
        let Some(stored) = view.base.note()? else { return Ok(None) };
        let note = stored.note;
        if view.base.merging_to() > note.meta.last.index {
            return Ok(None);
        }
        let position = Position { id: note.meta.last, stamp: note.stamp, hash: note.hash };
        let active = Arc::new(Memtable::new(position, Below::Settled));
        let alone = View { active, frozen: Vec::new(), base: Arc::clone(&view.base) };
        Ok(Some(Verification::new(Arc::new(alone), note.meta.last.index, note.hash)))
    }

    /// The life of the base that is read.
    pub fn generation(&self) -> Generation {
        self.view().base.generation()
    }

    /// The newest row of a key.
    ///
    /// # Errors
    /// [`ReadError::Store`] if it cannot be read.
    pub fn get(&self, key: &RowKey) -> Result<Option<Row>, ReadError> {
        Ok(self.newest(key)?)
    }

    /// A head without its chunks means that a merge replaced the row between the two looks; then the view shows the
    /// newer row. Only the same head without chunks, twice, is damage.
    pub(crate) fn newest(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        let mut torn = None;
        loop {
            match self.view().get(key, NEWEST)? {
                None => return Ok(None),
                Some(Loaded::Row(row)) => return Ok(Some(row)),
                Some(Loaded::Torn(head)) if torn == Some(head) => return Err(missing_chunks(key)),
                Some(Loaded::Torn(head)) => torn = Some(head),
            }
        }
    }

    /// Pins the newest state: reads through the pin see it, whatever is applied meanwhile.
    ///
    /// # Errors
    /// [`ReadError::TooManyPins`].
    pub fn pin(&self, now: Nanos) -> Result<Pin, ReadError> {
        let deadline = now.after(self.options.pin_age_max);
        match self.pin_until(deadline) {
            // Readers that have gone to sleep must not keep others out.
            Err(ReadError::TooManyPins) if self.pins.break_expired(now) => self.pin_until(deadline),
            pinned => pinned,
        }
    }

    /// Pins the newest state for somebody who was told before that this replica may be read: it is no older than what could be
    /// read then.
    ///
    /// # Errors
    /// As [`ShardReader::pin`]; [`ReadError::Behind`] while the rows are older than what was read here before.
    pub fn pin_for_clients(&self, now: Nanos) -> Result<Pin, ReadError> {
        let reached = self.reached();
        let pin = self.pin(now)?;
        if pin.index() < reached { Err(ReadError::Behind { reached }) } else { Ok(pin) }
    }

    pub(crate) fn pin_until(&self, deadline: Nanos) -> Result<Pin, ReadError> {
        loop {
            if let Some(pin) = self.pin_view(self.view(), deadline)? {
                return Ok(pin);
            }
        }
    }

    /// Registers a pin in the table of `view`, then looks at the current view again: had it been replaced in between,
    /// a merge might have begun that did not know of the pin.
    fn pin_view(&self, view: Arc<View>, deadline: Nanos) -> Result<Option<Pin>, ReadError> {
        let id = view.active.pin(&self.pins, deadline, self.options.pins_max);
        let id = id.ok_or(ReadError::TooManyPins)?;
        let pin = Pin { view, pins: Arc::clone(&self.pins), id, deadline };
        Ok(Arc::ptr_eq(&pin.view, &self.view()).then_some(pin))
    }

    /// Breaks the oldest pin, because memory is short; whether there was one. Its reader is told to begin anew where it
    /// was.
    pub fn break_oldest_pin(&self) -> bool {
        self.pins.break_oldest()
    }

    /// What entries from `from` on did, for watches: at most a few more than `bytes_max` bytes of them, none if
    /// nothing newer was applied.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] in [`ReadError::Store`] if the effect log begins later.
    pub fn effects(&self, from: LogIndex, bytes_max: usize) -> Result<Vec<AppliedEntry>, ReadError> {
        Ok(self.effects.read(from, self.applied(), bytes_max)?)
    }

    /// The first entry [`ShardReader::effects`] can give.
    pub fn first_effect(&self) -> LogIndex {
        self.effects.first()
    }

    /// The base's size, as far as that is known without counting.
    ///
    /// # Errors
    /// [`StoreError`] if its file or its note cannot be read.
    pub fn base_size(&self) -> Result<BaseSize, StoreError> {
        let base = &self.view().base;
        let (rows, fresh) = base.note()?.map_or((0, Fresh::default()), |stored| (stored.rows, stored.fresh));
        let file_bytes = base.engine().disk_bytes()?;
        Ok(BaseSize { file_bytes, rows, fresh_file_bytes: fresh.bytes, fresh_rows: fresh.rows })
    }

    /// The work of counting what of the bytes of its file is alive.
    pub fn live_bytes(&self) -> LiveBytes {
        LiveBytes::new(Arc::clone(&self.view().base))
    }

    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn publish(&self, view: View) -> Arc<View> {
        let mut current = self.view.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut current, Arc::new(view))
    }

    /// Rows of another node are about to be published.
    pub(crate) fn will_install(&self) {
        self.installs.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn set_applied(&self, applied: LogIndex) {
        self.applied.store(applied.get(), Ordering::Release);
        self.reached.fetch_max(applied.get(), Ordering::AcqRel);
    }

    pub(crate) fn pins(&self) -> &Arc<PinSet> {
        &self.pins
    }
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanPage {
    /// Rows in key order.
    pub rows: Vec<(RowKey, Row)>,
    /// The first key that was not returned; `None` at the end of the range.
    pub resume: Option<RowKey>,
}

/// How much a page of a scan may hold; it always holds a row if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageLimit {
    /// Rows.
    pub rows: usize,
    /// Bytes of keys and values.
    pub bytes: usize,
}

/// One state of a shard, held still. Dropping it lets go.
#[derive(Debug)]
pub struct Pin {
    view: Arc<View>,
    pins: Arc<PinSet>,
    id: PinId,
    deadline: Nanos,
}

impl Pin {
    /// The life of the base that it sees.
    pub fn generation(&self) -> Generation {
        self.view.base.generation()
    }

    /// The entry whose state it shows.
    pub fn index(&self) -> LogIndex {
        self.id.0
    }

    /// The row of a key.
    ///
    /// # Errors
    /// [`ReadError::PinExpired`] if the pin was broken.
    pub fn get(&self, key: &RowKey) -> Result<Option<Row>, ReadError> {
        let found = self.view.get(key, self.index()).and_then(|found| whole(key, found));
        self.if_live(found, None)
    }

    /// The rows of a range, as many as a page holds.
    ///
    /// # Errors
    /// [`ReadError::PinExpired`] with the key to resume from, if the pin is older than its deadline or was broken.
    pub fn scan(&self, range: &RowRange, limit: PageLimit, now: Nanos) -> Result<ScanPage, ReadError> {
        let resume = match &range.from {
            Bound::Included(key) | Bound::Excluded(key) => Some(key.clone()),
            Bound::Unbounded => None,
        };
        if now >= self.deadline {
            return Err(ReadError::PinExpired { resume });
        }
        self.if_live(self.page(range, limit), resume)
    }

    fn page(&self, range: &RowRange, limit: PageLimit) -> Result<ScanPage, StoreError> {
        let mut scan = self.view.scan(range, self.index());
        let (mut page, mut bytes) = (ScanPage::default(), 0);
        while let Some((key, found)) = scan.next()? {
            let len = key.encoded().len() + found.head().value_bytes as usize;
            let full = page.rows.len() >= limit.rows || bytes + len > limit.bytes;
            if full && !page.rows.is_empty() {
                page.resume = Some(key);
                break;
            }
            bytes += len;
            let loaded = self.view.load(&key, found)?;
            let Some(row) = whole(&key, Some(loaded))? else { continue };
            page.rows.push((key, row));
        }
        Ok(page)
    }

    /// What was read, if the pin protected it all the while; whoever breaks a pin does so before it changes anything.
    fn if_live<T>(&self, read: Result<T, StoreError>, resume: Option<RowKey>) -> Result<T, ReadError> {
        if self.pins.is_live(self.id) { Ok(read?) } else { Err(ReadError::PinExpired { resume }) }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.pins.release(self.id);
    }
}

fn whole(key: &RowKey, found: Option<Loaded>) -> Result<Option<Row>, StoreError> {
    match found {
        None => Ok(None),
        Some(Loaded::Row(row)) => Ok(Some(row)),
        Some(Loaded::Torn(_)) => Err(missing_chunks(key)),
    }
}

fn missing_chunks(key: &RowKey) -> StoreError {
    StoreError::damaged(format!("row {key:?} has a head, but not all of its chunks"))
}

#[cfg(test)]
mod tests {
    use kv_types::{LogId, ShardId, StateHash, Term};

    use super::*;
    use crate::disk::faulty::VirtualDisk;
    use crate::{BaseNote, ShardStore, StoreStart, TwinFactory};

    fn store(options: StoreOptions) -> ShardStore {
        let start = StoreStart {
            shard: ShardId::new(1),
            base: BaseNote::default(),
            merge: None,
            wal_last: LogIndex::new(9),
            damaged: false,
        };
        let (disk, engines) = (Arc::new(VirtualDisk::new()), Arc::new(TwinFactory::new()));
        ShardStore::open(disk, engines, start, options).unwrap().0
    }

    fn blank(index: u64) -> AppliedEntry {
        AppliedEntry {
            id: LogId::new(Term::new(1), LogIndex::new(index)),
            stamp: Lamport::ZERO,
            membership: None,
            changes: Vec::new(),
            hash: StateHash::EMPTY,
        }
    }

    #[test]
    fn a_view_replaced_before_it_was_pinned_is_not_pinned() {
        let mut store = store(StoreOptions::default());
        let reader = store.reader();
        store.apply(blank(1)).unwrap();
        let (stale, never) = (reader.view(), Nanos::new(u64::MAX));
        assert!(store.freeze().is_some());
        store.apply(blank(2)).unwrap();
        assert!(reader.pin_view(stale, never).unwrap().is_none());
        assert!(!reader.pins.reaches(LogIndex::ZERO), "nothing is left registered");
        assert_eq!(reader.pin_until(never).unwrap().index(), LogIndex::new(2));
    }

    #[test]
    fn pins_are_limited() {
        let store = store(StoreOptions { pins_max: 2, ..StoreOptions::default() });
        let reader = store.reader();
        let first = reader.pin(Nanos::default()).unwrap();
        let _second = reader.pin(Nanos::default()).unwrap();
        assert!(matches!(reader.pin(Nanos::default()), Err(ReadError::TooManyPins)));
        drop(first);
        assert!(reader.pin(Nanos::default()).is_ok());
    }

    #[test]
    fn pins_that_have_expired_make_room() {
        let store = store(StoreOptions { pins_max: 2, ..StoreOptions::default() });
        let reader = store.reader();
        let expired = reader.pin(Nanos::default()).unwrap();
        let late = Nanos::default().after(StoreOptions::default().pin_age_max);
        let young = reader.pin(Nanos::new(1)).unwrap();
        let newest = reader.pin(late).unwrap();
        assert!(matches!(reader.pin(late), Err(ReadError::TooManyPins)), "the others have not expired");
        assert!(!reader.pins.is_live(expired.id));
        assert!(reader.pins.is_live(young.id) && reader.pins.is_live(newest.id));
    }
}
