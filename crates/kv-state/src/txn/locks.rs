//! Locks of keys. A count of them, and of prepared parts, is kept: where there is none nobody has to look.

use kv_types::limits::{TXN_RANGES_MAX, TXN_READERS_MAX};
use kv_types::{Key, KeyRange, Space, TxnId};

use super::Part;
use super::codec::{Lock, Ranges};
use crate::apply::Rows;
use crate::gate::Refusal;
use crate::planted::Planted;
use crate::step::{Step, Stepped};
use crate::system_key;

/// Locks looked at at once.
const LOOKED_AT: usize = 256;

impl<R: Rows> Step<'_, R> {
    /// Why a write of this key has to wait. Whoever asks holds no lock himself.
    pub(crate) fn write_blocked(&mut self, key: &Key) -> Stepped<Option<Refusal>, R> {
        let lock = self.lock(key)?;
        let of_range = self.range_owner(|range| range.contains(key.as_ref()))?;
        let owner = match &lock {
            Some(Lock::Write(_)) if self.planted(Planted::WriteLockIgnored) => None,
            Some(Lock::Read(_)) if self.planted(Planted::ReadLockIgnored) => None,
            Some(lock) => lock.owner(),
            None => None,
        };
        Ok(owner.or(of_range).map(|owner| Refusal::Locked { owner }))
    }

    /// Why the keys of a range cannot be removed.
    pub(crate) fn range_blocked(&mut self, range: &KeyRange) -> Stepped<Option<Refusal>, R> {
        if self.locks()?.rows == 0 {
            return Ok(None);
        }
        let overlaps = self.range_owner(|locked| locked.intersection(range).is_some())?;
        if let Some(owner) = overlaps {
            return Ok(Some(Refusal::Locked { owner }));
        }
        let first = self.heads_in(Space::System, &system_key::locks_in(range), 1)?;
        let Some((key, _)) = first.first() else { return Ok(None) };
        let lock = self.decoded(key, |row| Lock::decode(&row.value))?;
        Ok(lock.and_then(|(lock, _)| lock.owner()).map(|owner| Refusal::Locked { owner }))
    }

    /// Why a part cannot be validated now. It holds no lock itself, or it would be known.
    pub(super) fn part_blocked(&mut self, part: &Part) -> Stepped<Option<Refusal>, R> {
        if self.locks()?.rows == 0 {
            return Ok(None);
        }
        for key in part.only_read() {
            let owner = match self.lock(key)? {
                Some(Lock::Write(owner)) => Some(owner),
                Some(Lock::Read(owners)) if owners.len() >= TXN_READERS_MAX => owners.first().copied(),
                Some(Lock::Read(_)) | None => None,
            };
            if let Some(owner) = owner {
                return Ok(Some(Refusal::Locked { owner }));
            }
        }
        for scan in part.scans() {
            if let Some(owner) = self.writer_in(&scan.range)? {
                return Ok(Some(Refusal::Locked { owner }));
            }
        }
        for write in part.writes() {
            if let Some(refusal) = self.write_blocked(&write.key)? {
                return Ok(Some(refusal));
            }
        }
        Ok(None)
    }

    /// Locks the keys of a part that nothing blocks.
    pub(super) fn lock_part(&mut self, txn: TxnId, part: &Part) -> Stepped<(), R> {
        if !self.planted(Planted::ReadsNotLocked) {
            for key in part.only_read() {
                let mut owners = match self.lock(key)? {
                    Some(Lock::Read(owners)) => owners,
                    Some(Lock::Write(_)) | None => Vec::new(),
                };
                let place = owners.partition_point(|owner| *owner < txn);
                owners.insert(place, txn);
                self.set_lock(key, Some(&Lock::Read(owners)))?;
            }
        }
        for write in part.writes() {
            self.set_lock(&write.key, Some(&Lock::Write(txn)))?;
        }
        Ok(())
    }

    /// Locks the ranges of a part; why not, if too many are locked already.
    pub(super) fn lock_ranges(&mut self, txn: TxnId, part: &Part) -> Stepped<Option<Refusal>, R> {
        if part.scans().is_empty() || self.planted(Planted::RangesNotLocked) {
            return Ok(None);
        }
        if self.locks()?.ranges >= TXN_RANGES_MAX as u64 {
            let owner = self.range_owner(|_| true)?;
            return Ok(owner.map(|owner| Refusal::Locked { owner }));
        }
        let locks = self.locks()?;
        locks.rows += 1;
        locks.ranges += 1;
        let ranges = Ranges(part.scans().iter().map(|scan| scan.range.clone()).collect());
        self.write(system_key::ranges(txn), None, &ranges.encode());
        Ok(None)
    }

    /// A transaction that has locked a range which this is true of.
    fn range_owner(&mut self, is: impl Fn(&KeyRange) -> bool) -> Stepped<Option<TxnId>, R> {
        if self.locks()?.ranges == 0 {
            return Ok(None);
        }
        for (key, _) in self.heads_in(Space::System, &system_key::all_ranges(), TXN_RANGES_MAX)? {
            let Some((ranges, _)) = self.decoded(&key, |row| Ranges::decode(&row.value))? else { continue };
            if ranges.0.iter().any(&is) {
                return Ok(system_key::txn_of(&key));
            }
        }
        Ok(None)
    }

    /// A transaction that is about to write in a range, also a key that does not exist.
    fn writer_in(&mut self, range: &KeyRange) -> Stepped<Option<TxnId>, R> {
        let mut rest = Some(system_key::locks_in(range));
        while let Some(part) = rest.take() {
            let found = self.heads_in(Space::System, &part, LOOKED_AT)?;
            for (key, _) in &found {
                let lock = self.decoded(key, |row| Lock::decode(&row.value))?;
                if let Some((Lock::Write(owner), _)) = lock {
                    return Ok(Some(owner));
                }
            }
            if found.len() == LOOKED_AT
                && let Some((last, _)) = found.last()
            {
                rest = system_key::after(&part, last);
            }
        }
        Ok(None)
    }

    /// Takes the locks of a part away.
    pub(super) fn unlock_part(&mut self, txn: TxnId, part: &Part) -> Stepped<(), R> {
        let keys = part.only_read().chain(part.writes().iter().map(|write| &write.key));
        for key in keys {
            let left = match self.lock(key)? {
                Some(Lock::Write(owner)) if owner == txn => None,
                Some(Lock::Read(mut owners)) => {
                    owners.retain(|owner| *owner != txn);
                    if owners.is_empty() { None } else { Some(Lock::Read(owners)) }
                }
                // Of somebody else: only a bug that is planted can lead here.
                Some(Lock::Write(_)) | None => continue,
            };
            self.set_lock(key, left.as_ref())?;
        }
        if !part.scans().is_empty()
            && let Some(old) = self.head(&system_key::ranges(txn))?
        {
            let locks = self.locks()?;
            locks.rows -= 1;
            locks.ranges -= 1;
            self.remove(system_key::ranges(txn), old);
        }
        Ok(())
    }

    fn lock(&mut self, key: &Key) -> Stepped<Option<Lock>, R> {
        if self.locks()?.rows == 0 {
            return Ok(None);
        }
        let lock = self.decoded(&system_key::lock(key), |row| Lock::decode(&row.value))?;
        Ok(lock.map(|(lock, _)| lock))
    }

    fn set_lock(&mut self, key: &Key, lock: Option<&Lock>) -> Stepped<(), R> {
        let row_key = system_key::lock(key);
        let old = self.head(&row_key)?;
        match (lock, old) {
            (Some(lock), old) => {
                if old.is_none() {
                    self.locks()?.rows += 1;
                }
                self.write(row_key, old, &lock.encode());
            }
            (None, Some(old)) => {
                self.locks()?.rows -= 1;
                self.remove(row_key, old);
            }
            (None, None) => {}
        }
        Ok(())
    }
}

impl Lock {
    /// Whom to ask about it: of several the first.
    pub(super) fn owner(&self) -> Option<TxnId> {
        match self {
            Self::Write(owner) => Some(*owner),
            Self::Read(owners) => owners.first().copied(),
        }
    }
}
