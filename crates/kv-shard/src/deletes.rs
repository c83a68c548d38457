//! When keys were last deleted, so that a reader can tell that an absent key has been absent all the time.
//!
//! A key that is there has the revision that wrote it, and a later write has another. A key that is absent has nothing: it
//! may have been created and deleted again. So a replica remembers by what index something was last deleted, for each of
//! [`SLOTS`] groups of keys. It remembers what it has applied itself: of all before that, it must be thought that anything
//! was deleted.

use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::{AtomicU64, Ordering};

use kv_types::LogIndex;

/// Groups of keys. With so many, 1,000 deletes a second of other keys meet one read of 5 ms in a thousand.
const SLOTS: usize = 4096;

/// What a replica publishes of its deletes, for readers beside it.
#[derive(Debug)]
pub struct PublishedDeletes {
    /// Up to here, anything may have been deleted.
    unknown_to: AtomicU64,
    /// The last delete in any group.
    last: AtomicU64,
    slots: Vec<AtomicU64>,
}

impl Default for PublishedDeletes {
    fn default() -> Self {
        Self {
            unknown_to: AtomicU64::new(0),
            last: AtomicU64::new(0),
            slots: std::iter::repeat_with(|| AtomicU64::new(0)).take(SLOTS).collect(),
        }
    }
}

impl PublishedDeletes {
    /// Rows up to here came from elsewhere. To be called before they are to be seen.
    pub(crate) fn unknown_to(&self, index: LogIndex) {
        self.unknown_to.fetch_max(index.get(), Ordering::SeqCst);
    }

    /// A key is deleted by this entry. To be called before that is to be seen.
    pub(crate) fn deleted(&self, key: &[u8], index: LogIndex) {
        self.slot(key).fetch_max(index.get(), Ordering::SeqCst);
        self.last.fetch_max(index.get(), Ordering::SeqCst);
    }

    /// Whether a key that was absent at `since`, and is in a view taken before this is asked, was absent all the time
    /// between.
    pub fn none_of_key(&self, key: &[u8], since: LogIndex) -> bool {
        let deleted = self.slot(key).load(Ordering::SeqCst);
        deleted.max(self.unknown_to.load(Ordering::SeqCst)) <= since.get()
    }

    /// Whether nothing at all was deleted between `since` and a view taken before this is asked.
    pub fn none(&self, since: LogIndex) -> bool {
        let deleted = self.last.load(Ordering::SeqCst);
        deleted.max(self.unknown_to.load(Ordering::SeqCst)) <= since.get()
    }

    fn slot(&self, key: &[u8]) -> &AtomicU64 {
        // The same in every process is not needed, but costs nothing.
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let slot = usize::try_from(hash % SLOTS as u64).unwrap_or(0);
        self.slots.get(slot).unwrap_or(&self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_deleted_or_is_not_known_is_no_proof_of_absence() {
        let deletes = PublishedDeletes::default();
        let at = LogIndex::new;
        assert!(deletes.none(at(0)) && deletes.none_of_key(b"a", at(0)));
        deletes.deleted(b"a", at(5));
        assert!(!deletes.none_of_key(b"a", at(4)) && deletes.none_of_key(b"a", at(5)));
        assert!(deletes.none_of_key(b"b", at(0)), "b is in another group");
        assert!(!deletes.none(at(4)) && deletes.none(at(5)));
        deletes.unknown_to(at(9));
        assert!(!deletes.none_of_key(b"b", at(8)) && !deletes.none(at(8)) && deletes.none(at(9)));
    }
}
