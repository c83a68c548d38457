//! Clients that append to lists and read them, several in one transaction, and note what they did for a checker.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use kv_check::{Ending, MicroOperation, Transaction, TransactionHistory};
use kv_client::{Client, Txn, TxnError};
use kv_types::{Key, Outcome, Value};
use rand::RngExt as _;

/// Micro-operations of one transaction, at most.
const OPERATIONS_MAX: usize = 5;

/// The lists, and everything that was done to them.
#[derive(Debug)]
pub struct Lists {
    keys: Vec<String>,
    /// Elements given out: no two are the same.
    elements: AtomicI64,
    began: Instant,
    done: Mutex<Vec<Transaction>>,
}

impl Lists {
    /// Lists under these keys, all empty.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Arc<Self> {
        let (elements, began, done) = (AtomicI64::new(0), Instant::now(), Mutex::default());
        Arc::new(Self { keys: keys.into_iter().collect(), elements, began, done })
    }

    /// Runs transactions one after the other until so many were begun by all; each may fail, which is noted.
    ///
    /// # Errors
    /// If the store returns what is no list.
    pub async fn work(self: Arc<Self>, client: Client, process: i64, until: usize) -> anyhow::Result<()> {
        let mut process = process;
        while self.len() < until {
            let (wanted, call) = (self.draw(), self.now());
            let (operations, ended) = run(client.begin(), &wanted).await?;
            let ending = match ended {
                Ok(()) => Ending::Committed,
                Err(error) if error.outcome() == Outcome::NotApplied => Ending::Failed,
                Err(_) => Ending::Open,
            };
            let ret = (ending == Ending::Committed).then(|| self.now());
            let operations = if ending == Ending::Committed { operations } else { wanted };
            let done = Transaction { ending, ret, ..Transaction::open(process, operations, call) };
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push(done);
            if ending == Ending::Open {
                // Whoever does not know how he ended is somebody else from now on.
                process += 1_000_000;
            }
        }
        Ok(())
    }

    /// Everything that was done.
    ///
    /// # Errors
    /// If it is no history.
    pub fn history(&self) -> anyhow::Result<TransactionHistory> {
        let done = self.done.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(TransactionHistory::from_transactions(done)?)
    }

    /// How many transactions have ended.
    pub fn len(&self) -> usize {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none has ended.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn draw(&self) -> Vec<MicroOperation> {
        let mut dice = rand::rng();
        let count = dice.random_range(1..=OPERATIONS_MAX);
        let operation = |_| {
            let key = self.keys.get(dice.random_range(0..self.keys.len())).cloned().unwrap_or_default();
            if dice.random_bool(0.5) {
                MicroOperation::read(key.as_str())
            } else {
                MicroOperation::append(key.as_str(), self.elements.fetch_add(1, Ordering::Relaxed))
            }
        };
        (0..count).map(operation).collect()
    }
}

async fn run(
    mut txn: Txn,
    wanted: &[MicroOperation],
) -> anyhow::Result<(Vec<MicroOperation>, Result<(), TxnError>)> {
    let mut operations = Vec::with_capacity(wanted.len());
    for operation in wanted {
        let name = operation.key().as_text().context("keys are texts")?.to_owned();
        let key = Key::new(name.clone())?;
        let found = match txn.get(key.clone()).await {
            Ok(found) => found,
            Err(error) => return Ok((operations, Err(error))),
        };
        let mut list = found.map_or(Ok(Vec::new()), |row| elements(&row.value))?;
        operations.push(match operation {
            MicroOperation::Read { .. } => MicroOperation::read_as(name.as_str(), list),
            MicroOperation::Append { element, .. } => {
                list.push(*element);
                let text = list.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
                if let Err(error) = txn.put(key, Value::new(text)?) {
                    return Ok((operations, Err(error)));
                }
                operation.clone()
            }
        });
    }
    Ok((operations, txn.commit().await.map(drop)))
}

fn elements(value: &Value) -> anyhow::Result<Vec<i64>> {
    let text = std::str::from_utf8(value.as_ref())?;
    text.split(',').map(|element| Ok(element.parse()?)).collect()
}
