//! The file of a base that is overwritten again and again is rewritten, under writes and a kill, and stays small.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use kv_client::Client;
use kv_e2e::{Cluster, Options, disk, ledger, settings, wait};
use kv_types::{Key, Outcome, Value};
use tokio::sync::watch;
use tokio::task::JoinSet;

type Tasks = JoinSet<anyhow::Result<BTreeMap<String, May>>>;

/// A key that is written while a test waits, and how long its value is.
const BESIDE: &str = "a/zz";
const BESIDE_BYTES: usize = 256 << 10;

/// Writers at a time.
const TASKS: u64 = 16;

/// Keys that are overwritten and deleted, unless it is said otherwise.
const KEYS: u64 = 8_000;

/// The same where they are overwritten all the time: bringing a rewritten base up to date takes as long as there are keys.
const BUSY_KEYS: u64 = 4_000;

const PATIENCE: Duration = Duration::from_secs(300);

const VALUE_BYTES: usize = 4 << 10;

const MIB: u64 = 1 << 20;

/// Bytes of all bases below a data directory.
fn base_bytes(data: &Path) -> anyhow::Result<u64> {
    let mut sum = 0;
    for entry in std::fs::read_dir(data)? {
        let shard = entry?.path();
        if !shard.file_name().is_some_and(|name| name.to_string_lossy().starts_with("shard-")) {
            continue;
        }
        for generation in std::fs::read_dir(&shard)? {
            let dir = generation?.path();
            if dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("gen-")) {
                // It may vanish meanwhile.
                sum += disk::taken_bytes(&dir).unwrap_or(0);
            }
        }
    }
    Ok(sum)
}

/// What a key may hold: what was acknowledged last, and what failed without a word whether it happened.
#[derive(Debug, Default)]
struct May {
    acknowledged: Option<Bytes>,
    unknown: Vec<Bytes>,
}

/// Overwrites keys of one shard in no order until it is told to stop; each task has its own keys.
fn overwrite(client: &Client, keys: u64, puts: &Arc<AtomicU64>, stop: &watch::Receiver<bool>) -> Tasks {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (client, puts, stop) = (client.clone(), Arc::clone(puts), stop.clone());
        tasks.spawn(async move {
            let mut written: BTreeMap<String, May> = BTreeMap::new();
            let mut number = task;
            while !*stop.borrow() {
                // A linear congruence: all keys, in an order that no cache likes.
                number =
                    number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let key = format!("a/{task:02}/{:06}", (number >> 33) % (keys / TASKS));
                let value = Bytes::from(format!("{number:-<VALUE_BYTES$}"));
                let done = client.put(Key::new(key.clone())?, Value::new(value.clone())?).await;
                let may = written.entry(key).or_default();
                match done {
                    Ok(_) => {
                        puts.fetch_add(1, Ordering::Relaxed);
                        may.acknowledged = Some(value);
                    }
                    Err(error) if error.outcome == Outcome::NotApplied => {}
                    Err(_) => may.unknown.push(value),
                }
            }
            anyhow::Ok(written)
        });
    }
    tasks
}

async fn audit(client: &Client, written: &BTreeMap<String, May>) -> anyhow::Result<()> {
    let found = ledger::everything(client).await?;
    for key in found.keys().filter(|key| **key != BESIDE) {
        let known = std::str::from_utf8(key).is_ok_and(|key| written.contains_key(key));
        ensure!(known, "{key:?} was deleted, or never written");
    }
    for (key, may) in written {
        let found = found.get(key.as_bytes());
        let right =
            found == may.acknowledged.as_ref() || found.is_some_and(|value| may.unknown.contains(value));
        ensure!(right, "{key} holds {found:?}, may hold {may:?}");
    }
    Ok(())
}

/// What all tasks have written.
async fn ended(mut tasks: Tasks) -> anyhow::Result<BTreeMap<String, May>> {
    let mut written = BTreeMap::new();
    while let Some(ended) = tasks.join_next().await {
        written.extend(ended??);
    }
    Ok(written)
}

/// All replicas agree and hold what they may, before and after all nodes are killed.
async fn audit_over_a_kill(cluster: &mut Cluster, written: &BTreeMap<String, May>) -> anyhow::Result<()> {
    cluster.agree().await?;
    audit(&cluster.client()?, written).await?;
    let all = cluster.all();
    cluster.kill(&all).await?;
    cluster.start_nodes(&all).await?;
    cluster.led().await?;
    audit(&cluster.client()?, written).await
}

/// Deletes all keys but those of the first tasks; what is left of `written`.
async fn delete_most(
    client: &Client,
    mut written: BTreeMap<String, May>,
) -> anyhow::Result<BTreeMap<String, May>> {
    let mut deletes = JoinSet::new();
    let gone = written.split_off(&format!("a/{:02}/", TASKS / 16));
    for task in TASKS / 16..TASKS {
        let client = client.clone();
        let prefix = format!("a/{task:02}/");
        let keys: Vec<String> = gone.keys().filter(|key| key.starts_with(&prefix)).cloned().collect();
        deletes.spawn(async move {
            for key in keys {
                client.delete(Key::new(key)?).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = deletes.join_next().await {
        done??;
    }
    Ok(written)
}

/// Rows that were overwritten and then deleted give their space back, on every node, and a kill changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_gives_its_space_back() -> anyhow::Result<()> {
    let options = Options { nodes: 3, ..Options::beside() };
    let mut cluster = Cluster::start(options.flag("--base-slack-mb=24").flag("--wal-mb=192")).await?;
    cluster.led().await?;
    let (puts, (stop, stopped)) = (Arc::new(AtomicU64::new(0)), watch::channel(false));
    let keys = settings::number("QUORATE_HOT_KEYS", KEYS)?;
    let client = cluster.client_with_timeout(PATIENCE)?;
    let tasks = overwrite(&client, keys, &puts, &stopped);
    let began = Instant::now();
    let enough = || {
        let count = puts.load(Ordering::Relaxed);
        std::future::ready(if count < 6 * keys { Err(format!("{count} puts")) } else { Ok(()) })
    };
    wait::until("each key to be written six times", PATIENCE, enough).await?;
    stop.send_replace(true);
    let written = ended(tasks).await?;
    let largest = bases(&cluster)?;
    let rewritten_before = rewritten(&cluster).await?;
    eprintln!(
        "{puts:?} puts in {:?}: bases of {largest:?} MiB, rewritten {rewritten_before:?} times",
        began.elapsed()
    );
    let written = delete_most(&client, written).await?;
    let kept: u64 = written.len() as u64;
    eprintln!("{kept} keys of {keys} are kept");
    let deleted = Instant::now();
    // Overwriting beside it, so that checkpoints have something to do.
    let (beside, value) = (Key::new(BESIDE)?, Value::new(vec![0; BESIDE_BYTES])?);
    let shrunk = || async {
        for _ in 0..16 {
            client.put(beside.clone(), value.clone()).await.map_err(|cause| cause.to_string())?;
        }
        let now = bases(&cluster).map_err(|cause| cause.to_string())?;
        let half = now.iter().zip(&largest).all(|(now, before)| now * 2 < *before);
        if half { Ok(now) } else { Err(format!("bases of {now:?} MiB")) }
    };
    let now = wait::until("bases of half the size", PATIENCE, shrunk).await?;
    let times = rewritten(&cluster).await?;
    eprintln!("{:?}: bases of {now:?} MiB, rewritten {times:?} times", deleted.elapsed());
    audit_over_a_kill(&mut cluster, &written).await?;
    cluster.finish().await
}

fn bases(cluster: &Cluster) -> anyhow::Result<Vec<u64>> {
    cluster.all().iter().map(|node| Ok(base_bytes(&cluster.data_dir(*node))? / MIB)).collect()
}

async fn rewritten(cluster: &Cluster) -> anyhow::Result<Vec<u64>> {
    let mut times = Vec::new();
    for node in cluster.all() {
        times.push(cluster.metric(node, "regenerations_total").await?);
    }
    Ok(times)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_has_outgrown_its_rows_is_rewritten_beside_writes_and_a_kill() -> anyhow::Result<()> {
    let options = Options { nodes: 3, ..Options::default() };
    let mut cluster = Cluster::start(options.flag("--base-slack-mb=16").flag("--memtable-mb=64")).await?;
    cluster.led().await?;
    let (puts, (stop, stopped)) = (Arc::new(AtomicU64::new(0)), watch::channel(false));
    let keys = settings::number("QUORATE_HOT_KEYS", BUSY_KEYS)?;
    let tasks = overwrite(&cluster.client_with_timeout(PATIENCE)?, keys, &puts, &stopped);
    let (began, largest) = (Instant::now(), AtomicU64::new(0));
    cluster.process(1)?.says("the base is being rewritten", PATIENCE).await?;
    cluster.kill(&[1]).await?;
    cluster.start_nodes(&[1]).await?;
    let all_rewritten = || async {
        let now = bases(&cluster).map_err(|cause| cause.to_string())?;
        let times = rewritten(&cluster).await.map_err(|cause| cause.to_string())?;
        largest.fetch_max(now.iter().copied().max().unwrap_or_default(), Ordering::Relaxed);
        let said = format!("bases of {now:?} MiB, rewritten {times:?} times");
        if times.iter().all(|times| *times > 0) { Ok(said) } else { Err(said) }
    };
    let said = wait::until("every base to be rewritten", PATIENCE, all_rewritten).await?;
    eprintln!("{} puts in {:?}: {said}", puts.load(Ordering::Relaxed), began.elapsed());
    stop.send_replace(true);
    let written = ended(tasks).await?;
    audit_over_a_kill(&mut cluster, &written).await?;
    eprintln!("{} keys, the largest bases of a node took {largest:?} MiB", written.len());
    cluster.finish().await
}
