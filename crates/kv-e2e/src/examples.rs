//! Worked examples of transactions, to be read and to be run.
//!
//! In reading order: [`register`] (one of two gets a name), [`last_item`] (one of two gets the goods), [`bank`] (many move
//! money), [`order`] (a row and a message, both or neither, and each message done once), and [`back_order`] (when to do
//! without).
//!
//! Each is a function `run`, which plays a small story with several clients that race, and returns a report of what
//! happened. Which of them wins is up to the race. What must hold whoever wins is in [`Report::check`].
//!
//! # Which key lies where
//!
//! Shards are ranges of keys, so the beginning of a key decides its shard. These examples begin a key with the kind of its
//! row: `order/RUN/7` lies with other orders, `goods/RUN/lamp` elsewhere. That makes every transaction here one over
//! several shards, which [`check_apart`] asserts. An application that may choose does the opposite: what changes
//! together lies together, since a transaction of one shard is one entry of one log.
//!
//! # What is the same in all of them
//!
//! A transaction is a closure: it reads, decides, and writes. It may be run several times, so it changes nothing outside,
//! and what it found out is what it *returns*; a *no* (sold out, taken, not enough) is returned as a value, too, and not as an
//! error: then the transaction is committed, and the *no* was true at one instant. [`decided`] is
//! [`Client::transact`] for those who must know in the end.

pub mod back_order;
pub mod bank;
pub mod last_item;
pub mod order;
pub mod register;

use std::collections::BTreeSet;
use std::fmt;
use std::io::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, bail, ensure};
use kv_client::{Client, Config, Known, Txn, TxnError, TxnRow};
use kv_types::{Key, KeyRange, ShardId, Value};

/// Where `kvnode dev` answers, if it is not told otherwise.
const DEV_ENDPOINTS: &str = "127.0.0.1:7101,127.0.0.1:7102,127.0.0.1:7103,127.0.0.1:7104,127.0.0.1:7105";

/// How often what turned out not to have happened is begun anew.
const TRIES_MAX: usize = 10;

/// The keys of one run; no two runs meet.
#[derive(Clone, Debug)]
pub struct Names {
    run: String,
}

impl Names {
    /// The keys of the run of this name.
    pub fn new(run: impl Into<String>) -> Self {
        Self { run: run.into() }
    }

    /// The keys of a run whose name nobody else has drawn.
    pub fn random() -> Self {
        Self::new(format!("{:016x}", rand::random::<u64>()))
    }

    /// A row; its kind decides on the shard.
    ///
    /// # Errors
    /// If that is too long for a key.
    pub fn key(&self, kind: &str, row: &str) -> anyhow::Result<Key> {
        Ok(Key::new(format!("{kind}/{}/{row}", self.run))?)
    }

    /// All rows of a kind.
    ///
    /// # Errors
    /// If that is too long for a key.
    pub fn all(&self, kind: &str) -> anyhow::Result<KeyRange> {
        Ok(KeyRange::prefix(format!("{kind}/{}/", self.run))?)
    }
}

/// What happened in a run; its text is for people.
pub trait Report: fmt::Display {
    /// What must hold, whoever was faster.
    ///
    /// # Errors
    /// If something does not.
    fn check(&self) -> anyhow::Result<()>;
}

/// The shards of these keys, no two of which share one.
///
/// # Errors
/// If two do, or nobody says.
pub async fn check_apart(client: &Client, keys: &[&Key]) -> anyhow::Result<Vec<ShardId>> {
    let shards = client.shards().await?;
    let shard_of = |key: &Key| {
        let key = key.as_ref();
        let owner = shards.iter().find(|shard| {
            shard.range.as_ref().is_some_and(|range| {
                range.start.as_ref() <= key && range.end.as_ref().is_none_or(|end| key < end.as_ref())
            })
        });
        owner.map(|shard| ShardId::new(shard.shard))
    };
    let mut found = Vec::new();
    for key in keys {
        found.push(shard_of(key).with_context(|| format!("no shard has {key}"))?);
    }
    let distinct: BTreeSet<&ShardId> = found.iter().collect();
    ensure!(
        distinct.len() == keys.len(),
        "{keys:?} lie on {found:?}, and have to lie apart: start the cluster with `kvnode dev --shards 4`, which is its \
         default, or `kvnode serve --split-keys g,n,t`"
    );
    Ok(found)
}

/// Runs a transaction until it is committed, or certainly is not, as [`Client::transact`] does; but where that does not
/// know (the answer to a commit was lost), it asks. Only then may the same be begun anew, or else it could be done twice.
///
/// # Errors
/// That of `run`; or it could not be committed; or not even the question was answered.
pub async fn decided<T, F>(client: &Client, mut run: impl FnMut(Txn) -> F) -> anyhow::Result<T>
where
    T: Clone,
    F: Future<Output = anyhow::Result<T>>,
{
    // Of a commit whose answer is lost, what its run has returned.
    let last = Arc::new(Mutex::new(None));
    for _ in 0..TRIES_MAX {
        // Boxed, for callers join many of these futures, and such a future is as large as all of them.
        let tried = Box::pin(client.transact(|txn| {
            let (result, last) = (run(txn), Arc::clone(&last));
            async move {
                let result = result.await?;
                *last.lock().unwrap_or_else(PoisonError::into_inner) = Some(result.clone());
                Ok(result)
            }
        }));
        let error = match tried.await {
            Ok(result) => return Ok(result),
            Err(error) => error,
        };
        if took_effect(client, error).await? {
            let result = last.lock().unwrap_or_else(PoisonError::into_inner).take();
            return result.context("what is committed was run before");
        }
    }
    bail!("no answer to {TRIES_MAX} commits, none of which took effect")
}

/// Whether a transaction of which that is unknown took effect. If it was not seen yet, it is closed: it never will be.
///
/// # Errors
/// The error itself, if it says that nothing happened, or if nobody can say any more.
pub async fn took_effect(client: &Client, error: anyhow::Error) -> anyhow::Result<bool> {
    let Some(TxnError::Unknown { anchor, source }) = error.downcast_ref() else { return Err(error) };
    let Some(request) = source.request else { return Err(error) };
    match client.outcome(request, Some(anchor.as_ref()), true).await?.known {
        Known::Committed => Ok(true),
        Known::Aborted | Known::Settled => Ok(false),
        Known::NotSeen
        | Known::NoLongerKnown
        | Known::Written
        | Known::Deleted(_)
        | Known::CompareFailed
        | Known::Incremented(_)
        | Known::NotIncremented => Err(error),
    }
}

/// A value that is a text.
///
/// # Errors
/// If it is none.
pub fn text(value: &Value) -> anyhow::Result<String> {
    Ok(std::str::from_utf8(value.as_ref())?.to_owned())
}

/// A row that is a number; an absent one is 0.
///
/// # Errors
/// If it is none.
pub fn number(row: Option<&TxnRow>) -> anyhow::Result<i64> {
    row.map_or(Ok(0), |row| text(&row.value)?.parse().with_context(|| format!("{} is no number", row.key)))
}

/// Rows of some keys, all of one instant.
///
/// # Errors
/// If they could not be read.
pub async fn look(client: &Client, keys: &[Key]) -> anyhow::Result<Vec<Option<TxnRow>>> {
    decided(client, |mut txn| async move { Ok(txn.multi_get(keys.to_vec()).await?) }).await
}

/// A client of the cluster that `KVCTL_ENDPOINTS` names; without it, of a `kvnode dev` on this machine.
///
/// # Errors
/// If there is none.
pub async fn connect() -> anyhow::Result<Client> {
    let endpoints = std::env::var("KVCTL_ENDPOINTS").unwrap_or_else(|_| DEV_ENDPOINTS.to_owned());
    let client = Client::connect(Config::new(endpoints.split(','))).await;
    client.with_context(|| format!("no cluster at {endpoints}; `kvnode dev` starts one"))
}

/// Says what happened, and whether that is as it must be.
///
/// # Errors
/// If it is not.
pub fn conclude(report: &impl Report) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{report}")?;
    report.check()?;
    writeln!(out, "and that is as it must be.")?;
    Ok(())
}
