//! What clients do in their transactions: what they read first, and what follows from that.

use kv_check::{Datum, Function, MicroOperation};
use kv_state::txn::{Read, Scan, Transaction, Write};
use kv_state::{Command, Expect};
use kv_types::{Fingerprint, Key, KeyRange, Row, ShardId, Value};
use rand::RngExt;
use rand::rngs::ChaCha8Rng;

use super::ledger::{Effect, Ledger, Register};
use crate::cluster::calls::{key_of, value_of};
use crate::party::{Found, LookAt};
use crate::scenario::{Kind, TransactionsPlan, pick};

/// Of twelve ways with the lamp, so many only look at it.
const LAMP_LOOKS: u32 = 5;

/// What a client is up to.
#[derive(Clone, Debug)]
pub(super) struct Work {
    kind: Kind,
    /// What it reads, in this order.
    pub(super) reads: Vec<(ShardId, LookAt)>,
    /// Which of the ways there are.
    way: u32,
    key: Option<Key>,
}

impl Work {
    /// What is to be read after this. Whoever only looks at the lamp reads all anew, the last first, if it still is as it was.
    pub(super) fn next_read(&self, got: &[Found]) -> Option<(ShardId, LookAt)> {
        if self.kind != Kind::Lamp || self.way >= LAMP_LOOKS || got.len() < self.reads.len() {
            return self.reads.get(got.len()).cloned();
        }
        let nth = self.reads.len().checked_sub(got.len() - self.reads.len() + 1)?;
        let (at, LookAt::Key(key)) = self.reads.get(nth)? else { return None };
        let before = got.get(nth)?;
        let seen = before.rows.first().map(|(_, row)| row.head.modified);
        Some((*at, LookAt::Again { key: key.clone(), seen, since: before.index }))
    }
}

/// What follows from what was read.
#[derive(Debug)]
pub(super) enum Plan {
    /// A transaction is to be committed.
    Txn(Transaction, Effect),
    /// A key is to be written.
    Write(ShardId, Command, Effect),
    /// That was all.
    Seen(Effect),
    Nothing,
}

/// A key as it was read.
#[derive(Clone, Debug)]
struct Seen {
    key: Key,
    row: Option<Row>,
}

impl Seen {
    fn text(&self) -> String {
        self.row.as_ref().map(|row| String::from_utf8_lossy(&row.value).into_owned()).unwrap_or_default()
    }

    fn number(&self) -> i64 {
        self.text().parse().unwrap_or(0)
    }

    fn list(&self) -> Vec<i64> {
        self.text().split(',').filter_map(|element| element.parse().ok()).collect()
    }

    fn is_on(&self) -> bool {
        self.text() == "on"
    }

    fn read(&self) -> Read {
        Read { key: self.key.clone(), seen: self.row.as_ref().map(|row| row.head.modified) }
    }

    fn datum(&self) -> Datum {
        self.row.as_ref().map_or(Datum::Nil, |_| Datum::text(&self.text()))
    }
}

/// The keys of a kind: the letter of the shard, then that of the kind.
pub(super) fn named(shard: u32, family: char, number: u64) -> Key {
    key_of(&format!("{shard}{family}{number}"))
}

pub(super) fn members_of(shard: u32) -> KeyRange {
    KeyRange::prefix(format!("{shard}m")).expect("a short prefix is one")
}

/// The two switches of which at most one may be on.
pub(super) fn switches(number: u64, shards: u32) -> [Key; 2] {
    let first = u32::try_from(number).unwrap_or(0) % shards;
    [named(1 + first, 's', number), named(1 + (first + 1) % shards, 's', number)]
}

/// A lamp that is on while its key is there, how often it was switched on, and how often off, on different shards.
fn lamp(number: u64, shards: u32) -> [Key; 3] {
    let shard = |nth| 1 + nth % shards;
    [named(shard(0), 'p', number), named(shard(1), 'o', number), named(shard(2), 'f', number)]
}

fn at(key: &Key) -> (ShardId, LookAt) {
    (crate::party::owner(key.as_ref()), LookAt::Key(key.clone()))
}

/// Some different keys of a kind, in any order.
fn some(rng: &mut ChaCha8Rng, family: char, (keys, shards): (u64, u32), count: usize) -> Vec<Key> {
    let mut all: Vec<Key> =
        (1..=shards).flat_map(|shard| (0..keys).map(move |number| named(shard, family, number))).collect();
    let mut chosen = Vec::new();
    while chosen.len() < count && !all.is_empty() {
        chosen.push(all.swap_remove(rng.random_range(0..all.len())));
    }
    chosen
}

/// A client thinks of something to do.
pub(super) fn draw(rng: &mut ChaCha8Rng, plan: &TransactionsPlan, shards: u32) -> Work {
    let sum: u32 = plan.kinds.iter().map(|(_, weight)| weight).sum();
    let mut dice = rng.random_range(0..sum.max(1));
    let kind = plan.kinds.iter().find(|(_, weight)| {
        let hit = dice < *weight;
        dice = dice.saturating_sub(*weight);
        hit
    });
    let kind = kind.map_or(Kind::Append, |(kind, _)| *kind);
    let (way, all) = (rng.random_range(0..12), (plan.keys, shards));
    let number = rng.random_range(0..plan.keys.max(1));
    let mut key = None;
    let keys = match kind {
        Kind::Append => {
            let count = rng.random_range(2..4);
            some(rng, 'l', all, count)
        }
        Kind::AppendOne | Kind::Get => some(rng, 'l', all, 1),
        Kind::Transfer => some(rng, 'a', all, 2),
        Kind::Total => some(rng, 'a', all, usize::MAX),
        Kind::Count => some(rng, 'n', all, 2),
        Kind::CountOne => {
            key = some(rng, if way < 8 { 'n' } else { 'a' }, all, 1).pop();
            Vec::new()
        }
        Kind::Switch => switches(number, shards).to_vec(),
        Kind::Lamp => {
            let [lamp, ons, offs] = lamp(number, shards);
            match way {
                0..LAMP_LOOKS => vec![lamp, ons, offs],
                _ if way % 2 == 0 => vec![lamp, ons],
                _ => vec![lamp, offs],
            }
        }
        Kind::Twins if way < 6 => (1..=shards).map(|shard| named(shard, 't', number)).collect(),
        Kind::Member | Kind::Twins => Vec::new(),
        Kind::Register => some(rng, 'r', all, 2),
        Kind::RegisterOne => {
            let chosen = some(rng, 'r', all, 1);
            key = chosen.first().cloned();
            if way < 4 { Vec::new() } else { chosen }
        }
    };
    if kind == Kind::Twins {
        key = Some(named(1, 't', number));
    }
    let mut reads: Vec<_> = keys.iter().map(at).collect();
    if kind == Kind::Member {
        reads = (1..=shards).map(|shard| (ShardId::new(shard), LookAt::Range(members_of(shard)))).collect();
    }
    Work { kind, reads, way, key }
}

/// What a client does when it has read everything.
pub(super) fn plan(
    rng: &mut ChaCha8Rng,
    (work, shards): (&Work, u32),
    got: &[Found],
    ledger: &mut Ledger,
) -> Plan {
    let seen: Vec<Seen> =
        work.reads.iter().zip(got).filter_map(|((_, what), found)| seen(what, &found.rows)).collect();
    match work.kind {
        Kind::Append => append(rng, &seen, ledger),
        Kind::AppendOne => append_one(&seen, ledger),
        Kind::Get => Plan::Seen(lists(&seen, |_| Vec::new()).1),
        Kind::Transfer => transfer(rng, &seen),
        Kind::Total => total(rng, &seen),
        Kind::Count => count(rng, &seen),
        Kind::CountOne => count_one(work),
        Kind::Switch => switch(rng, work, &seen),
        Kind::Lamp => switch_lamp(rng, work, &seen, got),
        Kind::Member => member(rng, work, shards, got),
        Kind::Twins => twins(rng, work, shards, &seen, ledger),
        Kind::Register => register(rng, &seen, ledger),
        Kind::RegisterOne => register_one(work, &seen, ledger),
    }
}

fn seen(what: &LookAt, rows: &[(Key, Row)]) -> Option<Seen> {
    match what {
        LookAt::Key(key) => Some(Seen { key: key.clone(), row: rows.first().map(|(_, row)| row.clone()) }),
        LookAt::Range(_) | LookAt::Again { .. } => None,
    }
}

/// A transaction over all that was read, and these writes; its anchor is any key that it may be.
fn commit(rng: &mut ChaCha8Rng, seen: &[Seen], writes: Vec<(Key, Option<Value>)>, effect: Effect) -> Plan {
    commit_scanned(rng, seen, Vec::new(), (writes, effect))
}

fn commit_scanned(
    rng: &mut ChaCha8Rng,
    seen: &[Seen],
    scans: Vec<Scan>,
    (writes, effect): (Vec<(Key, Option<Value>)>, Effect),
) -> Plan {
    let mut anchors: Vec<Key> = writes.iter().map(|(key, _)| key.clone()).collect();
    if anchors.is_empty() {
        anchors = seen.iter().map(|seen| seen.key.clone()).collect();
    }
    if anchors.is_empty() {
        return Plan::Nothing;
    }
    let anchor = anchors.swap_remove(rng.random_range(0..anchors.len()));
    let writes = writes.into_iter().map(|(key, value)| Write { key, value }).collect();
    let txn = Transaction::new(anchor, seen.iter().map(Seen::read).collect(), scans, writes);
    Plan::Txn(txn.expect("a few keys, each once, are a transaction"), effect)
}

/// What is done to lists: all are read, and some appended to.
fn lists(seen: &[Seen], mut appends: impl FnMut(&Seen) -> Vec<i64>) -> (Vec<(Key, Option<Value>)>, Effect) {
    let (mut writes, mut effect) = (Vec::new(), Effect::default());
    for seen in seen {
        let name = seen.key.to_string();
        let mut list = seen.list();
        effect.lists.push(MicroOperation::read_as(name.as_str(), list.iter().copied()));
        let new = appends(seen);
        for element in &new {
            effect.lists.push(MicroOperation::append(name.as_str(), *element));
            list.push(*element);
        }
        if !new.is_empty() {
            let text: Vec<String> = list.iter().map(i64::to_string).collect();
            writes.push((seen.key.clone(), Some(value_of(&text.join(",")))));
        }
    }
    (writes, effect)
}

fn append(rng: &mut ChaCha8Rng, seen: &[Seen], ledger: &mut Ledger) -> Plan {
    // Of a transaction in three, all keys are only read.
    let appends = rng.random_range(0..3) > 0;
    let (writes, effect) = lists(seen, |_| {
        let count = if appends { pick(rng, &[0, 1, 1, 2]) } else { 0 };
        (0..count).map(|_| ledger.fresh()).collect()
    });
    commit(rng, seen, writes, effect)
}

fn append_one(seen: &[Seen], ledger: &mut Ledger) -> Plan {
    let (writes, effect) = lists(seen, |_| vec![ledger.fresh()]);
    let (Some(seen), Some((key, Some(value)))) = (seen.first(), writes.into_iter().next()) else {
        return Plan::Nothing;
    };
    let expect = seen.row.as_ref().map_or(Expect::Absent, |row| Expect::Revision(row.head.modified));
    Plan::Write(crate::party::owner(key.as_ref()), Command::CompareAndSet { key, expect, value }, effect)
}

fn number_of(number: i64) -> Option<Value> {
    Some(value_of(&number.to_string()))
}

fn transfer(rng: &mut ChaCha8Rng, seen: &[Seen]) -> Plan {
    let [from, to] = seen else { return Plan::Nothing };
    let amount = rng.random_range(1..10);
    let writes = vec![
        (from.key.clone(), number_of(from.number() - amount)),
        (to.key.clone(), number_of(to.number() + amount)),
    ];
    commit(rng, seen, writes, Effect::default())
}

/// Nothing is ever paid in.
fn total(rng: &mut ChaCha8Rng, seen: &[Seen]) -> Plan {
    let sum: i64 = seen.iter().map(Seen::number).sum();
    let wrong = (sum != 0).then(|| format!("bank: the accounts sum up to {sum}: {}", told(seen)));
    commit(rng, seen, Vec::new(), Effect { wrong, ..Effect::default() })
}

fn told(seen: &[Seen]) -> String {
    let told = seen.iter().map(|seen| format!("{}={}", seen.key, seen.text()));
    told.collect::<Vec<_>>().join(" ")
}

fn count(rng: &mut ChaCha8Rng, seen: &[Seen]) -> Plan {
    let writes = seen.iter().map(|seen| (seen.key.clone(), number_of(seen.number() + 1))).collect();
    let counts = seen.iter().map(|seen| seen.key.clone()).collect();
    commit(rng, seen, writes, Effect { counts, ..Effect::default() })
}

/// A counter goes up by one; or nothing is paid into an account, which is a write all the same.
fn count_one(work: &Work) -> Plan {
    let Some(key) = work.key.clone() else { return Plan::Nothing };
    let delta = i64::from(work.way < 8);
    let counts = if delta == 1 { vec![key.clone()] } else { Vec::new() };
    let at = crate::party::owner(key.as_ref());
    Plan::Write(at, Command::Increment { key, delta }, Effect { counts, ..Effect::default() })
}

/// One that is on goes off; if none is, one goes on.
fn switch(rng: &mut ChaCha8Rng, work: &Work, seen: &[Seen]) -> Plan {
    let on: Vec<&Seen> = seen.iter().filter(|seen| seen.is_on()).collect();
    let wrong = (on.len() > 1).then(|| format!("write skew: both switches are on: {}", told(seen)));
    let writes = match on.first() {
        _ if work.way < 3 => Vec::new(),
        Some(on) => vec![(on.key.clone(), None)],
        None => {
            let at = rng.random_range(0..seen.len().max(1));
            seen.get(at).map(|seen| (seen.key.clone(), Some(value_of("on")))).into_iter().collect()
        }
    };
    commit(rng, seen, writes, Effect { wrong, ..Effect::default() })
}

/// One that is off goes on, or one that is on goes off, and is counted; or it is looked at, without a lock.
fn switch_lamp(rng: &mut ChaCha8Rng, work: &Work, seen: &[Seen], got: &[Found]) -> Plan {
    let [lamp, counted, ..] = seen else { return Plan::Nothing };
    let is_on = lamp.row.is_some();
    if let [_, ons, offs] = seen {
        if got.iter().any(|found| found.has_changed) {
            return Plan::Nothing;
        }
        let differ = ons.number() - offs.number() != i64::from(is_on);
        let wrong = differ.then(|| format!("read-only: no order explains {}", told(seen)));
        return Plan::Seen(Effect { wrong, ..Effect::default() });
    }
    let goes_on = work.way.is_multiple_of(2);
    if goes_on == is_on {
        return Plan::Nothing;
    }
    let writes = vec![
        (lamp.key.clone(), goes_on.then(|| value_of("on"))),
        (counted.key.clone(), number_of(counted.number() + 1)),
    ];
    commit(rng, seen, writes, Effect::default())
}

/// If there is a member in any range it goes; if there is none, one comes.
fn member(rng: &mut ChaCha8Rng, work: &Work, shards: u32, got: &[Found]) -> Plan {
    let members: Vec<&Key> = got.iter().flat_map(|found| &found.rows).map(|(key, _)| key).collect();
    let wrong = (members.len() > 1).then(|| format!("phantom: there are several members: {members:?}"));
    let write = match members.first() {
        Some(member) => ((*member).clone(), None),
        None => (named(rng.random_range(1..=shards), 'm', u64::from(work.way)), Some(value_of("in"))),
    };
    let scans = work.reads.iter().zip(got).filter_map(|((_, what), found)| match what {
        LookAt::Range(range) => {
            let rows = found.rows.iter().map(|(key, row)| (key.as_ref(), row.head.modified));
            Some(Scan { range: range.clone(), digest: Fingerprint::of_scan(rows) })
        }
        LookAt::Key(_) | LookAt::Again { .. } => None,
    });
    let effect = Effect { wrong, ..Effect::default() };
    commit_scanned(rng, &[], scans.collect(), (vec![write], effect))
}

/// Keys of all shards that are always written together, and blindly.
fn twins(rng: &mut ChaCha8Rng, work: &Work, shards: u32, seen: &[Seen], ledger: &mut Ledger) -> Plan {
    let Some(first) = seen.first() else {
        let Some(key) = &work.key else { return Plan::Nothing };
        let name = key.to_string();
        let tail = name.get(1..).unwrap_or_default().to_owned();
        let value = number_of(ledger.fresh());
        let keys = (1..=shards).map(|shard| key_of(&format!("{shard}{tail}")));
        let writes = keys.map(|key| (key, value.clone())).collect();
        return commit(rng, &[], writes, Effect::default());
    };
    let differ = seen.iter().any(|seen| seen.text() != first.text());
    let wrong = differ.then(|| format!("fractured read: what was written together differs: {}", told(seen)));
    commit(rng, seen, Vec::new(), Effect { wrong, ..Effect::default() })
}

fn register(rng: &mut ChaCha8Rng, seen: &[Seen], ledger: &mut Ledger) -> Plan {
    let [changed, read] = seen else { return Plan::Nothing };
    let value = format!("v{}", ledger.fresh());
    let input = Datum::list([changed.datum(), Datum::text(&value)]);
    let registers = vec![
        Register { key: changed.key.to_string(), function: Function::Cas, input, result: Datum::Nil },
        Register {
            key: read.key.to_string(),
            function: Function::Read,
            input: Datum::Nil,
            result: read.datum(),
        },
    ];
    let writes = vec![(changed.key.clone(), Some(value_of(&value)))];
    commit(rng, seen, writes, Effect { registers, ..Effect::default() })
}

fn register_one(work: &Work, seen: &[Seen], ledger: &mut Ledger) -> Plan {
    let Some(key) = work.key.clone() else { return Plan::Nothing };
    let (at, value) = (crate::party::owner(key.as_ref()), format!("v{}", ledger.fresh()));
    let of = |function, input, result| Effect {
        registers: vec![Register { key: key.to_string(), function, input, result }],
        ..Effect::default()
    };
    match seen.first() {
        None => {
            let effect = of(Function::Write, Datum::text(&value), Datum::Nil);
            Plan::Write(at, Command::Put { key: key.clone(), value: value_of(&value) }, effect)
        }
        Some(seen) if work.way < 8 => Plan::Seen(of(Function::Read, Datum::Nil, seen.datum())),
        Some(seen) => {
            let input = Datum::list([seen.datum(), Datum::text(&value)]);
            let effect = of(Function::Cas, input, Datum::Nil);
            let expect = match &seen.row {
                None => Expect::Absent,
                Some(_) => Expect::Value(value_of(&seen.text())),
            };
            Plan::Write(
                at,
                Command::CompareAndSet { key: key.clone(), expect, value: value_of(&value) },
                effect,
            )
        }
    }
}
