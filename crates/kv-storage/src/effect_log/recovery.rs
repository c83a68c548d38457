//! Opening an effect log: what a crash left, made whole.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kv_types::{LogIndex, ShardId};

use super::frames::{Frame, Frames, HEADER_BYTES, header, is_header};
use super::{EffectFile, EffectLog, Shared, State, effects_dir, file_name};
use crate::disk::Disk;
use crate::effect::AppliedEntry;
use crate::notes::{BaseNote, Generation};
use crate::store_error::StoreError;

/// What an effect log is opened with.
#[derive(Debug)]
pub(crate) struct EffectLogStart {
    pub(crate) shard: ShardId,
    /// The current generation: files of others are deleted.
    pub(crate) generation: Generation,
    /// What the base holds: records up to here are history, those after it are redo.
    pub(crate) base: LogIndex,
    /// Records up to here only the effects have: a merge that a crash cut has put some of them into the base. The base, if
    /// there was none.
    pub(crate) needed: LogIndex,
    /// The WAL's last entry: records above it are cut, because the entries are not this replica's to have applied.
    pub(crate) wal_last: LogIndex,
    pub(crate) file_bytes_max: u64,
}

/// What one file holds.
struct Scanned {
    file: EffectFile,
    /// Its last sound record; the index before its first if it has none.
    last: LogIndex,
    /// Whether all of it is sound.
    whole: bool,
}

impl EffectLog {
    /// Opens the log, cut at its first bad record and at the WAL's end; `redo` is given each record after the base.
    ///
    /// # Errors
    /// [`StoreError`] of the disk.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        start: &EffectLogStart,
        redo: &mut dyn FnMut(AppliedEntry, u64),
    ) -> Result<Self, StoreError> {
        let dir = effects_dir(start.shard);
        create_durably(&*disk, &dir)?;
        let mut scan = Scan { disk: &*disk, dir: &dir, start, files: BTreeMap::new(), last: None };
        scan.all(redo)?;
        let Scan { mut files, last, .. } = scan;
        let last = match last {
            Some(last) if last >= start.base => last,
            // All of it is older than the base: history with a hole behind it, which no watch may cross.
            _ => {
                for first in std::mem::take(&mut files).into_keys().rev() {
                    disk.remove(&dir.join(file_name(first)))?;
                }
                start.base
            }
        };
        disk.sync_dir(&dir)?;
        Ok(Self::over(disk, dir, start, files, last))
    }

    /// A log that begins at a base which is damaged: what lies on the disk is of no use, and goes when the log is begun
    /// anew.
    pub(crate) fn lost(
        disk: Arc<dyn Disk>,
        shard: ShardId,
        base: &BaseNote,
        file_bytes_max: u64,
    ) -> Result<Self, StoreError> {
        let dir = effects_dir(shard);
        create_durably(&*disk, &dir)?;
        let last = base.meta.last.index;
        let start = EffectLogStart {
            shard,
            generation: base.generation,
            base: last,
            needed: last,
            wal_last: last,
            file_bytes_max,
        };
        Ok(Self::over(disk, dir, &start, BTreeMap::new(), last))
    }

    fn over(
        disk: Arc<dyn Disk>,
        dir: PathBuf,
        start: &EffectLogStart,
        files: BTreeMap<LogIndex, EffectFile>,
        last: LogIndex,
    ) -> Self {
        let state = State {
            shard: start.shard,
            generation: start.generation,
            files,
            buffer: Vec::new(),
            stuck: false,
            last,
            unsynced: Vec::new(),
            dir_unsynced: false,
            failed: false,
            holds: BTreeMap::new(),
            holds_taken: 0,
            purged: VecDeque::new(),
            removal_asked: false,
        };
        let shared = Shared {
            disk,
            shard: start.shard,
            dir,
            file_bytes_max: start.file_bytes_max,
            state: Mutex::new(state),
            syncing: Mutex::new(()),
            removing: Mutex::new(()),
        };
        Self { shared: Arc::new(shared) }
    }
}

/// How a file fits those before it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It goes on where they end.
    Follows,
    /// They end before a hole, and are not needed.
    Anew,
    /// It lies behind a hole that hides redo.
    Behind,
}

/// Reads the files of a log in order.
struct Scan<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    start: &'a EffectLogStart,
    files: BTreeMap<LogIndex, EffectFile>,
    /// The last record of the run that `files` holds; `None` before the first file.
    last: Option<LogIndex>,
}

impl Scan<'_> {
    fn all(&mut self, redo: &mut dyn FnMut(AppliedEntry, u64)) -> Result<(), StoreError> {
        let mut cut = false;
        for name in self.disk.list(self.dir)? {
            let path = self.dir.join(&name);
            let place = name.parse().ok().map(LogIndex::new).map(|first| (first, self.place(first)));
            let (first, place) = match place {
                Some((first, place)) if !cut && place != Place::Behind => (first, place),
                // What is behind a cut, above the WAL or not ours is dropped.
                Some(_) | None => {
                    cut |= place.is_some();
                    self.disk.remove(&path)?;
                    continue;
                }
            };
            if place == Place::Anew {
                self.forget()?;
            }
            let Some(scanned) = self.file(&path, first, redo)? else {
                self.disk.remove(&path)?;
                continue;
            };
            cut = !scanned.whole && scanned.last >= self.start.base;
            self.last = Some(scanned.last);
            self.files.insert(first, scanned.file);
        }
        Ok(())
    }

    /// How a file that begins at `first` fits what was read so far. A hole is harmless if all before it is history.
    fn place(&self, first: LogIndex) -> Place {
        let reaches_redo = first <= self.start.base.next();
        match self.last {
            _ if first > self.start.wal_last => Place::Behind,
            Some(last) if last.next() == first => Place::Follows,
            Some(last) if last < self.start.base && reaches_redo => Place::Anew,
            None if reaches_redo => Place::Follows,
            Some(_) | None => Place::Behind,
        }
    }

    /// Drops files that end before a hole: they are history only.
    fn forget(&mut self) -> Result<(), StoreError> {
        for first in std::mem::take(&mut self.files).into_keys() {
            self.disk.remove(&self.dir.join(file_name(first)))?;
        }
        self.last = None;
        Ok(())
    }

    /// Reads one file and cuts it after its last good record; `None` if it is not of this generation. What the disk does not
    /// give back is like what it gives back changed, if the entries are in the write-ahead log. Otherwise it is an error:
    /// the disk may give it back another time.
    fn file(
        &self,
        path: &Path,
        first: LogIndex,
        redo: &mut dyn FnMut(AppliedEntry, u64),
    ) -> Result<Option<Scanned>, StoreError> {
        let file = self.disk.open(path)?;
        let end = file.len()?;
        let expected = header(self.start.shard, self.start.generation, first);
        let mut found = vec![0; expected.len()];
        let is_needed = |next: LogIndex| self.start.needed > self.start.base && next <= self.start.needed;
        let read = match file.read_at(0, &mut found) {
            Err(cause) if is_needed(first) => return Err(cause.into()),
            read => read,
        };
        if found != expected || !matches!(read, Ok(count) if count == found.len()) {
            if !is_header(&found) {
                tracing::warn!(
                    shard = %self.start.shard,
                    file = %path.display(),
                    error = read.err().map(tracing::field::display),
                    "the effect file has no sound header, by a crash or by damage: what it held is done again from the \
                     write-ahead log"
                );
            }
            return Ok(None);
        }
        let mut frames = Frames::new(Arc::clone(&file), HEADER_BYTES, end);
        let mut scanned = Scanned {
            file: EffectFile { file, bytes: HEADER_BYTES, marks: Vec::new() },
            last: first.prev(),
            whole: true,
        };
        loop {
            let (at, body) = match frames.next() {
                Ok(Frame::Record { at, body }) => (at, body),
                Ok(Frame::End) => break,
                Ok(Frame::Bad { .. }) => {
                    scanned.whole = false;
                    break;
                }
                Err(cause) if is_needed(scanned.last.next()) => return Err(cause),
                Err(cause) => {
                    tracing::warn!(shard = %self.start.shard, file = %path.display(), %cause, "effects cannot be read");
                    scanned.whole = false;
                    break;
                }
            };
            let next = at + 8 + body.len() as u64;
            let entry = AppliedEntry::decode(body).ok();
            let fits = |entry: &AppliedEntry| {
                entry.id.index == scanned.last.next() && entry.id.index <= self.start.wal_last
            };
            let Some(entry) = entry.filter(fits) else {
                scanned.whole = false;
                break;
            };
            scanned.last = entry.id.index;
            scanned.file.mark(entry.id.index, at);
            scanned.file.bytes = next;
            if entry.id.index > self.start.base {
                redo(entry, next - at);
            }
        }
        if scanned.file.bytes < end {
            self.cut(&scanned, path)?;
        }
        Ok(Some(scanned))
    }

    /// Durable before anything is appended: no old record may come back behind a new one.
    fn cut(&self, scanned: &Scanned, path: &Path) -> Result<(), StoreError> {
        let EffectFile { file, bytes, .. } = &scanned.file;
        tracing::warn!(
            shard = %self.start.shard,
            file = %path.display(),
            offset = bytes,
            after = %scanned.last,
            "the effect log is unsound from here on, by a crash or by damage: what follows is done again from the \
             write-ahead log"
        );
        file.set_len(*bytes)?;
        Ok(file.sync()?)
    }
}

/// Creates a directory below the root and makes its name durable, and the names of those above it.
fn create_durably(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    if !disk.exists(dir)? {
        disk.create_dir_all(dir)?;
        for parent in dir.ancestors().skip(1) {
            disk.sync_dir(parent)?;
        }
    }
    Ok(())
}
