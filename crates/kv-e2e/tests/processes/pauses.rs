//! A majority goes on without nodes that hang; a minority acknowledges nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use kv_e2e::{Cluster, Ledger, Options, Writers, writers};

const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn two_hanging_nodes_of_five_stop_nobody_and_three_stop_every_write() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::default()).await?;
    cluster.led().await?;
    let ledger = Arc::new(Ledger::default());
    let writers = Writers::start(&cluster.endpoints(), &ledger, "p", 8, 100)?;
    writers.progress("all nodes", 100, PATIENCE).await?;
    cluster.pause(&[4, 5]).await?;
    writers.progress("two of five hang", 1000, PATIENCE).await?;
    writers.stop().await?;

    cluster.pause(&[3]).await?;
    let client = cluster.client_with_timeout(Duration::from_secs(2))?;
    for letter in writers::LETTERS {
        let put = writers::put(&client, &ledger, &format!("{letter}/minority"), "x".into()).await?;
        let Err(error) = put else { anyhow::bail!("two of five nodes acknowledged a write") };
        eprintln!("a write to two of five: {error}; {:?}", error.outcome);
    }
    cluster.resume(&[3, 4, 5])?;
    cluster.led().await?;
    let writers = Writers::start(&cluster.endpoints(), &ledger, "q", 8, 100)?;
    writers.progress("all nodes again", 100, PATIENCE).await?;
    writers.stop().await?;
    cluster.agree().await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    ensure!(ledger.count() >= 1200, "what progressed is in the ledger");
    cluster.finish().await
}
