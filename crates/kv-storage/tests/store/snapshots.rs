//! A snapshot streamed while merges go on is the sender's state at its trailer, or it is nothing.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kv_storage::disk::Disk as _;
use kv_storage::disk::faulty::DirLoss;
use kv_storage::{
    EngineFactory, Generation, ReadError, Retired, SnapshotError, SnapshotReceiver, StoreError, TwinFactory,
    WalOp,
};
use kv_types::{LogIndex, ShardId};

use crate::crashes::chunk_rows;
use crate::node::{Model, Node, SHARD, chooser};

/// The chunks of a snapshot of a node whose merges go on while it is taken, and where it ends.
fn busy_stream(seed: u64, before: u64) -> (Vec<Bytes>, LogIndex, Node, Model) {
    let (mut node, mut model) = (Node::new(), Model::new(seed, 400));
    node.apply(&mut model, 900);
    node.checkpoint();
    node.apply(&mut model, 100);
    let mut checkpoint = node.store.freeze().unwrap();
    for _ in 0..before {
        node.step(&mut checkpoint);
    }
    let mut source = node.store.snapshot_source();
    let (mut chunks, mut merging) = (Vec::new(), true);
    while let Some(chunk) = source.next_chunk().unwrap() {
        assert!(chunk.len() <= kv_types::limits::SNAPSHOT_CHUNK_BYTES);
        chunks.push(chunk);
        for _ in 0..10 {
            merging = merging && !node.step(&mut checkpoint);
        }
        node.apply(&mut model, 2);
        node.purge(LogIndex::new(u64::MAX));
    }
    let end = source.trailer().unwrap().meta.last.index;
    assert!(end >= LogIndex::new(1000), "it covers the merge that was begun");
    (chunks, end, node, model)
}

fn receiver(node: &Node) -> SnapshotReceiver {
    let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&node.engines);
    SnapshotReceiver::new(engines, SHARD, node.wal.base.generation.next()).unwrap()
}

fn receive(node: &Node, chunks: &[Bytes]) -> Result<kv_storage::ReceivedSnapshot, SnapshotError> {
    let mut receiver = receiver(node);
    for chunk in chunks {
        receiver.push(chunk)?;
    }
    receiver.finish()
}

fn install_op(received: &kv_storage::ReceivedSnapshot) -> WalOp {
    WalOp::Install { hard: None, base: received.base().clone(), keep_tail: true }
}

#[test]
fn a_snapshot_nobody_wants_leaves_nothing() {
    let (chunks, _, node, _) = busy_stream(1, 0);
    let generations = |node: &Node| node.engines.list(Path::new("shard-1")).unwrap();
    let before = generations(&node);
    let received = receive(&node, &chunks).unwrap();
    assert_eq!(generations(&node).len(), before.len() + 1);
    received.discard();
    assert_eq!(generations(&node), before);
}

#[test]
fn a_fuzzy_stream_gives_the_state_at_its_trailer() {
    for seed in 0..6 {
        let (chunks, end, _, mut model) = busy_stream(seed, seed * 3);
        assert!(chunks.len() >= 3, "merges went on meanwhile");
        let mut node = Node::new();
        node.apply(&mut model, 17);
        let received = receive(&node, &chunks).unwrap();
        assert_eq!(received.base().meta.last.index, end);
        node.wal.write(install_op(&received));
        let (opened, _) = node.store.install(received).unwrap();
        assert_eq!(opened, model.opened(end));
        node.check(&model);
        let rows = model.state(end).values().map(|row| row.value.len());
        let expected: usize = rows.filter(|len| *len > 16_384).map(|len| len.div_ceil(16_384)).sum();
        assert_eq!(chunk_rows(&node), expected, "chunks that no head names are gone");
        node.sweep();
        assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-1"]);
        node.apply(&mut model, 50);
        node.checkpoint();
        let node = node.crash(&model, &mut chooser(seed));
        assert_eq!(node.store.applied().applied.index.get(), end.get() + 50);
    }
}

#[test]
fn effects_that_were_to_be_removed_are_no_matter_to_a_new_generation() {
    let (chunks, end, _, mut model) = busy_stream(2, 6);
    let mut node = Node::new();
    node.apply(&mut model, 90);
    node.checkpoint();
    node.store.purge_effects(LogIndex::new(u64::MAX));
    let retired = node.store.retired();
    assert_eq!(retired.len(), 1);
    let received = receive(&node, &chunks).unwrap();
    node.wal.write(install_op(&received));
    node.store.install(received).unwrap();
    node.apply(&mut model, 20);
    node.store.sync_effects().unwrap();
    // Only now does anybody get round to it.
    retired.into_iter().try_for_each(Retired::remove).unwrap();
    node.sweep();
    assert_eq!(node.store.reader().first_effect(), end.next());
    let node = node.kill(&model);
    assert_eq!(node.store.applied().applied.index.get(), end.get() + 20);
}

#[test]
fn a_shard_without_a_base_yet_streams_its_effects() {
    let (mut node, mut model) = (Node::new(), Model::new(5, 24));
    node.apply(&mut model, 33);
    let mut source = node.store.snapshot_source();
    let mut chunks = Vec::new();
    while let Some(chunk) = source.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    let mut other = Node::new();
    let received = receive(&other, &chunks).unwrap();
    other.wal.write(install_op(&received));
    other.store.install(received).unwrap();
    assert_eq!(other.store.applied(), &model.opened(LogIndex::new(33)));
    other.check(&model);
}

#[test]
fn power_cut_before_the_install_record_keeps_the_old_generation() {
    let (chunks, _, _, mut model) = busy_stream(1, 2);
    let mut node = Node::new();
    node.apply(&mut model, 17);
    node.store.sync_effects().unwrap();
    let received = receive(&node, &chunks).unwrap();
    drop(received);
    let node = node.crash(&model, &mut chooser(1));
    assert_eq!(node.store.applied().applied.index, LogIndex::new(17));
    assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-0"]);
}

#[test]
fn power_cut_after_the_install_record_serves_the_new_generation() {
    for seed in 0..8 {
        let (chunks, end, _, mut model) = busy_stream(1, 2);
        let mut node = Node::new();
        // Old effects may even reach further than the snapshot: they belong to a base that was given up.
        node.apply(&mut model, if seed % 2 == 0 { 17 } else { end.get() + 5 });
        node.store.sync_effects().unwrap();
        let received = receive(&node, &chunks).unwrap();
        node.wal.write(install_op(&received));
        drop(received);
        let mut node = node.crash(&model, &mut chooser(seed));
        assert_eq!(node.store.applied().applied.index, end);
        assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-1"]);
        node.apply(&mut model, 40);
        node.check(&model);
    }
}

#[test]
fn power_cut_at_every_call_of_the_disk_within_install() {
    let (chunks, end, _, mut model) = busy_stream(1, 2);
    for calls in 0..12 {
        let mut node = Node::new();
        node.apply(&mut model, 17);
        node.store.sync_effects().unwrap();
        let received = receive(&node, &chunks).unwrap();
        node.wal.write(install_op(&received));
        node.disk.power_off_after(calls);
        let installed = node.store.install(received).is_ok();
        if installed {
            let next = model.entry(end.next());
            let _ = node.store.apply(next);
        }
        let disk = node.disk.crash(DirLoss::Any, &mut chooser(calls));
        let mut choose = chooser(calls);
        node.engines.crash(&mut |writes| choose(writes + 1));
        let (store, opened) = Node::open(&disk, &node.engines, &node.wal, model.last()).unwrap();
        assert!(opened.applied.index == end || opened.applied.index == end.next(), "{opened:?}");
        node.store = store;
        node.check(&model);
    }
}

#[test]
fn the_old_generation_goes_with_its_last_reader() {
    let (chunks, end, _, mut model) = busy_stream(1, 2);
    let mut node = Node::new();
    node.apply(&mut model, 30);
    node.checkpoint();
    node.apply(&mut model, 5);
    let pin = node.store.reader().pin(kv_types::Nanos::default()).unwrap();
    let received = receive(&node, &chunks).unwrap();
    node.wal.write(install_op(&received));
    drop(node.store.install(received).unwrap());
    assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-0", "gen-1"]);
    assert_eq!(&crate::node::scan_all(&pin), model.state(LogIndex::new(35)));
    drop(pin);
    node.sweep();
    assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-1"]);
    assert_eq!(node.store.base().generation, Generation::new(1));
    assert_eq!(node.store.reader().applied(), end);
}

/// Whoever was allowed to read before must not see older rows then.
#[test]
fn rows_older_than_what_was_read_are_not_read_until_they_have_caught_up() {
    let (chunks, end, _, mut model) = busy_stream(1, 2);
    let mut node = Node::new();
    node.apply(&mut model, end.get() + 7);
    let before = node.store.reader().installs();
    assert!(before.is_some());
    let received = receive(&node, &chunks).unwrap();
    node.wal.write(install_op(&received));
    drop(node.store.install(received).unwrap());
    assert_eq!(node.store.reader().applied(), end);
    for _ in 0..7 {
        assert_eq!(node.store.reader().installs(), None);
        let pin = node.store.reader().pin_for_clients(kv_types::Nanos::default());
        assert!(matches!(pin, Err(ReadError::Behind { reached }) if reached == end.plus(7)), "{pin:?}");
        node.apply(&mut model, 1);
    }
    let after = node.store.reader().installs();
    assert!(after.is_some() && after != before, "who began to read before sees that rows were replaced");
    node.check(&model);
}

#[test]
fn a_bad_stream_installs_nothing_and_leaves_nothing() {
    let (chunks, _, _, _) = busy_stream(3, 1);
    let node = Node::new();
    let last = chunks.len() - 1;
    let mut bad = Vec::new();
    for at in [0, 1, last] {
        let mut flipped = chunks.clone();
        let mut bytes = flipped[at].to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x10;
        flipped[at] = bytes.into();
        bad.push(flipped);
        let mut missing = chunks.clone();
        missing.remove(at);
        bad.push(missing);
        let mut twice = chunks.clone();
        twice.insert(at, chunks[at].clone());
        bad.push(twice);
    }
    for chunks in bad {
        assert!(receive(&node, &chunks).is_err());
        assert_eq!(node.engines.list(Path::new("shard-1")).unwrap(), ["gen-0"]);
    }
    let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(&node.engines);
    let mut other = SnapshotReceiver::new(engines, ShardId::new(2), Generation::new(1)).unwrap();
    assert!(matches!(other.push(&chunks[0]), Err(SnapshotError::Stream { .. })), "another shard's");
}

#[test]
fn effects_are_held_until_the_stream_ends() {
    let (mut node, mut model) = (Node::new(), Model::new(5, 24));
    node.apply(&mut model, 60);
    let source = node.store.snapshot_source();
    node.checkpoint();
    node.apply(&mut model, 60);
    node.checkpoint();
    node.purge(LogIndex::new(1_000));
    assert_eq!(node.store.reader().first_effect(), LogIndex::new(1));
    drop(source);
    node.purge(LogIndex::new(1_000));
    assert!(node.store.reader().first_effect() > LogIndex::new(60));
}

/// Leaves so many bytes of the disk free.
pub(crate) fn leave_free(node: &Node, bytes: u64) {
    node.disk.set_capacity(1 << 40);
    let used = (1 << 40) - node.disk.free_bytes().unwrap();
    node.disk.set_capacity(used + bytes);
}

#[test]
fn effects_held_beyond_their_part_of_the_disk_are_given_up_oldest_first() {
    let (mut node, mut model) = (Node::new(), Model::new(5, 24));
    node.apply(&mut model, 60);
    let mut old = node.store.snapshot_source();
    node.checkpoint();
    node.apply(&mut model, 60);
    let mut young = node.store.snapshot_source();
    for _ in 0..2 {
        node.checkpoint();
        node.apply(&mut model, 60);
    }
    let before = node.disk.free_bytes().unwrap();
    node.purge(LogIndex::new(1_000));
    assert_eq!(node.disk.free_bytes().unwrap(), before, "all of it is held");
    // What a purge would let go, were there no holds.
    let held = {
        let last = node.store.base().meta.last.index;
        let files = node.disk.list(Path::new("shard-1/effects")).unwrap();
        let goes = files.iter().zip(files.iter().skip(1));
        let goes = goes.filter(|(_, next)| next.parse::<u64>().unwrap() <= last.get() + 1);
        let len =
            |name: &str| node.disk.open(&Path::new("shard-1/effects").join(name)).unwrap().len().unwrap();
        goes.map(|(name, _)| len(name)).sum::<u64>()
    };
    leave_free(&node, held * 4);
    node.purge(LogIndex::new(1_000));
    assert_eq!(node.store.reader().first_effect(), LogIndex::new(1), "a quarter is allowed");
    leave_free(&node, held * 4 - 1);
    node.purge(LogIndex::new(1_000));
    let first = node.store.reader().first_effect();
    assert!(first > LogIndex::new(1) && first <= LogIndex::new(61), "{first}");
    assert!(matches!(old.next_chunk(), Err(StoreError::Compacted { .. })));
    let mut chunks = Vec::new();
    while let Some(chunk) = young.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    let to = Node::new();
    assert_eq!(receive(&to, &chunks).unwrap().base().meta.last.index, LogIndex::new(240));
    leave_free(&node, 0);
    node.purge(LogIndex::new(1_000));
    assert!(node.store.reader().first_effect() > LogIndex::new(120));
    drop((old, young));
    // The shard itself is as it was, and a later stream is as good as any.
    let mut later = node.store.snapshot_source();
    let mut chunks = Vec::new();
    while let Some(chunk) = later.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    receive(&to, &chunks).unwrap().discard();
    node.check(&model);
}

#[test]
fn a_stream_whose_effects_were_given_up_in_its_midst_ends() {
    let (mut node, mut model) = (Node::new(), Model::new(7, 400));
    node.apply(&mut model, 900);
    node.checkpoint();
    let mut source = node.store.snapshot_source().rewindable(9);
    let mut receiver = receiver(&node);
    for _ in 0..2 {
        receiver.push(&source.next_chunk().unwrap().unwrap()).unwrap();
    }
    node.apply(&mut model, 300);
    node.checkpoint();
    leave_free(&node, 0);
    node.purge(LogIndex::new(u64::MAX));
    assert!(matches!(source.next_chunk(), Err(StoreError::Compacted { .. })));
    assert!(source.rewind(1));
    assert!(matches!(source.next_chunk(), Err(StoreError::Compacted { .. })));
    drop(receiver);
    node.check(&model);
}
