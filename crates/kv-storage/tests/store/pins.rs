//! A pinned view holds still; what expires says where to go on.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use kv_storage::{CheckpointStep, PageLimit, ReadError, RowRange};
use kv_types::{LogIndex, Nanos, Revision, RowKey, Space, StateHash};

use crate::node::{Model, Node, scan_all};
use crate::pace;

#[test]
fn a_pin_sees_its_entry_through_freezes_and_merges() {
    for seed in 0..10 {
        let (mut node, mut model) = (Node::new(), Model::new(seed, 24));
        node.apply(&mut model, 40);
        node.checkpoint();
        node.apply(&mut model, 20);
        let pin = node.store.reader().pin(Nanos::default()).unwrap();
        node.apply(&mut model, 20);
        let mut checkpoint = node.store.freeze().unwrap();
        let step = checkpoint.step(Nanos::default()).unwrap();
        assert!(matches!(step, CheckpointStep::Wait), "a pin below the merge holds it up");
        let newer = node.store.reader().pin(Nanos::default()).unwrap();
        node.apply(&mut model, 20);
        assert_eq!(&scan_all(&pin), model.state(LogIndex::new(60)));
        for key in model.state(LogIndex::new(100)).keys() {
            assert_eq!(pin.get(key).unwrap().as_ref(), model.state(LogIndex::new(60)).get(key));
        }
        drop(pin);
        while !node.step(&mut checkpoint) {
            assert_eq!(&scan_all(&newer), model.state(LogIndex::new(80)));
        }
        assert_eq!(&scan_all(&newer), model.state(LogIndex::new(80)));
        node.check(&model);
    }
}

#[test]
fn a_pin_that_is_given_up_for_memory_lets_the_merge_go_on() {
    let (mut node, mut model) = (Node::new(), Model::new(3, 24));
    node.apply(&mut model, 40);
    let reader = node.store.reader();
    let (old, young) = (reader.pin(Nanos::default()).unwrap(), {
        node.apply(&mut model, 10);
        reader.pin(Nanos::default()).unwrap()
    });
    let mut checkpoint = node.store.freeze().unwrap();
    assert!(matches!(checkpoint.step(Nanos::default()).unwrap(), CheckpointStep::Wait));
    assert!(reader.break_oldest_pin());
    while !node.step(&mut checkpoint) {}
    let (key, _) = model.state(LogIndex::new(50)).first_key_value().unwrap();
    assert!(matches!(old.get(key), Err(ReadError::PinExpired { .. })));
    assert_eq!(&scan_all(&young), model.state(LogIndex::new(50)));
    drop((old, young));
    assert!(!reader.break_oldest_pin());
}

#[test]
fn an_expired_pin_lets_the_merge_go_on_and_says_where_to_resume() {
    let (mut node, mut model) = (Node::new(), Model::new(3, 24));
    node.apply(&mut model, 40);
    let reader = node.store.reader();
    let pin = reader.pin(Nanos::default()).unwrap();
    let limit = PageLimit { rows: 2, bytes: 1 << 20 };
    let page = pin.scan(&RowRange::ALL, limit, Nanos::default()).unwrap();
    let resume = page.resume.unwrap();
    node.apply(&mut model, 10);
    let mut checkpoint = node.store.freeze().unwrap();
    let late = Nanos::new(10_000_000_000);
    assert!(matches!(checkpoint.step(Nanos::new(9_999_999_999)).unwrap(), CheckpointStep::Wait));
    let step = checkpoint.step(late).unwrap();
    assert!(matches!(step, CheckpointStep::Wal(_)), "{step:?}");
    let rest = RowRange::ALL.starting_at(resume.clone());
    match pin.scan(&rest, limit, Nanos::default()) {
        Err(ReadError::PinExpired { resume: Some(key) }) => assert_eq!(key, resume),
        other => panic!("{other:?}"),
    }
    assert!(matches!(pin.get(&resume), Err(ReadError::PinExpired { .. })));
    let young = reader.pin(late).unwrap();
    assert!(young.scan(&rest, limit, late).is_ok());
    assert!(matches!(young.scan(&rest, limit, Nanos::new(u64::MAX - 1)), Err(ReadError::PinExpired { .. })));
}

#[test]
fn a_page_holds_a_row_however_long() {
    let (mut node, mut model) = (Node::new(), Model::new(3, 24));
    node.apply(&mut model, 60);
    node.checkpoint();
    let pin = node.store.reader().pin(Nanos::default()).unwrap();
    let (mut range, mut rows) = (RowRange::ALL, 0);
    loop {
        let page = pin.scan(&range, PageLimit { rows: 9, bytes: 1 }, Nanos::default()).unwrap();
        assert_eq!(page.rows.len(), 1);
        rows += 1;
        let Some(key) = page.resume else { break };
        range = range.starting_at(key);
    }
    assert_eq!(rows, model.state(LogIndex::new(60)).len());
}

#[test]
fn readers_beside_apply_and_merges_see_whole_rows_that_only_grow_newer() {
    let (mut node, mut model) = (Node::new(), Model::new(12, 6));
    node.apply(&mut model, 20);
    let reader = node.store.reader();
    let keys: Vec<_> = model.state(LogIndex::new(20)).keys().cloned().collect();
    let done = AtomicBool::new(false);
    let seen = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let read = || {
            let mut newest = LogIndex::ZERO;
            while !done.load(Ordering::SeqCst) {
                for key in &keys {
                    let applied = reader.applied();
                    if let Some(row) = reader.get(key).unwrap() {
                        assert!(row.is_sound());
                    }
                    assert!(reader.applied() >= applied);
                }
                let pin = reader.pin(Nanos::default()).unwrap();
                assert!(pin.index() >= newest);
                newest = pin.index();
                let rows = scan_all(&pin);
                let hash = rows.iter().fold(StateHash::EMPTY, |hash, (key, row)| hash.with(key, &row.head));
                seen.lock().unwrap().insert(pin.index(), hash);
            }
        };
        let readers = [scope.spawn(read), scope.spawn(read)];
        for _ in 0..60 {
            node.apply(&mut model, 10);
            let Some(mut checkpoint) = node.store.freeze() else { continue };
            loop {
                match checkpoint.step(Nanos::default()).unwrap() {
                    CheckpointStep::Again => node.apply(&mut model, 1),
                    CheckpointStep::Wait => std::thread::yield_now(),
                    CheckpointStep::Wal(op) => node.wal.write(op),
                    CheckpointStep::Done(finished) => {
                        drop(node.store.merged(finished));
                        break;
                    }
                }
            }
        }
        done.store(true, Ordering::SeqCst);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    for (index, hash) in seen.into_inner().unwrap() {
        assert_eq!(hash, model.opened(index).hash, "a scan at {index} was fractured");
    }
    node.check(&model);
}

#[test]
fn a_row_replaced_between_its_head_and_its_chunks_is_read_again() {
    let (factory, mut store) = pace::open();
    store.apply(pace::put(1, 7, 40_000)).unwrap();
    pace::merge(&mut store);
    let reader = store.reader();
    let key = RowKey::new(Space::User, &7_u64.to_be_bytes());
    let replace = move || {
        let mut entry = pace::put(2, 7, 50_000);
        entry.changes[0].previous = Some(Revision::new(1));
        store.apply(entry).unwrap();
        pace::merge(&mut store);
    };
    *factory.hook.act.lock().unwrap() = Some(Box::new(replace));
    assert_eq!(reader.get(&key).unwrap().unwrap().value.len(), 50_000);
    assert!(factory.hook.act.lock().unwrap().is_none(), "the row was replaced in the middle of the read");
}
