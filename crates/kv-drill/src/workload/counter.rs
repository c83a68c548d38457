//! Numbers that are counted up, each step exactly once.

use kv_check::{Datum, Function};

use super::{Worker, number, of_error};
use crate::book::{End, Told};
use crate::error::RunError;

pub(super) async fn turn(worker: &mut Worker) -> Result<(), RunError> {
    let at = worker.somewhere();
    if worker.dice.below(10) < 3 {
        return read(worker, at).await.map(drop);
    }
    let place = worker.place(at)?;
    let delta = i64::try_from(worker.dice.below(5)).unwrap_or(0) + 1;
    let ticket = worker.begin(Function::Incr, &place, delta);
    let end = match worker.client.incr(place.key()?, delta).await {
        Ok(sum) => End::Ok(Told::at(sum.value, sum.header.revision.get())),
        Err(error) => of_error(&error),
    };
    worker.end(ticket, end);
    Ok(())
}

/// Whether it was answered.
pub(super) async fn read(worker: &mut Worker, at: usize) -> Result<bool, RunError> {
    let place = worker.place(at)?;
    let ticket = worker.begin(Function::Read, &place, Datum::Nil);
    let end = match worker.client.get(place.key()?).await {
        Ok(got) => {
            let found = got.row.map_or(0, |row| number(&row.value));
            End::Ok(Told::at(found, got.header.revision.get()))
        }
        Err(_) => End::Failed,
    };
    let is_answered = end != End::Failed;
    worker.end(ticket, end);
    Ok(is_answered)
}
