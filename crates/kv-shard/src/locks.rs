//! Whether readers have to look at locks: most of the time nothing is locked, and a read shall not pay for it.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a replica publishes of its locks, for readers beside it.
///
/// It says that something is locked from before an entry that locks is to be seen in the rows, until after the one that
/// unlocks is. So whoever is told *nothing* and then reads one key reads what nobody had locked at that moment; and whoever
/// is told *nothing* twice with the same number has seen no lock in any view taken in between.
#[derive(Debug)]
pub struct PublishedLocks {
    /// Twice the number of times that something was locked, and one more while something is.
    state: AtomicU64,
}

/// It is not known yet whether something is locked.
impl Default for PublishedLocks {
    fn default() -> Self {
        Self { state: AtomicU64::new(1) }
    }
}

impl PublishedLocks {
    /// A number if nothing is locked: as long as it is the same, nothing was.
    pub fn none(&self) -> Option<u64> {
        let state = self.state.load(Ordering::SeqCst);
        state.is_multiple_of(2).then_some(state)
    }

    /// Something may be locked by what is done next. One thread calls this.
    pub(crate) fn raise(&self) {
        let state = self.state.load(Ordering::SeqCst);
        if state.is_multiple_of(2) {
            self.state.store(state + 1, Ordering::SeqCst);
        }
    }

    /// Nothing is locked any more. One thread calls this.
    pub(crate) fn clear(&self) {
        let state = self.state.load(Ordering::SeqCst);
        if !state.is_multiple_of(2) {
            self.state.store(state + 1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_stands_for_one_time_without_locks() {
        let locks = PublishedLocks::default();
        assert_eq!(locks.none(), None);
        locks.clear();
        let first = locks.none().unwrap();
        locks.clear();
        assert_eq!(locks.none(), Some(first));
        locks.raise();
        locks.raise();
        assert_eq!(locks.none(), None);
        locks.clear();
        assert_ne!(locks.none(), Some(first));
    }
}
