//! sled 0.34.7 behind the [`Engine`] seam.
//!
//! Only plain inserts and removals are used: `apply_batch`, transactions and `checksum` stop every reader of the
//! process, for good from the first use on. sled's flush is `sync_file_range`, which power loss undoes, so a sync here
//! is flush **and** fdatasync of its file. Every call is guarded: sled answers damaged pages with a panic.
//!
//! **Its cache** is held to its size only where it is looked at: sled divides it into 256 parts, and looks at one when 64
//! accesses to pages of it have gathered. A page holds up to 16 rows whatever their length. So 16,384 accesses go by
//! unseen, which is 80 MB for rows of 300 bytes and 4 GB for chunks of 16 KiB. Therefore whoever meets a long row here accesses
//! it again, once for every [`ACCESS_BYTES`] of it: then no more than 64 MiB of a store go by unseen.

use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sled::IVec;

use super::flushes::{self, Flushes};
use super::{Engine, EngineError, EngineFactory, EngineScan, Flush, Visit};
use crate::disk::RealDisk;

/// With smaller segments, pages of long keys become blob files, which sled never syncs.
const SEGMENT_BYTES: usize = 8 << 20;

/// A long row is accessed once for so many bytes.
const ACCESS_BYTES: usize = 256;

/// After so many accesses sled looks at the part of its cache they were to.
const ACCESSES_MAX: usize = 64;

/// How often, and with what pause, a locked store is tried.
const LOCK_TRIES: usize = 250;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Opens sled stores below a data directory.
#[derive(Debug)]
pub struct SledFactory {
    disk: RealDisk,
    cache_bytes: u64,
    flushes: Arc<Flushes>,
}

impl SledFactory {
    /// Stores below the root of `disk`, each with `cache_bytes` of page cache.
    pub fn new(disk: RealDisk, cache_bytes: u64) -> Self {
        flushes::watch_threads();
        Self { disk, cache_bytes, flushes: Arc::default() }
    }

    fn config(&self, path: &Path) -> sled::Config {
        sled::Config::default()
            .path(path)
            .segment_size(SEGMENT_BYTES)
            .flush_every_ms(None)
            .cache_capacity(self.cache_bytes)
    }

    /// sled's own threads may hold the lock of a store for a moment after its last handle is gone.
    fn open_db(&self, path: &Path) -> Result<sled::Db, EngineError> {
        for _ in 1..LOCK_TRIES {
            match guarded(|| self.config(path).open()) {
                Err(EngineError::Io(error)) if error.to_string().contains("could not acquire lock") => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                opened => return opened,
            }
        }
        guarded(|| self.config(path).open())
    }
}

impl EngineFactory for SledFactory {
    fn open(&self, dir: &Path, create: bool) -> Result<Arc<dyn Engine>, EngineError> {
        let path = self.disk.locate(dir);
        let exists = fs::exists(path.join("db"))?;
        if !exists && !create {
            return Err(EngineError::Damaged { detail: format!("no store at {}", dir.display()) });
        }
        let db = self.open_db(&path)?;
        let file = File::open(path.join("db"))?;
        let engine = SledEngine { db, file, path, dir: dir.to_owned(), flushes: Arc::clone(&self.flushes) };
        engine.check()?;
        if !exists {
            engine.persist_names(self.disk.locate(Path::new("")).as_path())?;
        }
        Ok(Arc::new(engine))
    }

    fn remove(&self, dir: &Path) -> Result<(), EngineError> {
        let path = self.disk.locate(dir);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => sync_parents(&path, path.parent().unwrap_or(&path)),
        }
    }

    fn list(&self, parent: &Path) -> Result<Vec<String>, EngineError> {
        use crate::disk::Disk;
        Ok(self.disk.list(parent)?)
    }

    fn flushes(&self) -> Vec<Flush> {
        self.flushes.running()
    }

    fn thread_died(&self) -> bool {
        flushes::thread_died()
    }
}

#[derive(Debug)]
struct SledEngine {
    db: sled::Db,
    /// The file of the store; an fdatasync of any descriptor covers all that was written to the file.
    file: File,
    path: PathBuf,
    /// Relative to the data directory.
    dir: PathBuf,
    flushes: Arc<Flushes>,
}

impl SledEngine {
    fn flush(&self) -> Result<(), EngineError> {
        self.flushes.watched(&self.dir, || guarded(|| self.db.flush())).map(drop)
    }

    fn next(&self, rows: &mut sled::Iter) -> Result<Option<(IVec, IVec)>, sled::Error> {
        let next = rows.next().transpose()?;
        if let Some((key, value)) = &next {
            self.weigh(key, value.len())?;
        }
        Ok(next)
    }

    /// Lets sled see how much of its cache a row takes that was met.
    fn weigh(&self, key: &[u8], value_bytes: usize) -> Result<(), sled::Error> {
        for _ in 1..(value_bytes / ACCESS_BYTES).min(ACCESSES_MAX) {
            self.db.contains_key(key)?;
        }
        Ok(())
    }

    /// Makes a new store's files and the directories above them durable: sled syncs neither.
    fn persist_names(&self, root: &Path) -> Result<(), EngineError> {
        self.flush()?;
        self.file.sync_all()?;
        let conf = self.path.join("conf");
        if fs::exists(&conf)? {
            File::open(conf)?.sync_all()?;
        }
        sync_parents(&self.path.join("db"), root)
    }
}

/// Syncs every directory above `path`, up to and with `root`.
fn sync_parents(path: &Path, root: &Path) -> Result<(), EngineError> {
    for dir in path.ancestors().skip(1).take_while(|dir| dir.starts_with(root)) {
        File::open(dir)?.sync_all()?;
    }
    Ok(())
}

impl Engine for SledEngine {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let found = reading(|| {
            let found = self.db.get(key)?;
            self.weigh(key, found.as_ref().map_or(0, |value| value.len()))?;
            Ok(found)
        })?;
        Ok(found.as_ref().map(owned))
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError> {
        let old = guarded(|| {
            let old = self.db.insert(key, value)?;
            self.weigh(key, value.len())?;
            Ok(old)
        })?;
        Ok(old.as_ref().map(owned))
    }

    fn remove(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(guarded(|| self.db.remove(key))?.as_ref().map(owned))
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> EngineScan<'_> {
        let mut rows = self.db.range::<&[u8], _>((from, to));
        let mut failed = false;
        Box::new(std::iter::from_fn(move || {
            if failed {
                return None;
            }
            let next = reading(|| self.next(&mut rows));
            failed = next.is_err();
            next.map(|row| row.map(|(key, value)| (owned(&key), owned(&value)))).transpose()
        }))
    }

    fn visit(&self, from: Bound<&[u8]>, visit: Visit<'_>) -> Result<(), EngineError> {
        let mut rows = self.db.range::<&[u8], _>((from, Bound::Unbounded));
        while let Some((key, value)) = reading(|| self.next(&mut rows))? {
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.flush()?;
        Ok(self.file.sync_data()?)
    }

    fn check(&self) -> Result<(), EngineError> {
        let blobs = match fs::read_dir(self.path.join("blobs")) {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error.into()),
        };
        if blobs {
            return Err(EngineError::Damaged { detail: "blob files, which are never synced".to_owned() });
        }
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        Ok(self.file.metadata()?.len())
    }
}

fn owned(value: &IVec) -> Bytes {
    Bytes::copy_from_slice(value)
}

/// Calls sled for something that is there: what cannot be read is damage, and other members have it.
fn reading<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, EngineError> {
    guarded(call).map_err(|error| match error {
        EngineError::Io(cause) if is_unreadable(&cause) => EngineError::Damaged { detail: cause.to_string() },
        error => error,
    })
}

/// Whether the disk has lost what stood there; of everything else it may come back.
fn is_unreadable(cause: &io::Error) -> bool {
    cause.kind() == io::ErrorKind::UnexpectedEof
        || cause.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// Calls sled; its panic is damage, like its own word for it.
fn guarded<T>(call: impl FnOnce() -> Result<T, sled::Error>) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(sled::Error::Io(error))) => Err(EngineError::Io(error)),
        Ok(Err(error)) => Err(EngineError::Damaged { detail: error.to_string() }),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(EngineError::Damaged { detail: format!("sled panicked: {said}") })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_sector_is_damage_and_no_other_refusal_is() {
        let refused = |cause: io::Error| reading::<()>(|| Err(sled::Error::Io(cause))).unwrap_err();
        let code = |code: rustix::io::Errno| io::Error::from_raw_os_error(code.raw_os_error());
        for cause in [code(rustix::io::Errno::IO), io::ErrorKind::UnexpectedEof.into()] {
            assert!(matches!(refused(cause), EngineError::Damaged { .. }));
        }
        for cause in [code(rustix::io::Errno::NOSPC), code(rustix::io::Errno::MFILE)] {
            assert!(matches!(refused(cause), EngineError::Io(_)));
        }
        let written = guarded::<()>(|| Err(sled::Error::Io(code(rustix::io::Errno::IO))));
        assert!(matches!(written, Err(EngineError::Io(_))), "what cannot be written stops the node");
    }

    #[test]
    fn rows_survive_a_reopen_and_absence_is_damage() {
        let root = tempfile::tempdir().unwrap();
        let factory = SledFactory::new(RealDisk::new(root.path()).unwrap(), 1 << 20);
        let dir = Path::new("shard-1/gen-0");
        assert!(matches!(factory.open(dir, false), Err(EngineError::Damaged { .. })));
        let engine = factory.open(dir, true).unwrap();
        assert_eq!(engine.insert(b"a", b"1").unwrap(), None);
        assert_eq!(engine.insert(b"a", b"2").unwrap().unwrap(), "1");
        engine.insert(b"b", b"3").unwrap();
        assert_eq!(engine.remove(b"b").unwrap().unwrap(), "3");
        engine.sync().unwrap();
        drop(engine);
        let engine = factory.open(dir, false).unwrap();
        assert_eq!(engine.get(b"a").unwrap().unwrap(), "2");
        assert_eq!(engine.scan(Bound::Unbounded, Bound::Unbounded).count(), 1);
        drop(engine);
        assert_eq!(factory.list(Path::new("shard-1")).unwrap(), ["gen-0"]);
        factory.remove(dir).unwrap();
        assert!(factory.list(Path::new("shard-1")).unwrap().is_empty());
    }

    #[test]
    fn a_blob_file_is_damage() {
        let root = tempfile::tempdir().unwrap();
        let factory = SledFactory::new(RealDisk::new(root.path()).unwrap(), 1 << 20);
        let dir = Path::new("shard-1/gen-0");
        drop(factory.open(dir, true).unwrap());
        fs::create_dir_all(root.path().join(dir).join("blobs")).unwrap();
        fs::write(root.path().join(dir).join("blobs/17"), b"x").unwrap();
        assert!(matches!(factory.open(dir, false), Err(EngineError::Damaged { .. })));
    }

    #[test]
    fn a_cut_file_is_damage_or_a_shorter_prefix_but_never_a_panic() {
        let root = tempfile::tempdir().unwrap();
        let factory = SledFactory::new(RealDisk::new(root.path()).unwrap(), 1 << 20);
        let dir = Path::new("shard-1/gen-0");
        let engine = factory.open(dir, true).unwrap();
        for n in 0..2000_u32 {
            engine.insert(&n.to_be_bytes(), &[7; 200]).unwrap();
        }
        engine.sync().unwrap();
        drop(engine);
        let path = root.path().join(dir).join("db");
        let len = fs::metadata(&path).unwrap().len();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len / 2).unwrap();
        match factory.open(dir, false) {
            Ok(engine) => assert!(engine.scan(Bound::Unbounded, Bound::Unbounded).count() < 2000),
            Err(EngineError::Damaged { .. } | EngineError::Io(_)) => {}
        }
    }
}
