//! Rot is detected or harmless: never a wrong entry, never a lost one in silence, never a panic.

use std::path::Path;
use std::sync::Arc;

use kv_storage::disk::Disk as _;
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::wal::{SegmentNo, Wal, WalError, WalOptions};
use kv_types::{LogIndex, ShardId};

use super::model::{self, Model, Step, entry, hard, raft};

fn small_wal() -> (VirtualDisk, Vec<Step>) {
    let steps = vec![
        Step::Write(vec![
            raft(1, hard(1, 1), None, vec![entry(1, 1, 20), entry(1, 2, 0)]),
            raft(2, hard(2, 2), None, vec![]),
        ]),
        Step::Write(vec![raft(2, hard(3, 3), None, vec![entry(3, 1, 30)])]),
        Step::Note,
        Step::Write(vec![raft(1, None, Some(2), vec![entry(1, 2, 10), entry(1, 3, 20_000)])]),
        Step::Write(vec![raft(1, hard(2, 1), None, vec![])]),
        Step::Note,
    ];
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    assert_eq!(model::run(&mut wal, &steps), steps.len());
    (disk, steps)
}

#[test]
fn every_flipped_byte_is_detected_or_harmless() {
    let (disk, steps) = small_wal();
    flip_everywhere(&disk, &steps);
}

#[test]
fn so_is_every_one_in_files_that_are_used_again() {
    let (disk, _) = super::crash::reused();
    let (mut wal, _) = model::open(&disk).unwrap();
    wal.sync_note().unwrap();
    flip_everywhere(&disk, &super::crash::reuse());
}

/// Whether the damage keeps the WAL from opening; if it does not, nothing must be lost.
fn is_detected(bad: &VirtualDisk, model: &Model, place: &str) -> bool {
    match model::open(bad) {
        Ok((wal, recovery)) => {
            assert!(model::agrees(&wal, &recovery, model), "{place}: {recovery:#?}");
            false
        }
        Err(WalError::Corrupt(_)) => true,
        Err(error) => panic!("{place}: {error}"),
    }
}

fn flip_everywhere(disk: &VirtualDisk, steps: &[Step]) {
    let models = model::models(steps);
    let (mut detected, mut harmless) = (0, 0);
    for name in disk.list(Path::new("wal")).unwrap() {
        let path = Path::new("wal").join(name);
        let len = disk.open(&path).unwrap().len().unwrap();
        // Large payloads and empty space are all alike: every byte of the first blocks, then one in 61.
        for offset in (0..len).filter(|offset| *offset < 21_000 && offset % 4096 < 420 || offset % 61 == 0) {
            let bad = disk.copy();
            assert!(bad.flip(&path, offset, u8::try_from(offset % 8).unwrap()));
            let is_detected = is_detected(&bad, models.last().unwrap(), &format!("{path:?} byte {offset}"));
            *(if is_detected { &mut detected } else { &mut harmless }) += 1;
        }
    }
    assert!(detected > 500 && harmless > 500, "{detected} detected, {harmless} harmless");
}

#[test]
fn a_lost_wal_is_not_taken_for_a_new_one() {
    let disk = VirtualDisk::new();
    disk.create_dir_all(Path::new("wal")).unwrap();
    let file = disk.create(&SegmentNo::new(1).path()).unwrap();
    file.write_at(0, &[0; 32 << 10]).unwrap();
    let options = WalOptions { must_exist: true, ..model::options() };
    for _ in 0..2 {
        let opened = Wal::open(Arc::new(disk.clone()), options.clone());
        assert!(matches!(opened, Err(WalError::Corrupt(_))), "nor at the second try: {opened:?}");
    }
    drop(model::open(&disk).unwrap());
    assert!(Wal::open(Arc::new(disk), options).is_ok());
}

fn touched(flips: &[(u64, u8)]) -> (Vec<u32>, Vec<u32>) {
    let (disk, _) = small_wal();
    for (offset, bit) in flips {
        assert!(disk.flip(&SegmentNo::new(1).path(), *offset, *bit));
    }
    match model::open(&disk) {
        Err(WalError::Corrupt(corruption)) => {
            let raw = |shards: &std::collections::BTreeSet<ShardId>| shards.iter().map(|s| s.get()).collect();
            (raw(&corruption.touched), raw(&corruption.possible))
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_legible_header_names_the_shard() {
    // Second group: header 60 bytes, record header 28, then the first record's body.
    assert_eq!(touched(&[(4096 + 60 + 28 + 3, 1)]), (vec![1], vec![]));
}

#[test]
fn an_illegible_header_leaves_sequence_gaps() {
    // The third group holds one record of shard 2. The next manifest knows the number of every shard.
    assert_eq!(touched(&[(8192 + 5, 1)]), (vec![2], vec![]));
    assert_eq!(touched(&[(8192 + 60 + 5, 1)]), (vec![2], vec![]));
}

#[test]
fn a_damaged_entry_is_an_error_to_its_reader_only() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    wal.write(&[raft(1, hard(1, 1), None, vec![entry(1, 1, 20), entry(1, 2, 500)])]).unwrap();
    assert!(disk.flip(&SegmentNo::new(1).path(), 4096 + 400, 0));
    let reader = wal.reader();
    let (shard, first, second) = (ShardId::new(1), LogIndex::new(1), LogIndex::new(2));
    assert_eq!(reader.read(shard, first..=first, 0).unwrap(), vec![entry(1, 1, 20)]);
    assert!(matches!(reader.read(shard, second..=second, 0), Err(WalError::Corrupt(_))));
    assert_eq!(reader.read(shard, first..=second, 1).unwrap().len(), 1, "at least one, not more than fits");
    let third = second.next();
    assert!(matches!(reader.read(shard, third..=third, 0), Err(WalError::NotHeld { .. })));
}

#[test]
fn a_missing_segment_is_corruption() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    for index in 1..=20 {
        let hard = (index == 1).then(|| hard(1, 1)).flatten();
        wal.write(&[raft(1, hard, None, vec![entry(1, index, 6000)])]).unwrap();
    }
    let newest = wal.active().get();
    drop(wal);
    assert!(newest >= 4, "{newest}");
    for no in 1..=newest {
        let bad = disk.copy();
        bad.remove(&SegmentNo::new(no).path()).unwrap();
        assert!(matches!(model::open(&bad), Err(WalError::Corrupt(_))), "segment {no}");
    }
}

/// Blocks that read as zeros, at any place, in any number, in one file: as after a write that the disk has lost.
#[test]
fn blocks_of_zeros_are_detected_or_harmless() {
    for mut steps in [small_wal().1, super::crash::copy_forward(), super::crash::reuse()] {
        steps.push(Step::Note);
        let models = model::models(&steps);
        let disk = VirtualDisk::new();
        let (mut wal, _) = model::open(&disk).unwrap();
        assert_eq!(model::run(&mut wal, &steps), steps.len());
        let (mut detected, mut harmless) = (0, 0);
        for name in disk.list(Path::new("wal")).unwrap() {
            let path = Path::new("wal").join(name);
            let blocks = disk.open(&path).unwrap().len().unwrap() / 4096;
            for (from, to) in (0..blocks).flat_map(|from| (from + 1..=blocks).map(move |to| (from, to))) {
                let bad = disk.copy();
                let zeros = vec![0; usize::try_from((to - from) * 4096).unwrap()];
                bad.open(&path).unwrap().write_at(from * 4096, &zeros).unwrap();
                let is_detected =
                    is_detected(&bad, models.last().unwrap(), &format!("{path:?} blocks {from}..{to}"));
                *(if is_detected { &mut detected } else { &mut harmless }) += 1;
            }
        }
        assert!(detected > 20 && harmless > 20, "{detected} detected, {harmless} harmless");
    }
}

/// A directory of an older release has no note; it gets one.
#[test]
fn a_wal_without_a_note_is_read_and_noted() {
    let (disk, steps) = small_wal();
    disk.remove(Path::new("wal/durable")).unwrap();
    let (wal, recovery) = model::open(&disk).unwrap();
    assert!(model::agrees(&wal, &recovery, model::models(&steps).last().unwrap()));
    assert_eq!(recovery.noted, None);
    let (group, active) = (wal.group(), wal.active());
    drop(wal);
    let noted = model::open(&disk).unwrap().1.noted.unwrap();
    assert_eq!((noted.segment, noted.group), (active, group));
}

/// After a restart and a release the newest manifest is all there is: its rot must not look like an empty WAL.
#[test]
fn the_only_manifest_is_never_taken_for_a_segment_not_begun() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    wal.write(&[raft(1, hard(4, 2), None, vec![])]).unwrap();
    let (mut wal, _) = model::open(&disk).unwrap();
    assert_eq!(wal.release().unwrap().dropped, [SegmentNo::new(1)]);
    for offset in 0..200 {
        let bad = disk.copy();
        assert!(bad.flip(&SegmentNo::new(2).path(), offset, 2));
        match model::open(&bad) {
            Ok((_, recovery)) => {
                assert_eq!(Some(recovery.shards[&ShardId::new(1)].hard), hard(4, 2), "{offset}")
            }
            Err(WalError::Corrupt(_)) => {}
            Err(error) => panic!("{offset}: {error}"),
        }
    }
}

#[test]
fn rot_after_a_release_is_detected_or_harmless() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    let mut steps = super::crash::copy_forward();
    steps.push(Step::Note);
    assert_eq!(model::run(&mut wal, &steps), steps.len());
    let models = model::models(&steps);
    for name in disk.list(Path::new("wal")).unwrap() {
        let path = Path::new("wal").join(name);
        let len = disk.open(&path).unwrap().len().unwrap();
        for offset in (0..len).filter(|offset| offset % 4096 < 200) {
            let bad = disk.copy();
            assert!(bad.flip(&path, offset, 5));
            is_detected(&bad, models.last().unwrap(), &format!("{path:?} byte {offset}"));
        }
    }
}
