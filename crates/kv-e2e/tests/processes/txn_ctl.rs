//! Transactions on the command line: scripts, and what transactions have left.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_e2e::kvctl::{Ended, Told, kvctl, kvctl_fed};
use kv_e2e::leaders::lead;
use kv_e2e::{Cluster, Options, prepared};
use kv_types::{Key, ShardId, Value};

/// A part that nobody drives is ended by its shard after two seconds; what was looked at later proves nothing.
const PART_STAYS: Duration = Duration::from_millis(1800);

/// On a machine that is too busy for that, another part is looked at, so often.
const TRIES_MAX: usize = 10;

/// How long a command may take whose answer never comes: longer than a session takes to be opened, and shorter than a leader that
/// is silent keeps its office.
const BRIEF: &str = "400ms";

/// How a command ended, with a check.
fn expect(ended: Ended, code: i32, out: &str, err: &str) -> anyhow::Result<Ended> {
    let is_so = ended.code == Some(code) && ended.stdout == out && ended.stderr.contains(err);
    ensure!(is_so, "exit code {code}, `{out}` and `{err}`, but {ended:?}");
    ensure!(!err.is_empty() || ended.stderr.is_empty(), "nothing on standard error, but {ended:?}");
    Ok(ended)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_is_one_transaction() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let endpoints = cluster.endpoints().join(",");
    let run = |args: &[&str], script: &str| kvctl_fed(&endpoints, args, script.as_bytes());
    let get = |key: &str| kvctl(&endpoints, &["get", key]);

    let script =
        "# two shards\ncompare a/1 absent\nput a/1 x\nput h/1 \"y z\"\nincr h/n 5\nget a/1\ncommit\n";
    let ended = run(&["txn"], script)?;
    let committed = ended.stdout.strip_prefix("ok\nok\nok\n5\nx\ncommitted shard=");
    ensure!(ended.code == Some(0) && committed.is_some_and(|rest| rest.contains(" revision=")), "{ended:?}");
    expect(get("a/1")?, 0, "x\n", "")?;
    expect(get("h/1")?, 0, "y z\n", "")?;
    expect(run(&["txn"], "scan a h/n\nget h/n\nabort\n")?, 1, "a/1\tx\nh/1\ty z\n5\naborted\n", "")?;

    let failed = "put a/1 w\ncompare h/1 value other\ncommit\n";
    expect(run(&["txn"], failed)?, 5, "ok\n", "line 2: the key `h/1` is not as expected")?;
    let json = run(&["txn", "-o", "json"], failed)?;
    let lines: Vec<&str> = json.stdout.lines().collect();
    ensure!(json.code == Some(5) && lines.len() == 3, "{json:?}");
    ensure!(
        lines.get(1).is_some_and(|line| line.contains("\"held\":false"))
            && lines.get(2)
                == Some(&r#"{"outcome":"not_applied","cause":"compare_failed","at_base64":"aC8x"}"#),
        "{json:?}"
    );
    expect(run(&["txn"], "put a/1 w\n")?, 1, "ok\naborted\n", "ended without `commit`")?;
    expect(run(&["txn"], "put a/1 w\nput\ncommit\n")?, 2, "ok\n", "line 2: expected is `put K V`")?;
    expect(run(&["txn"], "put a/1 w\nincr h/1\ncommit\n")?, 1, "ok\n", "number")?;
    expect(get("a/1")?, 0, "x\n", "")?;

    let file = cluster.scratch("script");
    std::fs::write(&file, "delete 612f31\nput 682f31 00ff\ncommit\n")?;
    let file = file.to_str().context("a path")?;
    let json = run(&["--hex", "txn", "--file", file, "-o", "json"], "")?;
    let last = json.stdout.lines().last().unwrap_or_default();
    ensure!(json.code == Some(0) && last.starts_with(r#"{"outcome":"applied","header":"#), "{json:?}");
    expect(get("a/1")?, 3, "", "absent")?;
    expect(kvctl(&endpoints, &["--hex", "get", "682f31"])?, 0, "00ff\n", "")?;
    conflict(&cluster, &endpoints).await?;
    cluster.finish().await
}

/// A key that is written between the script's read and its commit.
async fn conflict(cluster: &Cluster, endpoints: &str) -> anyhow::Result<()> {
    let client = cluster.client()?;
    client.put(Key::new("a/c")?, Value::new("1")?).await?;
    let mut script = Told::start(endpoints, &["txn"])?;
    let read = script.ask("get a/c")?;
    ensure!(read == "1", "{read}");
    client.put(Key::new("a/c")?, Value::new("2")?).await?;
    let answers = [script.ask("put a/c 3")?, script.ask("put h/c 3")?];
    ensure!(answers == ["ok", "ok"], "{answers:?}");
    script.say("commit")?;
    expect(script.end()?, 7, "", "what it has read has changed")?;
    expect(kvctl(endpoints, &["get", "a/c"])?, 0, "2\n", "")?;
    expect(kvctl(endpoints, &["get", "h/c"])?, 3, "", "absent")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_transaction_has_left_is_listed_shown_and_ended() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let endpoints = cluster.endpoints().join(",");
    let run = |args: &[&str]| kvctl(&endpoints, args);
    let head = "ID\tKIND\tSTATE\tSHARD\tAGE_MS\tANCHOR\tWRITES\tREADS\tRANGES\n";
    expect(run(&["txn", "list"])?, 0, head, "")?;
    expect(run(&["txn", "list", "-o", "json"])?, 0, "{\"txns\":[],\"more\":[],\"unknown\":[]}\n", "")?;
    expect(run(&["txn", "show", "ses9/1"])?, 3, "", "no shard has anything of ses9/1 left")?;
    expect(run(&["txn", "force", "ses9/1"])?, 3, "", "no shard has a part of ses9/1")?;

    for attempt in 1.. {
        ensure!(attempt <= TRIES_MAX, "this machine is too busy");
        let began = Instant::now();
        let id = prepared::leave(&cluster, ("a/1", ShardId::new(1)), ("h/1", ShardId::new(2))).await?;
        let id = id.to_string();
        let listed = run(&["txn", "list", "--in-doubt"])?;
        let listed_json = run(&["txn", "list", "-o", "json"])?;
        let shown = run(&["txn", "show", &id])?;
        let put = run(&["put", "h/1", "x", "--timeout", "300ms"])?;
        let forced = run(&["txn", "force", &id])?;
        // An attempt of which no answer came in time leaves the put unknown.
        if began.elapsed() > PART_STAYS || put.code == Some(4) {
            eprintln!("looked at it for {:?}: too slowly, {put:?}", began.elapsed());
            continue;
        }
        eprintln!("{listed:?}\n{listed_json:?}\n{shown:?}\n{put:?}\n{forced:?}");
        let row = format!("{head}{id}\tpart\tin_doubt\t2\t");
        ensure!(listed.code == Some(0) && listed.stdout.starts_with(&row), "{listed:?}");
        ensure!(listed.stdout.ends_with("\ta/1\t1\t0\t0\n"), "{listed:?}");
        let object = format!("{{\"txns\":[{{\"txn\":\"{id}\",\"content\":\"");
        ensure!(listed_json.code == Some(0) && listed_json.stdout.starts_with(&object), "{listed_json:?}");
        let lines: Vec<&str> = shown.stdout.lines().collect();
        let first = format!("{id} outcome=not_seen result=- anchor=a/1");
        ensure!(shown.code == Some(0) && lines.first() == Some(&first.as_str()), "{shown:?}");
        ensure!(lines.get(2) == Some(&"lock shard=2 write h/1") && lines.len() == 3, "{shown:?}");
        expect(put, 6, "", &format!("the transaction {id} has locked the key"))?;
        ensure!(forced.code == Some(0) && forced.stdout.starts_with("shard=2 part=dropped "), "{forced:?}");

        expect(run(&["txn", "list"])?, 0, head, "")?;
        expect(run(&["txn", "force", &id])?, 3, "", &format!("no shard has a part of {id}"))?;
        let put = run(&["put", "h/1", "x"])?;
        ensure!(put.code == Some(0), "{put:?}");
        break;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_is_not_answered_is_unknown_and_can_be_settled() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    let endpoints = cluster.endpoints().join(",");
    let run = |args: &[&str]| kvctl(&endpoints, args);
    for attempt in 1.. {
        ensure!(attempt <= TRIES_MAX, "this machine is too busy");
        // The session is opened by another node than the one that is to commit.
        lead(&cluster, ShardId::META, 2).await?;
        lead(&cluster, ShardId::new(1), 1).await?;
        let before = format!("before {attempt}");
        let put = run(&["put", "a/1", &before])?;
        ensure!(put.code == Some(0), "{put:?}");
        let mut script = Told::start(&endpoints, &["txn", "--timeout", BRIEF])?;
        let answers = [script.ask("get a/1")?, script.ask("put a/1 after")?, script.ask("put h/1 after")?];
        ensure!(answers == [before.as_str(), "ok", "ok"], "{answers:?}");
        cluster.pause(&[1]).await?;
        script.say("commit")?;
        let ended = script.end()?;
        cluster.resume(&[1])?;
        if ended.code != Some(4) {
            eprintln!("try {attempt}: {ended:?}");
            ensure!([Some(0), Some(6), Some(7)].contains(&ended.code), "{ended:?}");
            continue;
        }
        let asked = ended.stderr.split("`kvctl outcome ").nth(1).and_then(|rest| rest.split('`').next());
        let asked: Vec<&str> = asked.with_context(|| format!("{ended:?}"))?.split(' ').collect();
        ensure!(ended.stderr.contains("whether the transaction is committed is unknown"), "{ended:?}");
        let settled = run(&[&["outcome"], &asked[..], &["--settle"]].concat())?;
        eprintln!("try {attempt}: {ended:?}, then {settled:?}");
        let stored = match settled.code {
            Some(0) => "after",
            Some(6 | 7) => before.as_str(),
            _ => anyhow::bail!("it is not settled: {settled:?}"),
        };
        expect(run(&["get", "a/1"])?, 0, &format!("{stored}\n"), "")?;
        break;
    }
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_no_majority_hears_of_is_worth_a_retry() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let endpoints = cluster.endpoints().join(",");
    let run = |script: &str| kvctl_fed(&endpoints, &["txn", "--timeout", "1s"], script.as_bytes());
    let put = kvctl(&endpoints, &["put", "a/1", "kept"])?;
    ensure!(put.code == Some(0), "{put:?}");
    cluster.pause(&[2, 3]).await?;
    let written = run("put a/1 lost\nput h/1 lost\ncommit\n")?;
    let read = run("get a/1\nput h/1 lost\ncommit\n")?;
    cluster.resume(&[2, 3])?;
    eprintln!("{written:?}\n{read:?}");
    ensure!(written.code == Some(6) && written.stdout == "ok\nok\n", "{written:?}");
    ensure!(read.code == Some(6), "{read:?}");
    cluster.led().await?;
    expect(kvctl(&endpoints, &["get", "a/1"])?, 0, "kept\n", "")?;
    expect(kvctl(&endpoints, &["get", "h/1"])?, 3, "", "absent")?;
    // The same succeeds now.
    let again = kvctl_fed(&endpoints, &["txn"], b"put a/1 new\nput h/1 new\ncommit\n")?;
    ensure!(again.code == Some(0), "{again:?}");
    cluster.finish().await
}
