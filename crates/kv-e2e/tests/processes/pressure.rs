//! Limits hold: of memory, of the write-ahead log, of the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use kv_client::{Client, Code, Config, ScanRequest};
use kv_e2e::{Cluster, Ledger, Options, Writers, disk, kvctl, memory, settings, wait, writers};
use kv_types::{Key, KeyRange, ShardId, Value};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(120);

const MIB: u64 = 1 << 20;

fn three() -> Options {
    Options { nodes: 3, ..Options::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nearly_full_disk_refuses_writes_and_goes_on_reading() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 1, ..Options::default() }).await?;
    let ledger = Arc::new(Ledger::default());
    writers::put(&cluster.client()?, &ledger, "a/before", "x".into()).await??;
    cluster.stop(&[1]).await?;
    cluster.launch_with(1, &["--disk-free-min-mb=1048576"])?;
    cluster
        .process(1)?
        .says("the disk is nearly full: writes are refused; free some space", PATIENCE)
        .await?;
    cluster.led().await?;
    let client = cluster.client_with_timeout(Duration::from_secs(1))?;
    let put = writers::put(&client, &ledger, "a/refused", "x".into()).await?;
    let Err(error) = put else { anyhow::bail!("a write was acknowledged") };
    ensure!(error.failure.code() == Code::ResourceExhausted, "{error}: {error:?}");
    let json =
        kvctl::kvctl(&cluster.endpoints().join(","), &["put", "a", "x", "-o", "json", "--timeout", "1s"])?;
    ensure!(json.code == Some(6), "not applied and worth a retry: {json:?}");
    for word in ["\"RESOURCE_EXHAUSTED\"", "\"not_applied\"", "disk"] {
        ensure!(json.stderr.contains(word), "{word}: {json:?}");
    }
    eprintln!("{:?}", ledger.audit(&client).await?);
    cluster.stop(&[1]).await?;
    cluster.start_nodes(&[1]).await?;
    cluster.led().await?;
    writers::put(&cluster.client()?, &ledger, "a/after", "x".into()).await??;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_push_harder_than_the_disk_takes_are_refused_and_memory_stays_bounded()
-> anyhow::Result<()> {
    let cluster = Cluster::start(three().flag("--memtable-mb=8").flag("--cache-mb=32")).await?;
    cluster.led().await?;
    let ledger = Arc::new(Ledger::default());
    let config = Config { timeout: Duration::from_millis(500), ..Config::new(cluster.endpoints()) };
    let writers = Writers::start_with(config, &ledger, "o", (&writers::LETTERS, 2000, 32 << 10))?;
    let wanted = usize::try_from(settings::number("QUORATE_OVERLOAD_REFUSALS", 20_000)?)?;
    let refusals = || async {
        let seen = turned_away(&ledger.failures(), &["ResourceExhausted", "DeadlineExceeded"]);
        if seen >= wanted { Ok(()) } else { Err(format!("{seen} of {wanted}")) }
    };
    let push = wait::until("writes refused by a node, or held back by the client", PATIENCE, refusals);
    let ((), peak) = memory::peak_while(&cluster.pids(), push).await?;
    writers.stop().await?;
    let failures = ledger.failures();
    eprintln!("{} acknowledged, largest node {} MiB, failures {failures:?}", ledger.count(), peak / MIB);
    ensure!(peak < 1024 * MIB, "a node grew to {} MiB", peak / MIB);
    ensure!(turned_away(&failures, &["ResourceExhausted"]) > 0, "no node has refused anything");
    cluster.agree().await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_in_mid_scan_does_not_make_the_server_grow() -> anyhow::Result<()> {
    let cluster = Cluster::start(three().flag("--memtable-mb=32").flag("--cache-mb=32")).await?;
    cluster.led().await?;
    let (kept, ledger) = (Ledger::default(), Arc::new(Ledger::default()));
    let client = cluster.client_with_timeout(Duration::from_secs(20))?;
    for nth in 0..1000 {
        let name = format!("a/0/{nth:05}");
        let value = Bytes::from(format!("{name:=<30000}"));
        writers::put(&client, &kept, &name, value).await??;
    }
    let range = KeyRange::prefix("a/0/")?;
    let mut scan = client.scan(ScanRequest { range, limit: None, keys_only: false });
    let first = scan.next_page().await?;
    let mut rows = first.map_or(0, |page| page.rows.len());
    ensure!((1..1000).contains(&rows), "a first page: {rows} rows");

    let puts = usize::try_from(settings::number("QUORATE_STALLED_PUTS", 30_000)?)?;
    let config = Config::new(cluster.endpoints());
    let writers = Writers::start_with(config, &ledger, "s", (&['a'], 128, 100))?;
    let limit = PATIENCE * u32::try_from(1 + puts / 100_000)?;
    let ((), peak) = memory::peak_while(&cluster.pids(), writers.progress("puts", puts, limit)).await?;
    eprintln!("{puts} puts beside a stalled scan: largest node {} MiB", peak / MIB);
    ensure!(peak < 768 * MIB, "a node grew to {} MiB", peak / MIB);
    writers.stop().await?;
    let end = loop {
        match scan.next_page().await {
            Ok(Some(page)) => rows += page.rows.len(),
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    eprintln!("the stalled scan gave {rows} of 1000 rows and ended with {end:?}");
    match end {
        // All of one revision: the writers wrote other keys, so none may be missing or new.
        None => ensure!(rows == 1000, "a whole scan has 1000 rows, not {rows}"),
        Some(error) => ensure!(error.failure.code() == Code::OutOfRange, "{error:?}"),
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_shard_and_a_busy_one_are_both_there_after_a_kill() -> anyhow::Result<()> {
    let cluster = Cluster::start(three()).await?;
    cluster.led().await?;
    idle_beside_busy(cluster, &BTreeMap::new()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_log_holds_its_limit_on_every_node() -> anyhow::Result<()> {
    let cluster = Cluster::start(three().flag("--wal-mb=192")).await?;
    cluster.led().await?;
    let limits = cluster.all().into_iter().map(|node| (node, 192 * MIB)).collect();
    idle_beside_busy(cluster, &limits).await.map(drop)
}

/// A follower cannot refuse a client, but it can put off what its leader sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_whose_log_is_smaller_than_its_leaders_holds_its_limit() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(three()).await?;
    let busy = ShardId::new(1);
    let leader = cluster.led().await?.get(&busy).map(|led| led.leader);
    let small = cluster.all().into_iter().find(|node| Some(*node) != leader).unwrap_or_default();
    cluster.stop(&[small]).await?;
    cluster.launch_with(small, &["--wal-mb=192"])?;
    cluster.process(small)?.says("ready node=", PATIENCE).await?;
    cluster.led().await?;
    let put_off = idle_beside_busy(cluster, &BTreeMap::from([(small, 192 * MIB)])).await?;
    ensure!(put_off.get(&small).is_some_and(|count| *count > 0), "its limit was never reached: {put_off:?}");
    Ok(())
}

/// Overwrites rows of one shard beside another that rests, then kills all nodes. The log of none may ever exceed its
/// limit, which is the default if `limits` has no other. How many appends each node has put off.
async fn idle_beside_busy(
    mut cluster: Cluster,
    limits: &BTreeMap<u64, u64>,
) -> anyhow::Result<BTreeMap<u64, u64>> {
    let idle = Arc::new(Ledger::default());
    writers::put(&cluster.client()?, &idle, "u/idle", "kept".into()).await??;
    let bytes = settings::number("QUORATE_WAL_TEST_MB", 700)? * MIB;
    let client = cluster.client_with_timeout(Duration::from_secs(30))?;
    let (progress, mut puts) = mpsc::channel(1);
    let busy = tokio::spawn(overwrite(client, bytes, progress));
    let (began, mut largest) = (Instant::now(), BTreeMap::new());
    while puts.recv().await.is_some() {
        for node in cluster.all() {
            let taken = disk::taken_bytes(&cluster.data_dir(node).join("wal"))?;
            largest.entry(node).and_modify(|most: &mut u64| *most = taken.max(*most)).or_insert(taken);
        }
    }
    let written = busy.await??;
    let mut put_off = BTreeMap::new();
    for node in cluster.all() {
        put_off.insert(node, cluster.metric(node, "appends_put_off_total").await?);
    }
    eprintln!("{} MiB in {:?}; the logs took {largest:?} bytes at most", bytes / MIB, began.elapsed());
    eprintln!("appends put off: {put_off:?}; {:?}", cluster.led().await?);
    for (node, largest) in largest {
        let limit = limits.get(&node).copied().unwrap_or(512 * MIB);
        // The directory itself takes a block, too.
        ensure!(largest <= limit + (64 << 10), "the WAL of node {node} took {} MiB", largest / MIB);
    }
    let all = cluster.all();
    cluster.kill(&all).await?;
    cluster.start_nodes(&all).await?;
    cluster.led().await?;
    let client = cluster.client()?;
    for (key, value) in written {
        let row = client.get(Key::new(key.clone())?).await?.row;
        ensure!(row.is_some_and(|row| *row.value.bytes() == value), "{key} has another value");
    }
    let row = client.get(Key::new("u/idle")?).await?.row;
    ensure!(row.is_some_and(|row| row.value.bytes() == "kept"), "the idle shard lost its row");
    cluster.agree().await?;
    cluster.finish().await?;
    Ok(put_off)
}

/// How many writes failed with one of these codes and were not begun.
fn turned_away(failures: &BTreeMap<String, usize>, codes: &[&str]) -> usize {
    let counts =
        |failure: &str| codes.iter().any(|code| failure.starts_with(code)) && failure.ends_with("NotApplied");
    failures.iter().filter(|(failure, _)| counts(failure)).map(|(_, count)| count).sum()
}

/// Writes `bytes` bytes over and over the same keys of one shard; what each holds in the end. After every so many puts it
/// waits until its progress is taken note of.
async fn overwrite(
    client: Client,
    bytes: u64,
    progress: mpsc::Sender<()>,
) -> anyhow::Result<BTreeMap<String, Bytes>> {
    const VALUE_BYTES: usize = 60 << 10;
    const LOOK_EVERY: u64 = 16;
    let left = Arc::new(AtomicU64::new(bytes / VALUE_BYTES as u64));
    let mut tasks = JoinSet::new();
    for task in 0..16 {
        let (client, left, progress) = (client.clone(), Arc::clone(&left), progress.clone());
        tasks.spawn(async move {
            let mut written = BTreeMap::new();
            let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            while let Ok(nth) = take() {
                let key = format!("a/{task:02}/{:02}", nth % 8);
                let text = format!("{key} {nth}");
                let value = Bytes::from(format!("{text:-<VALUE_BYTES$}"));
                client.put(Key::new(key.clone())?, Value::new(value.clone())?).await?;
                written.insert(key, value);
                if nth.is_multiple_of(LOOK_EVERY) {
                    progress.send(()).await?;
                }
            }
            anyhow::Ok(written)
        });
    }
    // Whoever looks at the progress waits for its end.
    drop(progress);
    let mut written = BTreeMap::new();
    while let Some(done) = tasks.join_next().await {
        written.extend(done??);
    }
    Ok(written)
}
