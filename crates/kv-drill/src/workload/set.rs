//! Sets to which elements are added, each a key of its own, and which are read by a scan at one revision.

use kv_check::{Datum, Function};
use kv_client::ScanRequest;
use kv_types::KeyRange;
use kv_types::limits::SCAN_PAGE_BYTES_MAX;

use super::{Place, Worker, key, of_error};
use crate::book::{End, Told};
use crate::error::RunError;

/// The most elements that a set gets before it gives way to a new one.
const ELEMENTS_MAX: u64 = 200;

/// So many it gets whose elements are stored with so many bytes: a scan reads it in one page, which counts values, too.
pub(super) fn elements(value_bytes: u64) -> u64 {
    (SCAN_PAGE_BYTES_MAX as u64 / 2 / value_bytes.max(1)).clamp(1, ELEMENTS_MAX)
}

pub(super) async fn turn(worker: &mut Worker) -> Result<(), RunError> {
    let at = worker.somewhere();
    if worker.dice.below(10) < 3 {
        let part = worker.ground.grow(at, 0, elements(worker.ground.value_bytes));
        return read(worker, at, part).await.map(drop);
    }
    let part = worker.ground.grow(at, 1, elements(worker.ground.value_bytes));
    let place = set(worker, at, part)?;
    let element = worker.ground.fresh();
    let ticket = worker.begin(Function::Add, &place, element);
    let filling = worker.ground.filling()?;
    let end = match worker.client.put(key(format!("{}{element}", place.key))?, filling).await {
        Ok(written) => End::Ok(Told::at(element, written.header.revision.get())),
        Err(error) => of_error(&error),
    };
    worker.end(ticket, end);
    Ok(())
}

/// Reads the set with that number; whether it was answered.
pub(super) async fn read(worker: &mut Worker, at: usize, part: u64) -> Result<bool, RunError> {
    let place = set(worker, at, part)?;
    let range = KeyRange::prefix(place.key.clone());
    let range = range.map_err(|error| RunError::Unfit(format!("a key of the workload: {error}")))?;
    let ticket = worker.begin(Function::Read, &place, Datum::Nil);
    let end = match worker.client.scan_page(ScanRequest { range, limit: None, keys_only: true }).await {
        Ok(page) if page.resume_key.is_none() => {
            let elements = page.rows.iter().map(|row| element(row.key.as_ref(), place.key.len()));
            End::Ok(Told::at(Datum::list(elements.map(Datum::Int)), page.header.revision.get()))
        }
        Ok(_) | Err(_) => End::Failed,
    };
    let is_answered = end != End::Failed;
    worker.end(ticket, end);
    Ok(is_answered)
}

/// One of the sets of a place, one of which is in use.
fn set(worker: &Worker, at: usize, part: u64) -> Result<Place, RunError> {
    let place = worker.place(at)?;
    Ok(Place { key: format!("{}/{part}/", place.key), shard: place.shard })
}

/// The element that a key stands for; one that nobody added if it stands for none.
fn element(key: &[u8], prefix: usize) -> i64 {
    let text = key.get(prefix..).and_then(|digits| std::str::from_utf8(digits).ok());
    text.and_then(|digits| digits.parse().ok()).unwrap_or(i64::MIN)
}
