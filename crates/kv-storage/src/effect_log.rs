//! The effect log of a shard: for each applied entry, every row it changed.
//!
//! One log, three uses: redo for the memtable, history for watches, increment for snapshots. It has no holes: record
//! n + 1 follows record n. Files are named for their first entry and begin with the generation they belong to: a new
//! generation (a snapshot install) begins a new log.
//!
//! Appends go to a buffer. [`EffectLog::flush`] hands it to the operating system, [`EffectLog::sync`] makes it durable.
//! The handle is shared: apply appends, a checkpoint syncs, watches and snapshots read.
//!
//! On a full disk the buffer waits. It takes what the entry at hand changed, but whoever applies asks first whether
//! [there is room](EffectLog::has_room) for another.

mod frames;
mod holds;
mod recovery;
mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kv_types::{LogIndex, ShardId};

use self::frames::{Frame, Frames, HEADER_BYTES, header, put_frame};
pub(crate) use self::holds::EffectHold;
pub(crate) use self::recovery::EffectLogStart;
pub use self::verify::{EffectReport, Unsound, verify_effects};
use crate::base::shard_dir;
use crate::disk::{Disk, DiskFile, is_no_room};
use crate::effect::AppliedEntry;
use crate::notes::Generation;
use crate::store_error::StoreError;

/// The buffer goes to the operating system at this size.
const BUFFER_BYTES_MAX: usize = 256 << 10;

/// Distance of the places in a file from which reads may start.
const MARK_BYTES: u64 = 64 << 10;

/// A shard's effect log; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct EffectLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Arc<dyn Disk>,
    shard: ShardId,
    dir: PathBuf,
    file_bytes_max: u64,
    state: Mutex<State>,
    /// Held during a sync: one that finds nothing left to do must not return before the one that does it.
    syncing: Mutex<()>,
    /// Held while files are removed, so that a new generation does not begin among those of the former one.
    removing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    shard: ShardId,
    generation: Generation,
    files: BTreeMap<LogIndex, EffectFile>,
    /// Records at the end of the newest file that the operating system does not have yet.
    buffer: Vec<u8>,
    /// The disk has no room for them.
    stuck: bool,
    /// The newest record, or what the log begins after.
    last: LogIndex,
    unsynced: Vec<Arc<dyn DiskFile>>,
    dir_unsynced: bool,
    /// A sync failed: nothing can be promised any more.
    failed: bool,
    /// What is held, from which record on; a hold that is not here was broken.
    holds: BTreeMap<u64, LogIndex>,
    holds_taken: u64,
    /// Files that are no longer part of the log and are still to be removed, oldest first.
    purged: VecDeque<Purged>,
    /// Whether somebody was asked to remove them.
    removal_asked: bool,
}

#[derive(Debug)]
struct Purged {
    first: LogIndex,
    bytes: u64,
}

#[derive(Debug)]
struct EffectFile {
    file: Arc<dyn DiskFile>,
    /// Length, with what is still in the buffer.
    bytes: u64,
    /// Records and where they begin.
    marks: Vec<(LogIndex, u64)>,
}

impl EffectLog {
    /// Adds the record of the next entry; gives its length.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file cannot be created or a full buffer cannot be written. Want of room is none, unless there
    /// is no file yet.
    ///
    /// # Panics
    /// If `entry` does not follow the last one: the log has no holes.
    pub(crate) fn append(&self, entry: &AppliedEntry) -> Result<u64, StoreError> {
        let mut state = self.lock();
        let (last, index) = (state.last, entry.id.index);
        assert!(index == last.next(), "the effect log ends at {last}, entry {index} does not follow");
        let full =
            state.files.last_key_value().is_none_or(|(_, file)| file.bytes >= self.shared.file_bytes_max);
        if full && !self.begin_file(&mut state, index)? && state.files.is_empty() {
            return Err(StoreError::Io(ErrorKind::StorageFull.into()));
        }
        let State { files, buffer, .. } = &mut *state;
        let start = buffer.len();
        put_frame(buffer, |out| entry.encode(out));
        let len = (buffer.len() - start) as u64;
        let mut newest = files.last_entry().expect("there is a file");
        let newest = newest.get_mut();
        newest.mark(index, newest.bytes);
        newest.bytes += len;
        state.last = index;
        if state.buffer.len() >= BUFFER_BYTES_MAX {
            Self::flush_if_room(&mut state)?;
        }
        Ok(len)
    }

    /// Whether the effects of another entry have room. On a full disk they have none until what is buffered has some; this
    /// tries.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the write.
    pub(crate) fn has_room(&self) -> Result<bool, StoreError> {
        let mut state = self.lock();
        if state.files.is_empty() {
            let first = state.last.next();
            return self.begin_file(&mut state, first);
        }
        Ok(!state.stuck || Self::flush_if_room(&mut state)?)
    }

    /// Hands what is buffered to the operating system: it survives the end of this process.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the write; the replica stops.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.lock().flush()
    }

    /// Makes all records so far durable.
    ///
    /// # Errors
    /// [`StoreError::Io`]. It may be tried again if there was [no room](StoreError::is_no_room) to write; any other is
    /// final, and every later sync fails too.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        let _only_one = self.shared.syncing.lock().unwrap_or_else(PoisonError::into_inner);
        let (files, dir) = {
            let mut state = self.lock();
            if state.failed {
                return Err(StoreError::Io(std::io::Error::other(
                    "an earlier sync of the effect log failed",
                )));
            }
            state.flush()?;
            (std::mem::take(&mut state.unsynced), std::mem::take(&mut state.dir_unsynced))
        };
        let synced = files
            .iter()
            .try_for_each(|file| file.sync())
            .and_then(|()| if dir { self.shared.disk.sync_dir(&self.shared.dir) } else { Ok(()) });
        synced.map_err(|cause| {
            self.lock().failed = true;
            // Whatever it was: not even for room can be waited after a failed sync.
            StoreError::Io(std::io::Error::other(cause))
        })
    }

    /// The generation that began this log.
    pub(crate) fn generation(&self) -> Generation {
        self.lock().generation
    }

    /// The first record it still has; after the last if it has none.
    pub(crate) fn first(&self) -> LogIndex {
        self.lock().first()
    }

    /// The newest record, or what the log begins after.
    pub(crate) fn last(&self) -> LogIndex {
        self.lock().last
    }

    /// Records from `from` on, up to `upto`, and no more once they have `bytes_max` bytes; none if there is none yet.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if the log begins after `from`.
    pub(crate) fn read(
        &self,
        from: LogIndex,
        upto: LogIndex,
        bytes_max: usize,
    ) -> Result<Vec<AppliedEntry>, StoreError> {
        let Some((mut index, mut frames)) = self.frames_from(from, upto)? else { return Ok(Vec::new()) };
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < bytes_max && index <= upto {
            let body = match frames.next()? {
                Frame::Record { body, .. } => body,
                Frame::End => break,
                Frame::Bad { at } => {
                    return Err(StoreError::damaged(format!("effects of {index} at byte {at}")));
                }
            };
            if index >= from {
                bytes += body.len();
                let entry = AppliedEntry::decode(body)?;
                if entry.id.index != index {
                    return Err(StoreError::damaged(format!("effects of {} for {index}", entry.id.index)));
                }
                entries.push(entry);
            }
            index = index.next();
        }
        Ok(entries)
    }

    /// The frames of the file that holds `from`, beginning at or shortly before it, and the index of the first.
    fn frames_from(&self, from: LogIndex, upto: LogIndex) -> Result<Option<(LogIndex, Frames)>, StoreError> {
        let mut state = self.lock();
        let first = state.first();
        if from < first {
            return Err(StoreError::Compacted { first });
        }
        if from > state.last || from > upto {
            return Ok(None);
        }
        state.flush()?;
        let Some((first, file)) = state.files.range(..=from).next_back() else { return Ok(None) };
        let mark = file.marks.iter().rev().find(|(index, _)| *index <= from);
        let (index, at) = mark.copied().unwrap_or((*first, HEADER_BYTES));
        Ok(Some((index, Frames::new(Arc::clone(&file.file), at, file.bytes))))
    }

    /// Begins anew after `last`, for a new generation: every record is gone.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the removal.
    pub(crate) fn reset(&self, generation: Generation, last: LogIndex) -> Result<(), StoreError> {
        // A removal under way, which is in no hurry, ends with the file at hand.
        self.lock().purged.clear();
        let _only_one = self.shared.removing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.files.clear();
        // Newest first, so that a crash in between leaves no hole. A damaged log has files that nobody opened.
        let mut names = self.shared.disk.list(&self.shared.dir)?;
        names.sort();
        for name in names.iter().rev() {
            self.shared.disk.remove(&self.shared.dir.join(name))?;
        }
        self.shared.disk.sync_dir(&self.shared.dir)?;
        state.generation = generation;
        state.last = last;
        state.buffer.clear();
        state.stuck = false;
        state.unsynced.clear();
        Ok(())
    }

    /// Begins a file; `false` if the disk has no room. Its header is buffered like any record.
    fn begin_file(&self, state: &mut State, first: LogIndex) -> Result<bool, StoreError> {
        if !Self::flush_if_room(state)? {
            return Ok(false);
        }
        let file = match self.shared.disk.create(&self.file_path(first)) {
            Err(error) if is_no_room(&error) => return Ok(false),
            created => created?,
        };
        state.buffer.extend_from_slice(&header(self.shared.shard, state.generation, first));
        state.dir_unsynced = true;
        state.files.insert(first, EffectFile { file, bytes: HEADER_BYTES, marks: Vec::new() });
        Ok(true)
    }

    /// Hands what is buffered to the operating system; `false` if the disk has no room for it.
    fn flush_if_room(state: &mut State) -> Result<bool, StoreError> {
        match state.flush() {
            Err(cause) if cause.is_no_room() => Ok(false),
            flushed => flushed.map(|()| true),
        }
    }

    fn file_path(&self, first: LogIndex) -> PathBuf {
        self.shared.dir.join(file_name(first))
    }

    /// A panic elsewhere may leave the buffer with half a record, which recovery cuts.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn first(&self) -> LogIndex {
        self.files.keys().next().copied().unwrap_or_else(|| self.last.next())
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let (_, newest) = self.files.last_key_value().expect("what is buffered belongs to a file");
        let written = newest.file.write_at(newest.bytes - self.buffer.len() as u64, &self.buffer);
        let (shard, is_stuck) = (self.shard, written.as_ref().is_err_and(is_no_room));
        match (std::mem::replace(&mut self.stuck, is_stuck), is_stuck) {
            (false, true) => {
                tracing::error!(%shard, "the disk is full: nothing is applied until space is freed");
            }
            (true, false) => tracing::info!(%shard, "the disk has room again"),
            (true, true) | (false, false) => {}
        }
        written?;
        self.buffer.clear();
        if !self.unsynced.iter().any(|file| Arc::ptr_eq(file, &newest.file)) {
            self.unsynced.push(Arc::clone(&newest.file));
        }
        Ok(())
    }
}

impl EffectFile {
    /// Notes where a record begins, if the last such note is far enough away.
    fn mark(&mut self, index: LogIndex, at: u64) {
        if self.marks.last().is_none_or(|(_, last)| at >= last + MARK_BYTES) {
            self.marks.push((index, at));
        }
    }
}

/// Names sort as their entries do.
fn file_name(first: LogIndex) -> String {
    format!("{:020}", first.get())
}

fn effects_dir(shard: ShardId) -> PathBuf {
    shard_dir(shard).join("effects")
}
