//! An answer that was lost is given again, and nothing is done twice, whoever leads and however he got his rows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::{Config, v1};
use kv_e2e::leaders::{lead, leader_of};
use kv_e2e::raw::{self, Done, Raw, Session, WAYS};
use kv_e2e::{Cluster, Ledger, Options, Writers, wait};
use kv_types::{RequestId, ShardId};
use v1::pipeline_request::Op;

const PATIENCE: Duration = Duration::from_secs(60);

/// The shard of all keys here, and where it begins.
const SHARD: ShardId = ShardId::new(1);

const FILLER_ENTRIES: usize = 30_000;

const FILLER_BYTES: usize = 4 << 10;

/// A write and the answer that its client never got.
struct Lost {
    op: Op,
    id: v1::RequestId,
    answer: Done,
}

async fn leader(cluster: &Cluster, shard: ShardId) -> anyhow::Result<Raw> {
    let node = leader_of(cluster, shard).await?;
    let endpoints = cluster.endpoints_of(&[node]);
    Raw::at(endpoints.first().context("it has an address")?)
}

/// Writes of both kinds, with ids of both kinds, sent both ways.
async fn lose(cluster: &Cluster) -> anyhow::Result<Vec<Lost>> {
    let node = leader(cluster, SHARD).await?;
    let session = Session::open(&leader(cluster, ShardId::META).await?, Duration::from_secs(3600)).await?;
    let client = cluster.client()?;
    let (mut lost, mut seq) = (Vec::new(), 0);
    for way in WAYS {
        for of_session in [true, false] {
            for op in [raw::put("a/put", "once"), raw::incr("a/sum", 3)] {
                seq += 1;
                let id = if of_session {
                    session.request(seq, 1)
                } else {
                    let drawn = client.new_request_id(&kv_types::Key::new("a")?).await?;
                    let RequestId::Timed(id) = drawn else { anyhow::bail!("{drawn} is of a session") };
                    raw::sized(id.get().to_be_bytes().to_vec())
                };
                let sent = node.send(way, op.clone(), Some(id.clone())).await?;
                let answer = sent.map_err(|refused| anyhow::anyhow!("{refused:?}"))?;
                ensure!(!answer.replayed, "{op:?} is new: {answer:?}");
                lost.push(Lost { op, id, answer });
            }
        }
    }
    Ok(lost)
}

/// Sends all of them again to the leader: each has the answer it had.
async fn ask_again(cluster: &Cluster, lost: &[Lost], when: &str) -> anyhow::Result<()> {
    for (Lost { op, id, answer }, way) in lost.iter().zip(WAYS.iter().cycle()) {
        let again = || async {
            let node = leader(cluster, SHARD).await.map_err(|cause| cause.to_string())?;
            let sent = node.send(*way, op.clone(), Some(id.clone())).await;
            sent.map_err(|cause| cause.to_string())?.map_err(|refused| format!("{refused:?}"))
        };
        let again = wait::until(when, PATIENCE, again).await?;
        ensure!(again == Done { replayed: true, ..*answer }, "{when}: {op:?} was {answer:?}, is {again:?}");
    }
    let client = cluster.client()?;
    let sum = client.get(kv_types::Key::new("a/sum")?).await?.row.context("it was written")?;
    ensure!(sum.value.bytes() == "12" && sum.version == 4, "{when}: four times three, once each: {sum:?}");
    let put = client.get(kv_types::Key::new("a/put")?).await?.row.context("it was written")?;
    ensure!(put.version == 4, "{when}: four puts, once each: {put:?}");
    Ok(())
}

/// Lets a node be away until only a snapshot helps it.
async fn fill_while_away(cluster: &mut Cluster, away: u64) -> anyhow::Result<()> {
    cluster.stop(&[away]).await?;
    let others: Vec<u64> = cluster.all().into_iter().filter(|node| *node != away).collect();
    let ledger = Arc::new(Ledger::default());
    let config = Config::new(cluster.endpoints_of(&others));
    let filler = Writers::start_with(config, &ledger, "f", (&['a'], 256, FILLER_BYTES))?;
    filler.progress("more entries than the log keeps", FILLER_ENTRIES, PATIENCE).await?;
    for node in others {
        cluster.counted_to(3, node, "checkpoints_total", PATIENCE).await?;
    }
    filler.stop().await?;
    cluster.start_nodes(&[away]).await?;
    cluster.counted(away, "snapshots_installed_total", PATIENCE).await?;
    cluster.agree().await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_was_lost_is_answered_from_its_record_for_ever() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::beside() }.flag("--wal-mb=192")).await?;
    cluster.led().await?;
    let lost = lose(&cluster).await?;
    ask_again(&cluster, &lost, "by the same leader").await?;

    let before = leader_of(&cluster, SHARD).await?;
    lead(&cluster, SHARD, before % 3 + 1).await?;
    ask_again(&cluster, &lost, "by the next leader").await?;
    let killed = leader_of(&cluster, SHARD).await?;
    cluster.kill(&[killed]).await?;
    ask_again(&cluster, &lost, "after the leader was killed").await?;
    cluster.start_nodes(&[killed]).await?;

    let all = cluster.all();
    cluster.kill(&all).await?;
    cluster.start_nodes(&all).await?;
    ask_again(&cluster, &lost, "after all nodes were killed").await?;

    let away = leader_of(&cluster, SHARD).await?;
    fill_while_away(&mut cluster, away).await?;
    lead(&cluster, SHARD, away).await?;
    ask_again(&cluster, &lost, "by a leader with the rows of a snapshot").await?;
    cluster.finish().await
}
