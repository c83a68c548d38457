//! Dropping segments that nothing needs.

use std::collections::BTreeSet;
use std::path::Path;

use kv_types::{Entry, ShardId};

use super::error::{WalError, io_error};
use super::layout::{SegmentNo, WAL_DIR};
use super::writer::{Content, Wal};

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
            let redo = state.slots.iter().skip(above).any(|slot| slot.at.segment == segment);
            let set = if redo { &mut pins.redo } else { &mut pins.log };
            set.insert(*shard);
        }
        pins
    }

    /// Writes a shard's entries of a segment once more, durable on return.
    fn copy_forward(&mut self, shard: ShardId, segment: SegmentNo) -> Result<u64, WalError> {
        let entries: Vec<Entry> = self.reader.read_segment(shard, segment)?;
        let origin = self.append_group(Content::Copied(shard, &entries), false)?;
        self.written();
        let reader = self.reader();
        let mut shared = reader.lock();
        if let Some(state) = shared.shards.get_mut(&shard) {
            state.apply_copied(&entries, origin, self.places());
            assert!(!state.held.contains_key(&segment), "{shard} still holds {segment} after its copy");
        }
        Ok(entries.len() as u64)
    }

    /// Removes the oldest segment. The manifest of the next one is all that is left of it, so a group must stand behind
    /// that manifest: otherwise its rot would look like a segment never begun.
    fn drop_segment(&mut self, segment: SegmentNo) -> Result<(), WalError> {
        self.note_manifest()?;
        let path = segment.path();
        let removed = self.disk.remove(&path).map_err(io_error("remove", path.display()));
        // One by one: were two removals in flight, a crash could keep the older segment and lose the newer.
        let sync = || self.disk.sync_dir(Path::new(WAL_DIR)).map_err(io_error("sync", WAL_DIR));
        removed.and_then(|()| sync()).inspect_err(|_| self.fail())?;
        self.segments.remove(&segment);
        self.reader.lock().files.remove(&segment);
        Ok(())
    }
}
