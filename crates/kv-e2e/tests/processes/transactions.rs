//! Transactions over several shards, while leaders are killed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use kv_check::{Ending, TransactionVerdict, check_transactions};
use kv_client::{Client, Config, Tries, TxnError};
use kv_e2e::lists::Lists;
use kv_e2e::{Cluster, Options, prepared, settings, wait};
use kv_types::{Key, Outcome, ShardId, Value};
use tokio::task::JoinSet;

const PATIENCE: Duration = Duration::from_secs(60);

/// Accounts, one after the other on the four shards.
const ACCOUNTS: usize = 12;

/// What each account holds at first.
const EACH: i64 = 100;

fn account(at: usize) -> anyhow::Result<Key> {
    let shard = ["a", "h", "o", "u"].get(at % 4).copied().unwrap_or("a");
    Ok(Key::new(format!("{shard}/account/{at}"))?)
}

pub(crate) fn patient(cluster: &Cluster) -> Config {
    let bounds = Tries { max: u32::MAX, within: PATIENCE };
    Config { timeout: Duration::from_secs(20), transact: bounds, ..Config::new(cluster.endpoints()) }
}

/// Waits until no node knows of a part, a lock or a record that is left.
pub(crate) async fn nothing_left(cluster: &Cluster, patience: Duration) -> anyhow::Result<()> {
    let look = || async {
        let mut left = Vec::new();
        for node in cluster.all() {
            for name in ["txns_in_doubt", "txns_unfinished"] {
                match cluster.metric(node, name).await {
                    Ok(0) => {}
                    Ok(count) => left.push(format!("{count} {name} at n{node}")),
                    Err(cause) => left.push(format!("{cause:#}")),
                }
            }
        }
        if left.is_empty() { Ok(()) } else { Err(left.join(", ")) }
    };
    wait::until("no lock and no record left", patience, look).await
}

/// Moves one unit from one account to another, if there is one.
async fn transfer(client: &Client, from: usize, to: usize) -> Result<bool, TxnError> {
    let (Ok(from), Ok(to)) = (account(from), account(to)) else { return Ok(false) };
    let (from, to) = (&from, &to);
    client
        .transact(|mut txn| async move {
            let left = txn.incr(from.clone(), -1).await?;
            if left < 0 {
                txn.abort();
                return Ok(false);
            }
            txn.incr(to.clone(), 1).await?;
            Ok(true)
        })
        .await
}

/// The sum of all accounts at one instant.
async fn total(client: &Client) -> Result<i64, TxnError> {
    client
        .transact(|mut txn| async move {
            let keys: Vec<Key> = (0..ACCOUNTS).filter_map(|at| account(at).ok()).collect();
            let rows = txn.multi_get(keys).await?;
            let number =
                |row: kv_client::TxnRow| String::from_utf8_lossy(row.value.as_ref()).parse::<i64>().ok();
            Ok(rows.into_iter().flatten().filter_map(number).sum())
        })
        .await
}

async fn open_accounts(client: &Client) -> anyhow::Result<()> {
    let mut txn = client.begin();
    for at in 0..ACCOUNTS {
        txn.put(account(at)?, Value::new(EACH.to_string())?)?;
    }
    txn.commit().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn money_is_neither_lost_nor_made() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let client = Client::new(patient(&cluster))?;
    open_accounts(&client).await?;
    nothing_left(&cluster, PATIENCE).await?;
    let mut movers = JoinSet::new();
    for mover in 0..4 {
        let client = client.clone();
        movers.spawn(async move {
            for round in 0..50_usize {
                transfer(&client, (mover + round) % ACCOUNTS, (mover + 3 * round + 1) % ACCOUNTS).await?;
            }
            Ok::<_, TxnError>(())
        });
    }
    let mut looks = 0;
    while !movers.is_empty() {
        ensure!(total(&client).await? == EACH * i64::try_from(ACCOUNTS)?, "the total changed");
        looks += 1;
        while let Some(ended) = movers.try_join_next() {
            ended??;
        }
    }
    eprintln!("{looks} looks at the total");
    nothing_left(&cluster, PATIENCE).await?;
    cluster.finish().await
}

/// Kills the leaders of shards, one after the other, and starts them again.
async fn kill_leaders(cluster: &mut Cluster, lists: &Lists, until: usize) -> anyhow::Result<usize> {
    let mut kills = 0;
    for shard in (1..=4).cycle() {
        if lists.len() >= until {
            return Ok(kills);
        }
        let victim = cluster.led().await?.get(&ShardId::new(shard)).context("the shard is led")?.leader;
        cluster.kill(&[victim]).await?;
        kills += 1;
        cluster.led().await?;
        cluster.start_nodes(&[victim]).await?;
        let before = lists.len();
        let worked = || async {
            let more = lists.len() - before;
            if more >= 200 || lists.len() >= until { Ok(()) } else { Err(format!("{more} transactions")) }
        };
        wait::until("transactions between kills", PATIENCE, worked).await?;
    }
    Ok(kills)
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_are_strictly_serialisable_while_leaders_are_killed() -> anyhow::Result<()> {
    let until = usize::try_from(settings::number("QUORATE_TRANSACTIONS", 2_000)?)?;
    let mut cluster = Cluster::start(Options::beside()).await?;
    cluster.led().await?;
    let keys = (0..16).map(|at| format!("{}/list/{at}", ["a", "h", "o", "u"].get(at % 4).unwrap_or(&"a")));
    let lists = Lists::new(keys);
    let mut workers = JoinSet::new();
    for process in 0..8 {
        let client =
            Client::new(Config { timeout: Duration::from_secs(10), ..Config::new(cluster.endpoints()) })?;
        workers.spawn(Arc::clone(&lists).work(client, process, until));
    }
    let kills = kill_leaders(&mut cluster, &lists, until).await?;
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    nothing_left(&cluster, Duration::from_secs(10)).await?;
    let history = lists.history()?;
    let (committed, open) = (history.count(Ending::Committed), history.count(Ending::Open));
    let failed = history.count(Ending::Failed);
    eprintln!("{kills} kills; {committed} committed, {failed} failed, {open} unknown");
    let report = check_transactions(&history);
    ensure!(report.verdict == TransactionVerdict::Valid, "{report:#?}");
    ensure!(kills > 2 && committed > until / 10, "this is what it is about");
    cluster.finish().await
}

/// A manager that dies between two steps blocks nobody for longer than it takes to elect another, and, before the decision,
/// for the two seconds that a prepared part may wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_manager_that_dies_blocks_nobody_for_long() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::default() }).await?;
    let led = cluster.led().await?;
    let (anchor, other) = (("a/1", ShardId::new(1)), ("h/1", ShardId::new(2)));
    let client = Client::new(patient(&cluster))?;
    client.put(Key::new(other.0)?, Value::new("before")?).await?;

    // Right after prepare.
    prepared::leave(&cluster, anchor, other).await?;
    let manager = led.get(&anchor.1).context("the shard is led")?.leader;
    cluster.kill(&[manager]).await?;
    let died = Instant::now();
    let got = client.get(Key::new(other.0)?).await?.row.context("it is there")?;
    ensure!(got.value.as_ref() == b"before", "it was never decided");
    let read_after = died.elapsed();
    client.put(Key::new(other.0)?, Value::new("after")?).await?;
    let written_after = died.elapsed();
    cluster.start_nodes(&[manager]).await?;
    cluster.led().await?;

    // Right after the commit point, before or while the participant is told.
    let mut seen_after = Vec::new();
    for round in 0..5 {
        let value = Value::new(format!("round {round}"))?;
        let mut txn = client.begin();
        txn.put(Key::new(anchor.0)?, value.clone())?;
        txn.put(Key::new(other.0)?, value.clone())?;
        let shard = txn.commit().await?.header.context("it wrote")?.shard;
        let manager = cluster.led().await?.get(&shard).context("the shard is led")?.leader;
        cluster.kill(&[manager]).await?;
        let died = Instant::now();
        for key in [anchor.0, other.0] {
            let got = client.get(Key::new(key)?).await?.row.context("it is there")?;
            ensure!(got.value == value, "what is committed is seen: {got:?}");
            client.put(Key::new(key)?, value.clone()).await?;
        }
        seen_after.push(died.elapsed());
        cluster.start_nodes(&[manager]).await?;
        cluster.led().await?;
    }
    eprintln!("read {read_after:?} and written {written_after:?} after a death right after prepare");
    eprintln!("both keys read and written {seen_after:?} after a death right after the commit");
    nothing_left(&cluster, PATIENCE).await?;
    cluster.finish().await
}

/// Nearly all of it is one part, prepared by one entry and kept in one row; and it is there after all nodes were killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_largest_transaction_is_committed_and_kept() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let client = Client::new(patient(&cluster))?;
    let (small, number) = (&(Key::new("a/small")?, Value::new("1")?), &Key::new("a/small/number")?);
    let row = |at: u8| Ok((Key::new(format!("h/large/{at}"))?, Value::new(vec![at; (1 << 20) - 64])?));
    let large = &(0..8).map(row).collect::<anyhow::Result<Vec<(Key, Value)>>>()?;
    // Where the disk is slow, the part is not prepared in time, and the transaction is aborted.
    let committed = client.transact(|mut txn| async move {
        txn.put(small.0.clone(), small.1.clone())?;
        // The small key is the anchor's: it was read.
        txn.incr(number.clone(), 1).await?;
        for (key, value) in large {
            txn.put(key.clone(), value.clone())?;
        }
        Ok::<_, TxnError>(())
    });
    committed.await?;
    nothing_left(&cluster, PATIENCE).await?;
    cluster.kill(&[1, 2, 3]).await?;
    cluster.start_nodes(&[1, 2, 3]).await?;
    for (key, value) in large {
        let got = client.get(key.clone()).await?.row.context("it is there")?;
        ensure!(got.value == *value, "the value of {key}");
    }
    cluster.agree().await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_refused_by_what_it_has_read() -> anyhow::Result<()> {
    let cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }).await?;
    cluster.led().await?;
    let client = Client::new(patient(&cluster))?;
    open_accounts(&client).await?;
    let mut txn = client.begin();
    txn.incr(account(0)?, 1).await?;
    txn.incr(account(1)?, 1).await?;
    client.put(account(1)?, Value::new("7")?).await?;
    let error = txn.commit().await.err().context("what it has read has changed")?;
    ensure!(matches!(error, TxnError::Aborted(_)) && error.outcome() == Outcome::NotApplied, "{error:?}");
    let got = client.get(account(0)?).await?.row.context("it is there")?;
    ensure!(got.value.as_ref() == b"100", "nothing of it took effect");
    nothing_left(&cluster, PATIENCE).await?;
    cluster.finish().await
}
