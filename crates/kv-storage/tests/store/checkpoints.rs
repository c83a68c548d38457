//! What a checkpoint sees, counts and refuses.

use std::path::Path;

use kv_storage::{CheckpointStep, StoreError};
use kv_types::{LogIndex, Nanos};

use crate::node::{Model, Node};

#[test]
fn nothing_new_needs_no_checkpoint_and_a_second_one_waits() {
    let (mut node, mut model) = (Node::new(), Model::new(1, 24));
    assert!(node.store.freeze().unwrap().is_none());
    node.apply(&mut model, 30);
    let unmerged = node.store.unmerged_bytes();
    assert!(unmerged > 0 && node.store.memtable_bytes() > 0);
    let mut checkpoint = node.store.freeze().unwrap().unwrap();
    assert_eq!(checkpoint.upto(), LogIndex::new(30));
    node.apply(&mut model, 1);
    assert!(node.store.freeze().unwrap().is_none());
    while !node.step(&mut checkpoint) {
        node.apply(&mut model, 1);
        node.check(&model);
    }
    assert!(node.store.unmerged_bytes() < unmerged);
    node.checkpoint();
    assert_eq!((node.store.unmerged_bytes(), node.store.memtable_bytes()), (0, 0));
    assert!(node.store.freeze().unwrap().is_none());
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
    let mut checkpoint = node.store.freeze().unwrap().unwrap();
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
    node.store.purge_effects(LogIndex::new(1_000)).unwrap();
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
