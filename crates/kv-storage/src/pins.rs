//! Pins: which past states readers still look at.
//!
//! A pin keeps three things from happening: that a row version it sees is overwritten in place, that a merge puts
//! newer rows than it may see into the base, and nothing else. It is broken when its deadline has passed and somebody
//! needs what it holds, or when all pins together hold too much.
//!
//! A reader asks whether its pin still lives *after* it has read: whoever breaks a pin does so before it changes what
//! the pin protects, so an answer read under a pin that lives was not disturbed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kv_types::{LogIndex, Nanos};

/// Names a pin: the index it sees, and a number to tell it from others at the same index.
pub(crate) type PinId = (LogIndex, u64);

/// All pins of one shard.
#[derive(Debug, Default)]
pub(crate) struct PinSet {
    live: Mutex<Live>,
    /// One more than the newest pinned index, 0 without pins: lets apply decide without the lock. It is written under
    /// the read lock of the table that apply holds for writing, so apply never misses a pin it must respect.
    newest: AtomicU64,
}

#[derive(Debug, Default)]
struct Live {
    taken: u64,
    deadlines: BTreeMap<PinId, Nanos>,
}

impl PinSet {
    /// Registers a pin; `None` if there are `limit` already.
    pub(crate) fn register(&self, index: LogIndex, deadline: Nanos, limit: usize) -> Option<PinId> {
        let mut live = self.lock();
        if live.deadlines.len() >= limit {
            return None;
        }
        live.taken += 1;
        let id = (index, live.taken);
        live.deadlines.insert(id, deadline);
        self.publish(&live);
        Some(id)
    }

    /// Forgets a pin; nothing happens if it was broken.
    pub(crate) fn release(&self, id: PinId) {
        let mut live = self.lock();
        live.deadlines.remove(&id);
        self.publish(&live);
    }

    /// Whether what the pin sees is still protected.
    pub(crate) fn is_live(&self, id: PinId) -> bool {
        self.lock().deadlines.contains_key(&id)
    }

    /// Whether some pin sees `index` or anything later. Called with the active table locked for writing.
    pub(crate) fn reaches(&self, index: LogIndex) -> bool {
        self.newest.load(Ordering::SeqCst) > index.get()
    }

    /// Whether some pin lies in `[from, until)`.
    pub(crate) fn sees(&self, from: LogIndex, until: LogIndex) -> bool {
        from < until && self.lock().deadlines.range((from, 0)..(until, 0)).next().is_some()
    }

    /// Breaks the pins below `index` whose deadline has passed; whether none is left below it.
    pub(crate) fn clear_below(&self, index: LogIndex, now: Nanos) -> bool {
        let mut live = self.lock();
        live.deadlines.retain(|(pinned, _), deadline| *pinned >= index || *deadline > now);
        self.publish(&live);
        live.deadlines.range(..(index, 0)).next().is_none()
    }

    /// Breaks the pins whose deadline has passed; whether there were any.
    pub(crate) fn break_expired(&self, now: Nanos) -> bool {
        let mut live = self.lock();
        let before = live.deadlines.len();
        live.deadlines.retain(|_, deadline| *deadline > now);
        self.publish(&live);
        live.deadlines.len() < before
    }

    /// Breaks the oldest pin that has a deadline at all; whether there was one.
    pub(crate) fn break_oldest(&self) -> bool {
        let mut live = self.lock();
        let oldest = live.deadlines.iter().find(|(_, deadline)| **deadline < Nanos::new(u64::MAX));
        let Some(id) = oldest.map(|(id, _)| *id) else { return false };
        live.deadlines.remove(&id);
        self.publish(&live);
        true
    }

    fn publish(&self, live: &Live) {
        let newest = live.deadlines.last_key_value().map_or(0, |((index, _), _)| index.next().get());
        self.newest.store(newest, Ordering::SeqCst);
    }

    /// A panic elsewhere leaves the set whole: every change is one call.
    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(raw: u64) -> LogIndex {
        LogIndex::new(raw)
    }

    #[test]
    fn pins_are_seen_by_index_and_broken_by_age() {
        let pins = PinSet::default();
        assert!(!pins.reaches(LogIndex::ZERO));
        let old = pins.register(at(5), Nanos::new(10), 2).unwrap();
        let young = pins.register(at(7), Nanos::new(20), 2).unwrap();
        assert_eq!(pins.register(at(8), Nanos::new(20), 2), None);
        assert!(pins.reaches(at(7)) && !pins.reaches(at(8)));
        assert!(pins.sees(at(5), at(6)) && !pins.sees(at(6), at(7)) && !pins.sees(at(7), at(7)));
        assert!(!pins.clear_below(at(7), Nanos::new(9)));
        assert!(pins.clear_below(at(7), Nanos::new(10)));
        assert!(!pins.is_live(old) && pins.is_live(young));
        pins.release(young);
        assert!(!pins.reaches(LogIndex::ZERO) && !pins.break_oldest());
    }

    #[test]
    fn a_pin_without_deadline_is_not_broken_for_room() {
        let pins = PinSet::default();
        let forever = pins.register(at(1), Nanos::new(u64::MAX), 9).unwrap();
        let short = pins.register(at(2), Nanos::new(5), 9).unwrap();
        assert!(pins.break_oldest() && !pins.break_oldest());
        assert!(pins.is_live(forever) && !pins.is_live(short));
    }
}
