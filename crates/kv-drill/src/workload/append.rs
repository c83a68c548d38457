//! Lists to which transactions append elements, and which they read.

use std::sync::Arc;

use kv_check::{Datum, Function, MicroOperation};
use kv_client::{Txn, TxnError, TxnRow};
use kv_types::Key;

use super::{Place, Worker, key, of_txn_error, value};
use crate::book::{End, Told};
use crate::error::RunError;

/// So many elements a list gets before it gives way to a new one.
pub(super) const ELEMENTS: u64 = 48;

/// One step of a transaction.
#[derive(Clone)]
struct Step {
    key: Key,
    name: Datum,
    /// The element to append; none to read.
    append: Option<i64>,
}

pub(super) async fn turn(worker: &mut Worker) -> Result<(), RunError> {
    let mut steps = Vec::new();
    let mut shards = Vec::new();
    for _ in 0..=worker.dice.below(3) {
        let at = worker.somewhere();
        let appends = worker.dice.below(2) == 0;
        let place = worker.place(at)?;
        let append = appends.then(|| worker.ground.fresh());
        let part = worker.ground.grow(at, u64::from(append.is_some()), ELEMENTS);
        steps.push(step(&place, part, append)?);
        shards.push(place.shard);
    }
    run(worker, steps, shards).await.map(drop)
}

/// Reads the list with that number; whether it was answered.
pub(super) async fn read(worker: &mut Worker, at: usize, part: u64) -> Result<bool, RunError> {
    let place = worker.place(at)?;
    let steps = vec![step(&place, part, None)?];
    run(worker, steps, vec![place.shard]).await
}

fn step(place: &Place, part: u64, append: Option<i64>) -> Result<Step, RunError> {
    let text = format!("{}/{part}", place.key);
    Ok(Step { name: Datum::text(&text), key: key(text)?, append })
}

async fn run(worker: &mut Worker, steps: Vec<Step>, shards: Vec<u32>) -> Result<bool, RunError> {
    let asked = steps.iter().map(|step| match step.append {
        Some(element) => MicroOperation::append(step.name.clone(), element),
        None => MicroOperation::read(step.name.clone()),
    });
    let shown = |operations: &[MicroOperation]| Datum::list(operations.iter().map(MicroOperation::to_datum));
    let asked = shown(&asked.collect::<Vec<_>>());
    let writes = steps.iter().any(|step| step.append.is_some());
    let ticket = worker.call((Function::Txn, Datum::Nil, asked), writes, shards);
    let steps = Arc::new(steps);
    let end = match worker.client.transact(|txn| carry_out(txn, Arc::clone(&steps))).await {
        Ok(told) => End::Ok(Told { value: shown(&told), ..Told::default() }),
        Err(error) => of_txn_error(&error),
    };
    let is_answered = matches!(end, End::Ok(_));
    worker.end(ticket, end);
    Ok(is_answered)
}

async fn carry_out(mut txn: Txn, steps: Arc<Vec<Step>>) -> Result<Vec<MicroOperation>, TxnError> {
    let mut told = Vec::with_capacity(steps.len());
    for Step { key, name, append } in steps.iter() {
        let row = txn.get(key.clone()).await?;
        let mut list = elements(row.as_ref());
        match append {
            Some(element) => {
                list.push(*element);
                let texts: Vec<_> = list.iter().map(ToString::to_string).collect();
                if let Ok(value) = value(texts.join(" ")) {
                    txn.put(key.clone(), value)?;
                }
                told.push(MicroOperation::append(name.clone(), *element));
            }
            None => told.push(MicroOperation::read_as(name.clone(), list)),
        }
    }
    Ok(told)
}

fn elements(row: Option<&TxnRow>) -> Vec<i64> {
    let text = row.map(|row| String::from_utf8_lossy(row.value.as_ref()).into_owned()).unwrap_or_default();
    // What is no number was never written: a checker must see it.
    text.split_whitespace().map(|element| element.parse().unwrap_or(i64::MIN)).collect()
}
