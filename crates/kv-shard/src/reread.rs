//! Whether what was read of a shard still is as it was.
//!
//! A transaction that writes nothing takes no locks: it reads, and reads again. If at the second look nothing has changed
//! since the first, all of it was there at one instant between the last of the first looks and the first of the second.

use bytes::Bytes;
use kv_state::Rows;
use kv_types::limits::TXN_SCANNED_KEYS_MAX;
use kv_types::{Fingerprint, Key, KeyRange, LogIndex, Revision, RowKey, Space};

use crate::deletes::PublishedDeletes;

/// What was read of a shard.
#[derive(Clone, Copy, Debug)]
pub struct AsRead<'a> {
    /// The smallest index that rows were looked at.
    pub since: LogIndex,
    /// The keys, and the revisions seen; `None` of an absent key.
    pub reads: &'a [(Key, Option<Revision>)],
    /// The ranges, and the digests of what was in them.
    pub scans: &'a [(KeyRange, Fingerprint)],
}

impl AsRead<'_> {
    /// The first key, or the start of the first range, that is not as it was read, if there is any, in a view of the rows
    /// that was taken before this is called. A key that is absent again was deleted since, and counts as changed.
    ///
    /// # Errors
    /// Of the rows.
    pub fn changed<R: Rows>(&self, rows: &R, deletes: &PublishedDeletes) -> Result<Option<Bytes>, R::Error> {
        for (key, seen) in self.reads {
            let now = rows.head(&RowKey::user(key))?.map(|head| head.modified);
            let is_absent_again = seen.is_none() && !deletes.none_of_key(key.as_ref(), self.since);
            if now != *seen || is_absent_again {
                return Ok(Some(key.bytes().clone()));
            }
        }
        let mut room = TXN_SCANNED_KEYS_MAX;
        for (range, digest) in self.scans {
            // One key more than all scans together may have returned is a difference.
            let now = rows.heads_in(Space::User, range, room + 1)?;
            let keys: Vec<_> = now.iter().map(|(key, head)| (key.key(), head.modified)).collect();
            let now = Fingerprint::of_scan(keys.iter().map(|(key, revision)| (&key[..], *revision)));
            match room.checked_sub(keys.len()) {
                Some(left) if now == *digest && deletes.none(self.since) => room = left,
                _ => return Ok(Some(range.start().clone())),
            }
        }
        Ok(None)
    }
}
