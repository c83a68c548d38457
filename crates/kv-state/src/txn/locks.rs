//! Locks of keys and ranges. All of them are [at hand](Held): nobody looks at rows for them.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_types::limits::{TXN_RANGES_MAX, TXN_READERS_MAX};
use kv_types::{Key, KeyRange, Space, TxnId};

use super::Part;
use super::codec::{Lock, OpenRecord, PreparedPart, Ranges};
use super::held::{Changed, Held, Kept};
use crate::apply::Rows;
use crate::codec::DecodeError;
use crate::gate::Refusal;
use crate::planted::Planted;
use crate::step::{Step, Stepped};
use crate::system_key;

impl<R: Rows> Step<'_, R> {
    /// Why a write of this key has to wait. Whoever asks holds no lock himself.
    pub(crate) fn write_blocked(&mut self, key: &Key) -> Stepped<Option<Refusal>, R> {
        let writers_ignored = self.planted(Planted::WriteLockIgnored);
        let readers_ignored = self.planted(Planted::ReadLockIgnored);
        let held = self.held()?;
        if held.is_empty() {
            return Ok(None);
        }
        let owner = match held.lock(key) {
            Some(Lock::Write(_)) if writers_ignored => None,
            Some(Lock::Read(_)) if readers_ignored => None,
            Some(lock) => lock.owner(),
            None => None,
        };
        let owner = owner.or_else(|| held.range_owner(|range| range.contains(key.as_ref())));
        Ok(owner.map(|owner| Refusal::Locked { owner }))
    }

    /// Why the keys of a range cannot be removed.
    pub(crate) fn range_blocked(&mut self, range: &KeyRange) -> Stepped<Option<Refusal>, R> {
        let held = self.held()?;
        let overlaps = held.range_owner(|locked| locked.intersection(range).is_some());
        let owner = overlaps.or_else(|| held.locks_in(range).next().and_then(Lock::owner));
        Ok(owner.map(|owner| Refusal::Locked { owner }))
    }

    /// Why a part cannot be validated now. It holds no lock itself, or it would be known.
    pub(super) fn part_blocked(&mut self, part: &Part) -> Stepped<Option<Refusal>, R> {
        let held = self.held()?;
        if held.is_empty() {
            return Ok(None);
        }
        for key in part.only_read() {
            let owner = match held.lock(key) {
                Some(Lock::Write(owner)) => Some(*owner),
                Some(Lock::Read(owners)) if owners.len() >= TXN_READERS_MAX => owners.first().copied(),
                Some(Lock::Read(_)) | None => None,
            };
            if let Some(owner) = owner {
                return Ok(Some(Refusal::Locked { owner }));
            }
        }
        // One that is about to write in a range, also a key that does not exist.
        for scan in part.scans() {
            let writer = held.locks_in(&scan.range).find_map(|lock| match lock {
                Lock::Write(owner) => Some(*owner),
                Lock::Read(_) => None,
            });
            if let Some(owner) = writer {
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
        let reads_too = !self.planted(Planted::ReadsNotLocked);
        let held = self.held()?;
        for key in part.only_read().filter(|_| reads_too) {
            let mut owners = match held.lock(key) {
                Some(Lock::Read(owners)) => owners.clone(),
                Some(Lock::Write(_)) | None => Vec::new(),
            };
            let place = owners.partition_point(|owner| *owner < txn);
            owners.insert(place, txn);
            held.set_lock(key, Some(Lock::Read(owners)));
        }
        for write in part.writes() {
            held.set_lock(&write.key, Some(Lock::Write(txn)));
        }
        Ok(())
    }

    /// Locks the ranges of a part; why not, if too many are locked already.
    pub(super) fn lock_ranges(&mut self, txn: TxnId, part: &Part) -> Stepped<Option<Refusal>, R> {
        if part.scans().is_empty() || self.planted(Planted::RangesNotLocked) {
            return Ok(None);
        }
        let held = self.held()?;
        // Each write is compared with all of them. A part with more than that has to have the shard for itself.
        let locked: usize = held.ranges.values().map(|kept| kept.content.len()).sum();
        if locked > 0 && locked + part.scans().len() > TXN_RANGES_MAX {
            return Ok(held.range_owner(|_| true).map(|owner| Refusal::Locked { owner }));
        }
        let ranges = Ranges(part.scans().iter().map(|scan| detached(&scan.range)).collect());
        let head = self.write_whole(system_key::ranges(txn), None, ranges.encode());
        self.held()?.ranges.insert(txn, Kept { content: ranges.0, head });
        Ok(None)
    }

    /// Takes the locks of a part away.
    pub(super) fn unlock_part(&mut self, txn: TxnId, part: &Part) -> Stepped<(), R> {
        let held = self.held()?;
        let keys = part.only_read().chain(part.writes().iter().map(|write| &write.key));
        for key in keys {
            let left = match held.lock(key) {
                Some(Lock::Write(owner)) if *owner == txn => None,
                Some(Lock::Read(owners)) => {
                    let others: Vec<_> = owners.iter().copied().filter(|owner| *owner != txn).collect();
                    (!others.is_empty()).then_some(Lock::Read(others))
                }
                // Of somebody else: only a bug that is planted can lead here.
                Some(Lock::Write(_)) | None => continue,
            };
            held.set_lock(key, left);
        }
        if let Some(Kept { head, .. }) = held.ranges.remove(&txn) {
            self.remove(system_key::ranges(txn), head);
        }
        Ok(())
    }

    /// Writes the rows of the locks that this entry has changed.
    pub(crate) fn write_locks(&mut self) {
        while let Some(Changed { key, head, lock }) =
            self.carried.recall.held.as_mut().and_then(Held::pop_changed)
        {
            let row = system_key::lock(&key);
            match (lock, head) {
                (Some(lock), old) => {
                    let head = self.write_whole(row, old, lock.encode());
                    if let Some(held) = &mut self.carried.recall.held {
                        held.written(&key, head);
                    }
                }
                (None, Some(old)) => self.remove(row, old),
                (None, None) => {}
            }
        }
    }

    /// What transactions hold, as this entry has it so far.
    pub(super) fn held(&mut self) -> Stepped<&mut Held, R> {
        if self.carried.recall.held.is_none() {
            self.carried.recall.held = Some(self.look_up_held()?);
        }
        Ok(self.carried.recall.held.as_mut().expect("what they hold was just looked up"))
    }

    fn look_up_held(&self) -> Stepped<Held, R> {
        let mut held = Held::default();
        for (row, _) in self.heads_in(Space::System, &system_key::locks_in(&KeyRange::all()), usize::MAX)? {
            if let Some(key) = system_key::locked(&row)
                && let Some((lock, head)) = self.decoded(&row, |row| Lock::decode(&row.value))?
            {
                held.found(&key, lock, head);
            }
        }
        held.ranges =
            self.kept(&system_key::all_ranges(), |value| Ranges::decode(value).map(|ranges| ranges.0))?;
        held.parts = self.kept(&system_key::prepared_after(None), |value| {
            PreparedPart::decode(value).map(|part| part.fingerprint)
        })?;
        held.records = self.kept(&system_key::open_records_after(None), |value| {
            OpenRecord::decode(value).map(|record| record.fingerprint)
        })?;
        Ok(held)
    }

    /// What the rows of transactions in a range say.
    fn kept<T>(
        &self,
        range: &KeyRange,
        decode: impl Fn(&Bytes) -> Result<T, DecodeError>,
    ) -> Stepped<BTreeMap<TxnId, Kept<T>>, R> {
        let mut kept = BTreeMap::new();
        for (row, _) in self.heads_in(Space::System, range, usize::MAX)? {
            if let Some(txn) = system_key::txn_of(&row)
                && let Some((content, head)) = self.decoded(&row, |row| decode(&row.value))?
            {
                kept.insert(txn, Kept { content, head });
            }
        }
        Ok(kept)
    }
}

/// A range that pins no frame.
fn detached(range: &KeyRange) -> KeyRange {
    let end = range.end().map(|end| Bytes::copy_from_slice(end));
    KeyRange::new(Bytes::copy_from_slice(range.start()), end).expect("a copy of a range is one")
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
