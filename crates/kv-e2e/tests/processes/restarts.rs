//! What is stopped, in an orderly way or not, is there again afterwards.

use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_e2e::{Cluster, Ledger, Options, Process, Turn, Writers, binaries, kvctl, writers};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_all_nodes_keeps_everything() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    let (all, ledger) = (cluster.all(), Arc::new(Ledger::default()));
    for round in ["stopped", "killed"] {
        let writers = Writers::start(&cluster.endpoints(), &ledger, round, 8, 1000)?;
        writers.progress("acknowledgements", 1000, PATIENCE).await?;
        if round == "stopped" {
            // Writers go on meanwhile: an orderly stop gives every call an honest answer.
            for status in cluster.stop(&all).await? {
                ensure!(status.code() == Some(0), "an orderly stop: {status}");
            }
        } else {
            cluster.kill(&all).await?;
        }
        writers.stop().await?;
        cluster.start_nodes(&all).await?;
        cluster.led().await?;
        eprintln!("{round}: {:?}", ledger.audit(&cluster.client()?).await?);
        cluster.agree().await?;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_development_cluster_serves_and_keeps_its_data() -> anyhow::Result<()> {
    let _turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let (log, data) = (dir.path().join("dev.log"), dir.path().join("data"));
    let data = data.to_str().context("the path is text")?;
    let args = ["dev", "--nodes=3", "--shards=2", "--base-port=0", "--data-dir", data];
    for round in 0..2 {
        let mut dev = Process::spawn(&binaries::path_of("kvnode")?, &args, &log)?;
        let mut endpoints = Vec::new();
        for node in 1..=3 {
            let line = dev.says(&format!("ready node={node} client="), PATIENCE).await?;
            endpoints.push(line.split("client=").nth(1).context("an address follows")?.to_owned());
        }
        let endpoints = endpoints.join(",");
        if round == 0 {
            let put = kvctl::kvctl(&endpoints, &["put", "greeting", "hello"])?;
            ensure!(put.code == Some(0), "{put:?}");
        }
        let got = kvctl::kvctl(&endpoints, &["get", "greeting"])?;
        ensure!(got.stdout == "hello\n", "{got:?}");
        dev.signal(Signal::TERM)?;
        let status = dev.ends(PATIENCE).await?;
        ensure!(status.code() == Some(0), "an orderly stop: {status}");
        ensure!(!dev.output()?.contains("panicked"), "{}", dev.output()?);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_node_does_not_wait_for_clients_that_ask_nothing() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 1, ..Options::beside() }).await?;
    cluster.led().await?;
    let (client, ledger) = (cluster.client()?, Ledger::default());
    // From here on the client keeps a stream to the node, on which nothing moves.
    writers::put(&client, &ledger, "a", "x".into()).await??;
    let ended = cluster.stop(&[1]).await?;
    ensure!(ended.iter().all(ExitStatus::success), "{ended:?}");
    let log = std::fs::read_to_string(cluster.log(1))?;
    let waited = log.contains("broken off") || !log.contains("all calls of clients are answered");
    ensure!(!waited, "the node waited for a client that asks nothing: {log}");
    cluster.start_nodes(&[1]).await?;
    cluster.led().await?;
    eprintln!("{:?}", ledger.audit(&client).await?);
    cluster.finish().await
}
