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
