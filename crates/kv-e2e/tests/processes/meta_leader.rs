//! Clients that have sessions need the meta group only now and then: they write on while its leader is killed again and
//! again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_client::{Client, Config, RequestIds};
use kv_e2e::writers::LETTERS;
use kv_e2e::{Cluster, Options, settings, wait};
use kv_types::{Key, NodeId, ShardId};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// The nodes that lead the meta group in turn, and are killed. The others lead the shards.
const KILLED: [u64; 2] = [1, 2];

const CLIENTS: usize = 32;

/// Each client writes so often: less than it could, so that what is measured is not the machine.
const EVERY: Duration = Duration::from_millis(20);

/// So short that sessions are renewed several times while the leaders are killed.
const TTL: Duration = Duration::from_secs(10);

/// Between two kills at least.
const KILL_EVERY: Duration = Duration::from_secs(1);

/// The seconds of a run as it is in the suite.
const SECONDS: u64 = 8;

const PATIENCE: Duration = Duration::from_secs(30);

/// What clients that write all the time were answered.
#[derive(Debug, Default)]
struct Answered {
    done: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

async fn write(client: Client, key: Key, answered: Arc<Answered>) {
    let mut due = interval(EVERY);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !answered.stop.load(Ordering::Relaxed) {
        due.tick().await;
        match client.incr(key.clone(), 1).await {
            Ok(_) => answered.done.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                eprintln!("{error:?}");
                answered.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// Hands a shard to a node, until it leads.
async fn hand(cluster: &Cluster, client: &Client, shard: ShardId, node: u64) -> anyhow::Result<()> {
    let look = || async {
        let led = cluster.led().await.map_err(|cause| cause.to_string())?;
        match led.get(&shard).map(|led| led.leader) {
            Some(leader) if leader == node => Ok(()),
            leader => {
                // A voter that is behind is asked again.
                let asked = client.transfer_leader(shard, NodeId::new(node)).await;
                Err(format!("{leader:?} leads {shard}: {asked:?}"))
            }
        }
    };
    wait::until("a change of the leader", PATIENCE, look).await
}

/// Kills the meta group's leader again and again; how often.
async fn kill_leaders(cluster: &mut Cluster, span: Duration) -> anyhow::Result<u64> {
    let client = cluster.client()?;
    let (began, mut kills) = (Instant::now(), 0);
    for (victim, next) in KILLED.into_iter().zip(KILLED.into_iter().rev()).cycle() {
        let killed = Instant::now();
        cluster.kill(&[victim]).await?;
        kills += 1;
        hand(cluster, &client, ShardId::META, next).await?;
        cluster.start_nodes(&[victim]).await?;
        if began.elapsed() >= span {
            break;
        }
        tokio::time::sleep(KILL_EVERY.saturating_sub(killed.elapsed())).await;
    }
    Ok(kills)
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_the_leaders_of_the_meta_group() -> anyhow::Result<()> {
    let seconds = settings::number("QUORATE_META_KILL_SECONDS", SECONDS)?;
    let span = Duration::from_secs(seconds);
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.led().await?;
    let control = cluster.client()?;
    for (shard, node) in (1..=4).zip([3, 4, 5, 3]) {
        hand(&cluster, &control, ShardId::new(shard), node).await?;
    }
    hand(&cluster, &control, ShardId::META, KILLED[0]).await?;

    let answered = Arc::new(Answered::default());
    let mut writers = JoinSet::new();
    let request_ids = RequestIds::Sessions { ttl: TTL };
    for (nth, letter) in (0..CLIENTS).zip(LETTERS.iter().cycle()) {
        let client = Client::new(Config { request_ids, ..Config::new(cluster.endpoints()) })?;
        let key = Key::new(format!("{letter}/{nth}"))?;
        // Its session is open before anything is measured.
        client.incr(key.clone(), 1).await?;
        writers.spawn(write(client, key, Arc::clone(&answered)));
    }
    let before = answered.done.load(Ordering::Relaxed);
    let began = Instant::now();
    tokio::time::sleep(span / 2).await;
    let at_rest = (answered.done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();

    let before = answered.done.load(Ordering::Relaxed);
    let began = Instant::now();
    let kills = kill_leaders(&mut cluster, span).await?;
    let meanwhile = (answered.done.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64();
    let took = began.elapsed();
    answered.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended?;
    }
    let kept = meanwhile / at_rest;
    eprintln!(
        "{kills} leaders of the meta group killed in {took:?}: {at_rest:.0} writes a second before, {meanwhile:.0} meanwhile, {kept:.3} of them"
    );
    let failed = answered.failed.load(Ordering::Relaxed);
    ensure!(failed == 0, "{failed} calls failed");
    let led = cluster.led().await?;
    let strayed = led.iter().find(|(shard, led)| **shard != ShardId::META && KILLED.contains(&led.leader));
    ensure!(strayed.is_none(), "a shard was led by a node that was killed: {led:?}");
    ensure!(seconds <= SECONDS || kept >= 0.95, "{kept:.3} of the goodput is left");
    cluster.led().await?.get(&ShardId::META).context("the meta group is led")?;
    cluster.agree().await?;
    cluster.finish().await
}
