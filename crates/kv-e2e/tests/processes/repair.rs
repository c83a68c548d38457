//! Rows that are damaged are fetched from another member, without an operator, while the group goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::{Client, Config};
use kv_e2e::{Cluster, Ledger, Options, disk, kvctl, settings, wait, writers, writers::Writers};
use kv_types::ShardId;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

const PATIENCE: Duration = Duration::from_secs(60);

const VALUE_BYTES: usize = 512;

/// Values of a load that goes on for long.
const LITTLE_BYTES: usize = 64;

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_is_fetched_from_a_peer_under_load() -> anyhow::Result<()> {
    let options = Options { nodes: 3, split_keys: String::new(), ..Options::beside() };
    let mut cluster = Cluster::start(options.flag("--memtable-mb=8")).await?;
    cluster.led().await?;
    let ledger = Arc::new(Ledger::default());
    let writers = Writers::start(&cluster.endpoints(), &ledger, "load", 8, VALUE_BYTES)?;
    cluster.counted(1, "checkpoints_total", PATIENCE).await?;
    cluster.stop(&[1]).await?;
    let base = files_of(&cluster.data_dir(1), Kind::Base)?;
    let base = base.iter().find(|path| path.to_string_lossy().contains("shard-1/")).context("a base")?;
    std::fs::write(base, b"this was a base")?;
    cluster.launch(1)?;
    repaired(&cluster, 1).await?;
    ensure!(cluster.metric(1, "snapshots_installed_total").await? > 0, "its rows came from a peer");
    let said = cluster.process(1)?.output()?;
    ensure!(said.contains("the rows are damaged"), "{said}");
    writers.progress("after the repair", 500, PATIENCE).await?;
    writers.stop().await?;
    cluster.agree().await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    cluster.stop(&[1]).await?;
    let verified = kvctl::verify_data(&cluster.data_dir(1))?;
    ensure!(verified.code == Some(0), "{verified:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_rots_under_a_running_node_is_found_by_the_scrub() -> anyhow::Result<()> {
    // Far more rows than the cache holds, so that they are read from the disk.
    const ROWS: usize = 4000;
    const ROW_BYTES: usize = 8000;
    let options = Options { nodes: 3, split_keys: String::new(), ..Options::beside() };
    let options = options.flag("--memtable-mb=8").flag("--cache-mb=8").flag("--scrub-interval-ms=20");
    let mut cluster = Cluster::start(options).await?;
    let leaders: Vec<u64> = cluster.led().await?.values().map(|led| led.leader).collect();
    let idle = cluster
        .all()
        .into_iter()
        .find(|node| !leaders.contains(node))
        .context("a node that leads nothing")?;
    let (client, ledger) = (cluster.client()?, Ledger::default());
    for nth in 0..ROWS {
        let value = format!("{:+<ROW_BYTES$}", format!("unmistakable{nth:05}"));
        writers::put(&client, &ledger, &format!("k{nth}"), value.into()).await??;
    }
    cluster.counted(idle, "bases_read_total", PATIENCE).await?;
    // Where a merge writes the page of a row anew, the flip is gone: another one rots then.
    let (bases, mut nth) = (files_of(&cluster.data_dir(idle), Kind::Base)?, 7);
    let look = || {
        nth = (nth + 101) % ROWS;
        let row = format!("unmistakable{nth:05}");
        let rotten = bases.iter().try_for_each(|path| {
            let places = disk::offsets_of(path, row.as_bytes()).unwrap_or_default();
            places.iter().try_for_each(|offset| disk::flip(path, *offset))
        });
        let installed = cluster.metric(idle, "snapshots_installed_total");
        async move {
            rotten.map_err(|cause| cause.to_string())?;
            let installed = installed.await.map_err(|cause| cause.to_string())?;
            if installed > 0 { Ok(()) } else { Err(format!("row {nth} rots, and nobody sees it")) }
        }
    };
    wait::until("rows from another member", PATIENCE, look).await?;
    repaired(&cluster, idle).await?;
    let said = cluster.process(idle)?.output()?;
    ensure!(said.contains("the rows are damaged"), "{said}");
    cluster.agree().await?;
    eprintln!("{:?}", ledger.audit(&client).await?);
    for node in cluster.all() {
        let mismatches = cluster.metric(node, "scrub_mismatches_total").await?;
        ensure!(mismatches == 0, "no replica differed after the same entry, node {node} says");
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_node_with_a_damaged_base_says_that_nobody_can_help() -> anyhow::Result<()> {
    let options = Options { nodes: 1, split_keys: String::new(), ..Options::beside() };
    let mut cluster = Cluster::start(options.flag("--memtable-mb=8")).await?;
    let ledger = Arc::new(Ledger::default());
    let writers = Writers::start(&cluster.endpoints(), &ledger, "load", 4, VALUE_BYTES)?;
    cluster.counted(1, "checkpoints_total", PATIENCE).await?;
    writers.stop().await?;
    cluster.stop(&[1]).await?;
    for base in files_of(&cluster.data_dir(1), Kind::Base)? {
        std::fs::write(base, b"this was a base")?;
    }
    cluster.launch(1)?;
    let status = cluster.process(1)?.ends(PATIENCE).await?;
    let output = cluster.process(1)?.output()?;
    ensure!(status.code() == Some(1) && output.contains("no other member to fetch them from"), "{output}");
    cluster.forget(1);
    cluster.finish().await
}

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Log,
    Effects,
    Base,
}

/// What became of a flipped bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// The node does not start and says that its log is damaged.
    Refused,
    /// The rows were found damaged and fetched from a peer.
    Repaired,
    /// The damage was seen and cut away, and what followed was done again from the log.
    DoneAgain,
    /// Nothing was seen, and nothing is wrong.
    Harmless,
}

/// One bit after the other is flipped on the disk of one node of five that was killed under load. The long run is
/// `QUORATE_FLIPS=200`.
#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_is_found_or_harms_nobody() -> anyhow::Result<()> {
    let flips = settings::number("QUORATE_FLIPS", 9)?;
    let mut rng = ChaCha8Rng::seed_from_u64(settings::number("QUORATE_FLIP_SEED", 1)?);
    let options = Options { nodes: 5, split_keys: "n".to_owned(), ..Options::beside() };
    let options = options.flag("--memtable-mb=8").flag("--scrub-interval-ms=500");
    let mut cluster = Cluster::start(options).await?;
    cluster.led().await?;
    let ledger = Arc::new(Ledger::default());
    let others = cluster.endpoints_of(&[2, 3, 4, 5]);
    let mut fates: BTreeMap<(Kind, Fate), usize> = BTreeMap::new();
    let writers = Writers::start(&others, &ledger, "first", 8, VALUE_BYTES)?;
    cluster.counted(1, "checkpoints_total", PATIENCE).await?;
    writers.stop().await?;
    for nth in 0..flips {
        let writers = Writers::start(&others, &ledger, &format!("{nth:03}"), 2, LITTLE_BYTES)?;
        writers.progress("before the flip", 200, PATIENCE).await?;
        cluster.kill(&[1]).await?;
        let kind = [Kind::Log, Kind::Effects, Kind::Base][usize::try_from(nth % 3)?];
        let (path, at, bit) = place(&cluster.data_dir(1), kind, &mut rng)?;
        flip_bit(&path, at, bit)?;
        let file = path.strip_prefix(cluster.data_dir(1))?.display().to_string();
        let fate = fate(&mut cluster, &path, (at, bit)).await?;
        eprintln!("flip {nth}: bit {bit} of byte {at} of {file}: {fate:?}");
        *fates.entry((kind, fate)).or_default() += 1;
        writers.progress("after the flip", 100, PATIENCE).await?;
        writers.stop().await?;
        cluster.agree().await?;
        if nth % 10 == 9 || nth + 1 == flips {
            ledger.audit(&Client::new(Config::new(cluster.endpoints_of(&[1])))?).await?;
        }
    }
    eprintln!("{flips} flips: {fates:?}; {:?}", ledger.audit(&cluster.client()?).await?);
    ensure!(cluster.metric(2, "scrub_mismatches_total").await? == 0, "a replica differed from the others");
    let log = cluster.process(1)?.output()?;
    // The store below panics at damaged pages, and is caught.
    let ours: Vec<&str> =
        log.lines().filter(|line| line.contains("panicked at") && !line.contains("/sled-")).collect();
    ensure!(ours.is_empty(), "{ours:?}");
    cluster.kill(&[1]).await?;
    std::fs::write(cluster.log(1), log.replace("panicked", "was caught"))?;
    cluster.finish().await
}

/// Starts the node and waits until it serves or refuses to; then the flip is taken back.
async fn fate(cluster: &mut Cluster, path: &Path, (at, bit): (u64, u8)) -> anyhow::Result<Fate> {
    cluster.launch(1)?;
    let ready = cluster.process(1)?.says("ready node=1 ", PATIENCE).await;
    if cluster.process(1)?.ended()?.is_some() {
        let said = cluster.process(1)?.output()?;
        let last = said.lines().last().unwrap_or_default();
        ensure!(
            last.contains("the write-ahead log is damaged") && last.contains("kvctl member remove"),
            "{last}"
        );
        cluster.forget(1);
        flip_bit(path, at, bit)?;
        cluster.start_nodes(&[1]).await?;
        return Ok(Fate::Refused);
    }
    ready?;
    repaired(cluster, 1).await?;
    let said = cluster.process(1)?.output()?;
    Ok(if said.contains("the rows are damaged") {
        Fate::Repaired
    } else if said.contains("is unsound") || said.contains("no sound header") || said.contains("made anew") {
        Fate::DoneAgain
    } else {
        Fate::Harmless
    })
}

/// Waits until no replica of a node is damaged, and all of them are as far as those of the others.
async fn repaired(cluster: &Cluster, node: u64) -> anyhow::Result<()> {
    let client = Client::new(Config::new(cluster.endpoints_of(&[node])))?;
    let look = || async {
        for answer in client.status_of_endpoints().await {
            let status = answer.answer.map_err(|cause| cause.to_string())?;
            if status.replicas.is_empty() {
                return Err("no replica yet".to_owned());
            }
            for replica in status.replicas {
                let shard = ShardId::new(replica.shard);
                if !replica.damage.is_empty() || replica.leader == 0 {
                    return Err(format!("{shard}: {}", replica.damage));
                }
            }
        }
        Ok(())
    };
    wait::until("sound rows", PATIENCE, look).await
}

fn files_of(dir: &Path, kind: Kind) -> anyhow::Result<Vec<PathBuf>> {
    let belongs = |path: &PathBuf| {
        let text = path.strip_prefix(dir).unwrap_or(path).to_string_lossy().into_owned();
        match kind {
            Kind::Log => text.starts_with("wal/") && text.ends_with(".seg"),
            Kind::Effects => text.contains("/effects/"),
            Kind::Base => text.contains("/gen-") && text.ends_with("/db"),
        }
    };
    Ok(disk::files(dir)?.into_iter().filter(belongs).collect())
}

/// A bit among those that were written.
fn place(dir: &Path, kind: Kind, rng: &mut ChaCha8Rng) -> anyhow::Result<(PathBuf, u64, u8)> {
    let files = files_of(dir, kind)?;
    let mut written = Vec::new();
    for path in files {
        let bytes = std::fs::read(&path)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        if end > 0 {
            written.push((path, u64::try_from(end)?));
        }
    }
    let total: u64 = written.iter().map(|(_, end)| end).sum();
    ensure!(total > 0, "there is no {kind:?} in {}", dir.display());
    let mut at = rng.random_range(0..total);
    for (path, end) in written {
        if at < end {
            return Ok((path, at, rng.random_range(0..8)));
        }
        at -= end;
    }
    anyhow::bail!("no place for a flip")
}

fn flip_bit(path: &Path, at: u64, bit: u8) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&byte.map(|byte| byte ^ (1 << bit)), at)?;
    Ok(())
}
