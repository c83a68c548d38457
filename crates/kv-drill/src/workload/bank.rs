//! Accounts on different shards, between which transactions move money, and looks at all of them at one instant.

mod ledger;

use kv_check::{Datum, Event, EventKind, Function};
use kv_client::{Client, Txn, TxnError};
use kv_types::Key;

use super::{Place, Worker, number, of_txn_error, value};
use crate::book::{End, Told};
use crate::error::RunError;

/// What each account holds at first.
const EACH: i64 = 100;

/// How often the accounts are tried to be opened.
const TRIES: u32 = 5;

/// Opens the accounts, in one transaction.
pub(super) async fn open(client: &Client, places: &[Place]) -> Result<(), RunError> {
    let mut last = Ok(());
    for _ in 0..TRIES {
        let mut txn = client.begin();
        for place in places {
            txn.put(place.key()?, value(EACH)?).map_err(unopened)?;
        }
        last = txn.commit().await.map(drop).map_err(unopened);
        if last.is_ok() {
            break;
        }
    }
    last
}

fn unopened(error: TxnError) -> RunError {
    RunError::Cluster(format!("the accounts cannot be opened: {error}"))
}

pub(super) async fn turn(worker: &mut Worker) -> Result<(), RunError> {
    if worker.dice.below(10) < 3 { look(worker).await.map(drop) } else { pay(worker).await }
}

/// Reads all accounts; whether it was answered.
pub(super) async fn look(worker: &mut Worker) -> Result<bool, RunError> {
    let places = worker.ground.places.clone();
    let keys = places.iter().map(Place::key).collect::<Result<Vec<Key>, _>>()?;
    let shown = |balances: Option<&[i64]>| {
        let each = places.iter().enumerate().map(|(at, place)| {
            let balance = balances.and_then(|balances| balances.get(at)).map(|balance| Datum::Int(*balance));
            Datum::list([Datum::text("r"), Datum::text(&place.key), balance.unwrap_or_default()])
        });
        Datum::list(each)
    };
    let shards = places.iter().map(|place| place.shard).collect();
    let ticket = worker.call((Function::Txn, Datum::Nil, shown(None)), false, shards);
    let read = |mut txn: Txn| {
        let keys = keys.clone();
        async move {
            let rows = txn.multi_get(keys).await?;
            // An account that is gone holds a number that no check takes for right.
            Ok::<Vec<i64>, TxnError>(
                rows.iter().map(|row| row.as_ref().map_or(i64::MIN, |row| number(&row.value))).collect(),
            )
        }
    };
    let end = match worker.client.transact(read).await {
        Ok(balances) => End::Ok(Told { value: shown(Some(&balances)), ..Told::default() }),
        Err(_) => End::Failed,
    };
    let is_answered = end != End::Failed;
    worker.end(ticket, end);
    Ok(is_answered)
}

/// Moves money, if there is enough.
async fn pay(worker: &mut Worker) -> Result<(), RunError> {
    let count = worker.ground.places.len();
    let from = worker.somewhere();
    let by = 1 + worker.dice.place(count.saturating_sub(1));
    let (from, to) = (worker.place(from)?, worker.place((from + by).checked_rem(count).unwrap_or(0))?);
    let amount = i64::try_from(worker.dice.below(EACH.unsigned_abs())).unwrap_or(0) + 1;
    let parts = [Datum::text("transfer"), Datum::text(&from.key), Datum::text(&to.key), amount.into()];
    let asked = Datum::list([Datum::list(parts)]);
    let ticket = worker.call((Function::Txn, Datum::Nil, asked.clone()), true, vec![from.shard, to.shard]);
    let (source, target) = (from.key()?, to.key()?);
    let run = |mut txn: Txn| {
        let (source, target) = (source.clone(), target.clone());
        async move {
            let row = txn.get(source.clone()).await?;
            if row.is_none_or(|row| number(&row.value) < amount) {
                return Ok::<bool, TxnError>(false);
            }
            txn.incr(source, -amount).await?;
            txn.incr(target, amount).await?;
            Ok(true)
        }
    };
    let end = match worker.client.transact(run).await {
        Ok(true) => End::Ok(Told { value: asked, ..Told::default() }),
        Ok(false) => End::Failed,
        Err(error) => of_txn_error(&error),
    };
    worker.end(ticket, end);
    Ok(())
}

/// What a history of the bank contradicts: the total is the same at every instant, nobody is below zero, and what each account
/// holds comes from the transfers that were told.
pub(crate) fn flaw(events: &[Event], accounts: usize) -> Option<String> {
    imbalance(events, accounts).or_else(|| ledger::flaw(events))
}

fn imbalance(events: &[Event], accounts: usize) -> Option<String> {
    let total = EACH.saturating_mul(i64::try_from(accounts).unwrap_or(i64::MAX));
    let looks = events.iter().filter(|event| event.kind == EventKind::Ok);
    looks.filter_map(|event| Some((event, balances(event)?))).find_map(|(event, balances)| {
        let sum: i128 = balances.iter().map(|balance| i128::from(*balance)).sum();
        let wrong = if sum != i128::from(total) {
            format!("the accounts hold {sum} together, not {total}")
        } else if balances.iter().any(|balance| *balance < 0) {
            "an account is below zero".to_owned()
        } else {
            return None;
        };
        Some(format!("{wrong}: process {} read {}", event.process, event.value))
    })
}

/// The balances that a look has found; none if the event is none.
fn balances(event: &Event) -> Option<Vec<i64>> {
    let items = event.value.as_list()?;
    items
        .iter()
        .map(|item| match item.as_list()? {
            [kind, _, balance] if kind.as_text() == Some("r") => balance.as_int(),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(balances: &[i64]) -> Event {
        let each = balances
            .iter()
            .map(|balance| Datum::list([Datum::text("r"), Datum::text("a"), Datum::Int(*balance)]));
        Event::new(1, EventKind::Ok, Function::Txn, Datum::list(each))
    }

    #[test]
    fn money_is_neither_made_nor_lost() {
        assert_eq!(flaw(&[look(&[100, 100]), look(&[0, 200])], 2), None);
        assert!(flaw(&[look(&[100, 99])], 2).unwrap().starts_with("the accounts hold 199 together, not 200"));
        assert!(flaw(&[look(&[201, -1])], 2).unwrap().starts_with("an account is below zero"));
        assert!(flaw(&[look(&[i64::MIN, 100])], 2).is_some());
    }
}
