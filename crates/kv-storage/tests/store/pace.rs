//! How much a merge writes between two syncs: sled reuses segments, so a power cut between two syncs that are far apart
//! would destroy old rows.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::{
    AppliedEntry, BaseNote, CheckpointStep, Engine, EngineError, EngineFactory, EngineScan, ShardStore,
    StoreOptions, StoreStart, TwinFactory,
};
use kv_types::{Lamport, LogId, LogIndex, Nanos, Row, RowChange, RowKey, Space, StateHash, Term};

use crate::node::SHARD;

/// Counts what is written between two syncs.
#[derive(Debug, Default)]
struct Pace {
    writes: AtomicUsize,
    bytes: AtomicUsize,
    writes_most: AtomicUsize,
    bytes_most: AtomicUsize,
}

impl Pace {
    fn wrote(&self, bytes: usize) {
        let writes = self.writes.fetch_add(1, Ordering::SeqCst) + 1;
        self.writes_most.fetch_max(writes, Ordering::SeqCst);
        let bytes = self.bytes.fetch_add(bytes, Ordering::SeqCst) + bytes;
        self.bytes_most.fetch_max(bytes, Ordering::SeqCst);
    }
}

#[derive(Debug)]
struct Paced {
    inner: Arc<dyn Engine>,
    pace: Arc<Pace>,
}

impl Engine for Paced {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError> {
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
struct PacedFactory {
    inner: TwinFactory,
    pace: Arc<Pace>,
}

impl EngineFactory for PacedFactory {
    fn open(&self, dir: &Path, create: bool) -> Result<Arc<dyn Engine>, EngineError> {
        let inner = self.inner.open(dir, create)?;
        Ok(Arc::new(Paced { inner, pace: Arc::clone(&self.pace) }))
    }

    fn remove(&self, dir: &Path) -> Result<(), EngineError> {
        self.inner.remove(dir)
    }

    fn list(&self, parent: &Path) -> Result<Vec<String>, EngineError> {
        self.inner.list(parent)
    }
}

fn put(index: u64, name: u64, bytes: usize) -> AppliedEntry {
    let index = LogIndex::new(index);
    let value = Bytes::from(vec![1; bytes]);
    let row = Row::new(index.revision(), index.revision(), 1, Lamport::ZERO, &value);
    let key = RowKey::new(Space::User, &name.to_be_bytes());
    AppliedEntry {
        id: LogId::new(Term::new(1), index),
        stamp: Lamport::ZERO,
        membership: None,
        changes: vec![RowChange { key, row: Some(row), previous: None }],
        hash: StateHash::EMPTY,
    }
}

fn most_between_syncs(value_bytes: &[usize]) -> (usize, usize) {
    let factory = Arc::new(PacedFactory::default());
    let start =
        StoreStart { shard: SHARD, base: BaseNote::default(), merge: None, wal_last: LogIndex::new(1) };
    let engines: Arc<dyn EngineFactory> = Arc::<PacedFactory>::clone(&factory);
    let (mut store, _) =
        ShardStore::open(Arc::new(VirtualDisk::new()), engines, start, StoreOptions::default()).unwrap();
    for (index, bytes) in (1..).zip(value_bytes) {
        store.apply(put(index, index, *bytes)).unwrap();
    }
    let mut checkpoint = store.freeze().unwrap().unwrap();
    while !matches!(checkpoint.step(Nanos::default()).unwrap(), CheckpointStep::Done(_)) {}
    let pace = &factory.pace;
    (pace.writes_most.load(Ordering::SeqCst), pace.bytes_most.load(Ordering::SeqCst))
}

#[test]
fn small_rows_are_synced_by_number() {
    assert_eq!(most_between_syncs(&[10; 1000]).0, 128);
}

#[test]
fn large_rows_are_synced_by_size() {
    let (writes, bytes) = most_between_syncs(&[16 << 10; 300]);
    assert!(writes < 128 && bytes <= 1 << 20, "{writes} writes, {bytes} bytes");
    let (writes, bytes) = most_between_syncs(&[100 << 10; 60]);
    assert!(writes <= 128 && bytes <= (1 << 20) + (4 << 10), "{writes} writes, {bytes} bytes");
}

#[test]
fn the_largest_rows_are_written_alone() {
    let (writes, bytes) = most_between_syncs(&[1 << 20; 5]);
    assert!(writes == 65 && bytes < (1 << 20) + (8 << 10), "{writes} writes, {bytes} bytes");
}
