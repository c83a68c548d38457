//! What a checkpoint sees, counts and refuses.

use std::io::ErrorKind;
use std::path::Path;

use kv_storage::disk::Disk;
use kv_storage::disk::faulty::FaultKind;
use kv_storage::{CheckpointStep, Retired, StoreError};
use kv_types::{LogIndex, Nanos};

use crate::node::{Model, Node};

#[test]
fn nothing_new_needs_no_checkpoint_and_a_second_one_waits() {
    let (mut node, mut model) = (Node::new(), Model::new(1, 24));
    assert!(node.store.freeze().is_none());
    node.apply(&mut model, 30);
    let unmerged = node.store.unmerged_bytes();
    assert!(unmerged > 0 && node.store.memtable_bytes() > 0);
    let mut checkpoint = node.store.freeze().unwrap();
    assert_eq!(checkpoint.upto(), LogIndex::new(30));
    node.apply(&mut model, 1);
    assert!(node.store.freeze().is_none());
    while !node.step(&mut checkpoint) {
        node.apply(&mut model, 1);
        node.check(&model);
    }
    assert!(node.store.unmerged_bytes() < unmerged);
    node.checkpoint();
    assert_eq!((node.store.unmerged_bytes(), node.store.memtable_bytes()), (0, 0));
    assert!(node.store.freeze().is_none());
}

#[test]
fn a_base_row_of_another_revision_is_damage() {
    let (mut node, mut model) = (Node::new(), Model::new(1, 3));
    node.apply(&mut model, 30);
    node.checkpoint();
    for key in model.state(LogIndex::new(30)).keys() {
        assert!(node.engines.damage(Path::new("shard-1/gen-0"), key.encoded(), |_| None));
    }
    node.apply(&mut model, 30);
    let mut checkpoint = node.store.freeze().unwrap();
    let damage = loop {
        match checkpoint.step(Nanos::default()) {
            Ok(CheckpointStep::Done(_)) => panic!("the damage was not seen"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(damage, StoreError::Damaged { .. }), "{damage}");
}

#[test]
fn verification_sees_a_row_that_silently_went() {
    let (mut node, mut model) = (Node::new(), Model::new(1, 24));
    node.apply(&mut model, 30);
    node.checkpoint();
    let (key, _) = model.state(LogIndex::new(30)).first_key_value().unwrap();
    assert!(node.engines.damage(Path::new("shard-1/gen-0"), key.encoded(), |_| None));
    assert!(node.store.verify().is_err());
}

#[test]
fn a_row_without_its_chunks_is_damage_but_only_when_read() {
    let (mut node, mut model) = (Node::new(), Model::new(3, 12));
    node.apply(&mut model, 60);
    node.checkpoint();
    let rows = model.state(LogIndex::new(60));
    let (key, _) = rows.iter().find(|(_, row)| row.value.len() > 16_384).unwrap();
    let dir = Path::new("shard-1/gen-0");
    let engine = kv_storage::EngineFactory::open(&*node.engines, dir, false).unwrap();
    let chunks = engine.scan(std::ops::Bound::Included(b"c"), std::ops::Bound::Excluded(b"d"));
    let chunks: Vec<_> = chunks.map(|row| row.unwrap().0).collect();
    for chunk in chunks {
        assert!(node.engines.damage(dir, &chunk, |_| None));
    }
    assert!(node.store.get(key).is_err());
    assert!(node.store.head(key).unwrap().is_some());
}

#[test]
fn purged_effects_are_gone_and_the_rest_is_redone() {
    let (mut node, mut model) = (Node::new(), Model::new(6, 24));
    node.apply(&mut model, 90);
    node.checkpoint();
    node.apply(&mut model, 30);
    node.purge(LogIndex::new(1_000));
    let reader = node.store.reader();
    let first = reader.first_effect();
    assert!(first.get() > 1 && first.get() <= 91, "{first}");
    assert!(reader.effects(LogIndex::new(1), 1).is_err());
    let entries = reader.effects(first, usize::MAX).unwrap();
    assert_eq!(entries[0], model.entry(first));
    let mut read = first;
    while read <= reader.applied() {
        for entry in reader.effects(read, 2_000).unwrap() {
            assert_eq!(entry, model.entry(read));
            read = read.next();
        }
    }
    node.store.sync_effects().unwrap();
    assert_eq!(node.kill(&model).store.applied().applied.index, LogIndex::new(120));
}

/// Names of the effect files on the disk, in the order of their entries.
fn effect_files(node: &Node) -> Vec<String> {
    let mut files = node.disk.list(Path::new("shard-1/effects")).unwrap();
    files.sort();
    files
}

fn with_purged_effects() -> (Node, Model) {
    let (mut node, mut model) = (Node::new(), Model::new(6, 24));
    node.apply(&mut model, 90);
    node.checkpoint();
    node.apply(&mut model, 30);
    node.store.sync_effects().unwrap();
    node.store.purge_effects(LogIndex::new(1_000));
    (node, model)
}

#[test]
fn a_purge_leaves_the_removal_to_others() {
    let (mut node, mut model) = with_purged_effects();
    let (first, files) = (node.store.reader().first_effect(), effect_files(&node));
    let gone = files.iter().filter(|name| name.parse::<u64>().unwrap() < first.get()).count();
    assert!(gone > 2 && files.len() > gone, "{first}: {files:?}");
    let calls = node.disk.calls();
    let retired = node.store.retired();
    assert_eq!((retired.len(), node.store.retired().len()), (1, 0), "it is asked for once");
    assert_eq!(node.disk.calls(), calls, "and nothing is done before that");
    // Whoever was asked did not get round to it: with the next purge it is asked for again.
    drop(retired);
    node.apply(&mut model, 60);
    node.checkpoint();
    node.purge(LogIndex::new(1_000));
    let first = node.store.reader().first_effect();
    let left = effect_files(&node);
    assert_eq!(left.first().map(|name| name.parse().unwrap()), Some(first.get()), "{left:?}");
    node.check(&model);
}

#[test]
fn a_removal_that_fails_leaves_no_hole_and_goes_on_later() {
    let (mut node, mut model) = with_purged_effects();
    let (first, files) = (node.store.reader().first_effect(), effect_files(&node));
    node.disk.power_off_after(1);
    assert!(node.store.retired().into_iter().try_for_each(Retired::remove).is_err());
    node.disk.power_on();
    assert_eq!(effect_files(&node), files[1..]);
    assert_eq!(node.store.reader().first_effect(), first);
    node.apply(&mut model, 60);
    node.checkpoint();
    node.purge(LogIndex::new(1_000));
    assert_eq!(effect_files(&node)[0].parse::<u64>().unwrap(), node.store.reader().first_effect().get());
    node.check(&model);
}

#[test]
fn a_sync_that_fails_after_a_removal_is_final() {
    let (mut node, _) = with_purged_effects();
    node.disk.fail_nth(FaultKind::Sync, 1, ErrorKind::Other);
    assert!(node.store.retired().into_iter().try_for_each(Retired::remove).is_err());
    assert!(node.store.sync_effects().is_err(), "it may have covered a new file's name");
}

#[test]
fn what_a_crash_leaves_of_purged_effects_is_purged_again() {
    let (mut node, mut model) = with_purged_effects();
    let first = node.store.reader().first_effect();
    node.disk.power_off_after(1);
    assert!(node.store.retired().into_iter().try_for_each(Retired::remove).is_err());
    node.disk.power_on();
    let mut node = node.kill(&model);
    assert!(node.store.reader().first_effect() < first, "what was not removed is there again");
    node.apply(&mut model, 60);
    node.checkpoint();
    node.purge(LogIndex::new(1_000));
    assert_eq!(effect_files(&node)[0].parse::<u64>().unwrap(), node.store.reader().first_effect().get());
    node.check(&model);
}
