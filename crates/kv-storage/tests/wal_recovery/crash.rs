//! Every legal crash image of small workloads recovers to what was acknowledged, or that and the group in flight.

use std::sync::Arc;

use kv_storage::disk::Disk as _;
use kv_storage::disk::faulty::{DirLoss, FaultKind, VirtualDisk};
use kv_storage::wal::{SegmentNo, Wal, WalError};
use kv_storage::{Generation, WalOp};
use kv_types::{ShardId, limits::SHARDS_MAX};

use super::model::{self, Model, Step, entry, hard, id, merge, note, op, raft};

/// Images looked at for each moment of a crash.
const IMAGES_MAX: usize = 280;

/// Cuts the power before every changing call of a workload and checks every image the crash may leave.
fn crash_everywhere(steps: &[Step], loss: DirLoss) {
    let models = model::models(steps);
    let whole = VirtualDisk::new();
    let (mut wal, _) = model::open(&whole).unwrap();
    assert_eq!(model::run(&mut wal, steps), steps.len(), "the workload runs when nothing fails");
    let mut images = 0;
    for cut in 0..=whole.calls() {
        let disk = VirtualDisk::new();
        disk.power_off_after(cut);
        let acked = model::open(&disk).map_or(0, |(mut wal, _)| model::run(&mut wal, steps));
        let expected = [&models[acked], &models[(acked + 1).min(steps.len())]];
        for image in disk.legal_images(loss, IMAGES_MAX) {
            images += 1;
            check(&image, &expected, images, &format!("cut {cut}, {acked} steps acknowledged"));
        }
    }
    assert!(images > steps.len(), "only {images} images");
}

fn check(image: &VirtualDisk, expected: &[&Model; 2], images: usize, place: &str) {
    let (mut wal, recovery) = model::open(image).unwrap_or_else(|error| panic!("{place}: {error}"));
    let model = expected.iter().find(|model| model::agrees(&wal, &recovery, model));
    let model = *model.unwrap_or_else(|| panic!("{place}: {:#?}\nexpected {:#?}", recovery.shards, expected));
    // What was cut must not come back when the log goes on and the node stops again.
    if images.is_multiple_of(7) {
        let mut model = model.clone();
        let record = raft(9, hard(1, 1), None, vec![entry(1, 1, 40)]);
        wal.write(std::slice::from_ref(&record)).unwrap();
        model::apply(&mut model, &record);
        let lost = image.crash(DirLoss::Any, &mut |outcomes: usize| outcomes - 1);
        let (wal, recovery) = model::open(&lost).unwrap_or_else(|error| panic!("{place}, again: {error}"));
        assert!(model::agrees(&wal, &recovery, &model), "{place}, again: {:#?}", recovery.shards);
    }
}

fn two_shards() -> Vec<Step> {
    vec![
        Step::Write(vec![
            raft(1, hard(1, 1), None, vec![entry(1, 1, 100), entry(1, 2, 0)]),
            raft(2, hard(4, 2), None, vec![]),
        ]),
        Step::Note,
        Step::Write(vec![
            raft(2, hard(5, 3), None, vec![entry(5, 1, 300)]),
            raft(1, hard(2, 2), None, vec![]),
        ]),
        Step::Write(vec![raft(1, None, None, vec![entry(2, 3, 900)]), raft(1, hard(3, 1), None, vec![])]),
    ]
}

fn rewrites() -> Vec<Step> {
    vec![
        Step::Write(vec![raft(1, hard(1, 1), None, (1..=6).map(|i| entry(1, i, 200)).collect())]),
        Step::Write(vec![raft(1, hard(2, 2), Some(4), vec![entry(2, 4, 50)])]),
        Step::Write(vec![raft(1, None, Some(4), vec![])]),
        Step::Write(vec![raft(1, hard(3, 3), None, (4..=9).map(|i| entry(3, i, 30)).collect())]),
    ]
}

fn rollover() -> Vec<Step> {
    let mut steps: Vec<Step> = (1..=10)
        .map(|i| {
            Step::Write(vec![raft(1, (i == 1).then(|| hard(1, 1)).flatten(), None, vec![entry(1, i, 5000)])])
        })
        .collect();
    steps.insert(3, Step::Prepare);
    steps.insert(9, Step::Write(vec![raft(2, hard(7, 2), None, vec![])]));
    steps
}

fn checkpoint() -> Vec<Step> {
    vec![
        Step::Write(vec![raft(1, hard(1, 1), None, (1..=5).map(|i| entry(1, i, 60)).collect())]),
        Step::Write(vec![merge(1, 0, 3)]),
        Step::Write(vec![op(1, WalOp::BaseAt(note(0, 1, 3)))]),
        Step::Write(vec![op(1, WalOp::Compact(id(1, 2)))]),
        Step::Write(vec![op(1, WalOp::Damaged(Generation::new(0)))]),
        Step::Write(vec![op(1, WalOp::Install { hard: hard(2, 2), base: note(1, 1, 4), keep_tail: true })]),
        Step::Write(vec![op(1, WalOp::Install { hard: None, base: note(2, 2, 9), keep_tail: false })]),
        Step::Write(vec![raft(1, None, None, vec![entry(2, 10, 10)])]),
    ]
}

/// Shard 1 keeps one old entry for a slow follower while shard 2 fills segments and lets go of them.
pub(crate) fn copy_forward() -> Vec<Step> {
    let mut steps = vec![Step::Write(vec![
        raft(1, hard(1, 1), None, vec![entry(1, 1, 80), entry(1, 2, 80)]),
        op(1, WalOp::BaseAt(note(0, 1, 2))),
        raft(2, hard(1, 1), None, vec![]),
    ])];
    for i in 1..=12 {
        steps.push(Step::Write(vec![raft(2, None, None, vec![entry(1, i, 7000)])]));
    }
    steps.push(Step::Write(vec![op(2, WalOp::BaseAt(note(0, 1, 12))), op(2, WalOp::Compact(id(1, 12)))]));
    steps.push(Step::Release);
    steps.push(Step::Write(vec![raft(1, hard(2, 2), None, vec![entry(2, 3, 10)])]));
    steps
}

/// A shard fills segments, lets go of them, and goes on in their files.
pub(crate) fn reuse() -> Vec<Step> {
    let mut steps = vec![Step::Write(vec![raft(1, hard(1, 1), None, vec![])])];
    let mut index = 0;
    for sizes in [[9000; 6], [700; 6]] {
        steps.push(Step::Note);
        for bytes in sizes {
            index += 1;
            steps.push(Step::Write(vec![raft(1, None, None, vec![entry(1, index, bytes)])]));
        }
        let end = vec![op(1, WalOp::BaseAt(note(0, 1, index))), op(1, WalOp::Compact(id(1, index)))];
        steps.push(Step::Write(end));
        steps.push(Step::Release);
    }
    steps.push(Step::Write(vec![raft(1, hard(2, 2), None, vec![entry(2, index + 1, 9000)])]));
    steps.push(Step::Write(vec![raft(1, hard(3, 2), None, vec![entry(3, index + 2, 9000)])]));
    steps
}

/// A WAL after [`reuse`], and the name of the segment that is written.
pub(crate) fn reused() -> (VirtualDisk, SegmentNo) {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    let steps = reuse();
    assert_eq!(model::run(&mut wal, &steps), steps.len());
    (disk, wal.active())
}

#[test]
fn a_released_file_is_written_again() {
    let (disk, active) = reused();
    let mut bytes = [0; 4096];
    let file = disk.open(&active.path()).unwrap();
    let last = (0..8).rev().find(|block| {
        file.read_at(block * 4096, &mut bytes).unwrap();
        bytes.iter().any(|byte| *byte != 0)
    });
    assert_eq!(last, Some(7), "bytes of an older segment stand behind the newest group");
    crash_everywhere(&reuse(), DirLoss::Any);
}

#[test]
fn two_shards_in_one_torn_group() {
    crash_everywhere(&two_shards(), DirLoss::Any);
}

#[test]
fn a_truncated_entry_is_not_resurrected() {
    crash_everywhere(&rewrites(), DirLoss::Prefix);
}

#[test]
fn segments_roll_over() {
    crash_everywhere(&rollover(), DirLoss::Any);
}

#[test]
fn notes_and_installs_are_whole() {
    crash_everywhere(&checkpoint(), DirLoss::Prefix);
}

#[test]
fn between_copy_forward_and_unlink() {
    let steps = copy_forward();
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    let release = steps.iter().position(|step| matches!(step, Step::Release)).unwrap();
    assert_eq!(model::run(&mut wal, &steps[..release]), release);
    let released = wal.release().unwrap();
    assert_eq!((released.copied, released.dropped.first()), (2, Some(&SegmentNo::new(1))), "{released:?}");
    crash_everywhere(&steps, DirLoss::Any);
}

#[test]
fn segment_created_but_directory_not_synced() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    let steps = two_shards();
    model::run(&mut wal, &steps);
    // Of the calls create, write, sync, sync of the directory, all but the last happen.
    disk.power_off_after(3);
    assert!(wal.prepare_next().is_err());
    let models = model::models(&steps);
    let images: Vec<_> = disk.legal_images(DirLoss::Any, 100).collect();
    let there: Vec<_> = images.iter().map(|image| image.exists(&SegmentNo::new(2).path()).unwrap()).collect();
    assert!(there.contains(&true) && there.contains(&false), "both directories are legal");
    for image in images {
        let (wal, recovery) = model::open(&image).unwrap();
        assert!(model::agrees(&wal, &recovery, models.last().unwrap()));
    }
}

#[test]
fn manifest_torn() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    let steps = two_shards();
    model::run(&mut wal, &steps);
    wal.prepare_next().unwrap();
    // The next group does not fit: its segment's manifest is written and not synced.
    disk.power_off_after(1);
    let big = [raft(1, None, None, vec![entry(2, 4, 20_000)])];
    assert!(wal.write(&big).is_err());
    let models = model::models(&steps);
    let mut torn = 0;
    for image in disk.legal_images(DirLoss::Any, 1000) {
        let (wal, recovery) = model::open(&image).unwrap();
        assert!(model::agrees(&wal, &recovery, models.last().unwrap()));
        torn += usize::from(!recovery.unbegun.is_empty());
    }
    assert!(torn > 100, "the manifest was torn in {torn} images");
}

/// A killed process leaves a whole group in the page cache: what recovery builds on must be made durable first.
#[test]
fn what_recovery_shows_survives_a_power_cut() {
    let steps = two_shards();
    let models = model::models(&steps);
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    disk.power_off_after(1);
    assert_eq!(model::run(&mut wal, &steps), 0, "the first group is written and not synced");
    disk.power_on();
    let (wal, recovery) = model::open(&disk).unwrap();
    assert!(model::agrees(&wal, &recovery, &models[1]), "the page cache holds it");
    let lost = disk.crash(DirLoss::Any, &mut |outcomes: usize| outcomes - 1);
    let (wal, recovery) = model::open(&lost).unwrap();
    assert!(model::agrees(&wal, &recovery, &models[1]), "so does the disk");
}

#[test]
fn a_crash_in_recovery_changes_nothing() {
    let steps = copy_forward();
    let models = model::models(&steps);
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    assert_eq!(model::run(&mut wal, &steps), steps.len());
    wal.prepare_next().unwrap();
    let full = disk.copy();
    for cut in 0..10 {
        let disk = full.copy();
        disk.power_off_after(cut);
        // The last cuts let recovery finish, which is legal too.
        drop(model::open(&disk));
        for image in disk.legal_images(DirLoss::Any, IMAGES_MAX) {
            let (wal, recovery) = model::open(&image).unwrap_or_else(|error| panic!("cut {cut}: {error}"));
            assert!(model::agrees(&wal, &recovery, models.last().unwrap()), "cut {cut}");
        }
    }
}

#[test]
fn a_failed_sync_is_final() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    disk.fail_nth(FaultKind::Sync, 1, std::io::ErrorKind::Other);
    let record = [raft(1, hard(1, 1), None, vec![])];
    assert!(matches!(wal.write(&record), Err(WalError::Io { .. })));
    assert!(matches!(wal.write(&record), Err(WalError::Failed)));
    assert!(matches!(wal.sync_note(), Err(WalError::Failed)));
    assert!(matches!(wal.prepare_next(), Err(WalError::Failed)));
}

#[test]
fn a_full_disk_still_takes_votes() {
    let disk = VirtualDisk::new();
    // Two segments, and the note of what is durable.
    disk.set_capacity((64 << 10) + (8 << 10));
    let (mut wal, _) = model::open(&disk).unwrap();
    let mut steps = Vec::new();
    for index in 1.. {
        let hard = (index == 1).then(|| hard(1, 1)).flatten();
        let record = raft(1, hard, None, vec![entry(1, index, 3000)]);
        match wal.write(std::slice::from_ref(&record)) {
            Ok(()) => steps.push(Step::Write(vec![record])),
            Err(WalError::Full) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(steps.len() > 10, "both segments are used: {}", steps.len());
    let vote = raft(1, hard(2, 3), None, vec![]);
    wal.write(std::slice::from_ref(&vote)).unwrap();
    wal.sync_note().unwrap();
    steps.push(Step::Write(vec![vote]));
    disk.set_capacity(1 << 20);
    let (wal, recovery) = model::open(&disk.crash(DirLoss::Any, &mut |n: usize| n - 1)).unwrap();
    assert!(model::agrees(&wal, &recovery, model::models(&steps).last().unwrap()));
}

#[test]
fn a_group_longer_than_a_segment_is_refused_whole() {
    let (mut wal, _) = model::open(&VirtualDisk::new()).unwrap();
    let large = raft(1, hard(1, 1), None, vec![entry(1, 1, 40_000)]);
    assert!(matches!(wal.write(&[large]), Err(WalError::TooLarge { .. })));
    wal.write(&[raft(1, hard(1, 1), None, vec![entry(1, 1, 20_000)])]).unwrap();
}

#[test]
fn a_manifest_of_all_shards_fits() {
    let disk = VirtualDisk::new();
    let (mut wal, _) = model::open(&disk).unwrap();
    let steps: Vec<_> = (0..u32::try_from(SHARDS_MAX).unwrap())
        .map(|shard| {
            let base = note(1, 1, 7);
            Step::Write(vec![op(shard, WalOp::Install { hard: hard(1, 1), base, keep_tail: false })])
        })
        .collect();
    assert_eq!(model::run(&mut wal, &steps), steps.len());
    let (wal, recovery) = model::open(&disk.copy()).unwrap();
    assert!(model::agrees(&wal, &recovery, model::models(&steps).last().unwrap()));
}

#[test]
fn pins_are_named_over_budget() {
    let (mut wal, _) = model::open(&VirtualDisk::new()).unwrap();
    for index in 1..=20 {
        let hard = (index == 1).then(|| hard(1, 1)).flatten();
        wal.write(&[raft(1, hard, None, vec![entry(1, index, 6000)])]).unwrap();
    }
    let released = wal.release().unwrap();
    assert!(released.redo.contains(&ShardId::new(1)) && released.dropped.is_empty(), "{released:?}");
    wal.write(&[op(1, WalOp::BaseAt(note(0, 1, 20)))]).unwrap();
    let released = wal.release().unwrap();
    assert!(released.log.contains(&ShardId::new(1)) && released.redo.is_empty(), "{released:?}");
    wal.write(&[op(1, WalOp::Compact(id(1, 19)))]).unwrap();
    let released = wal.release().unwrap();
    assert!(released.dropped.len() > 3 && released.log.is_empty(), "{released:?}");
}

#[test]
fn a_real_disk_holds_what_a_virtual_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let data = kv_storage::data_dir::DataDir::open(dir.path()).unwrap();
    let steps = copy_forward();
    let (mut wal, recovery) = Wal::open(data.disk(), model::options()).unwrap();
    assert!(recovery.shards.is_empty());
    assert_eq!(model::run(&mut wal, &steps), steps.len());
    drop(wal);
    let (wal, recovery) = Wal::open(data.disk(), model::options()).unwrap();
    assert!(model::agrees(&wal, &recovery, model::models(&steps).last().unwrap()));
    let other =
        kv_storage::wal::WalOptions { incarnation: kv_types::Incarnation::new(1), ..model::options() };
    let disk: Arc<dyn kv_storage::disk::Disk> = data.disk();
    assert!(matches!(Wal::open(disk, other), Err(WalError::WrongIncarnation { .. })));
}
