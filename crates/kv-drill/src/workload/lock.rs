//! Locks: keys that hold the name of who has them, changed by compare-and-set.
//!
//! Each acquisition has a name of its own. Whoever does not know whether it has got the lock, or given it back, leaves its
//! name behind; who finds a lock in that name gives it back in that name, so that the lock is not lost for good.

use std::sync::PoisonError;

use kv_check::{Datum, Function};
use kv_client::{Client, Expect};

use super::{Place, Worker, of_error, value};
use crate::book::{End, Told};
use crate::error::RunError;

const FREE: &str = "free";

/// Makes the locks, free.
pub(super) async fn open(client: &Client, places: &[Place]) -> Result<(), RunError> {
    for place in places {
        let put = client.put(place.key()?, value(FREE)?).await;
        put.map_err(|error| RunError::Cluster(format!("a lock cannot be made: {error}")))?;
    }
    Ok(())
}

pub(super) async fn turn(worker: &mut Worker) -> Result<(), RunError> {
    let at = worker.somewhere();
    take(worker, at).await.map(drop)
}

/// Takes a lock and gives it back; whether it was to be had. When all other clients have ended it is, or soon: whoever had it has
/// given it back, or has left its name.
pub(super) async fn take(worker: &mut Worker, at: usize) -> Result<bool, RunError> {
    let place = worker.place(at)?;
    let holder = format!("c{}-{}", worker.number, worker.ground.fresh());
    let ticket = worker.begin(Function::Acquire, &place, Datum::text(&holder));
    let swap = (Expect::Value(value(FREE)?), value(&holder)?);
    let (end, found) = match worker.client.cas(place.key()?, swap.0, swap.1).await {
        Ok(swapped) if swapped.swapped => {
            let revision = swapped.header.revision.get();
            let told = Told { value: Datum::text(&holder), revision: Some(revision), token: Some(revision) };
            (End::Ok(told), None)
        }
        Ok(swapped) => {
            let found = swapped.current.map(|row| String::from_utf8_lossy(row.value.as_ref()).into_owned());
            (End::Failed, found)
        }
        Err(error) => (of_error(&error), None),
    };
    let ended = end.clone();
    worker.end(ticket, end);
    match ended {
        End::Ok(_) => {
            tokio::time::sleep(worker.think).await;
            release(worker, &place, holder).await?;
            return Ok(true);
        }
        End::Unknown => abandon(worker, holder),
        End::Failed | End::Mismatch(_) => {
            if let Some(found) = found.filter(|found| is_abandoned(worker, found)) {
                release(worker, &place, found).await?;
            }
        }
    }
    Ok(false)
}

async fn release(worker: &mut Worker, place: &Place, holder: String) -> Result<(), RunError> {
    let ticket = worker.begin(Function::Release, place, Datum::text(&holder));
    let swapped = worker.client.cas(place.key()?, Expect::Value(value(&holder)?), value(FREE)?).await;
    let end = match swapped {
        Ok(swapped) if swapped.swapped => {
            End::Ok(Told::at(Datum::text(&holder), swapped.header.revision.get()))
        }
        Ok(_) => End::Failed,
        Err(error) => of_error(&error),
    };
    // One that was certainly not carried out is not repeated by its client either.
    if !matches!(end, End::Ok(_)) {
        abandon(worker, holder);
    }
    worker.end(ticket, end);
    Ok(())
}

fn abandon(worker: &Worker, holder: String) {
    worker.ground.abandoned.lock().unwrap_or_else(PoisonError::into_inner).insert(holder);
}

fn is_abandoned(worker: &Worker, holder: &str) -> bool {
    worker.ground.abandoned.lock().unwrap_or_else(PoisonError::into_inner).contains(holder)
}
