//! The twin, watched: what is written between two syncs, and what happens in the middle of a read.

use std::ops::Bound;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use kv_storage::{Engine, EngineError, EngineFactory, EngineScan, TwinFactory};

/// Counts what is written between two syncs.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    writes: AtomicUsize,
    bytes: AtomicUsize,
    pub(crate) writes_most: AtomicUsize,
    pub(crate) bytes_most: AtomicUsize,
}

impl Pace {
    fn wrote(&self, bytes: usize) {
        let writes = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        self.writes_most.fetch_max(writes, Ordering::SeqCst);
        let bytes = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.bytes_most.fetch_max(bytes, Ordering::SeqCst);
    }
}

/// Happens once, before the next look at a chunk.
#[derive(Default)]
pub(crate) struct Hook {
    pub(crate) act: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hook")
    }
}

#[derive(Debug)]
struct Watched {
    inner: Arc<dyn Engine>,
    pace: Arc<Pace>,
    hook: Arc<Hook>,
}

impl Engine for Watched {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        if key.first() == Some(&b'c') {
            let act = self.hook.act.lock().unwrap().take();
            if let Some(act) = act {
                act();
            }
        }
        self.inner.get(key)
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.pace.wrote(key.len() + value.len());
        self.inner.insert(key, value)
    }

    fn remove(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        self.pace.wrote(key.len());
        self.inner.remove(key)
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> EngineScan<'_> {
        self.inner.scan(from, to)
    }

    fn sync(&self) -> Result<(), EngineError> {
        self.pace.writes.store(0, Ordering::SeqCst);
        self.pace.bytes.store(0, Ordering::SeqCst);
        self.inner.sync()
    }

    fn check(&self) -> Result<(), EngineError> {
        self.inner.check()
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        self.inner.disk_bytes()
    }
}

#[derive(Debug, Default)]
pub(crate) struct WatchedFactory {
    inner: TwinFactory,
    pub(crate) pace: Arc<Pace>,
    pub(crate) hook: Arc<Hook>,
}

impl EngineFactory for WatchedFactory {
    fn open(&self, dir: &Path, create: bool) -> Result<Arc<dyn Engine>, EngineError> {
        let inner = self.inner.open(dir, create)?;
        Ok(Arc::new(Watched { inner, pace: Arc::clone(&self.pace), hook: Arc::clone(&self.hook) }))
    }

    fn remove(&self, dir: &Path) -> Result<(), EngineError> {
        self.inner.remove(dir)
    }

    fn list(&self, parent: &Path) -> Result<Vec<String>, EngineError> {
        self.inner.list(parent)
    }
}
