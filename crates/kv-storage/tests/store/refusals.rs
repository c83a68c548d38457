//! A disk that has no room, or does not give back what was written to it.

use std::io::ErrorKind;

use kv_storage::CheckpointStep;
use kv_storage::disk::faulty::FaultKind;
use kv_types::{LogIndex, Nanos};

use super::node::{Model, Node, chooser};

/// Entries of a workload: effects of several files.
const ENTRIES: u64 = 90;

/// Applies while there is room, up to the workload's end.
fn apply_while_room(node: &mut Node, model: &mut Model) {
    // As little as any host asks for at a time.
    while node.store.applied().applied.index.get() < ENTRIES && node.store.has_room().unwrap() {
        node.apply(model, 1);
    }
}

#[test]
fn on_a_full_disk_nothing_is_applied_until_there_is_room() {
    let mut stuck = 0;
    for free in (0..60_000).step_by(331) {
        let (mut node, mut model) = (Node::new(), Model::new(17, 24));
        node.apply(&mut model, 20);
        node.store.flush_effects().unwrap();
        node.disk.leave_free(free);
        // What is buffered has to find out that there is no room.
        while node.store.flush_effects().is_ok() && node.store.applied().applied.index.get() < ENTRIES {
            node.apply(&mut model, 1);
        }
        let applied = node.store.applied().applied.index;
        apply_while_room(&mut node, &mut model);
        assert_eq!(node.store.applied().applied.index, applied, "{free}");
        node.check(&model);
        if applied.get() < ENTRIES {
            stuck += 1;
            let mut checkpoint = node.store.freeze().unwrap();
            for _ in 0..3 {
                let step = checkpoint.step(Nanos::default()).unwrap();
                assert!(matches!(step, CheckpointStep::Wait), "{free}: {step:?}");
            }
            // A crash there takes what the disk did not; half of the time there is none.
            if free % 2 == 0 {
                node = node.crash(&model, &mut chooser(free));
            }
            let before = node.store.applied().applied.index;
            node.disk.leave_free(1 << 20);
            apply_while_room(&mut node, &mut model);
            assert!(node.store.applied().applied.index > before, "{free}");
        }
        node.store.sync_effects().unwrap();
        node.check(&model);
        let mut node = node.kill(&model);
        assert_eq!(node.store.applied().applied.index, LogIndex::new(ENTRIES), "{free}");
        node.checkpoint();
        node.check(&model);
    }
    assert!(stuck > 20, "{stuck}");
}

#[test]
fn a_sync_that_fails_for_want_of_room_is_final() {
    let (mut node, mut model) = (Node::new(), Model::new(17, 24));
    node.apply(&mut model, 20);
    node.disk.fail_nth(FaultKind::Sync, 1, ErrorKind::StorageFull);
    let failed = node.store.sync_effects().unwrap_err();
    assert!(!failed.is_no_room(), "{failed}");
    let mut checkpoint = node.store.freeze().unwrap();
    assert!(checkpoint.step(Nanos::default()).is_err());
}

#[test]
fn effects_that_cannot_be_read_at_the_start_are_done_again() {
    let (mut node, mut model) = (Node::new(), Model::new(18, 24));
    node.apply(&mut model, 30);
    node.checkpoint();
    node.apply(&mut model, 60);
    node.store.sync_effects().unwrap();
    let mut cut = 0;
    for nth in 1..=200 {
        let disk = node.disk.copy();
        disk.fail_nth(FaultKind::Read, nth, ErrorKind::Other);
        let (store, opened) = Node::open(&disk, &node.engines, &node.wal, ENTRIES).unwrap();
        let applied = opened.applied.index.get();
        assert!((30..=ENTRIES).contains(&applied), "{nth}: {applied}");
        assert_eq!(opened, model.opened(opened.applied.index));
        let mut again = Node { disk, engines: node.engines.clone(), wal: node.wal.clone(), store };
        again.apply(&mut model, ENTRIES - applied);
        again.store.sync_effects().unwrap();
        again.check(&model);
        cut += u64::from(applied < ENTRIES);
        assert!(nth < 200 || applied == ENTRIES, "there are more reads than that");
        let again = again.kill(&model);
        assert_eq!(again.store.applied().applied.index, LogIndex::new(ENTRIES), "{nth}");
    }
    assert!(cut > 2, "{cut}");
}

/// A merge that a crash cut needs the effects: only they say what the base may hold. What cannot be read of them now may be read at the
/// next start, so nothing is cut and nothing passes for damage.
#[test]
fn effects_that_an_interrupted_merge_needs_are_not_cut() {
    let (mut node, mut model) = (Node::new(), Model::new(19, 24));
    node.apply(&mut model, 30);
    node.checkpoint();
    node.apply(&mut model, 30);
    let mut checkpoint = node.store.freeze().unwrap();
    while node.wal.merge.is_none() {
        node.step(&mut checkpoint);
    }
    node.step(&mut checkpoint);
    node.apply(&mut model, 30);
    node.store.sync_effects().unwrap();
    let merged_to = node.wal.merge.unwrap().to.get();
    let (mut refused, mut cut) = (0, 0);
    for nth in 1..=200 {
        let disk = node.disk.copy();
        disk.fail_nth(FaultKind::Read, nth, ErrorKind::Other);
        match Node::open(&disk, &node.engines, &node.wal, ENTRIES) {
            Ok((store, opened)) => {
                assert_eq!(store.damage(), None, "{nth}");
                assert!(opened.applied.index.get() >= merged_to, "{nth}: {opened:?}");
                cut += u64::from(opened.applied.index.get() < ENTRIES);
            }
            Err(_) => {
                refused += 1;
                let (store, opened) = Node::open(&disk, &node.engines, &node.wal, ENTRIES).unwrap();
                assert_eq!((store.damage(), opened.applied.index.get()), (None, ENTRIES), "{nth}");
            }
        }
    }
    assert!(refused > 2 && cut > 0, "{refused} {cut}");
}
