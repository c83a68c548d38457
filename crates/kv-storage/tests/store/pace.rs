//! How much a merge writes between two syncs: sled reuses segments, so a power cut between two syncs that are far apart
//! would destroy old rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::wal::RecoveredShard;
use kv_storage::{AppliedEntry, CheckpointStep, EngineFactory, ShardStore, StoreOptions, StoreStart};
use kv_types::{Lamport, LogId, LogIndex, Nanos, Row, RowChange, RowKey, Space, StateHash, Term};

use crate::node::SHARD;
use crate::watched::WatchedFactory;

pub(crate) fn put(index: u64, name: u64, bytes: usize) -> AppliedEntry {
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

pub(crate) fn open() -> (Arc<WatchedFactory>, ShardStore) {
    let factory = Arc::new(WatchedFactory::default());
    let start =
        StoreStart { wal_last: LogIndex::new(1), ..StoreStart::of(SHARD, &RecoveredShard::default()) };
    let engines: Arc<dyn EngineFactory> = Arc::<WatchedFactory>::clone(&factory);
    let disk = Arc::new(VirtualDisk::new());
    let (store, _) = ShardStore::open(disk, engines, start, StoreOptions::default()).unwrap();
    (factory, store)
}

pub(crate) fn merge(store: &mut ShardStore) {
    let mut checkpoint = store.freeze().unwrap();
    loop {
        if let CheckpointStep::Done(done) = checkpoint.step(Nanos::default()).unwrap() {
            drop(store.merged(done));
            return;
        }
    }
}

fn most_between_syncs(value_bytes: &[usize]) -> (usize, usize) {
    let (factory, mut store) = open();
    for (index, bytes) in (1..).zip(value_bytes) {
        store.apply(put(index, index, *bytes)).unwrap();
    }
    merge(&mut store);
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
