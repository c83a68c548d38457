//! sled's twin for the simulator: memory that loses writes the way sled does.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use bytes::Bytes;

use super::{Engine, EngineError, EngineFactory, EngineScan};

/// Rows a scan reads at a time; between two reads the writer may change what follows, as with sled.
const SCAN_BATCH_ROWS: usize = 32;

/// One write: a key and its new value, or none.
type Write = (Bytes, Option<Bytes>);
type Rows = BTreeMap<Bytes, Bytes>;

/// Keeps the stores of one simulated node over its crashes.
#[derive(Debug, Default)]
pub struct TwinFactory {
    stores: Mutex<BTreeMap<PathBuf, Arc<Twin>>>,
}

/// One store: what is durable, and what was written since.
#[derive(Debug, Default)]
struct Twin {
    rows: RwLock<Rows>,
    disk: Mutex<Image>,
}

#[derive(Debug, Default)]
struct Image {
    durable: Rows,
    writes: Vec<Write>,
}

impl TwinFactory {
    /// A node without any store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the process: of each store's writes since its last sync, as many survive as `choose` says, which is given
    /// their number and answers with at most that. Engines opened before belong to the dead process: nothing they do
    /// reaches the stores any more.
    pub fn crash(&self, choose: &mut dyn FnMut(usize) -> usize) {
        for store in lock(&self.stores).values_mut() {
            let image = lock(&store.disk);
            let kept = choose(image.writes.len()).min(image.writes.len());
            let mut rows = image.durable.clone();
            for write in image.writes.iter().take(kept) {
                redo(&mut rows, write);
            }
            drop(image);
            let disk = Mutex::new(Image { durable: rows.clone(), writes: Vec::new() });
            *store = Arc::new(Twin { rows: RwLock::new(rows), disk });
        }
    }

    /// Changes a stored value under the engine, as a bad disk would; whether the key was there.
    pub fn damage(&self, dir: &Path, key: &[u8], change: impl Fn(&[u8]) -> Option<Bytes>) -> bool {
        let Some(store) = lock(&self.stores).get(dir).cloned() else { return false };
        let mut rows = store.rows.write().unwrap_or_else(PoisonError::into_inner);
        let Some(old) = rows.get(key) else { return false };
        let write = (Bytes::copy_from_slice(key), change(old));
        redo(&mut rows, &write);
        redo(&mut lock(&store.disk).durable, &write);
        true
    }

    /// A stored row rots: a bit of it flips, or it is gone, as sled would have it. `choose` is given a number of outcomes
    /// and picks one. Whether there was any row.
    pub fn rot(&self, dir: &Path, choose: &mut dyn FnMut(usize) -> usize) -> bool {
        let Some(store) = lock(&self.stores).get(dir).cloned() else { return false };
        let keys: Vec<Bytes> = {
            let rows = store.rows.read().unwrap_or_else(PoisonError::into_inner);
            rows.keys().cloned().collect()
        };
        if keys.is_empty() {
            return false;
        }
        let Some(key) = keys.get(choose(keys.len())) else { return false };
        let is_gone = choose(3) == 0;
        let (at, bit) = (choose(1 << 16), choose(8));
        self.damage(dir, key, |value| {
            let mut bad = value.to_vec();
            let at = at % bad.len().max(1);
            *bad.get_mut(at)? ^= 1 << bit;
            (!is_gone).then(|| bad.into())
        })
    }
}

impl EngineFactory for TwinFactory {
    fn open(&self, dir: &Path, create: bool) -> Result<Arc<dyn Engine>, EngineError> {
        let mut stores = lock(&self.stores);
        match stores.get(dir) {
            Some(store) => Ok(Arc::<Twin>::clone(store)),
            None if create => {
                let store = Arc::new(Twin::default());
                stores.insert(dir.to_owned(), Arc::clone(&store));
                Ok(store)
            }
            None => Err(EngineError::Damaged { detail: format!("no store at {}", dir.display()) }),
        }
    }

    fn remove(&self, dir: &Path) -> Result<(), EngineError> {
        lock(&self.stores).remove(dir);
        Ok(())
    }

    fn list(&self, parent: &Path) -> Result<Vec<String>, EngineError> {
        let stores = lock(&self.stores);
        let inside = stores.keys().filter(|dir| dir.parent() == Some(parent));
        Ok(inside.filter_map(|dir| dir.file_name()).map(|name| name.to_string_lossy().into_owned()).collect())
    }
}

impl Twin {
    fn write(&self, write: Write) -> Option<Bytes> {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let old = redo(&mut rows, &write);
        lock(&self.disk).writes.push(write);
        old
    }

    fn batch(&self, from: &Bound<Bytes>, to: &Bound<Bytes>) -> Vec<(Bytes, Bytes)> {
        if is_empty(from, to) {
            return Vec::new();
        }
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let range = rows.range((from.clone(), to.clone()));
        range.take(SCAN_BATCH_ROWS).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
}

impl Engine for Twin {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.rows.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn insert(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.write((Bytes::copy_from_slice(key), Some(Bytes::copy_from_slice(value)))))
    }

    fn remove(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
        Ok(self.write((Bytes::copy_from_slice(key), None)))
    }

    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> EngineScan<'_> {
        let (mut from, to) = (from.map(Bytes::copy_from_slice), to.map(Bytes::copy_from_slice));
        let batches = std::iter::from_fn(move || {
            let batch = self.batch(&from, &to);
            let (last, _) = batch.last()?;
            from = Bound::Excluded(last.clone());
            Some(batch)
        });
        Box::new(batches.flatten().map(Ok))
    }

    fn sync(&self) -> Result<(), EngineError> {
        let mut image = lock(&self.disk);
        let writes = std::mem::take(&mut image.writes);
        for write in &writes {
            redo(&mut image.durable, write);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), EngineError> {
        Ok(())
    }

    fn disk_bytes(&self) -> Result<u64, EngineError> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        Ok(rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum())
    }
}

/// Whether no key lies between the bounds; `BTreeMap::range` panics on some of these.
fn is_empty(from: &Bound<Bytes>, to: &Bound<Bytes>) -> bool {
    match (from, to) {
        (Bound::Included(from), Bound::Included(to)) => from > to,
        (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
            from >= to
        }
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
    }
}

fn redo(rows: &mut Rows, (key, value): &Write) -> Option<Bytes> {
    match value {
        Some(value) => rows.insert(key.clone(), value.clone()),
        None => rows.remove(key),
    }
}

/// A panic elsewhere leaves the maps as whole as they were: every change is one call.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(engine: &dyn Engine) -> Vec<Bytes> {
        engine.scan(Bound::Unbounded, Bound::Unbounded).map(|row| row.unwrap().0).collect()
    }

    #[test]
    fn a_crash_keeps_a_prefix_and_all_that_was_synced() {
        let factory = TwinFactory::new();
        let dir = Path::new("shard-1/gen-0");
        let engine = factory.open(dir, true).unwrap();
        engine.insert(b"a", b"1").unwrap();
        engine.sync().unwrap();
        engine.insert(b"b", b"2").unwrap();
        engine.insert(b"c", b"3").unwrap();
        factory.crash(&mut |writes| {
            assert_eq!(writes, 2);
            1
        });
        engine.insert(b"d", b"a dead process writes").unwrap();
        assert_eq!(keys(&*factory.open(dir, false).unwrap()), ["a", "b"]);
    }

    #[test]
    fn a_scan_goes_over_its_batches_and_holds_its_bounds() {
        let factory = TwinFactory::new();
        let engine = factory.open(Path::new("x/y"), true).unwrap();
        for n in 0..100_u8 {
            engine.insert(&[n], b"").unwrap();
        }
        let found: Vec<u8> =
            engine.scan(Bound::Excluded(&[1]), Bound::Excluded(&[90])).map(|row| row.unwrap().0[0]).collect();
        assert_eq!(found, (2..90).collect::<Vec<u8>>());
        assert_eq!(engine.scan(Bound::Included(&[9]), Bound::Excluded(&[3])).count(), 0);
    }
}
