//! The operations of a run.

use std::cell::Cell;
use std::io::Write as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use kv_client::{Client, Error, TxnError};
use kv_types::{Key, Value};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use crate::args::{Args, Operation};

/// Digits of a key's number: enough for every `u64`.
pub(crate) const KEY_DIGITS: usize = 20;

/// Letters before the number: enough that every shard of a cluster split by letters gets its part.
const KEY_LETTERS: u32 = 4;

/// What the callers of one run share. Counters are plain cells: all callers are on one thread.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    operation: Operation,
    read_percent: u8,
    keys: u64,
    key_prefix: Option<Rc<str>>,
    sequential: bool,
    value_size: usize,
    /// Tells this run's values from those of every other.
    run: u64,
    written: Rc<Cell<u64>>,
    /// Operations begun, in the open loop.
    begun: Rc<Cell<u64>>,
    txn_prefixes: Rc<[String]>,
    txn_over: Option<u8>,
    txn_reads: bool,
    /// Tries of transactions.
    tries: Rc<Cell<u64>>,
}

/// One caller's own.
pub(crate) struct Caller {
    plan: Plan,
    client: Client,
    rng: SmallRng,
}

impl Plan {
    pub(crate) fn new(args: &Args) -> Self {
        Self {
            operation: args.operation,
            read_percent: args.read_percent,
            keys: args.keys,
            key_prefix: args.key_prefix.as_deref().map(Rc::from),
            sequential: args.sequential,
            value_size: args.value_size,
            run: rand::random(),
            written: Rc::default(),
            begun: Rc::default(),
            txn_prefixes: args.txn_prefixes.as_slice().into(),
            txn_over: args.txn_over,
            txn_reads: args.txn_reads,
            tries: Rc::default(),
        }
    }

    /// The number of the next operation, from 0.
    pub(crate) fn next_number(&self) -> u64 {
        next(&self.begun)
    }

    /// How often a transaction was tried so far.
    pub(crate) fn tries(&self) -> u64 {
        self.tries.get()
    }

    /// One key under each prefix, or two under one or two of them.
    fn txn_keys(&self, rng: &mut SmallRng) -> Vec<Key> {
        let prefixes: Vec<&String> = match self.txn_over {
            None => self.txn_prefixes.iter().collect(),
            Some(over) => {
                let chosen: Vec<_> = self.txn_prefixes.sample(rng, over.into()).collect();
                chosen.into_iter().cycle().take(2).collect()
            }
        };
        let each = (self.keys / self.txn_prefixes.len() as u64).max(1);
        let mut key = |prefix: &String| {
            let number = rng.random_range(0..each);
            Key::new(format!("{prefix}{number:0KEY_DIGITS$}")).expect("the command line holds the limit")
        };
        prefixes.into_iter().map(&mut key).collect()
    }

    /// The key of a number: the same in every run.
    pub(crate) fn key(&self, number: u64) -> Key {
        let mut bytes = Vec::with_capacity(KEY_DIGITS + 8);
        match &self.key_prefix {
            Some(prefix) => bytes.extend_from_slice(prefix.as_bytes()),
            None => {
                let mut left = mixed(number);
                for _ in 0..KEY_LETTERS {
                    bytes.push(b'a' + u8::try_from(left % 26).expect("a remainder of 26"));
                    left /= 26;
                }
                bytes.push(b'-');
            }
        }
        write!(bytes, "{number:0KEY_DIGITS$}").expect("a vector takes every write");
        Key::new(bytes).expect("the command line holds the limit")
    }

    /// A value unlike all others, if it is 16 bytes long or longer; of a shorter one, the counter's low bytes remain.
    pub(crate) fn value(&self) -> Value {
        let mut bytes = BytesMut::with_capacity(self.value_size.max(16));
        bytes.put_u64_le(next(&self.written));
        bytes.put_u64_le(self.run);
        bytes.resize(self.value_size, b'.');
        Value::new(Bytes::from(bytes)).expect("the command line holds the limit")
    }
}

impl Caller {
    pub(crate) fn new(plan: Plan, client: Client) -> Self {
        Self { plan, client, rng: SmallRng::seed_from_u64(rand::random()) }
    }

    /// Does one operation of the run.
    pub(crate) async fn operate(&mut self) -> anyhow::Result<()> {
        let read = match self.plan.operation {
            Operation::Txn => return Ok(self.transact().await?),
            Operation::Put => false,
            Operation::Get => true,
            Operation::Mixed => self.rng.random_range(0..100) < self.plan.read_percent,
        };
        if read {
            let key = self.plan.key(self.rng.random_range(0..self.plan.keys));
            self.client.get(key).await?;
        } else {
            let number = match self.plan.sequential {
                true => self.plan.written.get(),
                false => self.rng.random_range(0..self.plan.keys),
            };
            self.client.put(self.plan.key(number), self.plan.value()).await?;
        }
        Ok(())
    }

    async fn transact(&mut self) -> Result<(), TxnError> {
        let keys = self.plan.txn_keys(&mut self.rng);
        let (keys, plan) = (&keys, &self.plan);
        self.client
            .transact(|mut txn| async move {
                next(&plan.tries);
                if plan.txn_reads {
                    txn.multi_get(keys.clone()).await?;
                }
                for key in keys {
                    txn.put(key.clone(), plan.value())?;
                }
                Ok(())
            })
            .await
    }

    /// Writes the keys `number`, `number + step`, and so on: this caller's part of all keys.
    pub(crate) async fn preload(&mut self, mut number: u64, step: u64) -> Result<(), Error> {
        while number < self.plan.keys {
            self.client.put(self.plan.key(number), self.plan.value()).await?;
            number = number.saturating_add(step);
        }
        Ok(())
    }
}

/// A number whose every bit depends on all bits of `number`, so that neighbours lie far apart. Multiplying carries bits
/// upwards, shifting brings them back down.
fn mixed(number: u64) -> u64 {
    // Two odd numbers without a pattern: the fractions of the golden ratio and of the square root of 3.
    const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbb67_ae85_84ca_a73b];
    FACTORS.iter().fold(number.wrapping_add(1), |number, factor| {
        let spread = number.wrapping_mul(*factor);
        spread ^ (spread >> 29)
    })
}

/// When operation `number` of an open loop is due, after the loop's start.
pub(crate) fn due(number: u64, rate: u64) -> Duration {
    let nanos = u128::from(number) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn next(counter: &Cell<u64>) -> u64 {
    let number = counter.get();
    counter.set(number.wrapping_add(1));
    number
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use clap::Parser as _;

    #[test]
    fn operations_are_due_at_the_rate() {
        assert_eq!(due(0, 1000), Duration::ZERO);
        assert_eq!(due(1500, 1000), Duration::from_millis(1500));
        assert_eq!(due(1, 3), Duration::from_nanos(333_333_333));
        assert_eq!(due(u64::MAX, 1), Duration::from_nanos(u64::MAX));
    }

    #[test]
    fn values_are_unique_and_of_the_size() {
        for size in ["16", "128"] {
            let args = Args::parse_from(["kvbench", "put", "--value-size", size]);
            let (plan, another) = (Plan::new(&args), Plan::new(&args));
            let values = [plan.value(), plan.value(), another.value(), another.value()];
            let bytes: BTreeSet<_> = values.iter().map(|value| value.bytes().clone()).collect();
            assert_eq!(bytes.len(), 4);
            assert!(values.iter().all(|value| value.bytes().len().to_string() == size));
        }
    }

    fn plan(more: &[&str]) -> Plan {
        Plan::new(&Args::parse_from([&["kvbench", "put"], more].concat()))
    }

    #[test]
    fn keys_are_spread_evenly_over_the_alphabet_and_unique() {
        const KEYS: u64 = 26_000;
        let plan = plan(&[]);
        let keys: BTreeSet<Key> = (0..KEYS).map(|number| plan.key(number)).collect();
        assert_eq!(keys.len() as u64, KEYS);
        for letter in b'a'..=b'z' {
            let count = keys.iter().filter(|key| key.bytes().first() == Some(&letter)).count();
            assert!((850..=1150).contains(&count), "{count} of {KEYS} keys begin with {}", letter as char);
        }
        let first = String::from_utf8(plan.key(7).bytes().to_vec()).unwrap();
        assert!(first.ends_with("-00000000000000000007") && first.len() == 25, "{first}");
        assert_eq!(plan.key(u64::MAX), self::plan(&[]).key(u64::MAX), "another run, the same key");
    }

    #[test]
    fn keys_of_one_prefix_sort_by_number() {
        let plan = plan(&["--key-prefix", "g/"]);
        assert_eq!(plan.key(7).bytes(), "g/00000000000000000007");
        assert!(plan.key(9) < plan.key(10) && plan.key(u64::MAX - 1) < plan.key(u64::MAX));
    }
}
