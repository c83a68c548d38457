//! `leader list|transfer`.

use std::time::Duration;

use kv_client::Client;
use kv_types::{NodeId, ShardId};
use serde::Serialize;

use super::{Ended, or_dash};
use crate::args::{Format, LeaderVerb};
use crate::console::Console;
use crate::failure::Exit;

/// How often a hand-over is looked at; the command's timeout bounds it.
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, Serialize)]
struct LeadersJson {
    leaders: Vec<LeaderJson>,
}

#[derive(Debug, Serialize)]
struct LeaderJson {
    shard: u32,
    leader: Option<u64>,
    epoch: u64,
}

pub(crate) async fn run(verb: LeaderVerb, client: &Client, console: &mut Console) -> Ended {
    match verb {
        LeaderVerb::List => list(client, console).await,
        LeaderVerb::Transfer { shard, node } => transfer(ShardId::new(shard), node, client, console).await,
    }
}

async fn leaders(client: &Client) -> Result<Vec<LeaderJson>, kv_client::Error> {
    let leader = |shard: kv_client::v1::ShardStatus| LeaderJson {
        shard: shard.shard,
        leader: (shard.leader > 0).then_some(shard.leader),
        epoch: shard.epoch,
    };
    Ok(client.shards().await?.into_iter().map(leader).collect())
}

async fn list(client: &Client, console: &mut Console) -> Ended {
    let leaders = leaders(client).await?;
    if console.format == Format::Json {
        console.json(&LeadersJson { leaders })?;
        return Ok(Exit::Ok);
    }
    let row = |led: LeaderJson| vec![led.shard.to_string(), or_dash(led.leader), led.epoch.to_string()];
    console.rows(&["SHARD", "LEADER", "EPOCH"], leaders.into_iter().map(row).collect())?;
    Ok(Exit::Ok)
}

async fn transfer(shard: ShardId, to: NodeId, client: &Client, console: &mut Console) -> Ended {
    client.transfer_leader(shard, to).await?;
    loop {
        // It has begun, whoever answers now; the timeout bounds it.
        let leaders = leaders(client).await.unwrap_or_default();
        let led = leaders.into_iter().find(|led| led.shard == shard.get() && led.leader == Some(to.get()));
        let Some(led) = led else {
            tokio::time::sleep(POLL).await;
            continue;
        };
        if console.format == Format::Json {
            console.json(&led)?;
        } else {
            console.line(&format!("ok shard={} leader={} epoch={}", led.shard, to.get(), led.epoch))?;
        }
        return Ok(Exit::Ok);
    }
}
