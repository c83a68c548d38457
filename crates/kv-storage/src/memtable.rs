//! The memtable: rows that apply has written and no merge has taken into the base yet.
//!
//! A row is overwritten in place, however often, unless a pin lies between the old version and the new one; then the
//! old version stays beside it until that pin is gone. A deletion stays as a tombstone until it is merged, if a table or the
//! base below holds the row. If none does, the row came and went here, and whoever scans does not meet it: queues and
//! transactions leave many of them.
//!
//! # Invariants
//! - The write lock is held for one entry: its rows appear together, with the position that names it.
//! - The read lock is held for at most [`LOCKED_ROWS_MAX`] rows.
//! - A frozen table is never written again.

mod stowed;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use kv_types::{
    Lamport, LogId, LogIndex, Nanos, Revision, Row, RowChange, RowHead, RowKey, Space, StateHash,
};
use stowed::Stowed;
use twox_hash::XxHash3_64;

use crate::pins::{PinId, PinSet};
use crate::row_range::RowRange;

/// Rows looked at under one read lock.
pub(crate) const LOCKED_ROWS_MAX: usize = 256;

/// What the tree, the slot and the allocations of a user's row cost beside its bytes, measured roughly.
const USER_ROW_OVERHEAD_BYTES: usize = 240;

/// The same for a row of the system: a table that is half full, and the order beside it.
const SYSTEM_ROW_OVERHEAD_BYTES: usize = 420;

/// Old versions one entry's apply looks at to let them go.
const PRUNED_MAX: usize = 256;

/// How far a table reaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Position {
    /// The last entry applied.
    pub(crate) id: LogId,
    /// Its stamp.
    pub(crate) stamp: Lamport,
    /// The state hash after it.
    pub(crate) hash: StateHash,
}

/// Rows by key, in memory.
#[derive(Debug)]
pub(crate) struct Memtable {
    table: RwLock<Table>,
    bytes: AtomicUsize,
}

/// What is known of the layers below a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// They hold what they should.
    Settled,
    /// A merge was interrupted: the base may hold rows that this table brings. Every deletion stays a tombstone.
    Interrupted,
}

#[derive(Debug)]
struct Table {
    position: Position,
    below: Below,
    rows: Slots,
    /// Old versions kept for pins, in the order they were replaced.
    kept: VecDeque<Kept>,
    kept_bytes: usize,
}

/// Slots by key.
#[derive(Debug, Default)]
struct Slots {
    system: SystemSlots,
    user: BTreeMap<RowKey, Slot>,
}

/// Rows of the system are overwritten again and again, by most entries some of them, and rarely asked for in order: they
/// are found by hash. No one sees the hash's order.
#[derive(Debug, Default)]
struct SystemSlots {
    slots: HashMap<RowKey, Slot, Hashing>,
    order: BTreeSet<RowKey>,
}

/// By XXH3-64 of a key's bytes but the last, with a seed that nobody outside knows: keys of locks are chosen by users.
#[derive(Clone, Copy, Debug)]
struct Hashing {
    seed: u64,
}

impl Default for Hashing {
    fn default() -> Self {
        Self { seed: RandomState::new().hash_one(0) }
    }
}

impl BuildHasher for Hashing {
    type Hasher = KeyHasher;

    fn build_hasher(&self) -> KeyHasher {
        KeyHasher(self.seed)
    }
}

struct KeyHasher(u64);

impl Hasher for KeyHasher {
    /// Keys that differ in their last byte alone, as the places of a session do, which are written one after the other, stand side by
    /// side: the low bits say where a key stands, the highest seven tell it from its neighbours.
    fn write(&mut self, bytes: &[u8]) {
        let (last, rest) = bytes.split_last().unwrap_or((&0, bytes));
        let place = XxHash3_64::oneshot_with_seed(self.0, rest).wrapping_add(u64::from(*last));
        self.0 = place ^ u64::from(*last) << 57;
    }

    /// The length of a slice, which its bytes say, too.
    fn write_usize(&mut self, _: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

impl SystemSlots {
    fn insert(&mut self, key: RowKey, slot: Slot) {
        self.order.insert(key.clone());
        self.slots.insert(key, slot);
    }

    fn range<'a>(
        &'a self,
        range: (Bound<&RowKey>, Bound<&RowKey>),
    ) -> impl Iterator<Item = (&'a RowKey, &'a Slot)> + use<'a> {
        let keys = self.order.range::<RowKey, _>(range);
        keys.map(|key| (key, self.slots.get(key).expect("each key in order has its slot")))
    }
}

impl Slots {
    fn get(&self, key: &RowKey) -> Option<&Slot> {
        match key.space() {
            Space::System => self.system.slots.get(key),
            Space::User => self.user.get(key),
        }
    }

    fn get_mut(&mut self, key: &RowKey) -> Option<&mut Slot> {
        match key.space() {
            Space::System => self.system.slots.get_mut(key),
            Space::User => self.user.get_mut(key),
        }
    }

    fn knows(&self, key: &[u8]) -> bool {
        self.system.slots.contains_key(key) || self.user.contains_key(key)
    }

    fn remove(&mut self, key: &RowKey) {
        match key.space() {
            Space::System => {
                self.system.order.remove(key);
                self.system.slots.remove(key);
            }
            Space::User => {
                self.user.remove(key);
            }
        }
    }

    fn insert(&mut self, key: RowKey, slot: Slot) {
        match key.space() {
            Space::System => self.system.insert(key, slot),
            Space::User => {
                self.user.insert(key, slot);
            }
        }
    }

    /// The slots of a range in key order: rows of the system come first.
    fn range<'a>(
        &'a self,
        from: Bound<&RowKey>,
        to: Bound<&RowKey>,
    ) -> impl Iterator<Item = (&'a RowKey, &'a Slot)> + use<'a> {
        self.system.range((from, to)).chain(self.user.range::<RowKey, _>((from, to)))
    }
}

#[derive(Debug)]
struct Slot {
    /// The revision the first change here replaced: what the base must hold when this is merged.
    previous: Option<Revision>,
    newest: Version,
    /// Versions that pins see, oldest first.
    older: Vec<Version>,
}

#[derive(Debug, Clone)]
struct Version {
    index: LogIndex,
    row: Option<Stowed>,
}

#[derive(Debug)]
struct Kept {
    key: RowKey,
    from: LogIndex,
    until: LogIndex,
}

/// A row as a table has it: its content, or the knowledge that it is deleted.
pub(crate) type Seen = Option<Row>;

/// Rows found under one read lock.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// What the table knows, in key order.
    pub(crate) rows: Vec<(RowKey, Seen)>,
    /// The last key looked at, if more may follow it.
    pub(crate) resume_after: Option<RowKey>,
}

/// A row to be merged.
#[derive(Debug)]
pub(crate) struct MergeRow {
    pub(crate) key: RowKey,
    pub(crate) previous: Option<Revision>,
    pub(crate) row: Seen,
}

impl Memtable {
    /// An empty table above `position`.
    pub(crate) fn new(position: Position, below: Below) -> Self {
        let table = Table { position, below, rows: Slots::default(), kept: VecDeque::new(), kept_bytes: 0 };
        Self { table: RwLock::new(table), bytes: AtomicUsize::new(0) }
    }

    /// Applies one entry. Versions that pins see are kept, at most `kept_bytes_max` of them: beyond it the oldest pin
    /// is broken.
    pub(crate) fn apply(
        &self,
        position: Position,
        changes: Vec<RowChange>,
        pins: &PinSet,
        kept_bytes_max: usize,
    ) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = self.bytes.load(Ordering::Relaxed);
        for change in changes {
            bytes = table.put(change, position.id.index, pins, bytes);
        }
        table.position = position;
        if !table.kept.is_empty() {
            bytes -= table.prune(pins, kept_bytes_max);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
    }

    /// How far it reaches.
    pub(crate) fn position(&self) -> Position {
        self.read().position
    }

    /// Pins the newest state; `None` if there are `limit` pins already.
    pub(crate) fn pin(&self, pins: &PinSet, deadline: Nanos, limit: usize) -> Option<PinId> {
        let table = self.read();
        pins.register(table.position.id.index, deadline, limit)
    }

    /// Whether the table has seen this encoded key, deleted or not.
    pub(crate) fn knows(&self, key: &[u8]) -> bool {
        self.read().rows.knows(key)
    }

    /// The row as of `at`; `None` if this table has not seen it by then.
    pub(crate) fn get(&self, key: &RowKey, at: LogIndex) -> Option<Seen> {
        self.read().rows.get(key).and_then(|slot| slot.as_of(at)).map(Version::seen)
    }

    /// The same without its value.
    pub(crate) fn head(&self, key: &RowKey, at: LogIndex) -> Option<Option<RowHead>> {
        let table = self.read();
        let version = table.rows.get(key).and_then(|slot| slot.as_of(at))?;
        Some(version.row.as_ref().map(Stowed::head))
    }

    /// Rows of a range as of `at`.
    pub(crate) fn batch(&self, range: &RowRange, at: LogIndex) -> Batch {
        let mut batch = Batch::default();
        if range.is_empty() {
            return batch;
        }
        let table = self.read();
        let mut slots = table.rows.range(range.from.as_ref(), range.to.as_ref());
        for (key, slot) in slots.by_ref().take(LOCKED_ROWS_MAX) {
            if let Some(version) = slot.as_of(at) {
                batch.rows.push((key.clone(), version.seen()));
            }
            batch.resume_after = Some(key.clone());
        }
        if slots.next().is_none() {
            batch.resume_after = None;
        }
        batch
    }

    /// Shows `visit` the newest version of every row that is not deleted. Holds the read lock all the while: for a table
    /// that nobody writes.
    pub(crate) fn visit_newest(&self, mut visit: impl FnMut(&RowKey, &Row)) {
        for (key, slot) in self.read().rows.range(Bound::Unbounded, Bound::Unbounded) {
            if let Some(row) = &slot.newest.row {
                visit(key, &row.row());
            }
        }
    }

    /// The next rows to merge, at most [`LOCKED_ROWS_MAX`] and `limit`.
    pub(crate) fn merge_rows(&self, after: Option<&RowKey>, limit: usize) -> Vec<MergeRow> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let table = self.read();
        let slots = table.rows.range(from, Bound::Unbounded);
        let row = |(key, slot): (&RowKey, &Slot)| MergeRow {
            key: key.clone(),
            previous: slot.previous,
            row: slot.newest.seen(),
        };
        slots.take(limit.min(LOCKED_ROWS_MAX)).map(row).collect()
    }

    /// Memory in use, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A panic in a writer leaves at worst a part of an entry; the replica it belongs to has stopped by then.
    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Writes one row; gives the table's size after it.
    fn put(&mut self, change: RowChange, index: LogIndex, pins: &PinSet, mut bytes: usize) -> usize {
        let RowChange { key, row, previous } = change;
        let version = Version { index, row: row.map(Stowed::new) };
        bytes += version.bytes();
        let Some(slot) = self.rows.get_mut(&key) else {
            bytes += key.encoded().len() + overhead_bytes(key.space());
            self.rows.insert(key, Slot { previous, newest: version, older: Vec::new() });
            return bytes;
        };
        assert!(slot.newest.index <= index, "entry {index} overwrites a row of {}", slot.newest.index);
        let (from, freed) = (slot.newest.index, slot.newest.bytes());
        // A row changed twice by one entry was never visible in between.
        if from < index && pins.reaches(from) {
            let old = std::mem::replace(&mut slot.newest, version);
            self.kept_bytes += freed;
            self.kept.push_back(Kept { key: key.clone(), from, until: index });
            slot.older.push(old);
        } else {
            slot.newest = version;
            bytes -= freed;
        }
        if slot.came_and_went(self.below) {
            bytes -= self.forget(&key);
        }
        bytes
    }

    /// Lets a row go that is nowhere any more; gives the bytes freed.
    fn forget(&mut self, key: &RowKey) -> usize {
        self.rows.remove(key);
        key.encoded().len() + overhead_bytes(key.space())
    }

    /// Lets old versions go that no pin sees, and breaks pins while they hold too much; gives the bytes freed. Stops
    /// at the first version still needed: what is behind it goes when the oldest pin does.
    fn prune(&mut self, pins: &PinSet, kept_bytes_max: usize) -> usize {
        let mut freed = 0;
        for _ in 0..PRUNED_MAX {
            let Some(front) = self.kept.front() else { break };
            if pins.sees(front.from, front.until) {
                if self.kept_bytes <= kept_bytes_max || !pins.break_oldest() {
                    break;
                }
                continue;
            }
            let Some(gone) = self.kept.pop_front() else { break };
            let slot = self.rows.get_mut(&gone.key).expect("a version is kept beside its row");
            let place = slot.older.iter().position(|version| version.index == gone.from);
            let version = slot.older.remove(place.expect("a kept version is in its slot"));
            freed += version.bytes();
            self.kept_bytes -= version.bytes();
            if slot.came_and_went(self.below) {
                freed += self.forget(&gone.key);
            }
        }
        freed
    }
}

impl Slot {
    /// Whether no reader can find the row, neither here nor below.
    fn came_and_went(&self, below: Below) -> bool {
        below == Below::Settled
            && self.previous.is_none()
            && self.newest.row.is_none()
            && self.older.is_empty()
    }

    fn as_of(&self, at: LogIndex) -> Option<&Version> {
        if self.newest.index <= at {
            return Some(&self.newest);
        }
        self.older.iter().rev().find(|version| version.index <= at)
    }
}

impl Version {
    fn seen(&self) -> Seen {
        self.row.as_ref().map(Stowed::row)
    }

    fn bytes(&self) -> usize {
        self.row.as_ref().map_or(0, |row| row.head().value_bytes as usize)
    }
}

fn overhead_bytes(space: Space) -> usize {
    match space {
        Space::System => SYSTEM_ROW_OVERHEAD_BYTES,
        Space::User => USER_ROW_OVERHEAD_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::Term;

    use super::*;

    const ROOM: usize = 1 << 20;

    fn key(name: &str) -> RowKey {
        RowKey::new(Space::User, name.as_bytes())
    }

    fn position(index: u64) -> Position {
        Position { id: LogId::new(Term::new(1), LogIndex::new(index)), ..Position::default() }
    }

    fn put(table: &Memtable, pins: &PinSet, index: u64, name: &str, value: &[u8], room: usize) {
        change(table, pins, (index, None), key(name), Some(value), room);
    }

    /// A change of a row that was, before the table, what `previous` says.
    fn change(
        table: &Memtable,
        pins: &PinSet,
        (index, previous): (u64, Option<u64>),
        key: RowKey,
        value: Option<&[u8]>,
        room: usize,
    ) {
        let revision = Revision::new(index);
        let row =
            value.map(|value| Row::new(revision, revision, 1, Lamport::ZERO, &Bytes::copy_from_slice(value)));
        let change = RowChange { key, row, previous: previous.map(Revision::new) };
        table.apply(position(index), vec![change], pins, room);
    }

    /// The keys that a scan of all finds, deleted or not, and those that are merged.
    fn met(table: &Memtable) -> (usize, usize) {
        let scanned = table.batch(&RowRange::ALL, LogIndex::new(u64::MAX)).rows.len();
        (scanned, table.merge_rows(None, LOCKED_ROWS_MAX).len())
    }

    #[test]
    fn a_row_that_came_and_went_is_met_by_nobody() {
        for space in [Space::User, Space::System] {
            let (table, pins) = (Memtable::new(Position::default(), Below::Settled), PinSet::default());
            let key = || RowKey::new(space, b"k");
            let write = |index, value| change(&table, &pins, (index, None), key(), value, ROOM);
            write(1, Some(b"one"));
            write(2, None);
            assert_eq!((met(&table), table.bytes()), ((0, 0), 0));
            assert_eq!(table.get(&key(), LogIndex::new(2)), None);
            write(3, Some(b"two"));
            assert_eq!(met(&table), (1, 1), "it is there again");
            let pin = table.pin(&pins, Nanos::new(1), 9).unwrap();
            write(4, None);
            assert_eq!(table.get(&key(), LogIndex::new(3)).unwrap().unwrap().value, "two");
            assert_eq!(met(&table), (1, 1), "a pin sees it");
            pins.release(pin);
            write(5, Some(b"three"));
            write(6, None);
            assert_eq!((met(&table), table.bytes()), ((0, 0), 0));
        }
    }

    #[test]
    fn a_deletion_of_what_may_lie_below_stays() {
        let pins = PinSet::default();
        for (below, previous) in [(Below::Settled, Some(1)), (Below::Interrupted, None)] {
            let table = Memtable::new(position(1), below);
            change(&table, &pins, (2, previous), key("k"), Some(b"two"), ROOM);
            change(&table, &pins, (3, Some(2)), key("k"), None, ROOM);
            assert_eq!((met(&table), table.get(&key("k"), LogIndex::new(3))), ((1, 1), Some(None)));
        }
    }

    fn value(table: &Memtable, name: &str, at: u64) -> Option<Bytes> {
        table.get(&key(name), LogIndex::new(at)).map(|row| row.unwrap().value)
    }

    #[test]
    fn a_row_is_overwritten_in_place_unless_a_pin_lies_between() {
        let (table, pins) = (Memtable::new(Position::default(), Below::Settled), PinSet::default());
        put(&table, &pins, 1, "a", b"one", ROOM);
        let alone = table.bytes();
        put(&table, &pins, 2, "a", b"two", ROOM);
        assert_eq!((table.bytes(), value(&table, "a", 1)), (alone, None));
        let pin = table.pin(&pins, Nanos::new(1), 9).unwrap();
        put(&table, &pins, 3, "a", b"three", ROOM);
        put(&table, &pins, 4, "a", b"four", ROOM);
        assert_eq!(value(&table, "a", 2).unwrap(), "two");
        assert_eq!(value(&table, "a", 3).unwrap(), "two", "version 3 had no pin");
        assert_eq!(value(&table, "a", 4).unwrap(), "four");
        pins.release(pin);
        put(&table, &pins, 5, "b", b"", ROOM);
        assert_eq!(value(&table, "a", 2), None);
        assert_eq!(table.read().kept_bytes, 0);
    }

    #[test]
    fn a_pin_that_holds_too_much_is_broken() {
        let (table, pins) = (Memtable::new(Position::default(), Below::Settled), PinSet::default());
        put(&table, &pins, 1, "a", &[0; 100], 150);
        let pin = table.pin(&pins, Nanos::new(1), 9).unwrap();
        put(&table, &pins, 2, "a", &[0; 100], 150);
        assert!(pins.is_live(pin));
        put(&table, &pins, 3, "b", &[0; 100], 150);
        let other = table.pin(&pins, Nanos::new(1), 9).unwrap();
        put(&table, &pins, 4, "b", &[0; 100], 150);
        assert!(!pins.is_live(pin) && pins.is_live(other));
        assert_eq!(value(&table, "b", 3).unwrap().len(), 100);
    }

    #[test]
    fn a_batch_ends_at_its_limit_and_goes_on_after_it() {
        let (table, pins) = (Memtable::new(Position::default(), Below::Settled), PinSet::default());
        for n in 0..300_u64 {
            put(&table, &pins, n + 1, &format!("{n:03}"), b"", ROOM);
        }
        let first = table.batch(&RowRange::ALL, LogIndex::new(300));
        assert_eq!(first.rows.len(), LOCKED_ROWS_MAX);
        let rest = RowRange { from: Bound::Excluded(first.resume_after.unwrap()), to: Bound::Unbounded };
        let second = table.batch(&rest, LogIndex::new(300));
        assert_eq!((second.rows.len(), second.resume_after), (44, None));
        assert_eq!(table.batch(&RowRange::ALL, LogIndex::new(7)).rows.len(), 7);
    }
}
