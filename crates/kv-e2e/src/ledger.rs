//! What the clients of a test know, and whether the cluster agrees.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use bytes::Bytes;
use kv_client::{Client, Error, Failure, Header, ScanRequest};
use kv_types::{Key, KeyRange, Outcome, ShardId, Term};

/// How often a scan that is cut off begins again.
const SCANS_MAX: usize = 10;

/// An acknowledgement.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// The shard that gave it.
    pub shard: ShardId,
    /// The epoch of its leader.
    pub epoch: Term,
    /// When the client had it.
    pub at: Instant,
}

/// All answers that writers of unique keys were given. Each key is written once, by one call.
#[derive(Debug, Default)]
pub struct Ledger {
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    acknowledged: BTreeMap<Bytes, Bytes>,
    refused: BTreeSet<Bytes>,
    open: BTreeMap<Bytes, Bytes>,
    acks: Vec<Ack>,
    failures: BTreeMap<String, usize>,
}

/// What an audit counted.
#[derive(Clone, Copy, Debug)]
pub struct Audited {
    /// Writes acknowledged; all of them are there.
    pub acknowledged: usize,
    /// Writes refused as not applied; none of them is there.
    pub refused: usize,
    /// Writes of unknown outcome.
    pub open: usize,
    /// Those of them that took effect.
    pub open_applied: usize,
}

impl Ledger {
    /// A write was acknowledged.
    pub fn acknowledged(&self, key: &Key, value: &Bytes, header: &Header) {
        let ack = Ack { shard: header.shard, epoch: header.epoch, at: Instant::now() };
        let mut book = self.book();
        book.acks.push(ack);
        book.acknowledged.insert(key.bytes().clone(), value.clone());
    }

    /// A write failed.
    pub fn failed(&self, key: &Key, value: &Bytes, error: &Error) {
        let mut book = self.book();
        let text = format!("{:?}, {}, {:?}", error.failure.code(), error.failure.reason(), error.outcome);
        *book.failures.entry(text).or_default() += 1;
        match error.outcome {
            Outcome::NotApplied => {
                book.refused.insert(key.bytes().clone());
            }
            Outcome::Unknown => {
                book.open.insert(key.bytes().clone(), value.clone());
            }
        }
    }

    /// How many writes were acknowledged so far.
    pub fn count(&self) -> usize {
        self.book().acks.len()
    }

    /// How often writes failed, by gRPC code, reason and outcome.
    pub fn failures(&self) -> BTreeMap<String, usize> {
        self.book().failures.clone()
    }

    /// The first acknowledgement of a shard by a leader of a later epoch than `epoch`.
    pub fn first_after(&self, shard: ShardId, epoch: Term) -> Option<Ack> {
        let book = self.book();
        let later = book.acks.iter().filter(|ack| ack.shard == shard && ack.epoch > epoch);
        later.min_by_key(|ack| ack.at).copied()
    }

    /// For each change of a shard's leader that acknowledgements show: the time between the last one before and the first
    /// one after.
    pub fn gaps(&self, shard: ShardId) -> Vec<Duration> {
        let book = self.book();
        let mut acks: Vec<&Ack> = book.acks.iter().filter(|ack| ack.shard == shard).collect();
        acks.sort_by_key(|ack| ack.at);
        let pairs = acks.iter().zip(acks.iter().skip(1));
        pairs
            .filter(|(before, after)| before.epoch < after.epoch)
            .map(|(before, after)| after.at - before.at)
            .collect()
    }

    /// The newest epoch in which a shard acknowledged something.
    pub fn newest_epoch(&self, shard: ShardId) -> Term {
        let book = self.book();
        let epochs = book.acks.iter().filter(|ack| ack.shard == shard).map(|ack| ack.epoch);
        epochs.max().unwrap_or_default()
    }

    /// Reads everything and compares. The writers must have ended.
    ///
    /// # Errors
    /// If an acknowledged write is missing or has another value, if a refused one took effect, if something is there
    /// that nobody wrote, or if the scan fails.
    pub async fn audit(&self, client: &Client) -> anyhow::Result<Audited> {
        let found = everything(client).await?;
        let book = self.book();
        let lost: Vec<_> =
            book.acknowledged.iter().filter(|(key, value)| found.get(*key) != Some(*value)).collect();
        ensure!(
            lost.is_empty(),
            "acknowledged and lost: {} of {}, first {:?}",
            lost.len(),
            book.acks.len(),
            lost.first()
        );
        let mut open_applied = 0;
        for (key, value) in &found {
            ensure!(!book.refused.contains(key), "refused as not applied, but it is there: {key:?}");
            if book.open.get(key) == Some(value) {
                open_applied += 1;
            } else {
                ensure!(book.acknowledged.contains_key(key), "nobody wrote {key:?} = {value:?}");
            }
        }
        Ok(Audited {
            acknowledged: book.acknowledged.len(),
            refused: book.refused.len(),
            open: book.open.len(),
            open_applied,
        })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Every key and value of the cluster, while nobody writes. A node whose memory is nearly full cuts scans off: they begin
/// again.
///
/// # Errors
/// If no scan comes to its end.
pub async fn everything(client: &Client) -> anyhow::Result<BTreeMap<Bytes, Bytes>> {
    for _ in 1..SCANS_MAX {
        match scan(client).await {
            Err(Error { failure: Failure::ScanCut { .. }, .. }) => {}
            scanned => return Ok(scanned?),
        }
    }
    Ok(scan(client).await?)
}

async fn scan(client: &Client) -> Result<BTreeMap<Bytes, Bytes>, Error> {
    let mut found = BTreeMap::new();
    let mut scan = client.scan(ScanRequest { range: KeyRange::all(), limit: None, keys_only: false });
    while let Some(page) = scan.next_page().await? {
        for row in page.rows {
            found.insert(row.key.into_bytes(), row.value.bytes().clone());
        }
    }
    Ok(found)
}
