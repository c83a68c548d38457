//! Counters that many clients count up, and what those clients know of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use kv_client::{Client, Error, Expect, Known};
use kv_types::{Key, Outcome, Value};

/// Between two questions about a call whose outcome is unknown.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// How often it is asked.
const ASKS_MAX: usize = 100;

/// How a counter is counted up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By increments.
    Increment,
    /// By reading it and writing the next number if nobody has written since.
    CompareAndSet,
}

/// A counter.
#[derive(Debug)]
pub struct Counter {
    key: Key,
    way: Way,
    /// How many steps are left to be begun.
    left: AtomicU64,
    tally: Mutex<Tally>,
}

/// What the clients of a counter know.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Calls that ask for a step, those that failed included.
    pub calls: u64,
    /// Steps that were acknowledged.
    pub acknowledged: u64,
    /// Of those, the ones that an earlier attempt of the call had made.
    pub replayed: u64,
    /// Comparisons that failed, as another client was faster.
    pub overtaken: u64,
    /// Calls that failed as not applied.
    pub refused: u64,
    /// Calls that failed as unknown.
    pub unknown: u64,
    /// Of those, the ones that were found to be applied.
    pub found_applied: u64,
    /// Of those, the ones of which nothing could be found.
    pub never_found: u64,
    /// The sums that steps were acknowledged with.
    sums: Vec<i64>,
    /// The first few failures, for people.
    failures: Vec<String>,
}

/// Failures that are kept for people.
const FAILURES_MAX: usize = 10;

impl Counter {
    /// A counter that is to be counted up by so much.
    ///
    /// # Errors
    /// If the key is none.
    pub fn new(key: &'static str, way: Way, steps: u64) -> anyhow::Result<Arc<Self>> {
        let (key, left) = (Key::new(key)?, AtomicU64::new(steps));
        Ok(Arc::new(Self { key, way, left, tally: Mutex::default() }))
    }

    /// How many steps nobody has begun.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    /// Counts up until no step is left.
    ///
    /// # Errors
    /// If what is stored is no number.
    pub async fn count(self: Arc<Self>, client: Client) -> anyhow::Result<()> {
        let fewer = |left: u64| left.checked_sub(1);
        while self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).is_ok() {
            match self.way {
                Way::Increment => self.increment(&client).await,
                Way::CompareAndSet => while !self.compare_and_set(&client).await? {},
            }
        }
        Ok(())
    }

    async fn increment(&self, client: &Client) {
        self.tally().calls += 1;
        match client.incr(self.key.clone(), 1).await {
            Ok(done) => self.acknowledged(done.header.replayed, done.value),
            Err(error) => drop(self.failed(client, &error).await),
        }
    }

    /// One try; whether it made the step.
    async fn compare_and_set(&self, client: &Client) -> anyhow::Result<bool> {
        let Ok(got) = client.get(self.key.clone()).await else { return Ok(false) };
        let (expect, before) = match &got.row {
            None => (Expect::Absent, 0),
            Some(row) => (Expect::Revision(row.mod_revision), number(row.value.bytes())?),
        };
        let value = Value::new(Bytes::from((before + 1).to_string()))?;
        self.tally().calls += 1;
        Ok(match client.cas(self.key.clone(), expect, value).await {
            Ok(done) if done.swapped => {
                self.acknowledged(done.header.replayed, before + 1);
                true
            }
            Ok(_) => {
                self.tally().overtaken += 1;
                false
            }
            Err(error) => self.failed(client, &error).await,
        })
    }

    fn acknowledged(&self, replayed: bool, sum: i64) {
        let mut tally = self.tally();
        tally.acknowledged += 1;
        tally.replayed += u64::from(replayed);
        tally.sums.push(sum);
    }

    /// A call failed; whether it made its step nevertheless.
    async fn failed(&self, client: &Client, error: &Error) -> bool {
        {
            let mut tally = self.tally();
            if tally.failures.len() < FAILURES_MAX {
                tally.failures.push(format!("{error:?}"));
            }
            if error.outcome == Outcome::NotApplied {
                tally.refused += 1;
                return false;
            }
            tally.unknown += 1;
        }
        let found = self.find(client, error).await;
        let mut tally = self.tally();
        match found {
            Some(Known::Incremented(_) | Known::Written) => {
                tally.found_applied += 1;
                true
            }
            Some(Known::Settled | Known::CompareFailed | Known::NotIncremented | Known::Aborted) => false,
            Some(Known::NotSeen | Known::NoLongerKnown | Known::Deleted(_) | Known::Committed) | None => {
                tally.never_found += 1;
                false
            }
        }
    }

    /// What became of a call, which is closed if it was not seen.
    async fn find(&self, client: &Client, error: &Error) -> Option<Known> {
        for _ in 0..ASKS_MAX {
            if let Ok(found) = client.outcome(error.request?, Some(self.key.as_ref()), true).await {
                return Some(found.known);
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
        None
    }

    /// What the clients know so far.
    pub fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the counter when nobody counts any more, and compares: every step that is known to be made counts once, and
    /// no two were acknowledged with the same sum.
    ///
    /// # Errors
    /// If the number is another one.
    pub async fn audit(&self, client: &Client) -> anyhow::Result<i64> {
        let row = client.get(self.key.clone()).await?.row.context("the counter is there")?;
        let value = number(row.value.bytes())?;
        let mut tally = self.tally().clone();
        let known = i64::try_from(tally.acknowledged + tally.found_applied)?;
        let never_found = i64::try_from(tally.never_found)?;
        eprintln!("{:?}: {value} is stored; {tally}", self.way);
        ensure!((known..=known + never_found).contains(&value), "{value} is not {known}: {tally}");
        tally.sums.sort_unstable();
        tally.sums.dedup();
        let distinct = u64::try_from(tally.sums.len())?;
        ensure!(distinct == tally.acknowledged, "two steps were acknowledged with the same sum: {tally}");
        ensure!(tally.sums.last().is_none_or(|last| *last <= value), "a sum is above {value}: {tally}");
        ensure!(row.version == u64::try_from(value)?, "written {} times for {value}", row.version);
        Ok(value)
    }
}

fn number(value: &Bytes) -> anyhow::Result<i64> {
    Ok(std::str::from_utf8(value)?.parse()?)
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            calls,
            acknowledged,
            replayed,
            overtaken,
            refused,
            unknown,
            found_applied,
            never_found,
            ..
        } = self;
        write!(
            f,
            "{calls} calls, {acknowledged} acknowledged ({replayed} by a retry), {overtaken} overtaken, {refused} \
             refused, {unknown} unknown ({found_applied} found applied, {never_found} never found)"
        )?;
        self.failures.iter().try_for_each(|failure| write!(f, "\n  {failure}"))
    }
}
