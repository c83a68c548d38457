//! A crash at every named point recovers the state of some entry, at least the base's, and goes on from there.

use std::path::Path;

use kv_storage::disk::Disk;
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::{ReadError, ShardStore, StoreError};
use kv_types::{LogIndex, RowKey, Space};

use crate::node::{Model, Node, SHARD, chooser};

const SEEDS: u64 = 6;

/// Base at 40, entries to 80 frozen, `steps` steps of their merge done, ten entries more. Whether the merge had as many
/// steps.
fn in_merge(seed: u64, steps: usize) -> (Node, Model, bool) {
    let (mut node, mut model) = (Node::new(), Model::new(seed, 24));
    node.apply(&mut model, 40);
    node.checkpoint();
    node.apply(&mut model, 40);
    let mut checkpoint = node.store.freeze().unwrap();
    let mut unfinished = true;
    for _ in 0..steps {
        unfinished = unfinished && !node.step(&mut checkpoint);
    }
    node.apply(&mut model, 10);
    (node, model, unfinished)
}

pub(crate) fn goes_on(mut node: Node, mut model: Model) -> (Node, Model) {
    node.apply(&mut model, 25);
    node.check(&model);
    node.checkpoint();
    node.check(&model);
    let last = node.store.applied().applied.index;
    assert_eq!(node.store.base().meta.last.index, last);
    let node = node.crash(&model, &mut chooser(1));
    assert_eq!(node.store.applied().applied.index, last);
    (node, model)
}

#[test]
fn power_cut_after_each_step_of_a_merge() {
    for seed in 0..SEEDS {
        for steps in 0.. {
            let (node, model, unfinished) = in_merge(seed, steps);
            let node = node.crash(&model, &mut chooser(seed * 1000 + steps as u64));
            goes_on(node, model);
            if !unfinished {
                break;
            }
        }
    }
}

#[test]
fn kill_after_each_step_of_a_merge() {
    for steps in 0.. {
        let (node, model, unfinished) = in_merge(77, steps);
        goes_on(node.kill(&model), model);
        if !unfinished {
            break;
        }
    }
}

#[test]
fn a_merge_cut_twice_and_chunks_of_both_are_gone_in_the_end() {
    for seed in 0..SEEDS {
        let (node, mut model, _) = in_merge(seed, 5);
        let mut node = node.crash(&model, &mut chooser(seed));
        node.apply(&mut model, 15);
        let mut checkpoint = node.store.freeze().unwrap();
        for _ in 0..5 {
            node.step(&mut checkpoint);
        }
        let mut node = node.crash(&model, &mut chooser(seed + 500));
        node.apply(&mut model, 15);
        node.checkpoint();
        let index = node.store.applied().applied.index;
        let live = model.state(index).values();
        let chunks: usize =
            live.map(|row| row.value.len()).filter(|len| *len > 16_384).map(|len| len.div_ceil(16_384)).sum();
        assert_eq!(chunk_rows(&node), chunks, "seed {seed}");
        let engines: &dyn kv_storage::EngineFactory = &*node.engines;
        let report = kv_storage::verify_base(engines, SHARD, node.wal.base.generation).unwrap();
        assert!(report.is_sound(), "{report:?}");
        assert_eq!(report.rows, model.state(index).len() as u64);
    }
}

/// The first merge is complete in the base but its note is lost with the WAL's tail; the second is cut wherever, also
/// before it has touched a row: the base then says neither what the WAL noted nor what the second merge leads to.
#[test]
fn a_merge_whose_note_was_lost_and_the_next_one_cut() {
    for cut in 1..12 {
        let (mut node, mut model) = (Node::new(), Model::new(cut, 24));
        node.apply(&mut model, 40);
        node.checkpoint();
        node.apply(&mut model, 40);
        let mut checkpoint = node.store.freeze().unwrap();
        let mut noted = node.wal.clone();
        while !node.step(&mut checkpoint) {
            if node.wal.base == noted.base {
                noted = node.wal.clone();
            }
        }
        node.wal = noted;
        let mut node = node.crash(&model, &mut chooser(cut));
        node.apply(&mut model, 15);
        let mut checkpoint = node.store.freeze().unwrap();
        for _ in 0..cut {
            node.step(&mut checkpoint);
        }
        goes_on(node.crash(&model, &mut chooser(cut + 100)), model);
    }
}

pub(crate) fn chunk_rows(node: &Node) -> usize {
    use kv_storage::EngineFactory;
    let dir = format!("shard-1/{}", node.wal.base.generation);
    let engine = node.engines.open(Path::new(&dir), false).unwrap();
    engine.scan(std::ops::Bound::Included(b"c"), std::ops::Bound::Excluded(b"d")).count()
}

#[test]
fn the_wal_op_was_lost_after_the_step_that_asked_for_it() {
    for lost in 1..40 {
        let (mut node, mut model) = (Node::new(), Model::new(lost, 24));
        node.apply(&mut model, 40);
        node.checkpoint();
        node.apply(&mut model, 40);
        let mut checkpoint = node.store.freeze().unwrap();
        let mut before = node.wal.clone();
        for _ in 0..lost {
            before = node.wal.clone();
            node.step(&mut checkpoint);
        }
        node.wal = before;
        goes_on(node.crash(&model, &mut chooser(lost)), model);
    }
}

#[test]
fn effects_torn_at_every_call_of_the_disk() {
    let (mut node, mut model) = (Node::new(), Model::new(5, 24));
    node.apply(&mut model, 60);
    node.store.sync_effects().unwrap();
    let calls = node.disk.calls();
    for cut in 1..calls {
        let (disk, mut node) = (VirtualDisk::new(), Node::new());
        disk.power_off_after(cut);
        node.disk = disk;
        let Ok((store, _)) = Node::open(&node.disk, &node.engines, &node.wal, 0) else { continue };
        node.store = store;
        let mut last = 0;
        while last < 60 && node.store.apply(model.entry(LogIndex::new(last + 1))).is_ok() {
            last += 1;
            if last % 7 == 0 && node.store.sync_effects().is_err() {
                break;
            }
        }
        node.crash(&model, &mut chooser(cut));
    }
}

#[test]
fn a_synced_effect_is_never_lost() {
    for seed in 0..40 {
        let (mut node, mut model) = (Node::new(), Model::new(seed, 24));
        node.apply(&mut model, 30 + seed);
        node.store.sync_effects().unwrap();
        node.apply(&mut model, 30);
        let node = node.crash(&model, &mut chooser(seed));
        assert!(node.store.applied().applied.index.get() >= 30 + seed);
    }
}

#[test]
fn effects_ahead_of_the_wal_are_cut() {
    for last in 20..50 {
        let (mut node, mut model) = (Node::new(), Model::new(9, 24));
        node.apply(&mut model, 20);
        node.checkpoint();
        node.apply(&mut model, 30);
        node.store.sync_effects().unwrap();
        node.wal.last = Some(LogIndex::new(last));
        let mut node = node.kill(&model);
        assert_eq!(node.store.applied().applied.index, LogIndex::new(last));
        node.wal.last = None;
        node.apply(&mut model, 20);
        node.store.sync_effects().unwrap();
        let node = node.crash(&model, &mut chooser(3));
        assert_eq!(node.store.applied().applied.index, LogIndex::new(last + 20));
    }
}

#[test]
fn effects_that_end_below_an_open_merge_are_damage() {
    let (mut node, model, _) = in_merge(4, 4);
    assert!(node.wal.merge.is_some());
    node.wal.last = Some(LogIndex::new(70));
    let opened = Node::open(&node.disk.copy(), &node.engines, &node.wal, model.last());
    assert_lost(&opened.unwrap().0);
}

#[test]
fn a_flipped_bit_in_the_effects_recovers_what_is_before_it_or_is_damage() {
    for seed in 0..30_u64 {
        let (mut node, mut model) = (Node::new(), Model::new(seed, 24));
        node.apply(&mut model, 30);
        node.checkpoint();
        node.apply(&mut model, 40);
        node.store.sync_effects().unwrap();
        let names = node.disk.list(Path::new("shard-1/effects")).unwrap();
        let name = &names[usize::try_from(seed).unwrap() % names.len()];
        let path = Path::new("shard-1/effects").join(name);
        let len = node.disk.open(&path).unwrap().len().unwrap();
        assert!(node.disk.flip(&path, seed * 7919 % len, 3));
        let node = node.kill(&model);
        goes_on(node, model);
    }
}

#[test]
fn a_deleted_generation_that_crashed_halfway_is_deleted_at_open() {
    use kv_storage::EngineFactory;
    let (mut node, mut model) = (Node::new(), Model::new(2, 24));
    node.apply(&mut model, 20);
    let orphan = node.engines.open(Path::new("shard-1/gen-7"), true).unwrap();
    orphan.insert(b"ukey", b"half").unwrap();
    let node = node.crash(&model, &mut chooser(8));
    assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-0"]);
}

#[test]
fn a_missing_or_wrong_base_is_damage() {
    let (mut node, mut model) = (Node::new(), Model::new(2, 24));
    node.apply(&mut model, 20);
    node.checkpoint();
    let dir = Path::new("shard-1/gen-0");
    let flipped = |value: &[u8]| {
        let mut bad = value.to_vec();
        bad[9] ^= 1;
        Some(bad.into())
    };
    assert!(node.engines.damage(dir, b"n", flipped));
    let opened = Node::open(&node.disk, &node.engines, &node.wal, model.last());
    assert_lost(&opened.unwrap().0);
    assert!(node.engines.damage(dir, b"n", |_| None));
    let opened = Node::open(&node.disk, &node.engines, &node.wal, model.last());
    assert_lost(&opened.unwrap().0);
    node.engines = std::sync::Arc::default();
    let opened = Node::open(&node.disk, &node.engines, &node.wal, model.last());
    assert_lost(&opened.unwrap().0);
}

/// Nothing can be read from a damaged state, and it says so.
fn assert_lost(store: &ShardStore) {
    assert!(store.damage().is_some(), "{store:?}");
    assert!(matches!(store.verify(), Err(StoreError::Damaged { .. })));
    let reader = store.reader();
    let key = RowKey::new(Space::User, b"k");
    assert!(matches!(reader.get(&key), Err(ReadError::Store(StoreError::Damaged { .. }))));
    let mut source = store.snapshot_source();
    assert!(matches!(source.next_chunk(), Err(StoreError::Damaged { .. })));
}
