//! Registers that are read, written and compared; every write has its own value.

use kv_check::{Datum, Function};
use kv_client::Expect;

use super::{Worker, number, of_error, value};
use crate::book::{End, Told};
use crate::error::RunError;

pub(super) async fn turn(worker: &mut Worker) -> Result<(), RunError> {
    let at = worker.somewhere();
    match worker.dice.below(10) {
        0..5 => read(worker, at).await.map(drop),
        5..8 => write(worker, at).await,
        _ => compare(worker, at).await,
    }
}

/// Whether it was answered.
pub(super) async fn read(worker: &mut Worker, at: usize) -> Result<bool, RunError> {
    Ok(found(worker, at).await?.is_some())
}

/// What a read has found, if it has ended well.
async fn found(worker: &mut Worker, at: usize) -> Result<Option<Datum>, RunError> {
    let place = worker.place(at)?;
    let ticket = worker.begin(Function::Read, &place, Datum::Nil);
    let got = worker.client.get(place.key()?).await;
    let (end, found) = match got {
        Ok(got) => {
            let found = got.row.map_or(Datum::Nil, |row| number(&row.value).into());
            (End::Ok(Told::at(found.clone(), got.header.revision.get())), Some(found))
        }
        Err(_) => (End::Failed, None),
    };
    worker.end(ticket, end);
    Ok(found)
}

async fn write(worker: &mut Worker, at: usize) -> Result<(), RunError> {
    let place = worker.place(at)?;
    let fresh = worker.ground.fresh();
    let ticket = worker.begin(Function::Write, &place, fresh);
    let end = match worker.client.put(place.key()?, value(fresh)?).await {
        Ok(written) => End::Ok(Told::at(fresh, written.header.revision.get())),
        Err(error) => of_error(&error),
    };
    worker.end(ticket, end);
    Ok(())
}

async fn compare(worker: &mut Worker, at: usize) -> Result<(), RunError> {
    let Some(before) = found(worker, at).await? else { return Ok(()) };
    let place = worker.place(at)?;
    let fresh = worker.ground.fresh();
    let asked = Datum::list([before.clone(), fresh.into()]);
    let ticket = worker.begin(Function::Cas, &place, asked.clone());
    let expect = match before.as_int() {
        Some(before) => Expect::Value(value(before)?),
        None => Expect::Absent,
    };
    let end = match worker.client.cas(place.key()?, expect, value(fresh)?).await {
        Ok(swapped) if swapped.swapped => End::Ok(Told::at(asked, swapped.header.revision.get())),
        Ok(swapped) => End::Mismatch(Some(swapped.header.revision.get())),
        Err(error) => of_error(&error),
    };
    worker.end(ticket, end);
    Ok(())
}
