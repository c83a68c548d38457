//! `session list`, `session show`.

use kv_client::{Client, v1};
use kv_types::SessionId;
use serde::Serialize;

use super::Ended;
use crate::args::{Format, SessionVerb};
use crate::console::Console;
use crate::failure::{CommandError, Exit};

/// A session.
#[derive(Debug, Serialize)]
struct SessionJson {
    session: u64,
    ttl_ms: u64,
    /// What is left of its lease; 0 if it is over.
    lease_ms: u64,
    age_ms: u64,
    closed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<Vec<ProgressJson>>,
}

/// How far it is on one shard.
#[derive(Debug, Serialize)]
struct ProgressJson {
    shard: u32,
    floor: u64,
    records: u64,
}

impl SessionJson {
    fn new(session: &v1::Session, time_ms: u64) -> Self {
        Self {
            session: session.session,
            ttl_ms: session.ttl_ms,
            lease_ms: session.lease_until_ms.saturating_sub(time_ms),
            age_ms: time_ms.saturating_sub(session.opened_ms),
            closed: session.closed,
            progress: None,
        }
    }

    fn line(&self) -> String {
        let state = if self.closed { "closed" } else { "open" };
        let Self { session, ttl_ms, lease_ms, age_ms, .. } = self;
        format!("ses{session} {state} ttl_ms={ttl_ms} lease_ms={lease_ms} age_ms={age_ms}")
    }
}

pub(crate) async fn run(verb: SessionVerb, client: &Client, console: &mut Console) -> Ended {
    match verb {
        SessionVerb::List => list(client, console).await,
        SessionVerb::Show { session } => show(session, client, console).await,
    }
}

async fn list(client: &Client, console: &mut Console) -> Ended {
    let mut after = None;
    loop {
        let page = client.sessions(after).await?;
        for session in &page.sessions {
            let session = SessionJson::new(session, page.time_ms);
            match console.format {
                Format::Json => console.json(&session)?,
                Format::Plain | Format::Table => console.line(&session.line())?,
            }
        }
        after = page.sessions.last().map(|last| SessionId::new(last.session));
        if !page.more || after.is_none() {
            return Ok(Exit::Ok);
        }
    }
}

async fn show(id: SessionId, client: &Client, console: &mut Console) -> Ended {
    let found = client.session(id).await?;
    let Some(session) = found.session else {
        let text = format!("there is no session {id}: it has ended, or never was");
        return Err(CommandError::own(Exit::Absent, "NOT_FOUND", "unknown_session", text));
    };
    let progress =
        found.progress.iter().map(|p| ProgressJson { shard: p.shard, floor: p.floor, records: p.records });
    let session =
        SessionJson { progress: Some(progress.collect()), ..SessionJson::new(&session, found.time_ms) };
    match console.format {
        Format::Json => console.json(&session)?,
        Format::Plain | Format::Table => {
            console.line(&session.line())?;
            for ProgressJson { shard, floor, records } in session.progress.iter().flatten() {
                console.line(&format!("shard={shard} floor={floor} records={records}"))?;
            }
        }
    }
    Ok(Exit::Ok)
}
