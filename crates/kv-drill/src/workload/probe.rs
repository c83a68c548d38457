//! Probes: registers of their own on every shard, written by a client as any, and asked for at nodes that are cut off.
//!
//! A client of `kv-client` goes to whoever leads, so none of them is ever in a minority. Probes are: each talks to one node
//! about one shard, follows no hint, and works while that node is cut off from the majority or stands still, and for a moment
//! after: what a node answers when it has just woken up is of interest. What it is told is recorded with what the client
//! wrote meanwhile, and must be explained by one order with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_check::{Datum, Function};
use kv_types::{NodeId, Outcome};

use super::{Ground, PROCESSES, Place, Worker, register, value};
use crate::book::{Book, Call, End, Told};
use crate::error::RunError;
use crate::one_node::{OneNode, Unwritten};

/// Between two operations.
const PAUSE: Duration = Duration::from_millis(40);

/// How long a probe goes on after its node is back.
const AFTERMATH: Duration = Duration::from_millis(300);

/// The client that goes wherever the leader is.
pub(crate) async fn writes(mut worker: Worker) -> Result<Worker, RunError> {
    while worker.book.clock.goes_on() {
        if worker.book.is_full() {
            break;
        }
        register::turn(&mut worker).await?;
        tokio::time::sleep(PAUSE).await;
    }
    Ok(worker)
}

/// One that stays with its node and its shard.
#[derive(Clone, Debug)]
pub(crate) struct Pinned {
    pub(crate) id: NodeId,
    pub(crate) node: OneNode,
    pub(crate) book: Arc<Book>,
    pub(crate) ground: Arc<Ground>,
    pub(crate) place: Place,
    pub(crate) number: u32,
    /// Whether it writes; it reads otherwise.
    pub(crate) write: bool,
}

/// Asks the node again and again, while it is cut off.
pub(crate) async fn pinned(pinned: Pinned) -> Result<(), RunError> {
    let mut process = i64::from(pinned.number) * PROCESSES;
    let mut cut_off: Option<Instant> = None;
    while pinned.book.clock.goes_on() {
        if pinned.book.clock.is_cut_off(pinned.id.get()) {
            cut_off = Some(Instant::now());
        }
        let is_due = cut_off.is_some_and(|last| last.elapsed() < AFTERMATH);
        if is_due && !pinned.book.is_full() && !ask(&pinned, process).await? {
            process += 1;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

/// Whether it is known what came of it.
async fn ask(pinned: &Pinned, process: i64) -> Result<bool, RunError> {
    let place = &pinned.place;
    let fresh = pinned.ground.fresh();
    let (function, argument) =
        if pinned.write { (Function::Write, fresh.into()) } else { (Function::Read, Datum::Nil) };
    let ticket = pinned.book.call(Call {
        client: pinned.number,
        process,
        function,
        key: Datum::text(&place.key),
        value: argument,
        write: pinned.write,
        shards: vec![place.shard],
        probe: Some(pinned.id.get()),
    });
    let (end, answered) = if pinned.write {
        match pinned.node.put(&place.key()?, &value(fresh)?).await {
            Ok(revision) => (End::Ok(Told { value: fresh.into(), revision, token: None }), true),
            Err(Unwritten { outcome: Outcome::NotApplied, answered }) => (End::Failed, answered),
            Err(Unwritten { outcome: Outcome::Unknown, answered }) => (End::Unknown, answered),
        }
    } else {
        match pinned.node.get(&place.key()?).await {
            Some(found) => {
                let number = found.value.map(|text| text.parse().unwrap_or(i64::MIN));
                let value = number.map_or(Datum::Nil, Datum::Int);
                (End::Ok(Told { value, revision: found.revision, token: None }), true)
            }
            // Of reads nobody asks.
            None => (End::Failed, false),
        }
    };
    let is_known = end != End::Unknown;
    pinned.book.end_answered(ticket, end, answered);
    Ok(is_known)
}
