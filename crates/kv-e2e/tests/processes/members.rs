//! Members come and go while the cluster serves.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use kv_client::v1;
use kv_client::v1::change_member_request::Change;
use kv_e2e::{Cluster, Ledger, Options, Writers, kvctl, leaders, settings, wait};
use kv_types::{Key, ShardId, Value};

const PATIENCE: Duration = Duration::from_secs(60);

fn three_and_two() -> Options {
    Options { nodes: 3, spare: 2, ..Options::beside() }
}

/// Waits until every group has these voters and no change is under way.
async fn settled(cluster: &Cluster, asked: &[u64], voters: &[u64]) -> anyhow::Result<()> {
    let client = kv_client::Client::new(kv_client::Config::new(cluster.endpoints_of(asked)))?;
    let look = || async {
        let members = client.members().await.map_err(|cause| cause.to_string())?;
        let as_wanted = |group: &v1::GroupProgress| {
            group.done
                && group.membership.as_ref().is_some_and(|m| m.voters == voters && m.outgoing.is_empty())
        };
        if !members.groups.is_empty() && members.groups.iter().all(as_wanted) {
            Ok(())
        } else {
            Err(format!("{:?}", members.groups))
        }
    };
    wait::until("the wanted members in every group", PATIENCE, look).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_node_is_replaced_as_the_operations_page_says() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(three_and_two()).await?;
    let ledger = Arc::new(Ledger::default());
    let writers = Writers::start(&cluster.endpoints(), &ledger, "m", 8, 100)?;
    writers.progress("writes before", 500, PATIENCE).await?;
    settled(&cluster, &[1], &[1, 2, 3]).await?;
    cluster.kill(&[3]).await?;
    cluster.wipe(3)?;
    let endpoints = cluster.endpoints_of(&[1, 2]).join(",");
    let removed = kvctl::kvctl(&endpoints, &["member", "remove", "3", "--wait", "--timeout", "60s"])?;
    ensure!(removed.code == Some(0), "{removed:?}");
    settled(&cluster, &[1], &[1, 2]).await?;
    cluster.join(4, 1, &[]).await?;
    settled(&cluster, &[1, 4], &[1, 2, 4]).await?;
    writers.progress("writes with the new member", 500, PATIENCE).await?;
    writers.stop().await?;
    // The new member carries its part: with it and one other all goes on.
    cluster.kill(&[1]).await?;
    eprintln!("{:?}", ledger.audit(&cluster.client_of(&[2, 4])?).await?);
    // The old id is used up, for a wiped disk and for a new one.
    let again = cluster.join(3, 2, &[]).await;
    let text = format!("{:#}", again.err().context("a used id was taken in")?);
    ensure!(text.contains("the id of n3 is used up: join with a new id"), "{text}");
    cluster.forget(3);
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_leader_hands_over_says_so_and_stops() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 4, ..Options::beside() }).await?;
    let led = cluster.led().await?;
    settled(&cluster, &[1], &[1, 2, 3, 4]).await?;
    let doomed = led.get(&ShardId::META).context("the meta group is led")?.leader;
    let others: Vec<u64> = cluster.all().into_iter().filter(|node| *node != doomed).collect();
    let client = cluster.client_of(&others)?;
    client.change_member(Change::Remove(doomed)).await?;
    cluster.process(doomed)?.says("was removed from the cluster", PATIENCE).await?;
    ensure!(!cluster.process(doomed)?.ends(PATIENCE).await?.success(), "it ends with an error");
    cluster.forget(doomed);
    // Started again, it hears the same from its former peers.
    cluster.launch(doomed)?;
    cluster.process(doomed)?.says("was removed from the cluster", PATIENCE).await?;
    cluster.process(doomed)?.ends(PATIENCE).await?;
    cluster.forget(doomed);
    cluster.finish().await
}

/// Waits until so many groups have carried the newest change out.
async fn carried_out(cluster: &Cluster, asked: &[u64], groups: usize) -> anyhow::Result<()> {
    let client = kv_client::Client::new(kv_client::Config::new(cluster.endpoints_of(asked)))?;
    let look = || async {
        let members = client.members().await.map_err(|cause| cause.to_string())?;
        let done = members.groups.iter().filter(|group| group.done).count();
        if done >= groups { Ok(()) } else { Err(format!("{done} of {groups} groups")) }
    };
    wait::until("some groups to have followed", PATIENCE, look).await
}

/// Kills the leader of the meta group and starts it again, unless it is the node the change is about.
async fn kill_meta_leader(cluster: &mut Cluster, spared: u64) -> anyhow::Result<bool> {
    let leader = cluster.led().await?.get(&ShardId::META).context("the meta group is led")?.leader;
    if leader == spared {
        return Ok(false);
    }
    cluster.kill(&[leader]).await?;
    cluster.start_nodes(&[leader]).await?;
    Ok(true)
}

/// A node joins and is let go again, and each time the leader of the meta group is killed at another step: when so many of
/// the five groups have followed.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_survives_the_death_of_the_meta_leader_at_any_step() -> anyhow::Result<()> {
    let steps: Vec<usize> = match settings::number("QUORATE_ALL_STEPS", 0)? {
        0 => vec![0, 3],
        _ => (0..=5).collect(),
    };
    let spare = steps.len() as u64;
    let mut cluster = Cluster::start(Options { nodes: 3, spare, ..Options::beside() }).await?;
    settled(&cluster, &[1], &[1, 2, 3]).await?;
    let mut kills = 0;
    for (newcomer, step) in (4..).zip(steps) {
        cluster.join(newcomer, 1, &[]).await?;
        carried_out(&cluster, &[1, 2, 3], step).await?;
        kills += usize::from(kill_meta_leader(&mut cluster, newcomer).await?);
        settled(&cluster, &[1, 2, 3], &[1, 2, 3, newcomer]).await?;
        cluster.client()?.change_member(Change::Remove(newcomer)).await?;
        carried_out(&cluster, &[1, 2, 3], step).await?;
        kills += usize::from(kill_meta_leader(&mut cluster, newcomer).await?);
        settled(&cluster, &[1, 2, 3], &[1, 2, 3]).await?;
        cluster.process(newcomer)?.says("was removed from the cluster", PATIENCE).await?;
        cluster.process(newcomer)?.ends(PATIENCE).await?;
        cluster.forget(newcomer);
    }
    eprintln!("{kills} kills of the meta group's leader");
    ensure!(kills > 0, "the newcomer led the meta group each time");
    cluster.finish().await
}

/// Who was away while another joined does not know it, and hears of it only from others when the newcomer leads all groups.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_away_finds_a_leader_that_joined_meanwhile() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, spare: 1, ..Options::beside() }).await?;
    settled(&cluster, &[1], &[1, 2, 3]).await?;
    cluster.kill(&[3]).await?;
    cluster.join(4, 1, &[]).await?;
    settled(&cluster, &[1], &[1, 2, 3, 4]).await?;
    let groups: Vec<ShardId> = cluster.led().await?.into_keys().collect();
    for group in groups {
        leaders::lead(&cluster, group, 4).await?;
    }
    cluster.start_nodes(&[3]).await?;
    settled(&cluster, &[3], &[1, 2, 3, 4]).await?;
    // Three of four are needed.
    cluster.kill(&[1]).await?;
    write_within_patience(&cluster.client_of(&[2, 3, 4])?).await?;
    cluster.forget(1);
    cluster.finish().await
}

/// What a node knows of its peers survives a failure of all of them, although none of them knows how far its log was
/// committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_newcomer_votes_after_a_power_failure_that_an_old_member_does_not_survive() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, spare: 1, ..Options::beside() }).await?;
    settled(&cluster, &[1], &[1, 2, 3]).await?;
    cluster.join(4, 1, &[]).await?;
    settled(&cluster, &[1], &[1, 2, 3, 4]).await?;
    cluster.kill(&[1, 2, 3, 4]).await?;
    cluster.start_nodes(&[2, 3]).await?;
    // It has joined already, and only starts as it did then.
    cluster.join(4, 2, &[]).await?;
    write_within_patience(&cluster.client_of(&[2, 3, 4])?).await?;
    cluster.forget(1);
    cluster.finish().await
}

async fn write_within_patience(client: &kv_client::Client) -> anyhow::Result<()> {
    let write = || async {
        let value = Value::new("somebody").map_err(|cause| cause.to_string())?;
        let key = Key::new("who-leads").map_err(|cause| cause.to_string())?;
        client.put(key, value).await.map(drop).map_err(|cause| cause.to_string())
    };
    wait::until("a write", PATIENCE, write).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_is_promoted_when_it_is_told() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, spare: 1, ..Options::beside() }).await?;
    settled(&cluster, &[1], &[1, 2, 3]).await?;
    cluster.join(4, 2, &["--join-as-learner"]).await?;
    settled(&cluster, &[1], &[1, 2, 3]).await?;
    let endpoints = cluster.endpoints().join(",");
    let transfer = kvctl::kvctl(&endpoints, &["leader", "transfer", "1", "4"])?;
    ensure!(transfer.code == Some(1) && transfer.stderr.contains("n4 is a learner"), "{transfer:?}");
    let promoted = kvctl::kvctl(&endpoints, &["member", "promote", "4", "--wait", "--timeout", "60s"])?;
    ensure!(promoted.code == Some(0), "{promoted:?}");
    settled(&cluster, &[1, 4], &[1, 2, 3, 4]).await?;
    leaders::lead(&cluster, ShardId::new(1), 4).await?;
    cluster.finish().await
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_and_an_orderly_stop_under_load_fail_no_write_that_is_tried_again() -> anyhow::Result<()> {
    let mut cluster = Cluster::start(Options { nodes: 3, ..Options::default() }).await?;
    cluster.led().await?;
    let ledger = Arc::new(Ledger::default());
    let writers = Writers::start(&cluster.endpoints(), &ledger, "t", 16, 100)?;
    for round in 0..settings::number("QUORATE_TRANSFERS", 10)? {
        writers.progress("writes between transfers", 200, PATIENCE).await?;
        leaders::lead(&cluster, ShardId::new(1), round % 3 + 1).await?;
    }
    writers.progress("writes before the stop", 200, PATIENCE).await?;
    let ended = cluster.stop(&[1]).await?;
    ensure!(ended.iter().all(std::process::ExitStatus::success), "{ended:?}");
    writers.progress("writes after the stop", 500, PATIENCE).await?;
    writers.stop().await?;
    let failures = ledger.failures();
    eprintln!("{} acknowledged, failures {failures:?}", ledger.count());
    let mut gaps = ledger.gaps(ShardId::new(1));
    gaps.sort();
    eprintln!("gaps between the writes of one leader and the next, transfers and the stop: {gaps:?}");
    ensure!(failures.is_empty(), "{failures:?}");
    cluster.finish().await
}
