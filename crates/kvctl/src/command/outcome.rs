//! `outcome ID [--key K] [--settle]`.

use kv_client::{Client, Known, RequestOutcome};
use serde::Serialize;

use super::Ended;
use crate::args::{Format, OutcomeOf};
use crate::console::Console;
use crate::failure::{CommandError, Exit};
use crate::json::HeaderJson;

/// What is known of a request.
#[derive(Debug, Serialize)]
struct OutcomeJson {
    request_id: String,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<i64>,
    /// Where it was decided, and when.
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderJson>,
}

pub(crate) async fn run(args: OutcomeOf, client: &Client, console: &mut Console) -> Ended {
    let key = args.key.map(|key| console.encoding.read(&key)).transpose().map_err(CommandError::usage)?;
    let RequestOutcome { header, known } = {
        let asked = client.outcome(args.id, key.as_deref(), args.settle).await;
        asked.map_err(|cause| CommandError::from(cause).of_a_question())?
    };
    let (exit, outcome, result) = words(&known);
    let is_decided = result.is_some();
    let (deleted, value) = match known {
        Known::Deleted(count) => (Some(count), None),
        Known::Incremented(value) => (None, Some(value)),
        _ => (None, None),
    };
    match console.format {
        Format::Json => console.json(&OutcomeJson {
            request_id: args.id.to_string(),
            outcome,
            result,
            deleted,
            value,
            header: is_decided.then(|| (&header).into()),
        })?,
        Format::Plain | Format::Table => {
            let mut line = outcome.to_owned();
            if let Some(result) = result {
                line.push_str(&format!(" result={result}"));
            }
            if let Some(count) = deleted {
                line.push_str(&format!(" deleted={count}"));
            }
            if let Some(value) = value {
                line.push_str(&format!(" value={value}"));
            }
            if is_decided {
                line.push_str(&format!(" shard={} revision={}", header.shard.get(), header.revision.get()));
            }
            console.line(&line)?;
        }
    }
    Ok(exit)
}

/// How the command ends, the word for the outcome, and for the result of a request that was decided.
pub(super) fn words(known: &Known) -> (Exit, &'static str, Option<&'static str>) {
    match known {
        Known::Written => (Exit::Ok, "applied", Some("written")),
        Known::Deleted(_) => (Exit::Ok, "applied", Some("deleted")),
        Known::Incremented(_) => (Exit::Ok, "applied", Some("incremented")),
        Known::CompareFailed => (Exit::CompareFailed, "not_applied", Some("compare_failed")),
        Known::NotIncremented => (Exit::Error, "not_applied", Some("not_incremented")),
        Known::Committed => (Exit::Ok, "applied", Some("committed")),
        Known::Aborted => (Exit::Aborted, "not_applied", Some("aborted")),
        Known::Settled => (Exit::WorthARetry, "not_applied", None),
        Known::NotSeen => (Exit::Unknown, "not_seen", None),
        Known::NoLongerKnown => (Exit::Unknown, "no_longer_known", None),
    }
}
