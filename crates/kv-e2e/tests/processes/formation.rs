//! A cluster is formed once, by all its members; a member whose disk is gone is not taken for the one it was.

use std::sync::Arc;
use std::time::Duration;

use anyhow::ensure;
use kv_e2e::{Cluster, Ledger, Options, Writers, http, kvctl, wait, writers};

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_with_a_missing_member_does_not_form_and_says_whom_it_waits_for() -> anyhow::Result<()> {
    let mut cluster = Cluster::prepare(Options { nodes: 3, ..Options::beside() })?;
    cluster.launch(1)?;
    cluster.launch(2)?;
    for node in [1, 2] {
        let port = cluster.http_port(node)?;
        let look = || async {
            let answer = http::get(port, "/readyz").await.map_err(|cause| cause.to_string())?;
            let wanted = (503, "the cluster is not formed; not heard from: n3\n".to_owned());
            if answer == wanted { Ok(()) } else { Err(format!("{answer:?}")) }
        };
        wait::until("the name of the missing member", PATIENCE, look).await?;
        ensure!(http::get(port, "/livez").await?.0 == 200, "the process lives");
    }
    let endpoints = cluster.endpoints().join(",");
    let put = kvctl::kvctl(&endpoints, &["put", "k", "v", "--timeout", "1s"])?;
    ensure!(matches!(put.code, Some(4 | 6)), "nobody serves a write: {put:?}");

    cluster.start_nodes(&[3]).await?;
    for node in [1, 2] {
        cluster.process(node)?.says(&format!("ready node={node} "), PATIENCE).await?;
    }
    cluster.led().await?;
    let put = kvctl::kvctl(&endpoints, &["put", "k", "v"])?;
    ensure!(put.code == Some(0), "the cluster serves: {put:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_a_wiped_disk_elects_nobody_and_loses_nothing_acknowledged() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options::beside()).await?;
    let ledger = Arc::new(Ledger::default());
    cluster.stop(&[4, 5]).await?;
    let writers = Writers::start(&cluster.endpoints(), &ledger, "w", 8, 100)?;
    writers.progress("acknowledgements by 1, 2 and 3", 500, PATIENCE).await?;
    writers.stop().await?;

    cluster.kill(&[3]).await?;
    cluster.wipe(3)?;
    cluster.kill(&[1, 2]).await?;
    for node in [3, 4, 5] {
        cluster.launch(node)?;
    }
    wiped_node_stops(&mut cluster).await?;
    // Two of five are left: they may lead nothing and acknowledge nothing.
    let client = cluster.client_with_timeout(Duration::from_secs(3))?;
    for letter in writers::LETTERS {
        let put = writers::put(&client, &ledger, &format!("{letter}/minority"), "x".into()).await?;
        ensure!(put.is_err(), "two of five nodes acknowledged a write");
    }
    for node in client.status().await {
        for replica in node.answer.map(|status| status.replicas).unwrap_or_default() {
            ensure!(replica.leader == 0, "two of five nodes have a leader: {replica:?}");
        }
    }
    // The wiped one does not come back by being started again either.
    cluster.launch(3)?;
    wiped_node_stops(&mut cluster).await?;

    cluster.start_nodes(&[1, 2]).await?;
    cluster.led().await?;
    eprintln!("{:?}", ledger.audit(&cluster.client()?).await?);
    let put = writers::put(&cluster.client()?, &ledger, "a/after", "x".into()).await?;
    ensure!(put.is_ok(), "four of five serve: {put:?}");
    cluster.agree().await?;
    cluster.finish().await
}

/// Node 3 says what is wrong and what to do, and ends.
async fn wiped_node_stops(cluster: &mut Cluster) -> anyhow::Result<()> {
    let said = "n3 was a member with another disk: remove it and join with a new id";
    cluster.process(3)?.says(said, PATIENCE).await?;
    let status = cluster.process(3)?.ends(PATIENCE).await?;
    ensure!(status.code() == Some(1), "node 3 ended with {status}");
    cluster.forget(3);
    Ok(())
}
