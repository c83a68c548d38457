//! Processes that are killed lose nothing that was acknowledged, and their shards are served again soon.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_e2e::{Cluster, Ledger, Options, Writers, kvctl, settings, wait};
use kv_types::ShardId;

/// The shortest election timeout of a node with default settings.
const ELECTION_TIMEOUT_MIN: Duration = Duration::from_millis(500);

/// The longest election timeout of a node with default settings.
const ELECTION_TIMEOUT_MAX: Duration = Duration::from_millis(1000);

/// How long writes may take to go on.
const PATIENCE: Duration = Duration::from_secs(30);

const CLIENTS: usize = 32;

/// Kills the leader of a shard under load, again and again; the times until each shard it led accepted a write again.
async fn kill_leaders(cluster: &mut Cluster, ledger: &Ledger, kills: u64) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::new();
    for (_, nth) in (0..kills).zip((1..=4).cycle()) {
        let led = cluster.led().await?;
        let victim = led.get(&ShardId::new(nth)).context("four shards hold keys")?.leader;
        let user = led.iter().filter(|(shard, _)| **shard != ShardId::new(0));
        let before: Vec<_> =
            user.filter(|(_, led)| led.leader == victim).map(|(shard, led)| (*shard, led.epoch)).collect();
        let killed = Instant::now();
        cluster.kill(&[victim]).await?;
        for (shard, epoch) in before {
            let look = || async { ledger.first_after(shard, epoch).ok_or("none".to_owned()) };
            let first = wait::until("a write by a new leader", Duration::from_secs(30), look).await?;
            times.push(first.at - killed);
        }
        cluster.start_nodes(&[victim]).await?;
    }
    times.sort();
    Ok(times)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_when_leaders_two_nodes_and_all_nodes_are_killed() -> anyhow::Result<()>
{
    let kills = settings::number("QUORATE_KILLS", 4)?;
    let mut cluster = Cluster::start(Options::default()).await?;
    let ledger = Arc::new(Ledger::default());
    let writers = Writers::start(&cluster.endpoints(), &ledger, "k", CLIENTS, 100)?;

    let times = kill_leaders(&mut cluster, &ledger, kills).await?;
    let (min, median, max) = (times[0], times[times.len() / 2], times[times.len() - 1]);
    eprintln!(
        "kill -9 of a leader to the first write: {} shards, min {min:?}, median {median:?}, max {max:?}",
        times.len()
    );
    let within = |limit: Duration| times.iter().filter(|time| **time <= limit).count();
    let e = ELECTION_TIMEOUT_MIN;
    let counts = [(1.5, within(e.mul_f64(1.5))), (2.0, within(e * 2)), (3.0, within(e * 3))];
    eprintln!("of {} shards, times the election timeout of {e:?}: {counts:?}; {times:?}", times.len());

    cluster.led().await?;
    cluster.kill(&[1, 2]).await?;
    writers.progress("with three of five nodes", 100, PATIENCE).await?;
    cluster.start_nodes(&[1, 2]).await?;
    cluster.led().await?;

    let all = cluster.all();
    cluster.kill(&all).await?;
    cluster.start_nodes(&all).await?;
    writers.progress("after all nodes were killed", 100, PATIENCE).await?;
    writers.stop().await?;

    let agreed = cluster.agree().await?;
    ensure!(agreed.len() == 5, "the meta group and four shards: {agreed:?}");
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    for status in cluster.stop(&all).await? {
        ensure!(status.code() == Some(0), "an orderly stop: {status}");
    }
    for node in all {
        let verified = kvctl::verify_data(&cluster.data_dir(node))?;
        ensure!(verified.code == Some(0), "node {node} is not sound: {verified:?}");
    }
    ensure!(max <= 3 * ELECTION_TIMEOUT_MAX, "the first write came {max:?} after a kill: {times:?}");
    cluster.finish().await
}
