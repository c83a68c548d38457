//! Clients that have sessions need the meta group only now and then: they write on while its leader is killed again and
//! again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_client::{Client, Config, RequestIds};
use kv_e2e::writers::LETTERS;
use kv_e2e::{Cluster, Options, leaders, settings};
use kv_types::{Key, ShardId};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

/// The nodes that lead the meta group in turn, and are killed. The others lead the shards.
const KILLED: [u64; 2] = [1, 2];

const CLIENTS: usize = 32;

/// Each client writes so often: less than it could, so that what is measured is not the machine.
const EVERY: Duration = Duration::from_millis(50);

/// An answer that comes later than this after its call was due is no part of the goodput.
const IN_TIME: Duration = Duration::from_millis(500);

/// So short that sessions are renewed several times while the leaders are killed.
const TTL: Duration = Duration::from_secs(10);

/// Between two kills at least.
const KILL_EVERY: Duration = Duration::from_secs(1);

/// The seconds of a run as it is in the suite.
const SECONDS: u64 = 8;

/// What clients that write all the time were answered.
#[derive(Debug, Default)]
struct Answered {
    in_time: AtomicU64,
    late: AtomicU64,
    failed: AtomicU64,
    stop: AtomicBool,
}

async fn write(client: Client, key: Key, answered: Arc<Answered>) {
    let mut ticks = interval(EVERY);
    // Calls that were held up are made up for, but do not count as in time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    while !answered.stop.load(Ordering::Relaxed) {
        let due = ticks.tick().await;
        match client.incr(key.clone(), 1).await {
            Ok(_) if due.elapsed() <= IN_TIME => answered.in_time.fetch_add(1, Ordering::Relaxed),
            Ok(_) => answered.late.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                eprintln!("{error:?}");
                answered.failed.fetch_add(1, Ordering::Relaxed)
            }
        };
    }
}

/// What some work comes to, and how many writes a second were answered in time while it went on.
async fn rate_while<T>(
    answered: &Answered,
    work: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, f64)> {
    let (before, began) = (answered.in_time.load(Ordering::Relaxed), Instant::now());
    let done = work.await?;
    let count = answered.in_time.load(Ordering::Relaxed) - before;
    Ok((done, count as f64 / began.elapsed().as_secs_f64()))
}

/// Kills the meta group's leader again and again; how often.
async fn kill_leaders(cluster: &mut Cluster, span: Duration) -> anyhow::Result<u64> {
    let (began, mut kills) = (Instant::now(), 0);
    for (victim, next) in KILLED.into_iter().zip(KILLED.into_iter().rev()).cycle() {
        let killed = Instant::now();
        cluster.kill(&[victim]).await?;
        kills += 1;
        leaders::lead(cluster, ShardId::META, next).await?;
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
    for (shard, node) in (1..=4).zip([3, 4, 5, 3]) {
        leaders::lead(&cluster, ShardId::new(shard), node).await?;
    }
    leaders::lead(&cluster, ShardId::META, KILLED[0]).await?;

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
    let rest = async {
        tokio::time::sleep(span / 2).await;
        Ok(())
    };
    let ((), at_rest) = rate_while(&answered, rest).await?;
    let (kills, meanwhile) = rate_while(&answered, kill_leaders(&mut cluster, span)).await?;
    answered.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = writers.join_next().await {
        ended?;
    }
    let (kept, late) = (meanwhile / at_rest, answered.late.load(Ordering::Relaxed));
    eprintln!("{kills} leaders of the meta group killed; {CLIENTS} clients, one write every {EVERY:?} each");
    eprintln!(
        "{at_rest:.0} a second in time before, {meanwhile:.0} meanwhile: {kept:.3} of them; {late} late"
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
