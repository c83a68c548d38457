//! Reads entries back from the segments.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kv_types::{Entry, Incarnation, LogIndex, ShardId, Term};

use super::codec;
use super::error::{Corruption, WalError, io_error};
use super::layout::{Seed, SegmentNo};
use super::state::{Position, ShardState};
use crate::disk::DiskFile;

/// What writer and readers share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) shards: BTreeMap<ShardId, ShardState>,
    pub(super) files: BTreeMap<SegmentNo, Arc<dyn DiskFile>>,
}

/// The entries of all shards that are durable in the WAL. Shared by all who read.
#[derive(Debug)]
pub struct LogReader {
    incarnation: Incarnation,
    shared: Mutex<Shared>,
}

/// The part of the WAL that merges would free.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unmerged {
    /// Whose entries above the base begin it.
    pub shard: ShardId,
    /// Its length.
    pub bytes: u64,
}

/// Entries that stand one behind the other in one segment.
#[derive(Debug)]
struct Run {
    file: Arc<dyn DiskFile>,
    segment: SegmentNo,
    offset: u32,
    bytes: u32,
    /// Index and term of each.
    ids: Vec<(LogIndex, Term)>,
}

impl LogReader {
    pub(super) fn new(incarnation: Incarnation, shared: Shared) -> Self {
        Self { incarnation, shared: Mutex::new(shared) }
    }

    /// Holders only copy positions and apply checked records, so a poisoned lock guards whole values.
    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries in `range`, as many from its start as `max_bytes` (encoded) allow, but at least one. The lock is
    /// held while positions are copied, not while the disk is read.
    ///
    /// # Errors
    /// [`WalError::NotHeld`] if the first entry is compacted or not written, [`WalError::Corrupt`] if one is not what
    /// was written, or of the operating system.
    pub fn read(
        &self,
        shard: ShardId,
        range: RangeInclusive<LogIndex>,
        max_bytes: u64,
    ) -> Result<Vec<Entry>, WalError> {
        let runs = self.runs(shard, &range, max_bytes)?;
        let mut entries = Vec::new();
        for run in runs {
            self.read_run(shard, &run, &mut entries)?;
        }
        Ok(entries)
    }

    /// What of a WAL with segments of that length is kept because the bases do not have it yet; none if they have everything.
    pub fn unmerged(&self, segment_bytes: u64) -> Option<Unmerged> {
        let shared = self.lock();
        let place = |at: Position| (at.segment, at.offset);
        let firsts = shared.shards.iter().filter_map(|(shard, state)| {
            let base = state.base.meta.last.index.since(state.start.index);
            let slot = state.slots.get(usize::try_from(base).unwrap_or(usize::MAX))?;
            Some((place(slot.at), *shard))
        });
        let ((segment, offset), shard) = firsts.min()?;
        let lasts = shared.shards.values().filter_map(|state| state.slots.back());
        let end = lasts.map(|slot| place(slot.at)).max()?;
        let segments = shared.files.range(segment..end.0).count() as u64;
        let bytes = segments * segment_bytes + u64::from(end.1);
        Some(Unmerged { shard, bytes: bytes.saturating_sub(u64::from(offset)) })
    }

    /// The entries of one segment that pin it, in order.
    pub(super) fn read_segment(&self, shard: ShardId, segment: SegmentNo) -> Result<Vec<Entry>, WalError> {
        let mut runs = Vec::new();
        {
            let shared = self.lock();
            let state = shared.shards.get(&shard);
            for (no, slot) in state.iter().flat_map(|state| state.slots.iter().enumerate()) {
                if slot.at.segment == segment {
                    let index = state.map_or(LogIndex::ZERO, |s| s.start.index.plus(no as u64 + 1));
                    extend(&mut runs, &shared, slot.at, (index, slot.term), shard)?;
                }
            }
        }
        let mut entries = Vec::new();
        for run in runs {
            self.read_run(shard, &run, &mut entries)?;
        }
        Ok(entries)
    }

    fn runs(
        &self,
        shard: ShardId,
        range: &RangeInclusive<LogIndex>,
        max_bytes: u64,
    ) -> Result<Vec<Run>, WalError> {
        let shared = self.lock();
        let mut runs = Vec::new();
        let (mut index, mut bytes) = (*range.start(), 0);
        while index <= *range.end() {
            let Some(slot) = shared.shards.get(&shard).and_then(|state| state.slot(index)) else { break };
            bytes += u64::from(slot.at.bytes);
            if bytes > max_bytes && !runs.is_empty() {
                break;
            }
            extend(&mut runs, &shared, slot.at, (index, slot.term), shard)?;
            index = index.next();
        }
        if runs.is_empty() && !range.is_empty() {
            return Err(WalError::NotHeld { shard, index: *range.start() });
        }
        Ok(runs)
    }

    fn read_run(&self, shard: ShardId, run: &Run, entries: &mut Vec<Entry>) -> Result<(), WalError> {
        let seed = Seed::new(self.incarnation, run.segment);
        let mut buffer = vec![0; usize::try_from(run.bytes).expect("a segment fits memory")];
        let offset = u64::from(run.offset);
        let count = run.file.read_at(offset, &mut buffer).map_err(io_error("read", run.segment))?;
        buffer.truncate(count);
        let buffer = Bytes::from(buffer);
        let corrupt =
            |at| Corruption::of_shard(run.segment, offset + at as u64, "an entry is damaged", shard);
        let mut at = 0;
        for (index, term) in &run.ids {
            let (entry, len) = codec::entry(&buffer.slice(at..), seed).map_err(|_| corrupt(at))?;
            if (entry.id.index, entry.id.term) != (*index, *term) {
                return Err(corrupt(at).into());
            }
            entries.push(entry);
            at += len;
        }
        Ok(())
    }
}

fn extend(
    runs: &mut Vec<Run>,
    shared: &Shared,
    at: Position,
    id: (LogIndex, Term),
    shard: ShardId,
) -> Result<(), WalError> {
    if let Some(run) = runs.last_mut().filter(|run| {
        run.segment == at.segment
            && run.offset.checked_add(run.bytes) == Some(at.offset)
            && run.bytes.checked_add(at.bytes).is_some()
    }) {
        run.bytes += at.bytes;
        run.ids.push(id);
        return Ok(());
    }
    let file = shared.files.get(&at.segment).ok_or(WalError::NotHeld { shard, index: id.0 })?;
    let run = Run {
        file: Arc::clone(file),
        segment: at.segment,
        offset: at.offset,
        bytes: at.bytes,
        ids: vec![id],
    };
    runs.push(run);
    Ok(())
}
