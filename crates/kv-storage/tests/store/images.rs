//! sled itself: what a kill or a power cut leaves of its files at each step of a merge recovers, by redo.
//!
//! A kill leaves the files as they are. A power cut leaves the `db` file as of its last fdatasync, and any of the
//! 4 KiB blocks written since, with the old length or the new.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use kv_storage::disk::RealDisk;
use kv_storage::{
    Checkpoint, CheckpointStep, ShardStore, SledFactory, StoreOptions, StoreStart, verify_base,
};
use kv_types::{LogIndex, Nanos};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use crate::node::{Model, SHARD, Wal, scan_all};

const DB: &str = "shard-1/gen-0/db";
const BLOCK_BYTES: usize = 4 << 10;

struct SledNode {
    dir: TempDir,
    wal: Wal,
    store: ShardStore,
}

pub(crate) fn open(dir: &Path, wal: &Wal, wal_last: LogIndex) -> ShardStore {
    let disk = RealDisk::new(dir).unwrap();
    let engines = Arc::new(SledFactory::new(disk.clone(), 8 << 20));
    let start =
        StoreStart { shard: SHARD, base: wal.base.clone(), merge: wal.merge, wal_last, damaged: false };
    ShardStore::open(Arc::new(disk), engines, start, StoreOptions::default()).unwrap().0
}

impl SledNode {
    fn new(model: &Model) -> Self {
        let wal = Wal { base: kv_storage::BaseNote::default(), merge: None, last: None };
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), &wal, LogIndex::new(model.last()));
        Self { dir, wal, store }
    }

    fn apply(&mut self, model: &mut Model, count: u64) {
        for _ in 0..count {
            let next = self.store.applied().applied.index.next();
            self.store.apply(model.entry(next)).unwrap();
        }
    }

    fn step(&mut self, checkpoint: &mut Checkpoint) -> bool {
        match checkpoint.step(Nanos::default()).unwrap() {
            CheckpointStep::Again | CheckpointStep::Wait => {}
            CheckpointStep::Wal(op) => self.wal.write(op),
            CheckpointStep::Done(done) => {
                drop(self.store.merged(done));
                return true;
            }
        }
        false
    }

    fn checkpoint(&mut self) {
        let mut checkpoint = self.store.freeze().unwrap();
        while !self.step(&mut checkpoint) {}
    }

    fn db(&self) -> Vec<u8> {
        fs::read(self.dir.path().join(DB)).unwrap()
    }

    /// A copy of all files, as a kill at this moment leaves them.
    fn image(&self) -> TempDir {
        self.store.flush_effects().unwrap();
        let image = tempfile::tempdir().unwrap();
        copy_dir(self.dir.path(), image.path());
        image
    }
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Recovers an image and goes on: a merge, and a look at the base it makes.
fn recovers(image: TempDir, wal: &Wal, model: &Model) {
    let mut node = SledNode {
        store: open(image.path(), wal, LogIndex::new(model.last())),
        wal: wal.clone(),
        dir: image,
    };
    let applied = node.store.applied().applied.index;
    assert_eq!(*node.store.applied(), model.opened(applied));
    assert!(wal.merge.is_none_or(|merge| applied >= merge.to));
    node.store.verify().unwrap();
    assert_eq!(&scan_all(&node.store.reader().pin(Nanos::default()).unwrap()), model.state(applied));
    if applied > node.store.base().meta.last.index {
        node.checkpoint();
    }
    let SledNode { dir, store, .. } = node;
    drop(store);
    let engines = SledFactory::new(RealDisk::new(dir.path()).unwrap(), 8 << 20);
    let report = verify_base(&engines, SHARD, kv_storage::Generation::default()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.hash, model.opened(applied).hash);
}

/// Puts the power cut into the `db` file of an image: of what changed since `durable`, some blocks arrived.
fn cut_power(image: &TempDir, durable: &[u8], rng: &mut ChaCha8Rng) {
    let path = image.path().join(DB);
    let written = fs::read(&path).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let share = f64::from(rng.random_range(0..=4)) / 4.0;
    for (number, block) in written.chunks(BLOCK_BYTES).enumerate() {
        let at = number * BLOCK_BYTES;
        let old = durable.get(at..).map_or(&[][..], |rest| &rest[..rest.len().min(block.len())]);
        if old != block && !rng.random_bool(share) {
            let mut lost = old.to_vec();
            lost.resize(block.len(), 0);
            file.write_all_at(&lost, at as u64).unwrap();
        }
    }
    if written.len() > durable.len() && rng.random_bool(0.5) {
        file.set_len(durable.len() as u64).unwrap();
    }
}

/// A base with some history, and a merge into it about to begin.
fn before_merge() -> (SledNode, Model, Checkpoint) {
    let mut model = Model::new(21, 700);
    let mut node = SledNode::new(&model);
    for _ in 0..4 {
        node.apply(&mut model, 250);
        node.checkpoint();
    }
    node.apply(&mut model, 350);
    let checkpoint = node.store.freeze().unwrap();
    (node, model, checkpoint)
}

#[test]
fn a_kill_at_each_step_of_a_merge_recovers() {
    let (mut node, mut model, mut checkpoint) = before_merge();
    recovers(node.image(), &node.wal, &model);
    while !node.step(&mut checkpoint) {
        node.apply(&mut model, 3);
        recovers(node.image(), &node.wal, &model);
    }
    recovers(node.image(), &node.wal, &model);
}

#[test]
fn a_power_cut_within_each_step_of_a_merge_recovers() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (mut node, mut model, mut checkpoint) = before_merge();
    let mut changed = 0;
    loop {
        let (durable, wal) = (node.db(), node.wal.clone());
        let done = node.step(&mut checkpoint);
        node.apply(&mut model, 3);
        changed += usize::from(durable != node.db());
        // What the step asks of the WAL comes after its sync, so the cut finds the WAL as it was before.
        for _ in 0..3 {
            let image = node.image();
            cut_power(&image, &durable, &mut rng);
            recovers(image, &wal, &model);
        }
        if done {
            break;
        }
    }
    assert!(changed >= 5, "only {changed} steps wrote anything");
}

#[test]
fn a_deleted_row_in_the_file_of_sled_is_seen_by_the_verification() {
    let (node, model, _) = before_merge();
    let SledNode { dir, wal, store } = node;
    drop(store);
    let (key, _) = model.state(wal.base.meta.last.index).first_key_value().unwrap();
    let db =
        sled::Config::default().path(dir.path().join("shard-1/gen-0")).segment_size(8 << 20).open().unwrap();
    assert!(db.remove(key.encoded()).unwrap().is_some());
    db.flush().unwrap();
    drop(db);
    let engines = SledFactory::new(RealDisk::new(dir.path()).unwrap(), 8 << 20);
    let report = verify_base(&engines, SHARD, kv_storage::Generation::default()).unwrap();
    assert!(!report.is_sound());
}

#[test]
fn a_store_that_a_crash_left_half_created_is_created_anew() {
    let mut model = Model::new(21, 24);
    for file in ["conf", "db", "snap.0000000000000000"] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("shard-1/gen-0")).unwrap();
        fs::write(dir.path().join("shard-1/gen-0").join(file), b"half").unwrap();
        let wal = Wal { base: kv_storage::BaseNote::default(), merge: None, last: None };
        let store = open(dir.path(), &wal, LogIndex::new(model.last()));
        let mut node = SledNode { dir, wal, store };
        node.apply(&mut model, 10);
        node.checkpoint();
        recovers(node.image(), &node.wal, &model);
    }
}
