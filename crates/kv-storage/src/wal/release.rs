//! Dropping segments that nothing needs; their files are used again.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use kv_types::{Entry, ShardId};

use super::create::OpenSegment;
use super::error::{WalError, io_error};
use super::layout::{SegmentNo, WAL_DIR};
use super::writer::{Content, Wal};
use crate::disk::DiskFile;

/// What [`Wal::release`] did, and who stands in the way of more.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Released {
    /// Segments that are gone, oldest first.
    pub dropped: Vec<SegmentNo>,
    /// Entries that were copied forward.
    pub copied: u64,
    /// Over budget, these shards pin the oldest segment by entries above their base: they need a checkpoint.
    pub redo: BTreeSet<ShardId>,
    /// Over budget, these shards pin the oldest segment by entries that only a slow follower wants, too many to copy:
    /// they need a compaction.
    pub log: BTreeSet<ShardId>,
}

/// Who pins a segment.
#[derive(Debug, Default)]
struct Pins {
    redo: BTreeSet<ShardId>,
    log: BTreeSet<ShardId>,
    bytes: u64,
}

impl Wal {
    /// Drops segments, strictly oldest first, as long as nothing needs them; over budget, copies a small rest forward.
    ///
    /// # Errors
    /// As [`Wal::write`]; [`WalError::Corrupt`] if an entry to be copied is damaged.
    pub fn release(&mut self) -> Result<Released, WalError> {
        let mut released = Released::default();
        while let Some(oldest) = self.oldest() {
            let pins = self.pins(oldest);
            if pins.bytes > 0 {
                if self.bytes() <= self.options.budget_bytes {
                    break;
                }
                let few = pins.redo.is_empty() && pins.bytes <= self.options.copy_bytes_max;
                if !few {
                    (released.redo, released.log) = (pins.redo, pins.log);
                    break;
                }
                for shard in pins.log {
                    released.copied += self.copy_forward(shard, oldest)?;
                }
            }
            self.drop_segment(oldest)?;
            released.dropped.push(oldest);
        }
        Ok(released)
    }

    /// The oldest segment; none if it is the active one.
    fn oldest(&self) -> Option<SegmentNo> {
        self.segments.keys().next().copied().filter(|no| *no != self.active())
    }

    fn pins(&self, segment: SegmentNo) -> Pins {
        let mut pins = Pins::default();
        for (shard, state) in &self.reader.lock().shards {
            let Some(held) = state.held.get(&segment) else { continue };
            pins.bytes += held.bytes;
            let base = state.base.meta.last.index.since(state.start.index);
            let above = usize::try_from(base).unwrap_or(usize::MAX);
            let redo = state.slots.iter_from(above).any(|slot| slot.at.segment == segment);
            let set = if redo { &mut pins.redo } else { &mut pins.log };
            set.insert(*shard);
        }
        pins
    }

    /// Writes a shard's entries of a segment once more, durable on return.
    fn copy_forward(&mut self, shard: ShardId, segment: SegmentNo) -> Result<u64, WalError> {
        let entries: Vec<Entry> = self.reader.read_segment(shard, segment)?;
        let origin = self.append_group(Content::Copied(shard, &entries), false)?;
        let reader = self.reader();
        let mut shared = reader.lock();
        if let Some(state) = shared.shards.get_mut(&shard) {
            state.apply_copied(&entries, origin, self.places());
            assert!(!state.held.contains_key(&segment), "{shard} still holds {segment} after its copy");
        }
        Ok(entries.len() as u64)
    }

    /// Removes the oldest segment, or makes it a spare file. The manifest of the next one is all that is left of it; that it
    /// was begun is noted.
    fn drop_segment(&mut self, segment: SegmentNo) -> Result<(), WalError> {
        let path = segment.path();
        let bytes = self.segments.remove(&segment);
        let file = self.reader.lock().files.remove(&segment);
        let spare = file.filter(|file| self.may_be_used_again(file, bytes));
        let dropped = match spare {
            Some(file) => {
                let no = self.next_number();
                let renamed = self.disk.rename(&path, &no.path());
                self.spares.push_back(OpenSegment { no, reused: true, file });
                renamed.map_err(io_error("rename", path.display()))
            }
            None => self.disk.remove(&path).map_err(io_error("remove", path.display())),
        };
        // One by one: were two in flight, a crash could keep the older segment and lose the newer. A spare is written only
        // under its new name.
        let sync = || self.disk.sync_dir(Path::new(WAL_DIR)).map_err(io_error("sync", WAL_DIR));
        dropped.and_then(|()| sync()).inspect_err(|_| self.fail())
    }

    /// Whether a file that is no segment any more has its full length, and there is room for it; and nobody reads it who would
    /// see what is written into it next.
    fn may_be_used_again(&self, file: &Arc<dyn DiskFile>, bytes: Option<u64>) -> bool {
        let size = self.options.segment_bytes;
        let spares = self.spares.len() as u64 + 1;
        bytes == Some(size)
            && Arc::strong_count(file) == 1
            && self.bytes() + spares * size <= self.options.total_bytes_max
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::{Body, HardState, Incarnation, Lamport, LogId, LogIndex, Term};

    use super::super::create::WalOptions;
    use super::*;
    use crate::disk::faulty::VirtualDisk;
    use crate::{BaseNote, WalOp, WalRecord};

    const SEGMENT_BYTES: u64 = 32 << 10;

    fn write(wal: &mut Wal, op: WalOp) {
        wal.write(&[WalRecord { shard: ShardId::new(1), op }]).unwrap();
    }

    /// A WAL of two segments, of which the older holds nothing.
    fn released(total_bytes_max: u64) -> Wal {
        let options = WalOptions {
            segment_bytes: SEGMENT_BYTES,
            total_bytes_max,
            reserve_bytes: 0,
            ballast_bytes: 0,
            ..WalOptions::new(Incarnation::new(1))
        };
        let (mut wal, _) = Wal::open(Arc::new(VirtualDisk::new()), options).unwrap();
        let at = |index| LogId::new(Term::new(1), LogIndex::new(index));
        for index in 1..=2 {
            let body = Body::Command(Bytes::from(vec![0; 20_000]));
            let hard = Some(HardState { term: Term::new(1), ..HardState::default() });
            let append = vec![Entry { id: at(index), stamp: Lamport::ZERO, body }];
            write(&mut wal, WalOp::Raft { hard, truncate_from: None, append });
        }
        let mut base = BaseNote::default();
        base.meta.last = at(2);
        write(&mut wal, WalOp::BaseAt(base));
        write(&mut wal, WalOp::Compact(at(2)));
        wal
    }

    #[test]
    fn what_waits_for_merges_begins_with_the_oldest_entry_above_a_base() {
        let options = WalOptions {
            segment_bytes: SEGMENT_BYTES,
            reserve_bytes: 0,
            ballast_bytes: 0,
            ..WalOptions::new(Incarnation::new(1))
        };
        let (mut wal, _) = Wal::open(Arc::new(VirtualDisk::new()), options).unwrap();
        let unmerged = |wal: &Wal| {
            wal.reader().unmerged(SEGMENT_BYTES).map(|kept| (kept.shard.get(), kept.bytes / 1000))
        };
        let at = |index| LogId::new(Term::new(1), LogIndex::new(index));
        let put =
            |wal: &mut Wal, shard, op| wal.write(&[WalRecord { shard: ShardId::new(shard), op }]).unwrap();
        assert_eq!(unmerged(&wal), None);
        // Two to a segment: shard 1, shard 2, shard 1, ...
        for index in 1..=3 {
            for shard in 1..=2 {
                let body = Body::Command(Bytes::from(vec![0; 12_000]));
                let hard = Some(HardState { term: Term::new(1), ..HardState::default() });
                let append = vec![Entry { id: at(index), stamp: Lamport::ZERO, body }];
                put(&mut wal, shard, WalOp::Raft { hard, truncate_from: None, append });
            }
        }
        let base = |index| {
            let mut base = BaseNote::default();
            base.meta.last = at(index);
            WalOp::BaseAt(base)
        };
        // From the beginning of the first to that of the last one, which lies in the third segment.
        assert_eq!(unmerged(&wal), Some((1, 2 * SEGMENT_BYTES / 1000 + 12)));
        put(&mut wal, 1, base(3));
        assert_eq!(unmerged(&wal).map(|(shard, _)| shard), Some(2));
        put(&mut wal, 2, base(2));
        assert_eq!(unmerged(&wal), Some((2, 0)));
        put(&mut wal, 2, base(3));
        assert_eq!(unmerged(&wal), None);
    }

    #[test]
    fn a_file_that_is_read_or_has_no_room_is_not_used_again() {
        for (is_read, total_bytes_max, spares) in
            [(false, 2 * SEGMENT_BYTES, 1), (true, 2 * SEGMENT_BYTES, 0), (false, SEGMENT_BYTES, 0)]
        {
            let mut wal = released(total_bytes_max);
            let reader = wal.reader();
            let read = reader.lock().files.values().next().filter(|_| is_read).cloned();
            assert_eq!(wal.release().unwrap().dropped, [SegmentNo::new(1)]);
            let mut files = wal.disk.list(Path::new(WAL_DIR)).unwrap();
            files.retain(|name| SegmentNo::of_name(name).is_some());
            assert_eq!((wal.spares.len(), files.len()), (spares, 1 + spares), "{read:?} {files:?}");
        }
    }
}
