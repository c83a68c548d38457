//! `txn list`, `txn show`, `txn force`.

use bytes::Bytes;
use kv_client::{Client, Error, RequestOutcome, ShardTxns, v1};
use kv_types::{ShardId, TxnId};
use serde::Serialize;
use tokio::task::JoinSet;

use super::parts::{Kind, Left, LeftJson};
use crate::args::Format;
use crate::command::{Ended, or_dash, outcome};
use crate::console::Console;
use crate::failure::{CommandError, Exit};
use crate::json::text;

/// What all shards say.
#[derive(Debug, Serialize)]
struct ListJson {
    txns: Vec<LeftJson>,
    /// Shards where there is more than is listed.
    more: Vec<u32>,
    /// Shards that did not answer.
    unknown: Vec<u32>,
}

/// One transaction.
#[derive(Debug, Serialize)]
struct ShowJson {
    txn: String,
    anchor: Option<String>,
    anchor_base64: Option<String>,
    /// What the anchor's shard knows: as `kvctl outcome` says it.
    outcome: Option<&'static str>,
    result: Option<&'static str>,
    left: Vec<LeftJson>,
}

/// What became of the parts of a transaction.
#[derive(Debug, Serialize)]
struct ForceJson {
    txn: String,
    parts: Vec<PartEndJson>,
}

/// What became of one part.
#[derive(Debug, Serialize)]
struct PartEndJson {
    shard: u32,
    result: &'static str,
}

/// What was found in the shards that have answered.
struct Found {
    left: Vec<Left>,
    more: Vec<u32>,
    failed: Vec<(ShardId, Error)>,
}

async fn find(client: &Client, wanted: Option<TxnId>) -> Result<Found, CommandError> {
    let shards: Vec<ShardTxns> = client.list_txns().await?;
    let starts: Vec<(Bytes, ShardId)> =
        shards.iter().map(|shard| (shard.start.clone(), shard.shard)).collect();
    let mut found = Found { left: Vec::new(), more: Vec::new(), failed: Vec::new() };
    for ShardTxns { shard, start, answer } in shards {
        match answer {
            Ok(reply) => {
                if reply.more {
                    found.more.push(shard.get());
                }
                found.left.extend(Left::all((shard, &start), reply, &starts));
            }
            Err(error) => found.failed.push((shard, error)),
        }
    }
    Left::mark_decided(&mut found.left);
    found.left.retain(|left| wanted.is_none_or(|wanted| left.txn == wanted));
    found.left.sort_by_key(|left| (left.txn, left.shard, left.is_part()));
    Ok(found)
}

/// Says which shards failed, and fails as the first of them did; without one all is well.
fn settle(failed: Vec<(ShardId, CommandError)>, console: &mut Console) -> Ended {
    console.flush()?;
    let mut named = failed.into_iter().map(|(shard, error)| error.about(&format!("shard {}", shard.get())));
    let Some(first) = named.next() else { return Ok(Exit::Ok) };
    for error in named {
        error.report(console.format);
    }
    Err(first)
}

fn as_failures(failed: Vec<(ShardId, Error)>) -> Vec<(ShardId, CommandError)> {
    failed.into_iter().map(|(shard, error)| (shard, error.into())).collect()
}

/// That there is nothing is only known if all shards have said so.
fn nothing(what: &str, found: Found, console: &mut Console) -> Ended {
    if !found.failed.is_empty() {
        return settle(as_failures(found.failed), console);
    }
    let cut = match found.more.as_slice() {
        [] => String::new(),
        shards => {
            let shards: Vec<String> = shards.iter().map(u32::to_string).collect();
            format!("; shards with more than could be looked at: {}", shards.join(" "))
        }
    };
    Err(CommandError::own(Exit::Absent, "NOT_FOUND", "absent", format!("{what}{cut}")))
}

pub(super) async fn list(in_doubt: bool, client: &Client, console: &mut Console) -> Ended {
    let mut found = find(client, None).await?;
    found.left.retain(|left| !in_doubt || left.is_in_doubt());
    if console.format == Format::Json {
        console.json(&ListJson {
            txns: found.left.iter().map(LeftJson::from).collect(),
            more: found.more,
            unknown: found.failed.iter().map(|(shard, _)| shard.get()).collect(),
        })?;
        return settle(as_failures(found.failed), console);
    }
    let encoding = console.encoding;
    let row = |left: &Left| {
        let counts = match &left.kind {
            Kind::Part { writes, reads, ranges, .. } => Some([writes.len(), reads.len(), ranges.len()]),
            Kind::Record { .. } => None,
        };
        let [writes, reads, ranges] =
            counts.map_or([None; 3], |counts| counts.map(Some)).map(or_dash::<usize>);
        vec![
            left.txn.to_string(),
            left.kind_word().to_owned(),
            left.state_word().to_owned(),
            left.shard.get().to_string(),
            or_dash(left.age_ms()),
            or_dash(left.anchor().map(|anchor| encoding.write(anchor))),
            writes,
            reads,
            ranges,
        ]
    };
    let head = ["ID", "KIND", "STATE", "SHARD", "AGE_MS", "ANCHOR", "WRITES", "READS", "RANGES"];
    console.rows(&head, found.left.iter().map(row).collect())?;
    for shard in &found.more {
        console.line(&format!("shard {shard} has more"))?;
    }
    settle(as_failures(found.failed), console)
}

pub(super) async fn show(id: TxnId, client: &Client, console: &mut Console) -> Ended {
    let found = find(client, Some(id)).await?;
    let anchor = found.left.iter().find_map(|left| left.anchor().cloned());
    // The record of a transaction is in its anchor's shard.
    let record = found.left.iter().find(|left| !left.is_part()).map(|left| left.start.clone());
    let Some(place) = anchor.clone().or(record) else {
        let text = format!("no shard has anything of {id} left; `kvctl outcome {id}` says what it came to");
        return nothing(&text, found, console);
    };
    let asked = client.outcome(id.request(), Some(&place), false).await;
    let words = asked.as_ref().ok().map(|RequestOutcome { known, .. }| outcome::words(known));
    let (outcome, result) = (words.map(|(_, outcome, _)| outcome), words.and_then(|(_, _, result)| result));
    if console.format == Format::Json {
        console.json(&ShowJson {
            txn: id.to_string(),
            anchor: anchor.as_deref().and_then(text),
            anchor_base64: anchor.as_deref().map(crate::bytes_text::to_base64),
            outcome,
            result,
            left: found.left.iter().map(LeftJson::from).collect(),
        })?;
    } else {
        let anchor = or_dash(anchor.map(|anchor| console.encoding.write(&anchor)));
        let (outcome, result) = (or_dash(outcome), or_dash(result));
        console.line(&format!("{id} outcome={outcome} result={result} anchor={anchor}"))?;
        let encoding = console.encoding;
        for line in found.left.iter().flat_map(|left| left.lines(encoding)) {
            console.line(&line)?;
        }
    }
    let failed = as_failures(found.failed);
    if let Err(error) = asked {
        console.flush()?;
        let error = CommandError::from(error).about("the anchor's shard does not say what it knows");
        if failed.is_empty() {
            return Err(error);
        }
        error.report(console.format);
    }
    settle(failed, console)
}

pub(super) async fn force(id: TxnId, client: &Client, console: &mut Console) -> Ended {
    let found = find(client, Some(id)).await?;
    if !found.left.iter().any(Left::is_part) {
        let text = match found.left.is_empty() {
            true => format!("no shard has a part of {id}"),
            false => format!("no shard has a part of {id}: it is committed, and its record goes by itself"),
        };
        return nothing(&text, found, console);
    }
    let mut ending = JoinSet::new();
    for part in found.left.iter().filter(|left| left.is_part()) {
        let (client, shard, place, name) =
            (client.clone(), part.shard, part.start.clone(), part.name.clone());
        ending.spawn(async move { (shard, client.end_txn(place, name).await) });
    }
    let mut ended = Vec::new();
    while let Some(done) = ending.join_next().await {
        ended.push(done.map_err(std::io::Error::other)?);
    }
    ended.sort_by_key(|(shard, _)| *shard);
    let mut failed = as_failures(found.failed);
    let mut parts = Vec::new();
    for (shard, answer) in ended {
        let result = match answer {
            Ok(v1::EndTxnReply { ended: false, .. }) => "gone",
            Ok(v1::EndTxnReply { committed: true, .. }) => "applied",
            Ok(v1::EndTxnReply { committed: false, .. }) => "dropped",
            Err(error) => {
                failed.push((shard, error.into()));
                "failed"
            }
        };
        parts.push(PartEndJson { shard: shard.get(), result });
    }
    if console.format == Format::Json {
        console.json(&ForceJson { txn: id.to_string(), parts })?;
    } else {
        for PartEndJson { shard, result } in parts {
            console.line(&format!("shard={shard} part={result} {}", meaning(result)))?;
        }
    }
    settle(failed, console)
}

/// What became of a part, in words.
fn meaning(result: &str) -> &'static str {
    match result {
        "gone" => "(it was ended meanwhile)",
        "applied" => "(the transaction is committed: its writes took effect)",
        "dropped" => {
            "(its locks are gone; the transaction is aborted, unless other parts of it were ended before)"
        }
        _ => "(it may still be there)",
    }
}
