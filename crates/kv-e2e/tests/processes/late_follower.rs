//! A node that was away for longer than the log reaches back gets a snapshot, while writes go on.

use std::sync::Arc;
use std::time::Duration;

use kv_client::Config;
use kv_e2e::{Cluster, Ledger, Options, Writers};

/// More entries than a replica keeps after a checkpoint.
const ENTRIES: usize = 30_000;

/// So long that a checkpoint, which comes after a quarter of the WAL's budget, comes twice.
const VALUE_BYTES: usize = 4 << 10;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_for_long_catches_up_by_a_snapshot() -> anyhow::Result<()> {
    let options = Options { nodes: 3, ..Options::beside() };
    let mut cluster = Cluster::start(options.flag("--wal-mb=192")).await?;
    cluster.led().await?;
    cluster.stop(&[3]).await?;
    let ledger = Arc::new(Ledger::default());
    // All on one shard, so that its log grows.
    let config = Config::new(cluster.endpoints_of(&[1, 2]));
    let writers = Writers::start_with(config, &ledger, "l", (&['a'], 256, VALUE_BYTES))?;
    writers.progress("more entries than the log keeps", ENTRIES, PATIENCE).await?;
    // Three checkpoints are more entries apart than what stays in the log.
    for node in [1, 2] {
        cluster.counted_to(3, node, "checkpoints_total", PATIENCE).await?;
    }
    cluster.start_nodes(&[3]).await?;
    cluster.counted(3, "snapshots_installed_total", PATIENCE).await?;
    writers.progress("writes beside the snapshot", 1000, PATIENCE).await?;
    writers.stop().await?;
    cluster.agree().await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    cluster.finish().await
}
