//! Counters are exact, whatever is lost, doubled, killed, paused or restarted on the way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_client::{Client, Config};
use kv_e2e::counting::{Counter, Way};
use kv_e2e::unreliable::{Faults, Layer};
use kv_e2e::{Cluster, Ledger, Options, Writers, settings, wait};
use kv_types::ShardId;
use tokio::task::JoinSet;

const CLIENTS: usize = 32;

/// Calls each client has under way on the counter that is incremented.
const CALLS_PER_CLIENT: usize = 8;

/// The size of a run as it is in the suite.
const INCREMENTS: u64 = 20_000;

/// Of so many increments one step is made of the counter that is compared and set: all its clients want the same
/// revision, so that one of them makes a step at a time.
const INCREMENTS_PER_SWAP: u64 = 50;

/// Calls have the time to outlive the worst that happens to them: of one that is given up, its session may soon know
/// nothing any more.
const TIMEOUT: Duration = Duration::from_secs(30);

/// In a longer run worse things happen: nodes with small logs refuse writes for long when they cannot merge.
const TIMEOUT_LONG: Duration = Duration::from_secs(120);

/// An answer that is lost alone is found out by time only, which takes half of a call's: such are rare.
const FAULTS: Faults = Faults {
    lose_reply: 1.0 / 4000.0,
    break_stream: 1.0 / 2000.0,
    twice: 0.02,
    soon: 0.01,
    late: 0.01,
    lateness: Duration::from_secs(2)..Duration::from_secs(8),
    lose_session_reply: 0.1,
};

const SEED: u64 = 7;

const PATIENCE: Duration = Duration::from_secs(60);

/// Values that fill the log of the first shard.
const FILLER_BYTES: usize = 4 << 10;

const FILLERS: usize = 128;

/// More entries than a replica keeps after a checkpoint.
const FILLER_ENTRIES: usize = 30_000;

/// How long a node hangs.
const PAUSE: Duration = Duration::from_millis(1500);

/// Shards whose leaders are hurt: those of the two counters.
const HURT: [u32; 2] = [1, 2];

/// What happened to the nodes.
#[derive(Debug, Default)]
struct Happened {
    kills: usize,
    pauses: usize,
    stops: usize,
    snapshots: u64,
}

async fn leader(cluster: &Cluster, shard: u32) -> anyhow::Result<u64> {
    Ok(cluster.led().await?.get(&ShardId::new(shard)).context("the shard is led")?.leader)
}

impl Happened {
    /// Kills the leader of a shard, and starts it when there is another.
    async fn kill(&mut self, cluster: &mut Cluster, shard: u32) -> anyhow::Result<()> {
        let victim = leader(cluster, shard).await?;
        cluster.kill(&[victim]).await?;
        self.kills += 1;
        cluster.led().await?;
        cluster.start_nodes(&[victim]).await
    }

    /// Lets the leader of a shard hang for a while.
    async fn pause(&mut self, cluster: &mut Cluster, shard: u32) -> anyhow::Result<()> {
        let victim = leader(cluster, shard).await?;
        cluster.pause(&[victim]).await?;
        self.pauses += 1;
        tokio::time::sleep(PAUSE).await;
        cluster.resume(&[victim])
    }

    /// Stops the leader of a shard in an orderly way, and starts it again.
    async fn stop(&mut self, cluster: &mut Cluster, shard: u32) -> anyhow::Result<()> {
        let victim = leader(cluster, shard).await?;
        let ended = cluster.stop(&[victim]).await?;
        ensure!(ended.iter().all(|status| status.code() == Some(0)), "an orderly stop: {ended:?}");
        self.stops += 1;
        cluster.start_nodes(&[victim]).await
    }

    /// Keeps a node away until the log of the first shard no longer reaches back to what it has.
    async fn keep_away(&mut self, cluster: &mut Cluster) -> anyhow::Result<()> {
        let led = cluster.led().await?;
        let leads = |node: &u64| {
            HURT.iter().any(|shard| led.get(&ShardId::new(*shard)).is_some_and(|led| led.leader == *node))
        };
        let away = cluster.all().into_iter().find(|node| !leads(node)).context("two lead at most")?;
        cluster.kill(&[away]).await?;
        self.kills += 1;
        let others: Vec<u64> = cluster.all().into_iter().filter(|node| *node != away).collect();
        let before = checkpoints(cluster, &others).await?;
        let config = Config::new(cluster.endpoints_of(&others));
        let ledger = Arc::new(Ledger::default());
        let filler = Writers::start_with(config, &ledger, "f", (&['a'], FILLERS, FILLER_BYTES))?;
        filler.progress("more entries than the log keeps", FILLER_ENTRIES, PATIENCE).await?;
        for (node, count) in before {
            cluster.counted_to(count + 3, node, "checkpoints_total", PATIENCE).await?;
        }
        filler.stop().await?;
        cluster.start_nodes(&[away]).await?;
        cluster.counted(away, "snapshots_installed_total", PATIENCE).await?;
        self.snapshots += cluster.metric(away, "snapshots_installed_total").await?;
        Ok(())
    }
}

async fn checkpoints(cluster: &Cluster, nodes: &[u64]) -> anyhow::Result<BTreeMap<u64, u64>> {
    let mut counts = BTreeMap::new();
    for node in nodes {
        counts.insert(*node, cluster.metric(*node, "checkpoints_total").await?);
    }
    Ok(counts)
}

/// Everything once, then again and again until the counters are at their ends.
async fn hurt(cluster: &mut Cluster, counters: &[Arc<Counter>]) -> anyhow::Result<Happened> {
    let mut happened = Happened::default();
    happened.kill(cluster, 1).await?;
    happened.keep_away(cluster).await?;
    happened.pause(cluster, 1).await?;
    for shard in HURT.into_iter().cycle() {
        if counters.iter().all(|counter| counter.left() == 0) {
            break;
        }
        happened.kill(cluster, shard).await?;
        happened.stop(cluster, shard).await?;
        happened.pause(cluster, shard).await?;
    }
    Ok(happened)
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_are_exact_whatever_is_lost_doubled_or_killed() -> anyhow::Result<()> {
    let increments = settings::number("QUORATE_INCREMENTS", INCREMENTS)?;
    let mut cluster = Cluster::start(Options::beside().flag("--wal-mb=192")).await?;
    cluster.led().await?;
    let nodes = cluster.all().into_iter().zip(cluster.endpoints()).collect();
    let layer = Layer::start(&nodes, FAULTS, SEED).await?;
    let incremented = Counter::new("a/incremented", Way::Increment, increments)?;
    let swapped = Counter::new("h/swapped", Way::CompareAndSet, increments / INCREMENTS_PER_SWAP)?;
    let counters = [Arc::clone(&incremented), Arc::clone(&swapped)];

    let began = Instant::now();
    let timeout = if increments > INCREMENTS { TIMEOUT_LONG } else { TIMEOUT };
    let config = Config { timeout, ..Config::new(layer.endpoints()) };
    let clients: Vec<Client> = (0..CLIENTS).map(|_| Client::new(config.clone())).collect::<Result<_, _>>()?;
    let mut counting = JoinSet::new();
    for client in &clients {
        counting.spawn(Arc::clone(&swapped).count(client.clone()));
        for _ in 0..CALLS_PER_CLIENT {
            counting.spawn(Arc::clone(&incremented).count(client.clone()));
        }
    }
    let happened = hurt(&mut cluster, &counters).await?;
    while let Some(ended) = counting.join_next().await {
        ended??;
    }
    let took = began.elapsed();
    for client in &clients {
        client.close().await?;
    }

    // What was kept arrives when all clients have gone.
    let look = || async {
        let counted = layer.counted();
        if counted.waiting == 0 { Ok(counted) } else { Err(format!("{counted:?}")) }
    };
    let counted = wait::until("the last doubles", PATIENCE, look).await?;
    cluster.agree().await?;
    let calls = incremented.tally().calls + swapped.tally().calls;
    let retries = counted.writes.saturating_sub(calls);
    eprintln!("{increments} increments in {took:?}: {retries} retries; {happened:?}; {counted:?}");
    let client = cluster.client()?;
    let (sum, swaps) = (incremented.audit(&client).await?, swapped.audit(&client).await?);
    eprintln!("{sum} and {swaps} are exact");
    let unknown = incremented.tally().never_found + swapped.tally().never_found;
    ensure!(unknown == 0, "of {unknown} calls nobody can say what they came to");
    for (what, count) in [
        ("a lost answer", counted.replies_lost),
        ("a broken stream", counted.streams_broken),
        ("a write sent twice", counted.twice),
        ("a write sent again soon", counted.soon),
        ("a write sent again late", counted.late),
        ("a write sent again to another node", counted.elsewhere),
        ("a double answered from a record", counted.replayed),
        ("a snapshot", happened.snapshots),
        ("a retry", retries),
    ] {
        ensure!(count > 0, "{what} is part of this test: {counted:?}");
    }
    cluster.finish().await
}
