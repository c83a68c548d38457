//! What clients do while things break: one file for each workload.

mod append;
mod bank;
mod counter;
mod lock;
mod probe;
mod register;
mod set;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kv_check::workload::Dice;
use kv_check::{Datum, Function};
use kv_client::{Client, Config, Error, Tries, TxnError};
use kv_fault::WorkloadKind;
use kv_types::{Key, Outcome, Value};

use crate::book::{Book, Call, End, Ticket};
use crate::error::RunError;

pub(crate) use bank::flaw as bank_flaw;
pub(crate) use probe::{Pinned, pinned, writes as probe_writes};

/// How long an operation may take: short, so that it ends as ok, failed or unknown while the drill still lasts.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// How long a client rests that has no room to write down what it does.
const REST: Duration = Duration::from_millis(100);

/// So many processes a client may have, one after each operation of which nobody knows.
const PROCESSES: i64 = 1_000_000;

/// How a client of a drill is told to behave.
pub(crate) fn config(endpoints: impl IntoIterator<Item = String>) -> Config {
    let mut config = Config::new(endpoints);
    config.timeout = PATIENCE;
    config.connect_timeout = PATIENCE / 2;
    config.silence = PATIENCE / 2;
    config.transact = Tries { max: 10, within: PATIENCE };
    config
}

/// A place to work on: a key, or where the keys of a set begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The key, or how the keys begin.
    pub(crate) key: String,
    /// The shard it lies on.
    pub(crate) shard: u32,
}

impl Place {
    fn key(&self) -> Result<Key, RunError> {
        key(self.key.clone())
    }
}

/// What all clients of a workload share.
#[derive(Debug)]
pub(crate) struct Ground {
    /// Where they work.
    pub(crate) places: Vec<Place>,
    /// The next value that nobody has written yet.
    next: AtomicI64,
    /// How much was put into each place: see [`Ground::grow`].
    grown: Vec<AtomicU64>,
    /// Bytes of the value of a set's element.
    value_bytes: u64,
    /// Holders of locks of whom nobody knows whether they hold them.
    abandoned: Mutex<BTreeSet<String>>,
}

impl Ground {
    /// What is stored with an element, which stands for itself.
    fn filling(&self) -> Result<Value, RunError> {
        value("1".repeat(usize::try_from(self.value_bytes).unwrap_or(1)))
    }

    pub(crate) fn new(places: Vec<Place>, value_bytes: u64) -> Arc<Self> {
        let grown = places.iter().map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { places, next: AtomicI64::new(1), grown, value_bytes, abandoned: Mutex::default() })
    }

    /// A value that nobody has written.
    fn fresh(&self) -> i64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The part of a place that is in use, which gives way to another one after `most` additions: what only grows is read
    /// more and more slowly. `by` is how much is added.
    fn grow(&self, at: usize, by: u64, most: u64) -> u64 {
        let grown = self.grown.get(at).map_or(0, |grown| grown.fetch_add(by, Ordering::Relaxed));
        grown.checked_div(most).unwrap_or(0)
    }

    /// The parts of a place: all that there ever were, or the one that is in use.
    fn parts(&self, at: usize, kind: WorkloadKind, all: bool) -> RangeInclusive<u64> {
        let in_use = match kind {
            WorkloadKind::Append => self.grow(at, 0, append::ELEMENTS),
            WorkloadKind::Set => self.grow(at, 0, set::elements(self.value_bytes)),
            WorkloadKind::Register | WorkloadKind::Counter | WorkloadKind::Bank | WorkloadKind::Lock => 0,
        };
        if all { 0..=in_use } else { in_use..=in_use }
    }
}

/// One client of a workload.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) book: Arc<Book>,
    pub(crate) ground: Arc<Ground>,
    number: u32,
    process: i64,
    dice: Dice,
    think: Duration,
}

impl Worker {
    /// The client with this number.
    pub(crate) fn new(
        client: Client,
        (book, ground): (Arc<Book>, Arc<Ground>),
        number: u32,
        (seed, think): (u64, Duration),
    ) -> Self {
        let process = i64::from(number) * PROCESSES;
        let dice = Dice(seed ^ (u64::from(number) << 32));
        Self { client, book, ground, number, process, dice, think }
    }

    /// Works until it is told to stop.
    pub(crate) async fn work(mut self, kind: WorkloadKind) -> Result<Self, RunError> {
        while self.book.clock.goes_on() {
            if self.book.is_full() {
                tokio::time::sleep(REST).await;
                continue;
            }
            match kind {
                WorkloadKind::Register => register::turn(&mut self).await?,
                WorkloadKind::Counter => counter::turn(&mut self).await?,
                WorkloadKind::Bank => bank::turn(&mut self).await?,
                WorkloadKind::Append => append::turn(&mut self).await?,
                WorkloadKind::Set => set::turn(&mut self).await?,
                WorkloadKind::Lock => lock::turn(&mut self).await?,
            }
            tokio::time::sleep(self.think).await;
        }
        Ok(self)
    }

    /// Looks once more, when all is mended, at what is in use, or at everything that ever was: what was acknowledged and is gone
    /// shows here. The keys that cannot be read until then.
    pub(crate) async fn look(
        &mut self,
        kind: WorkloadKind,
        at_all: bool,
        until: Instant,
    ) -> Result<Vec<String>, RunError> {
        let mut silent = Vec::new();
        for at in 0..self.ground.places.len() {
            for part in self.ground.parts(at, kind, at_all) {
                while !self.look_at(kind, at, part).await? {
                    if Instant::now() >= until {
                        silent.push(self.place(at)?.key);
                        break;
                    }
                    tokio::time::sleep(REST).await;
                }
            }
        }
        Ok(silent)
    }

    /// Reads one place, or takes a lock and gives it back; whether that was possible.
    async fn look_at(&mut self, kind: WorkloadKind, at: usize, part: u64) -> Result<bool, RunError> {
        match kind {
            WorkloadKind::Register => register::read(self, at).await,
            WorkloadKind::Counter => counter::read(self, at).await,
            WorkloadKind::Append => append::read(self, at, part).await,
            WorkloadKind::Set => set::read(self, at, part).await,
            WorkloadKind::Bank if at == 0 => bank::look(self).await,
            WorkloadKind::Bank => Ok(true),
            WorkloadKind::Lock => lock::take(self, at).await,
        }
    }

    /// Some place, by its number.
    fn somewhere(&mut self) -> usize {
        let count = self.ground.places.len();
        self.dice.place(count)
    }

    fn place(&self, at: usize) -> Result<Place, RunError> {
        let place = self.ground.places.get(at).cloned();
        place.ok_or_else(|| RunError::Unfit("a workload has no keys".to_owned()))
    }

    /// Notes a call on one place that is about to be sent.
    fn begin(&self, function: Function, place: &Place, value: impl Into<Datum>) -> Ticket {
        let write = function != Function::Read;
        self.call((function, Datum::text(&place.key), value.into()), write, vec![place.shard])
    }

    fn call(
        &self,
        (function, key, value): (Function, Datum, Datum),
        write: bool,
        shards: Vec<u32>,
    ) -> Ticket {
        let (client, process) = (self.number, self.process);
        self.book.call(Call { client, process, function, key, value, write, shards, probe: None })
    }

    /// Notes what came back.
    fn end(&mut self, ticket: Ticket, end: End) {
        if end == End::Unknown {
            // As Jepsen does, so that what is open does not keep the client from going on.
            self.process += 1;
        }
        self.book.end(ticket, end);
    }
}

/// Prepares what a workload needs before it begins.
pub(crate) async fn prepare(
    client: &Client,
    (kind, ground): (WorkloadKind, &Ground),
) -> Result<(), RunError> {
    match kind {
        WorkloadKind::Bank => bank::open(client, &ground.places).await,
        WorkloadKind::Lock => lock::open(client, &ground.places).await,
        WorkloadKind::Register | WorkloadKind::Counter | WorkloadKind::Append | WorkloadKind::Set => Ok(()),
    }
}

/// How a write that failed ended.
fn of_error(error: &Error) -> End {
    match error.outcome {
        Outcome::NotApplied => End::Failed,
        Outcome::Unknown => End::Unknown,
    }
}

/// How a transaction that failed ended.
fn of_txn_error(error: &TxnError) -> End {
    match error.outcome() {
        Outcome::NotApplied => End::Failed,
        Outcome::Unknown => End::Unknown,
    }
}

fn key(text: String) -> Result<Key, RunError> {
    Key::new(text).map_err(|error| RunError::Unfit(format!("a key of the workload: {error}")))
}

fn value(text: impl ToString) -> Result<Value, RunError> {
    Value::new(text.to_string()).map_err(|error| RunError::Unfit(format!("a value of the workload: {error}")))
}

/// A number as it is stored; the smallest there is if it is none, which no check takes for right.
fn number(value: &Value) -> i64 {
    std::str::from_utf8(value.as_ref()).ok().and_then(|text| text.parse().ok()).unwrap_or(i64::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_of_what_gave_way_are_known_at_the_end() {
        let ground = Ground::new(vec![Place { key: "k".to_owned(), shard: 1 }], 1);
        assert_eq!(set::elements(1), 200);
        assert!(set::elements(32 << 10) * (32 << 10) < kv_types::limits::SCAN_PAGE_BYTES_MAX as u64);
        ground.grow(0, 450, set::elements(1));
        let parts = |kind, all| ground.parts(0, kind, all);
        assert_eq!(parts(WorkloadKind::Set, true), 0..=2);
        assert_eq!(parts(WorkloadKind::Set, false), 2..=2);
        assert_eq!(parts(WorkloadKind::Append, true), 0..=9);
        assert_eq!(parts(WorkloadKind::Counter, true), 0..=0);
    }
}
