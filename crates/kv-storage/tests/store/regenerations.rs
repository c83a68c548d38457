//! A base rewritten while merges and writes go on is the same state, whenever the power goes; and its file is small.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kv_storage::disk::RealDisk;
use kv_storage::{
    AppliedEntry, Checkpoint, CheckpointStep, EngineFactory, Generation, Regeneration, RegenerationError,
    RegenerationStep, Retired, ShardStore, SledFactory, SnapshotReceiver, TwinFactory, WalOp, verify_base,
};
use kv_types::{LogId, LogIndex, Nanos, Row, RowChange, RowKey, Space, Term};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::crashes::{self, chunk_rows};
use crate::node::{Model, Node, SHARD, Wal, chooser};
use crate::snapshots::leave_free;

/// A regeneration and what goes on beside it.
struct Rewriting {
    node: Node,
    model: Model,
    merge: Option<Checkpoint>,
    regeneration: Option<Regeneration>,
    /// The last checkpoint, whose rows go into the new generation.
    end: Option<Checkpoint>,
    done: bool,
}

fn begin(node: &Node, generation: Generation) -> Regeneration {
    let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&node.engines);
    Regeneration::begin(node.store.snapshot_source(), engines, generation).unwrap()
}

impl Rewriting {
    /// Of a base at 300, with a merge to 400 under way.
    fn new(seed: u64) -> Self {
        let (mut node, mut model) = (Node::new(), Model::new(seed, 150));
        node.apply(&mut model, 300);
        node.checkpoint();
        node.apply(&mut model, 100);
        let regeneration = Some(begin(&node, node.wal.base.generation.next()));
        let merge = node.store.freeze();
        Self { node, model, merge, regeneration, end: None, done: false }
    }

    /// A step of the regeneration, and of what goes on beside it.
    fn step(&mut self) {
        let Self { node, model, .. } = self;
        let is_merging = self.merge.is_some();
        if let Some(mut merge) = self.merge.take() {
            let merged = (0..4).any(|_| node.step(&mut merge));
            self.merge = (!merged).then_some(merge);
        }
        if let Some(mut regeneration) = self.regeneration.take() {
            let caught_up = regeneration.step().unwrap() == RegenerationStep::CaughtUp;
            if caught_up && !is_merging {
                self.end = Some(node.store.freeze_into(Box::new(regeneration)).unwrap());
            } else {
                self.regeneration = Some(regeneration);
            }
        }
        node.apply(model, 1);
        if let Some(end) = &mut self.end
            && !self.done
        {
            self.done = node.step(end);
        }
        node.purge(LogIndex::new(u64::MAX));
    }

    fn run_to_the_end(&mut self) {
        while !self.done {
            self.step();
        }
        // It looks at the old base until it is dropped.
        self.end = None;
        self.node.sweep();
    }
}

fn generations(node: &Node) -> Vec<String> {
    node.engines.list(Path::new("shard-1")).unwrap()
}

fn goes_on(node: Node, model: Model) {
    let (node, model) = crashes::goes_on(node, model);
    let last = node.store.applied().applied.index;
    let report = verify_base(&*node.engines, SHARD, node.wal.base.generation).unwrap();
    assert!(report.is_sound(), "{report:?}");
    assert_eq!(report.rows, model.state(last).len() as u64);
    let values = model.state(last).values().map(|row| row.value.len());
    let chunks: usize = values.filter(|len| *len > 16_384).map(|len| len.div_ceil(16_384)).sum();
    assert_eq!(chunk_rows(&node), chunks);
}

#[test]
fn a_rewritten_base_is_the_state_and_the_effects_go_on() {
    for seed in 0..6 {
        let mut rewriting = Rewriting::new(seed);
        rewriting.run_to_the_end();
        let Rewriting { mut node, mut model, .. } = rewriting;
        assert_eq!(generations(&node), ["gen-1"]);
        assert_eq!(node.wal.base.generation, Generation::new(1));
        let base = node.store.base().meta.last.index;
        assert!(base > LogIndex::new(400) && base < node.store.applied().applied.index);
        node.check(&model);
        node.apply(&mut model, 10);
        // History is whole across the change: what a watch reads next is there.
        let reader = node.store.reader();
        let first = reader.first_effect();
        assert!(first <= base.next());
        let entries = reader.effects(first, usize::MAX).unwrap();
        assert!(entries.iter().all(|entry| *entry == model.entry(entry.id.index)));
        node.store.sync_effects().unwrap();
        let applied = node.store.applied().applied.index;
        let node = node.crash(&model, &mut chooser(seed));
        assert_eq!(node.store.applied().applied.index, applied, "its effects were not thrown away");
        assert_eq!(node.store.reader().first_effect(), first);
        goes_on(node, model);
    }
}

#[test]
fn power_cut_after_each_step_of_a_regeneration() {
    let mut ends = [0, 0];
    for seed in 0..4 {
        for steps in 0.. {
            let mut rewriting = Rewriting::new(seed);
            for _ in 0..steps {
                rewriting.step();
            }
            let Rewriting { node, model, regeneration, end, done, .. } = rewriting;
            // The process that would have tidied up is dead.
            std::mem::forget((regeneration, end));
            let node = node.crash(&model, &mut chooser(seed * 1000 + steps));
            let current = node.wal.base.generation.to_string();
            assert_eq!(generations(&node), [current], "what the WAL does not name is gone");
            ends[usize::from(node.wal.base.generation == Generation::new(1))] += 1;
            goes_on(node, model);
            if done {
                break;
            }
        }
    }
    assert!(ends[0] > 20 && ends[1] > 4, "{ends:?} crashes before and after the record");
}

#[test]
fn a_regeneration_whose_effects_were_given_up_ends_and_nothing_is_damaged() {
    let mut ends = Vec::new();
    for steps in 0.. {
        let mut rewriting = Rewriting::new(3);
        for _ in 0..steps {
            rewriting.step();
        }
        let Rewriting { mut node, mut model, mut merge, regeneration, end, .. } = rewriting;
        let Some(mut regeneration) = regeneration else {
            assert!(end.is_some());
            break;
        };
        while merge.as_mut().is_some_and(|merge| !node.step(merge)) {}
        drop(merge);
        // So much that whole files are kept for it alone.
        node.apply(&mut model, 150);
        node.checkpoint();
        leave_free(&node, 0);
        node.purge(LogIndex::new(u64::MAX));
        let ended = loop {
            match regeneration.step() {
                Ok(RegenerationStep::Again) => {}
                Ok(RegenerationStep::CaughtUp) => panic!("it was given up after {steps} steps"),
                Err(cause) => break cause,
            }
        };
        assert!(matches!(ended, RegenerationError::Outrun { .. }), "{ended}");
        ends.push(regeneration.is_following());
        drop(regeneration);
        leave_free(&node, 1 << 30);
        assert_eq!(generations(&node), ["gen-0"]);
        node.store.sync_effects().unwrap();
        let node = node.crash(&model, &mut chooser(steps));
        goes_on(node, model);
    }
    assert!(ends.contains(&false) && ends.contains(&true), "{ends:?}");
}

#[test]
fn a_table_that_should_have_ended_a_regeneration_is_merged_where_it_was() {
    let Rewriting { mut node, mut model, merge, regeneration, .. } = Rewriting::new(4);
    let (mut merge, mut regeneration) = (merge.unwrap(), regeneration.unwrap());
    while !node.step(&mut merge) {}
    drop(merge);
    while regeneration.step().unwrap() == RegenerationStep::Again {}
    // It had caught up, but merges have overtaken it before it could end.
    node.apply(&mut model, 150);
    node.checkpoint();
    node.apply(&mut model, 10);
    let mut end = node.store.freeze_into(Box::new(regeneration)).unwrap();
    leave_free(&node, 0);
    node.purge(LogIndex::new(u64::MAX));
    leave_free(&node, 1 << 30);
    while !node.step(&mut end) {}
    drop(end);
    assert_eq!(node.wal.base.generation, Generation::default());
    assert_eq!(node.wal.base.meta.last.index, LogIndex::new(560));
    node.store.sync_effects().unwrap();
    let node = node.crash(&model, &mut chooser(4));
    goes_on(node, model);
}

#[test]
fn the_record_was_lost_after_the_new_generation_was_complete() {
    for seed in 0..6 {
        let mut rewriting = Rewriting::new(seed);
        let mut before = rewriting.node.wal.clone();
        while !rewriting.done {
            before = rewriting.node.wal.clone();
            rewriting.step();
            if rewriting.node.wal.base.generation == Generation::new(1) {
                break;
            }
        }
        let Rewriting { mut node, model, end, .. } = rewriting;
        std::mem::forget(end);
        assert_eq!(generations(&node).len(), 2);
        node.wal = before;
        let node = node.crash(&model, &mut chooser(seed));
        assert_eq!(generations(&node), ["gen-0"]);
        goes_on(node, model);
    }
}

#[test]
fn a_shard_that_rests_can_be_rewritten_and_again() {
    let (mut node, mut model) = (Node::new(), Model::new(3, 40));
    node.apply(&mut model, 60);
    node.checkpoint();
    for generation in 1..4 {
        let mut regeneration = begin(&node, Generation::new(generation));
        while regeneration.step().unwrap() == RegenerationStep::Again {}
        let mut end = node.store.freeze_into(Box::new(regeneration)).unwrap();
        while !node.step(&mut end) {}
        drop(end);
        node.sweep();
        assert_eq!(generations(&node), [format!("gen-{generation}")]);
        node.check(&model);
    }
    goes_on(node.kill(&model), model);
}

#[test]
fn a_cut_merge_is_made_good_by_a_regeneration() {
    for seed in 0..6 {
        let (mut node, mut model) = (Node::new(), Model::new(seed, 40));
        node.apply(&mut model, 60);
        node.checkpoint();
        node.apply(&mut model, 60);
        let mut merge = node.store.freeze().unwrap();
        for _ in 0..5 {
            node.step(&mut merge);
        }
        let mut node = node.crash(&model, &mut chooser(seed));
        assert!(node.wal.merge.is_some());
        let mut regeneration = begin(&node, Generation::new(1));
        while regeneration.step().unwrap() == RegenerationStep::Again {}
        let mut end = node.store.freeze_into(Box::new(regeneration)).unwrap();
        while !node.step(&mut end) {}
        assert!(node.wal.merge.is_none());
        goes_on(node, model);
    }
}

#[test]
fn readers_of_the_old_base_are_not_disturbed() {
    let (mut node, mut model) = (Node::new(), Model::new(8, 60));
    node.apply(&mut model, 100);
    node.checkpoint();
    node.apply(&mut model, 40);
    let pin = node.store.reader().pin(Nanos::default()).unwrap();
    node.apply(&mut model, 40);
    let mut regeneration = begin(&node, Generation::new(1));
    while regeneration.step().unwrap() == RegenerationStep::Again {}
    let mut end = node.store.freeze_into(Box::new(regeneration)).unwrap();
    // The step would panic if it had to wait for the pin.
    while !node.step(&mut end) {}
    drop(end);
    node.apply(&mut model, 40);
    assert_eq!(&crate::node::scan_all(&pin), model.state(LogIndex::new(140)));
    assert_eq!(generations(&node), ["gen-0", "gen-1"]);
    drop(pin);
    node.sweep();
    assert_eq!(generations(&node), ["gen-1"]);
    node.check(&model);
}

#[test]
fn a_snapshot_wins_over_a_regeneration() {
    let mut rewriting = Rewriting::new(2);
    for _ in 0..4 {
        rewriting.step();
    }
    let Rewriting { mut node, model, merge, regeneration, .. } = rewriting;
    drop(merge);
    let (mut sender, mut other_model) = (Node::new(), Model::new(2, 150));
    sender.apply(&mut other_model, 900);
    let mut source = sender.store.snapshot_source();
    let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&node.engines);
    let mut receiver = SnapshotReceiver::new(engines, SHARD, Generation::new(2)).unwrap();
    while let Some(chunk) = source.next_chunk().unwrap() {
        receiver.push(&chunk).unwrap();
    }
    let received = receiver.finish().unwrap();
    node.wal.write(WalOp::Install { hard: None, base: received.base().clone(), keep_tail: false });
    node.store.install(received).unwrap();
    let regeneration = node.store.freeze_into(Box::new(regeneration.unwrap()));
    let mut regeneration = regeneration.expect_err("it is not of this state");
    assert!(matches!(regeneration.step(), Err(RegenerationError::Replaced)));
    drop(regeneration);
    node.sweep();
    assert_eq!(generations(&node), ["gen-2"]);
    drop(model);
    goes_on(node, other_model);
}

#[test]
fn rows_that_are_not_what_the_hash_says_are_not_rewritten() {
    let (mut node, mut model) = (Node::new(), Model::new(1, 24));
    node.apply(&mut model, 30);
    node.checkpoint();
    let (key, _) = model.state(LogIndex::new(30)).first_key_value().unwrap();
    assert!(node.engines.damage(Path::new("shard-1/gen-0"), key.encoded(), |_| None));
    let mut regeneration = begin(&node, Generation::new(1));
    let damage = loop {
        match regeneration.step() {
            Ok(RegenerationStep::CaughtUp) => panic!("the damage was not seen"),
            Ok(RegenerationStep::Again) => {}
            Err(cause) => break cause,
        }
    };
    assert!(matches!(damage, RegenerationError::Damaged(_)), "{damage}");
    drop(regeneration);
    assert_eq!(generations(&node), ["gen-0"]);
}

/// A hot set of rows, each overwritten by every round.
struct Rounds {
    rows: BTreeMap<RowKey, Row>,
    rng: ChaCha8Rng,
}

impl Rounds {
    const ROWS: u32 = 4000;

    fn entry(&mut self, store: &ShardStore) -> AppliedEntry {
        let mut numbers: Vec<u32> = Vec::new();
        for _ in 0..50 {
            let number = self.rng.random_range(0..Self::ROWS);
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        self.overwrite(store, &numbers, 4000)
    }

    fn overwrite(&mut self, store: &ShardStore, numbers: &[u32], bytes: usize) -> AppliedEntry {
        let before = store.applied();
        let (index, mut hash) = (before.applied.index.next(), before.hash);
        let mut changes: Vec<RowChange> = Vec::new();
        for number in numbers {
            let key = RowKey::new(Space::User, &number.to_be_bytes());
            let value = Bytes::from(vec![self.rng.random::<u8>(); bytes]);
            let row = Row::new(index.revision(), index.revision(), 1, before.stamp, &value);
            let old = self.rows.insert(key.clone(), row.clone());
            hash = hash.replaced(&key, old.as_ref().map(|old| &old.head), Some(&row.head));
            changes.push(RowChange { key, previous: old.map(|old| old.head.modified), row: Some(row) });
        }
        let id = LogId::new(Term::new(1), index);
        AppliedEntry { id, stamp: before.stamp, membership: None, changes, hash }
    }
}

fn run(store: &mut ShardStore, wal: &mut Wal, mut checkpoint: Checkpoint) {
    loop {
        match checkpoint.step(Nanos::default()).unwrap() {
            CheckpointStep::Again | CheckpointStep::Wait => {}
            CheckpointStep::Wal(op) => wal.write(op),
            CheckpointStep::Done(done) => return drop(store.merged(done)),
        }
    }
}

/// What is deleted while a base is rewritten must not make it look as if its rows took so much space.
#[test]
fn how_large_a_fresh_base_is_counts_what_was_copied() {
    let (mut node, mut model) = (Node::new(), Model::new(7, 150));
    node.apply(&mut model, 300);
    node.checkpoint();
    let copied = node.store.reader().base_size().unwrap().rows;
    // These are no rows of the stream, but effects at its end.
    node.apply(&mut model, 300);
    let mut regeneration = begin(&node, node.wal.base.generation.next());
    while !regeneration.is_following() {
        regeneration.step().unwrap();
    }
    assert_ne!(model.state(node.store.applied().applied.index).len() as u64, copied, "rows come and go");
    node.apply(&mut model, 300);
    while regeneration.step().unwrap() == RegenerationStep::Again {}
    let mut end = node.store.freeze_into(Box::new(regeneration)).unwrap();
    while !node.step(&mut end) {}
    let size = node.store.reader().base_size().unwrap();
    assert_eq!(size.fresh_rows, copied);
    assert_ne!(size.rows, copied, "rows come and go");
}

/// The point of it all, on the real engine: rows overwritten again and again leave a file several times as long as what
/// is alive; a new generation is not.
#[test]
fn the_file_of_an_overwritten_base_shrinks() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = Wal { base: kv_storage::BaseNote::default(), merge: None, last: None };
    let mut store = crate::images::open(dir.path(), &wal, LogIndex::ZERO);
    let mut rounds = Rounds { rows: BTreeMap::new(), rng: ChaCha8Rng::seed_from_u64(5) };
    for _ in 0..20 {
        for _ in 0..40 {
            let entry = rounds.entry(&store);
            store.apply(entry).unwrap();
        }
        let merge = store.freeze().unwrap();
        run(&mut store, &mut wal, merge);
    }
    let (before, live) = (store.reader().base_size().unwrap().file_bytes, count(&store));
    let engines = SledFactory::new(RealDisk::new(dir.path()).unwrap(), 8 << 20);
    let source = store.snapshot_source();
    let mut regeneration = Regeneration::begin(source, Arc::new(engines), Generation::new(1)).unwrap();
    while regeneration.step().unwrap() == RegenerationStep::Again {}
    let end = store.freeze_into(Box::new(regeneration)).unwrap();
    run(&mut store, &mut wal, end);
    store.retired().into_iter().try_for_each(Retired::remove).unwrap();
    store.verify().unwrap();
    let after = store.reader().base_size().unwrap().file_bytes;
    eprintln!("{live} bytes alive: the file had {before}, has {after}");
    assert_eq!(count(&store), live);
    assert!(after * 3 < before * 2, "{live} bytes alive: the file had {before}, has {after}");
    assert!(!dir.path().join("shard-1/gen-0").exists());
    let last = store.applied().clone();
    drop(store);
    let store = crate::images::open(dir.path(), &wal, last.applied.index);
    assert_eq!(store.applied(), &last);
    store.verify().unwrap();
}

/// A long row that is overwritten all the time while the base is rewritten is written a few times, not each time: else the
/// new file would be as long as the old one.
#[test]
fn a_rewritten_base_is_short_although_a_long_row_is_overwritten_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let mut wal = Wal { base: kv_storage::BaseNote::default(), merge: None, last: None };
    let mut store = crate::images::open(dir.path(), &wal, LogIndex::ZERO);
    let mut rounds = Rounds { rows: BTreeMap::new(), rng: ChaCha8Rng::seed_from_u64(6) };
    let entry = rounds.overwrite(&store, &(0..500).collect::<Vec<_>>(), 4000);
    store.apply(entry).unwrap();
    let merge = store.freeze().unwrap();
    run(&mut store, &mut wal, merge);
    let engines = SledFactory::new(RealDisk::new(dir.path()).unwrap(), 8 << 20);
    let source = store.snapshot_source();
    let mut regeneration = Regeneration::begin(source, Arc::new(engines), Generation::new(1)).unwrap();
    while !regeneration.is_following() {
        regeneration.step().unwrap();
    }
    for _ in 0..200 {
        let entry = rounds.overwrite(&store, &[Rounds::ROWS], 256 << 10);
        store.apply(entry).unwrap();
    }
    while regeneration.step().unwrap() == RegenerationStep::Again {}
    let end = store.freeze_into(Box::new(regeneration)).unwrap();
    run(&mut store, &mut wal, end);
    store.verify().unwrap();
    let (after, live) = (store.reader().base_size().unwrap().file_bytes, count(&store));
    eprintln!("{live} bytes alive: the file has {after}");
    assert!(after < 5 * live, "{live} bytes alive: the file has {after}");
}

fn count(store: &ShardStore) -> u64 {
    let mut live = store.reader().live_bytes();
    loop {
        if let Some(bytes) = live.step().unwrap() {
            return bytes;
        }
    }
}
