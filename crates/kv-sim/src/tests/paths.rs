//! The named paths, one test each.

use std::time::Duration;

use kv_shard::{COMPACT_KEEP_ENTRIES, WriteFailure};
use kv_types::{LogIndex, NodeId, RowKey, ShardId};

use crate::cluster::Cluster;
use crate::cluster::calls::{key_of, put};
use crate::oracle::End;
use crate::settings::Settings;

const S1: ShardId = ShardId::new(1);
const SOON: Duration = Duration::from_secs(5);

/// A cluster at rest, and the leader of the first shard.
fn settled(settings: Settings) -> (Cluster, NodeId) {
    let mut cluster = Cluster::new(settings);
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    let leader = cluster.leader(S1).unwrap();
    (cluster, leader)
}

#[test]
fn a_write_is_answered_and_read_on_every_node() {
    let (mut cluster, leader) = settled(Settings::new(3, 2));
    let call = cluster.write(leader, S1, &put("a", "1"));
    cluster.run(Duration::from_millis(10));
    assert!(matches!(cluster.oracle.calls[call].end, Some(End::Written(_))));
    for node in cluster.settings.nodes() {
        let call = cluster.read(node, S1, "a");
        cluster.run(Duration::from_millis(50));
        assert!(matches!(cluster.oracle.calls[call].end, Some(End::Read(_))), "{node}");
    }
}

#[test]
fn a_follower_is_caught_up_from_disk_and_memory_in_one_append() {
    // The cache holds the last entry or two, an append all of them: it begins on disk and ends in memory.
    let settings = Settings { log_cache_bytes: 200, append_entries_max: 100, ..Settings::new(3, 1) };
    let (mut cluster, leader) = settled(settings);
    let late = cluster.settings.nodes().find(|node| *node != leader).unwrap();
    cluster.crash(late, &mut |_| 0);
    for n in 0..10 {
        cluster.write(leader, S1, &put("k", &format!("v{n}")));
        cluster.run(Duration::from_millis(5));
    }
    cluster.restart(late);
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
}

/// A follower that was away while the log it needs was dropped, and the stream that will bring it a snapshot.
fn late_follower(settings: Settings) -> (Cluster, NodeId, NodeId) {
    let (mut cluster, leader) = settled(settings);
    let late = cluster.settings.nodes().find(|node| *node != leader).unwrap();
    write_all(&mut cluster, leader, 0..10);
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    cluster.isolate(late);
    write_all(&mut cluster, leader, 10..30);
    checkpoint(&mut cluster, leader);
    cluster.compact_to_base(leader, S1);
    cluster.network.heal();
    (cluster, leader, late)
}

fn write_all(cluster: &mut Cluster, leader: NodeId, numbers: std::ops::Range<u64>) {
    for n in numbers {
        cluster.write(leader, S1, &put(&format!("k{}", n % 7), &format!("v{n}")));
        cluster.run(Duration::from_millis(2));
    }
}

fn checkpoint(cluster: &mut Cluster, node: NodeId) {
    assert!(cluster.begin_merge(node, S1));
    let done = cluster.counts.checkpoints + 1;
    assert!(cluster.run_until(SOON, |cluster| cluster.counts.checkpoints == done));
}

/// Lets time pass until the leader streams a snapshot, and stops before the stream moves.
fn await_stream(cluster: &mut Cluster) {
    for _ in 0..200 {
        cluster.now = cluster.now.after(Duration::from_millis(5));
        cluster.wake();
        for _ in 0..10 {
            cluster.work_without_streams();
            if !cluster.streams.is_empty() {
                return;
            }
        }
    }
    panic!("no snapshot was asked for: {}", cluster.summary());
}

/// Moves the only stream on until the receiver has been offered the snapshot.
fn stream_whole(cluster: &mut Cluster) {
    let offered = cluster.counts.snapshots_offered;
    while cluster.counts.snapshots_offered == offered {
        assert!(cluster.step_stream(0));
    }
}

#[test]
fn a_late_follower_gets_a_snapshot() {
    let (mut cluster, _, late) = late_follower(Settings::new(3, 2));
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    assert_eq!(cluster.counts.snapshots_offered, 1);
    cluster.check_rows(late, S1);
}

#[test]
fn a_snapshot_that_meets_a_checkpoint_is_installed_after_it() {
    let (mut cluster, _, late) = late_follower(Settings::new(3, 1));
    await_stream(&mut cluster);
    assert!(cluster.begin_merge(late, S1), "the follower has rows to merge");
    assert!(cluster.step_merge(late, S1));
    stream_whole(&mut cluster);
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    assert_eq!((cluster.counts.snapshots_offered, cluster.counts.checkpoints), (1, 2));
    cluster.crash(late, &mut |_| 0);
    cluster.restart(late);
    assert!(cluster.run_until(SOON, Cluster::is_settled));
}

#[test]
fn a_second_stream_leaves_alone_what_the_first_is_installing() {
    let (mut cluster, leader, late) = late_follower(Settings::new(3, 1));
    await_stream(&mut cluster);
    stream_whole(&mut cluster);
    // The sender goes away, is there again and begins anew, while the record of the first install is on its way.
    let job = cluster.streams[0].job;
    cluster.break_stream(0);
    cluster.begin_stream(leader, S1, job, false);
    assert!(cluster.step_stream(0), "the second stream opens");
    while cluster.work_without_streams() {}
    assert!(!cluster.replica(late, S1).unwrap().is_installing());
    cluster.crash(late, &mut |_| 0);
    cluster.restart(late);
    assert!(cluster.run_until(SOON, Cluster::is_settled));
}

fn end(cluster: &Cluster, call: usize) -> Option<End> {
    cluster.oracle.calls[call].end.clone()
}

/// Runs until another node than `old` leads.
fn new_leader(cluster: &mut Cluster, old: NodeId) -> NodeId {
    assert!(cluster.run_until(SOON, |cluster| cluster.leader(S1).is_some_and(|leader| leader != old)));
    cluster.leader(S1).unwrap()
}

#[test]
fn who_waits_for_a_lost_leader_is_told_that_it_is_unknown() {
    let (mut cluster, old) = settled(Settings::new(3, 1));
    cluster.isolate(old);
    let lost = cluster.write(old, S1, &put("a", "lost"));
    let read = cluster.read(old, S1, "a");
    let new = new_leader(&mut cluster, old);
    let kept = cluster.write(new, S1, &put("a", "kept"));
    cluster.run(Duration::from_millis(50));
    assert!(matches!(end(&cluster, kept), Some(End::Written(_))));
    // Without a quorum the old leader has stepped down: it knows no more than that.
    assert_eq!(end(&cluster, lost), Some(End::Failed(WriteFailure::Lost)));
    assert_eq!(end(&cluster, read), Some(End::NoLeader));
    let refused = cluster.write(old, S1, &put("a", "refused"));
    cluster.run(Duration::from_millis(10));
    assert_eq!(end(&cluster, refused), Some(End::Failed(WriteFailure::NotLeader { hint: None })));
    cluster.network.heal();
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    let read = cluster.read(old, S1, "a");
    cluster.run(Duration::from_millis(100));
    assert!(matches!(end(&cluster, read), Some(End::Read(_))));
}

#[test]
fn an_entry_that_was_replaced_is_never_called_applied() {
    let (mut cluster, old) = settled(Settings::new(3, 1));
    cluster.isolate(old);
    // The disk of the old leader holds the entry, nobody else's does.
    let lost = cluster.write(old, S1, &put("a", "lost"));
    cluster.turn(old, S1);
    cluster.write_wal(old, usize::MAX);
    let new = new_leader(&mut cluster, old);
    let kept = cluster.write(new, S1, &put("a", "kept"));
    cluster.run(Duration::from_millis(50));
    cluster.network.heal();
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    assert_eq!(end(&cluster, lost), Some(End::Failed(WriteFailure::Lost)));
    assert!(matches!(end(&cluster, kept), Some(End::Written(_))));
    for node in cluster.settings.nodes() {
        cluster.check_rows(node, S1);
    }
}

#[test]
fn an_unknown_write_may_have_happened() {
    let (mut cluster, old) = settled(Settings::new(3, 1));
    let call = cluster.write(old, S1, &put("a", "1"));
    cluster.turn(old, S1);
    // The append leaves, no answer comes back.
    for packet in std::mem::take(&mut cluster.network.packets) {
        cluster.deliver(packet);
    }
    cluster.isolate(old);
    new_leader(&mut cluster, old);
    cluster.network.heal();
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    assert_eq!(end(&cluster, call), Some(End::Failed(WriteFailure::Lost)));
    let leader = cluster.leader(S1).unwrap();
    let row = cluster.replica(leader, S1).unwrap().reader().get(&RowKey::user(&key_of("a"))).unwrap();
    assert_eq!(row.unwrap().value, "1");
}

#[test]
fn a_refused_batch_is_not_applied() {
    let settings = Settings { uncommitted_bytes_max: 30, ..Settings::new(3, 1) };
    let (mut cluster, leader) = settled(settings);
    let first = cluster.write(leader, S1, &put("a", "fits, whatever it takes"));
    cluster.turn(leader, S1);
    let second = cluster.write(leader, S1, &put("b", "does not fit beside it"));
    cluster.turn(leader, S1);
    assert_eq!(end(&cluster, second), Some(End::Failed(WriteFailure::Busy)));
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    assert!(matches!(end(&cluster, first), Some(End::Written(_))));
}

#[test]
fn no_answer_leaves_before_a_quorum_holds_the_write() {
    let (mut cluster, leader) = settled(Settings::new(3, 1));
    let call = cluster.write(leader, S1, &put("a", "1"));
    for _ in 0..5 {
        // Messages flow, no disk writes.
        for packet in std::mem::take(&mut cluster.network.packets) {
            cluster.deliver(packet);
        }
        for node in cluster.settings.nodes() {
            cluster.turn(node, S1);
        }
    }
    assert_eq!(end(&cluster, call), None);
    // The disks of the two others are enough.
    let others: Vec<NodeId> = cluster.settings.nodes().filter(|node| *node != leader).collect();
    for node in others {
        cluster.write_wal(node, usize::MAX);
        cluster.turn(node, S1);
    }
    for packet in std::mem::take(&mut cluster.network.packets) {
        cluster.deliver(packet);
    }
    cluster.turn(leader, S1);
    assert!(matches!(end(&cluster, call), Some(End::Written(_))));
}

#[test]
fn a_snapshot_is_exact_at_one_entry_while_writes_and_a_merge_go_on() {
    // Long values: the base alone is several chunks.
    let (mut cluster, leader) = settled(Settings { segment_bytes: 4 << 20, ..Settings::new(3, 1) });
    let late = cluster.settings.nodes().find(|node| *node != leader).unwrap();
    cluster.isolate(late);
    for n in 0..12 {
        cluster.write(leader, S1, &put(&format!("k{n}"), &format!("{n}{}", "x".repeat(60_000))));
        cluster.run(Duration::from_millis(2));
    }
    checkpoint(&mut cluster, leader);
    cluster.compact_to_base(leader, S1);
    cluster.network.heal();
    await_stream(&mut cluster);
    let mut chunks = 0;
    while cluster.counts.snapshots_offered == 0 {
        cluster.write(leader, S1, &put(&format!("k{chunks}"), &format!("new {chunks}")));
        cluster.work_without_streams();
        cluster.begin_merge(leader, S1);
        cluster.step_stream(0);
        chunks += 1;
    }
    assert!(chunks > 3, "{chunks} steps");
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    cluster.check_rows(late, S1);
}

#[test]
fn a_crash_around_the_install_leaves_the_old_rows_or_the_new() {
    for durable in [false, true] {
        let (mut cluster, _, late) = late_follower(Settings::new(3, 1));
        await_stream(&mut cluster);
        stream_whole(&mut cluster);
        if durable {
            cluster.write_wal(late, usize::MAX);
        }
        cluster.crash(late, &mut |_| 0);
        cluster.restart(late);
        let status = cluster.replica(late, S1).unwrap().status();
        assert_eq!(status.generation.get(), u64::from(durable));
        assert_eq!(status.applied.index.get() > 20, durable, "{status:?}");
        assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    }
}

#[test]
fn a_crash_at_any_step_of_a_checkpoint_loses_nothing() {
    for steps in 0..12 {
        for keep in [true, false] {
            let (mut cluster, leader) = settled(Settings::new(3, 1));
            write_all(&mut cluster, leader, 0..40);
            assert!(cluster.begin_merge(leader, S1));
            for _ in 0..steps {
                cluster.write_wal(leader, usize::MAX);
                cluster.step_merge(leader, S1);
            }
            // Zero keeps what was not synced, the largest answer loses it.
            cluster.crash(leader, &mut |outcomes| if keep { 0 } else { outcomes - 1 });
            cluster.restart(leader);
            assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
            checkpoint(&mut cluster, leader);
            cluster.check_rows(leader, S1);
        }
    }
}

#[test]
fn a_node_restarts_with_a_base_behind_or_at_the_end_of_its_log() {
    for behind in [false, true] {
        let (mut cluster, leader) = settled(Settings::new(3, 1));
        write_all(&mut cluster, leader, 0..20);
        for node in cluster.settings.nodes() {
            checkpoint(&mut cluster, node);
            cluster.compact_to_base(node, S1);
        }
        if behind {
            write_all(&mut cluster, leader, 20..30);
        }
        assert!(cluster.run_until(SOON, Cluster::is_settled));
        // All at once, with nothing that was not synced: no peer helps.
        for node in cluster.settings.nodes() {
            cluster.crash(node, &mut |outcomes| outcomes - 1);
        }
        for node in cluster.settings.nodes() {
            cluster.restart(node);
            let status = cluster.replica(node, S1).unwrap().status();
            assert!(status.applied.index >= status.base && status.base.get() >= 20, "{status:?}");
        }
        assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
        let leader = cluster.leader(S1).unwrap();
        write_all(&mut cluster, leader, 30..33);
        assert!(cluster.run_until(SOON, Cluster::is_settled));
    }
}

#[test]
fn compaction_waits_for_a_slow_follower_and_not_for_an_absent_one() {
    let (mut cluster, leader) = settled(Settings { apply_max: 1000, ..Settings::new(3, 1) });
    let slow = cluster.settings.nodes().find(|node| *node != leader).unwrap();
    cluster.stalled_disks.insert(slow);
    // More than what stays for everybody; one record for a thousand.
    for n in 0..COMPACT_KEEP_ENTRIES / 1000 + 1 {
        for m in 0..1000 {
            cluster.write(leader, S1, &put("k", &format!("{n} {m}")));
        }
        cluster.run(Duration::from_millis(2));
    }
    checkpoint(&mut cluster, leader);
    let status = cluster.replica(leader, S1).unwrap().status();
    assert!(status.log_start <= LogIndex::FIRST, "a slow follower is alive and keeps them: {status:?}");
    cluster.stalled_disks.clear();
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    assert_eq!(cluster.counts.snapshots_asked, 0);
    write_all(&mut cluster, leader, 0..1);
    checkpoint(&mut cluster, leader);
    let status = cluster.replica(leader, S1).unwrap().status();
    assert_eq!(status.applied.index.since(status.log_start), COMPACT_KEEP_ENTRIES);

    cluster.crash(slow, &mut |_| 0);
    write_all(&mut cluster, leader, 1..5);
    checkpoint(&mut cluster, leader);
    cluster.compact_to_base(leader, S1);
    cluster.restart(slow);
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    assert_eq!(cluster.counts.snapshots_offered, 1);
}

#[test]
fn a_leader_that_has_no_room_to_apply_makes_way_and_catches_up() {
    let (mut cluster, leader) = settled(Settings::new(3, 1));
    cluster.node(leader).disk.leave_free(0);
    // More than a file of effects takes.
    for n in 0..100 {
        cluster.write(leader, S1, &put("k", &format!("{n:0200}")));
    }
    let new = new_leader(&mut cluster, leader);
    write_all(&mut cluster, new, 0..10);
    let behind = cluster.replica(leader, S1).unwrap().status();
    assert!(behind.applied.index < behind.raft.commit, "{behind:?}");
    cluster.node(leader).disk.leave_free(1 << 20);
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    let again = cluster.turn_with(new, S1, |replica, now| Ok(replica.transfer(now, leader)));
    assert_eq!(again, Some(Ok(())), "it may lead again");
    assert!(cluster.run_until(SOON, |cluster| cluster.leader(S1) == Some(leader)), "{}", cluster.summary());
}

#[test]
fn two_checkpoints_cut_in_a_row_are_survived() {
    let (mut cluster, leader) = settled(Settings::new(3, 1));
    let lose_all = &mut |outcomes: usize| outcomes - 1;
    write_all(&mut cluster, leader, 0..10);
    // The first is complete but for its last record, which never reaches the disk.
    assert!(cluster.begin_merge(leader, S1));
    assert!(cluster.step_merge(leader, S1));
    cluster.write_wal(leader, usize::MAX);
    while cluster.step_merge(leader, S1) {}
    cluster.crash(leader, lose_all);
    cluster.restart(leader);
    assert!(cluster.run_until(SOON, Cluster::is_settled));
    let lead = cluster.leader(S1).unwrap();
    write_all(&mut cluster, lead, 10..20);
    // The second has begun when the power goes, wherever it is then.
    for steps in 1..6 {
        assert!(cluster.begin_merge(leader, S1));
        for _ in 0..steps {
            cluster.step_merge(leader, S1);
            cluster.write_wal(leader, usize::MAX);
        }
        cluster.crash(leader, lose_all);
        cluster.restart(leader);
        assert!(cluster.run_until(SOON, Cluster::is_settled));
    }
    let lead = cluster.leader(S1).unwrap();
    write_all(&mut cluster, lead, 20..25);
    checkpoint(&mut cluster, leader);
    cluster.check_rows(leader, S1);
}

#[test]
fn a_snapshot_becomes_the_state_with_its_own_record_and_not_with_an_older_one() {
    let (mut cluster, leader) = settled(Settings::new(3, 1));
    let late = cluster.settings.nodes().find(|node| *node != leader).unwrap();
    // The follower has entries that its disk has not, and the leader drops them.
    cluster.stalled_disks.insert(late);
    write_all(&mut cluster, leader, 0..3);
    cluster.isolate(late);
    write_all(&mut cluster, leader, 3..30);
    checkpoint(&mut cluster, leader);
    cluster.compact_to_base(leader, S1);
    cluster.network.heal();
    await_stream(&mut cluster);
    stream_whole(&mut cluster);
    let records = cluster.nodes[&late].life.as_ref().unwrap().queue.len();
    assert!(records > 1, "an older record waits as well");
    cluster.write_wal(late, records - 1);
    cluster.turn(late, S1);
    assert!(cluster.replica(late, S1).unwrap().is_installing());
    cluster.crash(late, &mut |_| 0);
    cluster.restart(late);
    cluster.stalled_disks.clear();
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
}

#[test]
fn a_leader_whose_clock_stands_still_serves_no_old_read() {
    let (mut cluster, leader) = settled(Settings::new(3, 1));
    // From now on its clock lets it believe in itself.
    let now = cluster.now;
    cluster.clock_mut(leader).set_rate(now, 100_000);
    cluster.isolate(leader);
    let new = new_leader(&mut cluster, leader);
    let written = cluster.write(new, S1, &put("a", "new"));
    cluster.run(Duration::from_millis(20));
    assert!(matches!(end(&cluster, written), Some(End::Written(_))));
    assert!(cluster.replica(leader, S1).unwrap().is_leader(), "it has not noticed");
    let read = cluster.read(leader, S1, "a");
    cluster.run(Duration::from_millis(20));
    assert_eq!(end(&cluster, read), None);
    cluster.network.heal();
    cluster.run(Duration::from_millis(200));
    assert_eq!(end(&cluster, read), Some(End::NoLeader));
}
