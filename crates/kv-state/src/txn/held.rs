//! What transactions hold of a shard, at hand: its locks, prepared parts and unfinished records.
//!
//! All of them: what is not here is nowhere in the rows either, so that nobody looks there for what is not. It is looked up
//! once, and kept up by the entries that change it. It is as large as what is unfinished.

use std::collections::BTreeMap;
use std::ops::Bound;

use kv_types::{Fingerprint, Key, KeyRange, RowHead, TxnId};

use super::codec::Lock;

/// Locks, parts and records of one shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    /// By the key of the user.
    locks: BTreeMap<Box<[u8]>, LockRow>,
    /// Keys whose lock is not as its row is: an entry may change a lock more than once, and writes its row where it ends.
    changed: Vec<Box<[u8]>>,
    /// The ranges that transactions have locked.
    pub(super) ranges: BTreeMap<TxnId, Kept<Vec<KeyRange>>>,
    /// Prepared parts: of which content each is.
    pub(super) parts: BTreeMap<TxnId, Kept<Fingerprint>>,
    /// Records of what is committed: of which content each is.
    pub(super) records: BTreeMap<TxnId, Kept<Fingerprint>>,
}

/// Something that has a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept<T> {
    pub(super) content: T,
    pub(super) head: RowHead,
}

/// The lock of a key.
#[derive(Clone, Debug, Default)]
struct LockRow {
    /// The lock as it is now; `None` if it is gone and its row is still to go.
    lock: Option<Lock>,
    /// The head of the row before this entry.
    head: Option<RowHead>,
    is_changed: bool,
}

/// A lock whose row is to be written.
pub(super) struct Changed {
    /// The user's key.
    pub(super) key: Box<[u8]>,
    /// The head of its row as it stands.
    pub(super) head: Option<RowHead>,
    /// What to write; `None` to remove it.
    pub(super) lock: Option<Lock>,
}

impl Held {
    /// Whether nothing is locked or prepared. Between entries, nothing else makes a reader look.
    pub(crate) fn is_empty(&self) -> bool {
        self.locks.is_empty() && self.ranges.is_empty() && self.parts.is_empty()
    }

    pub(super) fn lock(&self, key: &Key) -> Option<&Lock> {
        self.locks.get(key.as_ref())?.lock.as_ref()
    }

    /// The locks of a range, in the order of their keys.
    pub(super) fn locks_in(&self, range: &KeyRange) -> impl Iterator<Item = &Lock> {
        let end = range.end().map_or(Bound::Unbounded, |end| Bound::Excluded(&end[..]));
        let found = self.locks.range::<[u8], _>((Bound::Included(&range.start()[..]), end));
        found.filter_map(|(_, row)| row.lock.as_ref())
    }

    /// A transaction that has locked a range which this is true of.
    pub(super) fn range_owner(&self, is: impl Fn(&KeyRange) -> bool) -> Option<TxnId> {
        self.ranges.iter().find(|(_, kept)| kept.content.iter().any(&is)).map(|(owner, _)| *owner)
    }

    /// A lock that a row says.
    pub(super) fn found(&mut self, key: &[u8], lock: Lock, head: RowHead) {
        let row = LockRow { lock: Some(lock), head: Some(head), is_changed: false };
        self.locks.insert(key.into(), row);
    }

    /// Locks a key, or gives it free.
    pub(super) fn set_lock(&mut self, key: &Key, lock: Option<Lock>) {
        match self.locks.get_mut(key.as_ref()) {
            Some(row) => {
                row.lock = lock;
                if !std::mem::replace(&mut row.is_changed, true) {
                    self.changed.push(key.as_ref().into());
                }
            }
            None => {
                self.locks.insert(key.as_ref().into(), LockRow { lock, head: None, is_changed: true });
                self.changed.push(key.as_ref().into());
            }
        }
    }

    /// A lock that an entry has changed, once each; one that is gone is not known any more.
    pub(super) fn pop_changed(&mut self) -> Option<Changed> {
        let key = self.changed.pop()?;
        let row = self.locks.get_mut(&key)?;
        row.is_changed = false;
        let (lock, head) = (row.lock.clone(), row.head);
        if lock.is_none() {
            self.locks.remove(&key);
        }
        Some(Changed { key, head, lock })
    }

    /// The row of a lock is written.
    pub(super) fn written(&mut self, key: &[u8], head: RowHead) {
        if let Some(row) = self.locks.get_mut(key) {
            row.head = Some(head);
        }
    }
}
