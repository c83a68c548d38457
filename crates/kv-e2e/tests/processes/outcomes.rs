//! What a write came to can be asked on the command line, and a script can repeat a put safely.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_e2e::kvctl::{Ended, kvctl};
use kv_e2e::{Cluster, Options};
use kv_types::Key;

/// The command line of one cluster.
struct Shell {
    endpoints: String,
}

impl Shell {
    fn run(&self, args: &[&str]) -> anyhow::Result<Ended> {
        kvctl(&self.endpoints, args)
    }

    /// The command ends with this code and says this, on standard output or, if it fails, in the line of its error.
    fn says(&self, args: &[&str], code: i32, said: &str) -> anyhow::Result<String> {
        let ended = self.run(args)?;
        let text = if ended.stderr.is_empty() { &ended.stdout } else { &ended.stderr };
        ensure!(
            ended.code == Some(code) && text.contains(said) && text.lines().count() == 1,
            "{args:?}: exit code {code} and `{said}`, but {ended:?}"
        );
        Ok(text.trim_end().to_owned())
    }

    fn new_id(&self, key: &str) -> anyhow::Result<String> {
        let ended = self.run(&["request-id", key])?;
        ensure!(ended.code == Some(0) && ended.stdout.trim().len() == 32, "{ended:?}");
        Ok(ended.stdout.trim().to_owned())
    }
}

async fn three() -> anyhow::Result<(Cluster, Shell)> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let endpoints = cluster.endpoints().join(",");
    Ok((cluster, Shell { endpoints }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_with_an_id_is_done_once_and_its_outcome_can_be_asked() -> anyhow::Result<()> {
    let (cluster, shell) = three().await?;
    let id = shell.new_id("h")?;
    shell.says(&["outcome", &id, "--key", "h"], 4, "not_seen")?;
    shell.says(&["outcome", &id], 4, "not_seen")?;
    let first = shell.says(&["put", "h", "once", "--request-id", &id], 0, "ok shard=2 revision=")?;
    shell.says(&["put", "h", "twice"], 0, "ok shard=2 revision=")?;
    // Not the value of now, but what this request came to.
    shell.says(&["put", "h", "once", "--request-id", &id], 0, &first)?;
    shell.says(&["get", "h"], 0, "twice")?;
    let json =
        shell.says(&["put", "h", "once", "--request-id", &id, "-o", "json"], 0, "\"replayed\":true")?;
    let revision = first.rsplit('=').next().context("a revision")?;
    ensure!(json.contains(&format!("\"revision\":{revision}")), "{json} is of {revision}");
    shell.says(&["put", "h", "other", "--request-id", &id], 1, "used with other content")?;

    let applied = format!("applied result=written shard=2 revision={revision}");
    shell.says(&["outcome", &id, "--key", "h"], 0, &applied)?;
    shell.says(&["outcome", &id], 0, &applied)?;
    // Another shard has not seen it; what is settled everywhere is settled there, and where it was applied it stays so.
    shell.says(&["outcome", &id, "--key", "a"], 4, "not_seen")?;
    shell.says(&["outcome", &id, "--settle"], 0, &applied)?;
    shell.says(&["outcome", &id, "--key", "a"], 6, "not_applied")?;
    shell.says(&["outcome", &id], 0, &applied)?;

    let never = shell.new_id("a")?;
    shell.says(&["outcome", &never, "--key", "a", "--settle"], 6, "not_applied")?;
    shell.says(&["outcome", &never, "--key", "a"], 6, "not_applied")?;
    // Elsewhere it may still be applied.
    shell.says(&["outcome", &never], 4, "not_seen")?;
    shell.says(&["put", "h", "elsewhere", "--request-id", &never], 0, "ok shard=2")?;
    shell.says(&["outcome", &never], 0, "applied result=written shard=2")?;
    shell.says(&["put", "a", "late", "--request-id", &never], 1, "settled as not applied")?;
    shell.says(&["get", "a"], 3, "")?;

    let usage = shell.run(&["put", "h", "x", "--request-id", "12"])?;
    ensure!(usage.code == Some(2) && usage.stderr.contains("is not a request id"), "{usage:?}");
    let far = format!("{:032x}", u128::MAX);
    shell.says(&["put", "h", "x", "--request-id", &far], 1, "too far ahead")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_added_to_and_what_is_none_is_refused() -> anyhow::Result<()> {
    let (cluster, shell) = three().await?;
    for (delta, sum) in [("5", "5"), ("-7", "-2"), ("0", "-2"), ("1", "-1"), ("-9", "-10")] {
        let said = shell.says(&["incr", "n", delta], 0, sum)?;
        ensure!(said == sum, "{delta}: {said}, not {sum}");
    }
    let said = shell.says(&["incr", "n"], 0, "-9")?;
    ensure!(said == "-9", "one is added: {said}");
    shell.says(&["get", "n"], 0, "-9")?;
    let smallest = i64::MIN.to_string();
    shell.says(&["incr", "n", &smallest], 1, "64 bits")?;
    shell.says(&["incr", "least", &smallest], 0, &smallest)?;
    shell.says(&["incr", "least", "-1"], 1, "64 bits")?;
    shell.says(&["put", "word", "ten"], 0, "ok")?;
    shell.says(&["incr", "word"], 1, "number")?;
    shell.says(&["incr", "word", "-o", "json"], 1, "\"reason\":\"not_a_number\"")?;
    shell.says(&["get", "word"], 0, "ten")?;
    let usage = shell.run(&["incr", "n", "9223372036854775808"])?;
    ensure!(usage.code == Some(2) && usage.stderr.contains("9223372036854775808"), "{usage:?}");
    shell.says(&["get", "n"], 0, "-9")?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_and_what_their_requests_came_to_can_be_looked_at() -> anyhow::Result<()> {
    let (cluster, shell) = three().await?;
    let none = shell.run(&["session", "list"])?;
    ensure!(none.code == Some(0) && none.stdout.is_empty(), "{none:?}");
    let client = cluster.client()?;
    for delta in [2, 3] {
        client.incr(Key::new("h/n")?, delta).await?;
    }
    let line = shell.says(&["session", "list"], 0, " open ttl_ms=60000 lease_ms=")?;
    let session = line.split(' ').next().context("the session comes first")?;
    // What the shards hold is told as the node has applied it, which may be a heartbeat behind their leaders.
    let shown = kv_e2e::wait::until("the session's records", Duration::from_secs(10), || async {
        let shown = shell.run(&["session", "show", session]).map_err(|cause| cause.to_string())?;
        let is_all = shown.code == Some(0) && shown.stdout.contains("shard=2 floor=0 records=2");
        if is_all { Ok(shown) } else { Err(format!("{shown:?}")) }
    });
    let shown = shown.await?;
    ensure!(shown.stdout.starts_with(&format!("{session} open ")), "{shown:?}");
    let second = format!("{session}/2");
    let applied = "applied result=incremented value=5 shard=2 revision=";
    shell.says(&["outcome", &second, "--key", "h/n"], 0, applied)?;
    shell.says(&["outcome", &second], 0, applied)?;
    let third = format!("{session}/3");
    shell.says(&["outcome", &third, "--key", "h/n"], 4, "not_seen")?;
    shell.says(&["outcome", &third, "--key", "h/n", "--settle"], 6, "not_applied")?;
    // The client's own next request has the number that was settled: it is told so, and the one after is carried out.
    let refused = client.incr(Key::new("h/n")?, 1).await.err().context("it was settled")?;
    ensure!(refused.failure.reason() == "request_settled", "{refused:?}");
    ensure!(client.incr(Key::new("h/n")?, 1).await?.value == 6, "the next one");

    client.close().await?;
    let closed = kv_e2e::wait::until("the session's end", Duration::from_secs(10), || async {
        let listed = shell.run(&["session", "list"]).map_err(|cause| cause.to_string())?;
        if listed.stdout.contains(" open ") { Err(listed.stdout) } else { Ok(listed) }
    });
    closed.await?;
    shell.says(&["session", "show", "ses1"], 3, "there is no session ses1")?;
    let gone = shell.run(&["session", "show", "1x"])?;
    ensure!(gone.code == Some(2), "{gone:?}");
    cluster.finish().await
}
