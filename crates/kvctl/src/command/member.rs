//! `member list|add|remove|promote`.

use std::time::{Duration, Instant};

use kv_client::Client;
use kv_client::v1::AddMember;
use kv_client::v1::change_member_request::Change;
use serde::Serialize;
use tokio::time::timeout_at;

use super::{Ended, members};
use crate::args::{Format, MemberVerb};
use crate::console::Console;
use crate::failure::{CommandError, Exit};

/// How often `--wait` looks; the command's timeout bounds it.
const POLL: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize)]
struct ChangedJson {
    node: u64,
    outcome: &'static str,
    done: bool,
}

pub(crate) async fn run(
    verb: MemberVerb,
    (client, timeout): (&Client, Duration),
    console: &mut Console,
) -> Ended {
    let deadline = Instant::now() + timeout;
    let (node, change, wait) = match verb {
        MemberVerb::List => return members::run(client, console).await,
        MemberVerb::Add { node, addr, learner } => {
            (node, Change::Add(AddMember { node: node.get(), peer_addr: addr, learner }), false)
        }
        MemberVerb::Remove { node, wait } => (node, Change::Remove(node.get()), wait),
        MemberVerb::Promote { node, wait } => (node, Change::Promote(node.get()), wait),
    };
    client.change_member(change).await?;
    let mut done = is_done(client).await;
    while wait && !done {
        let looked = async {
            tokio::time::sleep(POLL).await;
            is_done(client).await
        };
        let in_time = timeout_at(deadline.into(), looked).await;
        done = in_time.map_err(|_| {
            let text = "the change is recorded, but not every group has carried it out within --timeout: \
                        `kvctl member list` shows how far it is";
            CommandError::unknown("DEADLINE_EXCEEDED", "deadline", text)
        })?;
    }
    if console.format == Format::Json {
        console.json(&ChangedJson { node: node.get(), outcome: "applied", done })?;
    } else {
        console.line(&format!("ok node={} done={done}", node.get()))?;
    }
    Ok(Exit::Ok)
}

/// Whether every group has carried the newest change out, as far as a node knows.
async fn is_done(client: &Client) -> bool {
    client.members().await.is_ok_and(|members| members.groups.iter().all(|group| group.done))
}
