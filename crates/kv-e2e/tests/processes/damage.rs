//! A flipped byte on disk is found and named by the check of a data directory. A node with a damaged log does not start;
//! flipped back, all is there again. Damaged rows of a node alone: repair.rs has those of a group.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::Client;
use kv_e2e::{Cluster, Ledger, Options, disk, kvctl, writers};

const PATIENCE: Duration = Duration::from_secs(30);

/// Enough to make a node with 8 MiB of memtable write effects and rows to its disk.
const ROWS: usize = 2000;

const VALUE_BYTES: usize = 8000;

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_or_base_keeps_a_single_node_from_serving_and_is_named() -> anyhow::Result<()> {
    let (mut cluster, ledger) = (start().await?, Arc::new(Ledger::default()));
    fill(cluster.client()?, &ledger).await?;
    cluster.counted(1, "checkpoints_total", PATIENCE).await?;
    cluster.stop(&[1]).await?;
    let dir = cluster.data_dir(1);
    let sound = kvctl::verify_data(&dir)?;
    ensure!(sound.code == Some(0), "sound so far: {sound:?}");
    // The first row written is in the base, the last one in the write-ahead log.
    let (first, last) = (row(0), row(ROWS - 1));
    found_and_named(&mut cluster, holder(&dir, "wal/", &last)?, "the write-ahead log is damaged").await?;
    found_and_named(&mut cluster, holder(&dir, "/db", &first)?, "s1").await?;
    cluster.start_nodes(&[1]).await?;
    all_is_there(cluster, &ledger).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_effect_log_is_named_and_made_good_from_the_write_ahead_log() -> anyhow::Result<()> {
    let (mut cluster, ledger) = (start_of(3).await?, Arc::new(Ledger::default()));
    cluster.led().await?;
    fill(cluster.client()?, &ledger).await?;
    cluster.agree().await?;
    cluster.stop(&[1]).await?;
    let dir = cluster.data_dir(1);
    // The newest effects may have been in memory only when the node stopped. Some records follow the damaged one.
    let written = (10..ROWS).rev().find(|nth| holder(&dir, "/effects/", &row(*nth)).is_ok());
    let (path, offsets) = holder(&dir, "/effects/", &row(written.context("no effects")? - 10))?;
    offsets.iter().try_for_each(|offset| disk::flip(&path, *offset))?;
    let damaged = std::fs::read(&path)?;
    let verified = kvctl::verify_data(&dir)?;
    let said: String = verified.stdout.lines().filter(|line| line.contains("DAMAGED")).collect();
    eprintln!("{}\n  verify-data: {said}", path.display());
    let file = path.strip_prefix(&dir)?.display().to_string();
    ensure!(verified.code == Some(1), "{verified:?}");
    for word in ["s1 effects", &file, "write-ahead log"] {
        ensure!(said.contains(word), "`{word}` is missing: {verified:?}");
    }
    ensure!(std::fs::read(&path)? == damaged, "the check has changed {}", path.display());
    cluster.start_nodes(&[1]).await?;
    let log = cluster.process(1)?.output()?;
    let warned = log.lines().any(|line| line.contains("the effect log is unsound") && line.contains(&file));
    ensure!(warned && !log.contains("panicked"), "{log}");
    cluster.agree().await?;
    cluster.stop(&[1]).await?;
    let healed = kvctl::verify_data(&dir)?;
    ensure!(healed.code == Some(0), "made good: {healed:?}");
    cluster.start_nodes(&[1]).await?;
    all_is_there(cluster, &ledger).await
}

/// A cluster of one node that merges soon.
async fn start() -> anyhow::Result<Cluster> {
    start_of(1).await
}

async fn start_of(nodes: u64) -> anyhow::Result<Cluster> {
    let options = Options { nodes, split_keys: String::new(), ..Options::beside() };
    Cluster::start(options.flag("--memtable-mb=8")).await
}

/// How the value of a row begins.
fn row(nth: usize) -> String {
    format!("unmistakable{nth:05}+++")
}

async fn fill(client: Client, ledger: &Ledger) -> anyhow::Result<()> {
    for nth in 0..ROWS {
        let value = format!("{:+<VALUE_BYTES$}", row(nth));
        writers::put(&client, ledger, &format!("k{nth}"), value.into()).await??;
    }
    Ok(())
}

/// Flips a byte in every copy: the check and the node say so, and the node does not start. Flips it back.
async fn found_and_named(cluster: &mut Cluster, at: (PathBuf, Vec<u64>), said: &str) -> anyhow::Result<()> {
    let (path, offsets) = at;
    // sled may cut its own log where it finds damage, and the node writes down that its rows are bad: to flip the bits back
    // would not undo that.
    let (dir, sound) = (cluster.data_dir(1), cluster.scratch("sound"));
    disk::copy(&dir, &sound)?;
    offsets.iter().try_for_each(|offset| disk::flip(&path, *offset))?;
    let verified = kvctl::verify_data(&dir)?;
    let damage: String = verified.stdout.lines().filter(|line| line.contains("DAMAGED")).collect();
    ensure!(verified.code == Some(1) && damage.contains(said), "{}: {verified:?}", path.display());
    cluster.launch(1)?;
    let status = cluster.process(1)?.ends(PATIENCE).await;
    let output = cluster.process(1)?.output()?;
    cluster.forget(1);
    let last = output.lines().last().unwrap_or_default();
    eprintln!("{}\n  verify-data: {damage}\n  node: {last}", path.display());
    let status = status.with_context(|| output.clone())?;
    ensure!(status.code() == Some(1) && last.contains(said), "{status}: {output}");
    let cure = ["kvctl member remove", "restore a backup"];
    ensure!(cure.iter().any(|cure| last.contains(cure)), "no cure is named: {last}");
    ensure!(!output.contains("panicked"), "{output}");
    std::fs::remove_dir_all(&dir)?;
    Ok(std::fs::rename(&sound, &dir)?)
}

async fn all_is_there(cluster: Cluster, ledger: &Ledger) -> anyhow::Result<()> {
    cluster.led().await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    cluster.finish().await
}

/// A file below `dir` whose path holds `part`, and where in it `text` stands.
fn holder(dir: &Path, part: &str, text: &str) -> anyhow::Result<(PathBuf, Vec<u64>)> {
    for path in disk::files(dir)? {
        if path.to_str().is_some_and(|path| path.contains(part))
            && let Ok(offsets) = disk::offsets_of(&path, text.as_bytes())
        {
            return Ok((path, offsets.into_iter().map(|offset| offset + 5).collect()));
        }
    }
    anyhow::bail!("no file of {part} holds {text}: {:?}", disk::files(dir)?)
}
