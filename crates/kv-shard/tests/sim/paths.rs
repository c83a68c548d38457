//! The named paths, one test each.

use std::time::Duration;

use kv_types::{NodeId, ShardId};

use crate::cluster::{Cluster, Settings, put};
use crate::oracle::End;

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
    cut_off(&mut cluster, late);
    write_all(&mut cluster, leader, 10..30);
    checkpoint(&mut cluster, leader);
    cluster.turn_with(leader, S1, |replica, _| replica.compact_to_base().unwrap());
    cluster.network.cuts.clear();
    (cluster, leader, late)
}

fn write_all(cluster: &mut Cluster, leader: NodeId, numbers: std::ops::Range<u64>) {
    for n in numbers {
        cluster.write(leader, S1, &put(&format!("k{}", n % 7), &format!("v{n}")));
        cluster.run(Duration::from_millis(2));
    }
}

fn cut_off(cluster: &mut Cluster, node: NodeId) {
    for other in cluster.settings.nodes().filter(|other| *other != node) {
        cluster.network.cuts.insert((node, other));
        cluster.network.cuts.insert((other, node));
    }
}

fn checkpoint(cluster: &mut Cluster, node: NodeId) {
    assert!(cluster.begin_merge(node, S1));
    let done = cluster.checkpoints + 1;
    assert!(cluster.run_until(SOON, |cluster| cluster.checkpoints == done));
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
    let offered = cluster.snapshots_offered;
    while cluster.snapshots_offered == offered {
        assert!(cluster.step_stream(0));
    }
}

#[test]
fn a_late_follower_gets_a_snapshot() {
    let (mut cluster, _, late) = late_follower(Settings::new(3, 2));
    assert!(cluster.run_until(SOON, Cluster::is_settled), "{}", cluster.summary());
    assert_eq!(cluster.snapshots_offered, 1);
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
    assert_eq!((cluster.snapshots_offered, cluster.checkpoints), (1, 2));
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
    cluster.begin_stream(leader, S1, job);
    assert!(cluster.step_stream(0), "the second stream opens");
    while cluster.work_without_streams() {}
    assert!(!cluster.replica(late, S1).unwrap().is_installing());
    cluster.crash(late, &mut |_| 0);
    cluster.restart(late);
    assert!(cluster.run_until(SOON, Cluster::is_settled));
}
