//! Purging, and what keeps records from it.
//!
//! Whoever streams a state holds the records that the stream ends with, and one that takes long holds many: on disk, never
//! in memory. So that a slow stream does not fill the disk, holds have a budget, a part of what is free. Beyond it the
//! hold that reaches back furthest is broken: its owner finds out when it reads on, and begins anew another time.

use std::io::ErrorKind;
use std::sync::PoisonError;

use kv_types::LogIndex;
use kv_types::limits::DISK_FREE_PARTS_HELD;

use super::{EffectLog, Purged, State};
use crate::store_error::StoreError;

/// Keeps records from an index on from being purged, until it is dropped or broken.
#[derive(Debug)]
pub(crate) struct EffectHold {
    log: EffectLog,
    id: u64,
}

impl EffectHold {
    /// Whether what it held is still there.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if it was broken, because the disk had no room for it.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let state = self.log.lock();
        if state.holds.contains_key(&self.id) {
            return Ok(());
        }
        Err(StoreError::Compacted { first: state.first() })
    }
}

impl Drop for EffectHold {
    fn drop(&mut self) {
        self.log.lock().holds.remove(&self.id);
    }
}

impl EffectLog {
    /// Keeps records from `from` on until the hold is dropped, or the disk has no room for them.
    pub(crate) fn hold(&self, from: LogIndex) -> EffectHold {
        let mut state = self.lock();
        state.holds_taken += 1;
        let id = state.holds_taken;
        state.holds.insert(id, from);
        EffectHold { log: self.clone(), id }
    }

    /// Lets whole files go all of whose records lie below `below`, unless somebody holds them; if those that are held take
    /// more than their part of the disk, holds are broken. Apply calls this, so the files are not removed here: the
    /// operating system may take 100 ms for one.
    pub(crate) fn purge(&self, below: LogIndex) {
        let mut state = self.lock();
        loop {
            let floor = state.holds.values().copied().chain([below]).min().unwrap_or(below);
            state.let_go_below(floor);
            let held = state.bytes_below(below);
            // A disk that does not say how much is free breaks nobody's hold.
            let free = if held == 0 { u64::MAX } else { self.shared.disk.free_bytes().unwrap_or(u64::MAX) };
            let free = free.saturating_add(state.purged.iter().map(|file| file.bytes).sum());
            if held <= free / DISK_FREE_PARTS_HELD {
                break;
            }
            let Some((id, from)) = state.furthest_hold() else { break };
            state.holds.remove(&id);
            let shard = self.shared.shard;
            tracing::warn!(%shard, %from, held, free, "effects kept for a stream take too much disk: it is given up");
        }
    }

    /// Whether files that were let go are to be removed, and nobody was asked to yet.
    pub(crate) fn wants_removal(&self) -> bool {
        let mut state = self.lock();
        !state.purged.is_empty() && !std::mem::replace(&mut state.removal_asked, true)
    }

    /// Removes the files that were let go, oldest first: a crash in between leaves no hole. What cannot be removed stays,
    /// with all that is younger, for the next time.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the removal.
    pub(crate) fn remove_purged(&self) -> Result<(), StoreError> {
        let _only_one = self.shared.removing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut removed = false;
        loop {
            let Some(first) = self.lock().purged.front().map(|file| file.first) else { break };
            match self.shared.disk.remove(&self.file_path(first)) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                Ok(()) | Err(_) => {}
            }
            self.lock().purged.pop_front();
            removed = true;
        }
        if removed && let Err(error) = self.shared.disk.sync_dir(&self.shared.dir) {
            // It may have covered the name of a new file, too: as after any failed sync, nothing can be promised any more.
            self.lock().failed = true;
            return Err(error.into());
        }
        Ok(())
    }
}

impl State {
    fn let_go_below(&mut self, floor: LogIndex) {
        while self.files.keys().nth(1).is_some_and(|second| *second <= floor) {
            let Some((first, file)) = self.files.pop_first() else { break };
            self.purged.push_back(Purged { first, bytes: file.bytes });
            self.removal_asked = false;
        }
    }

    /// Bytes of the files all of whose records lie below `below`.
    fn bytes_below(&self, below: LogIndex) -> u64 {
        let next = self.files.keys().skip(1);
        let held = self.files.values().zip(next).take_while(|(_, next)| **next <= below);
        held.map(|(file, _)| file.bytes).sum()
    }

    /// The hold that reaches back furthest, the older one of two: breaking any other would free nothing.
    fn furthest_hold(&self) -> Option<(u64, LogIndex)> {
        self.holds.iter().map(|(id, from)| (*id, *from)).min_by_key(|(id, from)| (*from, *id))
    }
}
