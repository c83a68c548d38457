//! Every mistake is answered by one clear line that names the thing, and leaves nothing behind.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_e2e::kvctl::{Ended, kvctl, kvctl_fed, kvnode};
use kv_e2e::{Cluster, Options, wait};

const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster of one node.
fn one() -> Options {
    Options { nodes: 1, ..Options::beside() }
}

/// The exit code is `code`, the error is one line that holds all of `said`, and nobody panicked.
fn refused(what: &str, ended: &Ended, code: i32, said: &[&str]) -> anyhow::Result<()> {
    ensure!(ended.code == Some(code), "{what}: exit code {code} is expected: {ended:?}");
    let first = ended.stderr.lines().next().unwrap_or_default();
    for word in said {
        ensure!(first.contains(word), "{what}: `{word}` is not in the first line: {ended:?}");
    }
    ensure!(!ended.stderr.contains("panicked"), "{what}: {ended:?}");
    // A usage error is followed by how to use it; any other is one line.
    ensure!(code == 2 || ended.stderr.lines().count() == 1, "{what}: one line is expected: {ended:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_gets_wrong_is_named_and_changes_nothing() -> anyhow::Result<()> {
    let cluster = Cluster::start(one()).await?;
    let ask = |args: &[&str]| kvctl(&cluster.endpoints().join(","), args);
    let (long_key, long_value) = ("k".repeat(4097), vec![b'v'; (1 << 20) + 1]);
    let flag = ask(&["put", "k", "v", "--frobnicate"])?;
    refused("an unknown flag", &flag, 2, &["--frobnicate"])?;
    refused("an empty key", &ask(&["put", "", "v"])?, 2, &["the key is empty", "4096"])?;
    refused("a long key", &ask(&["put", &long_key, "v"])?, 2, &["4097", "4096"])?;
    let fed = kvctl_fed(&cluster.endpoints().join(","), &["put", "k", "-"], &long_value)?;
    refused("a long value", &fed, 2, &["1048577", "1048576"])?;
    refused("a range that runs back", &ask(&["scan", "--from", "b", "--to", "a"])?, 2, &["--from", "--to"])?;
    refused("a limit of nothing", &ask(&["scan", "--limit", "0"])?, 2, &["--limit"])?;
    let nobody = kvctl("127.0.0.1:1", &["get", "k"])?;
    refused("an endpoint nobody serves", &nobody, 6, &["127.0.0.1:1", "refused"])?;
    let other = ask(&["put", "k", "v", "--cluster", "other"])?;
    refused("another cluster", &other, 1, &["`other`", "`e2e`"])?;
    let left = ask(&["scan"])?;
    ensure!(left.code == Some(0) && left.stdout.is_empty(), "nothing was written: {left:?}");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_is_started_with_is_checked_before_it_touches_anything() -> anyhow::Result<()> {
    let cluster = Cluster::prepare(one())?;
    let config = cluster.scratch("config.toml");
    let file = config.to_str().context("the path is text")?;
    let args = cluster.serve_args(1)?;
    let with = |more: &[&str]| {
        let more = more.iter().map(|word| (*word).to_owned());
        kvnode(&args.iter().cloned().chain(more).collect::<Vec<_>>())
    };
    let without = |flag: &str| kvnode(&args.iter().filter(|arg| !arg.starts_with(flag)).collect::<Vec<_>>());
    let instead = |flag: &str, value: &str| {
        let kept = args.iter().filter(|arg| !arg.starts_with(flag)).cloned();
        kvnode(&kept.chain([format!("{flag}={value}")]).collect::<Vec<_>>())
    };
    refused("an unknown flag", &with(&["--frobnicate"])?, 2, &["--frobnicate"])?;
    refused("no id", &without("--node-id")?, 1, &["--node-id is missing"])?;
    refused("no data directory", &without("--data-dir")?, 1, &["--data-dir is missing"])?;
    refused(
        "no such file",
        &with(&["--config", file])?,
        1,
        &["config.toml", "cannot be read", "No such file"],
    )?;
    std::fs::write(&config, "nodeid = 1\n")?;
    let unknown = with(&["--config", file])?;
    ensure!(unknown.code == Some(1), "an unknown key: {unknown:?}");
    ensure!(unknown.stderr.contains("config.toml") && unknown.stderr.contains("`nodeid`"), "{unknown:?}");
    std::fs::write(&config, "heartbeat_ms = 400\n")?;
    refused(
        "a contradiction",
        &with(&["--config", file])?,
        1,
        &["--heartbeat-ms 400", "--election-timeout-ms 500"],
    )?;
    std::fs::write(&config, [0xff, 0xfe])?;
    refused("no text", &with(&["--config", file])?, 1, &["config.toml", "cannot be read"])?;
    let members = instead("--initial-members", "2=127.0.0.1:1")?;
    refused("another member", &members, 1, &["--initial-members", "does not name this node"])?;
    refused("no address", &instead("--client-addr", "here")?, 1, &["--client-addr `here`"])?;
    refused("unordered splits", &instead("--split-keys", "t,g")?, 1, &["--split-keys `t,g`"])?;
    refused("a small log", &instead("--wal-mb", "1")?, 1, &["--wal-mb `1`", "192"])?;
    let in_file = instead("--data-dir", &format!("{file}/data"))?;
    refused("a directory in a file", &in_file, 1, &["config.toml/data"])?;
    for flag in ["--client-addr", "--peer-addr", "--http-addr"] {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let addr = taken.local_addr()?.to_string();
        let ended = instead(flag, &addr)?;
        refused("a port in use", &ended, 1, &[&addr, "is another process using the port?"])?;
    }
    ensure!(!cluster.data_dir(1).exists(), "a node that did not start has left a data directory");
    let nothing = kvnode(&["verify-data", "--data-dir", &cluster.data_dir(1).display().to_string()])?;
    refused("a check of nothing", &nothing, 1, &["1.data"])?;
    ensure!(!cluster.data_dir(1).exists(), "a check has left a data directory");
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_serves_its_own_node_only_and_one_process_at_a_time() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(one()).await?;
    let members = cluster.members();
    let dir = cluster.data_dir(1).display().to_string();
    let start = |id: &str, name: &str| {
        kvnode(&[
            "serve",
            &format!("--data-dir={dir}"),
            &format!("--node-id={id}"),
            &format!("--cluster={name}"),
            &format!("--initial-members={members},2=127.0.0.1:2"),
            "--client-addr=127.0.0.1:0",
            "--peer-addr=127.0.0.1:0",
            "--http-addr=127.0.0.1:0",
        ])
    };
    refused(
        "a running node's directory",
        &start("1", "e2e")?,
        1,
        &[&dir, "in use by another process", "stop"],
    )?;
    let verified = kvnode(&["verify-data", "--data-dir", &dir])?;
    refused("a check of a running node", &verified, 1, &["in use by another process"])?;
    cluster.stop(&[1]).await?;
    refused("another node's directory", &start("2", "e2e")?, 1, &["belongs to n1", "started as n2"])?;
    refused("another cluster's directory", &start("1", "other")?, 1, &["cluster `e2e`", "`other`"])?;
    cluster.start_nodes(&[1]).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_cluster_is_refused_by_name() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.stop(&[3]).await?;
    cluster.wipe(3)?;
    cluster.launch_with(3, &["--cluster=other"])?;
    let said = "belongs to cluster `e2e`, this node to `other`: check the --cluster of both";
    cluster.process(3)?.says(said, PATIENCE).await?;
    let here = cluster.log(1);
    let look = || async {
        let log = std::fs::read_to_string(&here).map_err(|cause| cause.to_string())?;
        let said = "n3 belongs to cluster `other`, this node to `e2e`: check the --cluster of both";
        if log.contains(said) { Ok(()) } else { Err("nothing".to_owned()) }
    };
    wait::until("what node 1 says", PATIENCE, look).await?;
    let put = kvctl(&cluster.endpoints_of(&[1, 2]).join(","), &["put", "k", "v"])?;
    ensure!(put.code == Some(0), "the others serve: {put:?}");
    cluster.finish().await
}
