//! `shards`.

use kv_client::{Client, v1};
use serde::Serialize;

use super::{Ended, hash_text, or_dash, role_word};
use crate::args::Format;
use crate::bytes_text::to_base64;
use crate::console::Console;
use crate::failure::Exit;
use crate::json::text;

#[derive(Debug, Serialize)]
struct ShardsJson {
    shards: Vec<ShardJson>,
}

#[derive(Debug, Serialize)]
struct ShardJson {
    shard: u32,
    start: Option<String>,
    start_base64: Option<String>,
    end: Option<String>,
    end_base64: Option<String>,
    leader: Option<u64>,
    epoch: u64,
    replicas: Vec<ReplicaJson>,
}

#[derive(Debug, Serialize)]
struct ReplicaJson {
    node: u64,
    role: &'static str,
    #[serde(rename = "match")]
    match_index: Option<u64>,
    applied: Option<u64>,
    state_hash: Option<String>,
}

pub(crate) async fn run(client: &Client, console: &mut Console) -> Ended {
    let shards = client.shards().await?;
    if console.format == Format::Json {
        console.json(&ShardsJson { shards: shards.into_iter().map(ShardJson::from).collect() })?;
        return Ok(Exit::Ok);
    }
    let encoding = console.encoding;
    let mut rows = Vec::new();
    for shard in shards {
        let bounds = match &shard.range {
            None => ["-".to_owned(), "-".to_owned()],
            Some(range) => {
                let end = range.end.as_ref().map(|end| encoding.write(end));
                [encoding.write(&range.start), or_dash(end)]
            }
        };
        let shard = ShardJson::from(shard);
        let first = [vec![shard.shard.to_string()], bounds.to_vec()].concat();
        let first = [first, vec![or_dash(shard.leader), shard.epoch.to_string()]].concat();
        for replica in shard.replicas {
            let of_replica = vec![
                replica.node.to_string(),
                replica.role.to_owned(),
                or_dash(replica.match_index),
                or_dash(replica.applied),
                or_dash(replica.state_hash),
            ];
            rows.push([first.clone(), of_replica].concat());
        }
    }
    let head = ["SHARD", "START", "END", "LEADER", "EPOCH", "NODE", "ROLE", "MATCH", "APPLIED", "STATE_HASH"];
    console.rows(&head, rows)?;
    Ok(Exit::Ok)
}

impl From<v1::ShardStatus> for ShardJson {
    fn from(shard: v1::ShardStatus) -> Self {
        let start = shard.range.as_ref().map(|range| range.start.clone());
        let end = shard.range.and_then(|range| range.end);
        Self {
            shard: shard.shard,
            start: start.as_deref().and_then(text),
            start_base64: start.as_deref().map(to_base64),
            end: end.as_deref().and_then(text),
            end_base64: end.as_deref().map(to_base64),
            leader: (shard.leader > 0).then_some(shard.leader),
            epoch: shard.epoch,
            replicas: shard.replicas.into_iter().map(ReplicaJson::from).collect(),
        }
    }
}

impl From<v1::ShardReplica> for ReplicaJson {
    fn from(replica: v1::ShardReplica) -> Self {
        Self {
            node: replica.node,
            role: role_word(replica.role),
            match_index: replica.match_index,
            applied: replica.applied,
            state_hash: hash_text(&replica.state_hash),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_have_their_shape() {
        let replica = v1::ShardReplica {
            node: 1,
            role: v1::Role::Follower.into(),
            match_index: Some(9),
            applied: None,
            ..v1::ShardReplica::default()
        };
        let shard = v1::ShardStatus {
            shard: 2,
            range: Some(v1::KeyRange { start: "g".into(), end: None }),
            leader: 0,
            epoch: 4,
            replicas: vec![replica],
        };
        assert_eq!(
            serde_json::to_string(&ShardsJson { shards: vec![shard.into()] }).unwrap(),
            concat!(
                r#"{"shards":[{"shard":2,"start":"g","start_base64":"Zw==","end":null,"end_base64":null,"leader":null,"#,
                r#""epoch":4,"replicas":[{"node":1,"role":"follower","match":9,"applied":null,"state_hash":null}]}]}"#
            )
        );
    }
}
