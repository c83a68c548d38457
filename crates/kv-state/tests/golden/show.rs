//! How scripts show what entries did.

use std::fmt::Write as _;

use kv_state::cluster::ClusterState;
use kv_state::gate::{Found, Recorded};
use kv_state::sessions::SessionAnswer;
use kv_state::txn::{self, LockedBy};
use kv_state::{Answer, Applied, StateHash};
use kv_types::{LogIndex, RowKey, Space};

use crate::table::Replica;

/// Changes of an entry that has more are left out.
const CHANGES_SHOWN_MAX: usize = 10;

pub fn cluster(cluster: &ClusterState) -> String {
    let settled = if cluster.is_settled() { "settled" } else { "under way" };
    let subject = cluster.subject.map_or("nobody".to_owned(), |node| node.to_string());
    let settings = cluster.settings;
    let mut out = format!(
        "change {} about {subject}: {settled}, wanted {}, reads by {:?}, drift {}\n",
        cluster.change,
        cluster.wanted(),
        settings.read_mode,
        settings.clock_drift_ppm
    );
    for (node, member) in &cluster.members {
        let life = member.incarnation.map_or("announced".to_owned(), |life| life.to_string());
        writeln!(out, "  {node} {:?} {life} {} {}", member.wanted, member.peer_addr, member.client_addr)
            .expect("a string takes all");
    }
    for (shard, group) in &cluster.groups {
        writeln!(out, "  {shard} reached {} {}", group.reached, group.membership)
            .expect("a string takes all");
    }
    out
}

/// The answer of an entry and what it changed.
pub fn applied(index: LogIndex, applied: &Applied) -> String {
    let mut out = answer(index, &applied.answer);
    if applied.changes.len() <= CHANGES_SHOWN_MAX {
        for change in &applied.changes {
            let old = change.previous.map_or("none".to_owned(), |revision| revision.to_string());
            let new = if change.row.is_some() { "row" } else { "gone" };
            writeln!(out, "  {}: {old} -> {new}", key(&change.key)).expect("a string takes all");
        }
    }
    out
}

fn answer(index: LogIndex, answer: &Answer) -> String {
    match answer {
        Answer::Written => format!("{} written\n", index.revision()),
        Answer::Deleted { count, resume: None } => format!("deleted {count}\n"),
        Answer::Deleted { count, resume: Some(key) } => format!("deleted {count}, more from {key:?}\n"),
        Answer::CompareFailed { found: None } => "compare failed: absent\n".to_owned(),
        Answer::CompareFailed { found: Some(row) } => {
            format!("compare failed: found {}\n", row.head.modified)
        }
        Answer::Incremented { value } => format!("{} sum {value}\n", index.revision()),
        Answer::IncrementFailed(failure) => format!("increment failed: {failure}\n"),
        Answer::Replayed(known) => format!("replayed: {}\n", recorded(known)),
        Answer::Refused(refusal) => format!("refused: {refusal}\n"),
        Answer::Settled => "settled: not applied\n".to_owned(),
        Answer::Cluster(Ok(())) => format!("{} done\n", index.revision()),
        Answer::Cluster(Err(refusal)) => format!("refused: {refusal}\n"),
        Answer::Session(Ok(answer)) => session(answer),
        Answer::Session(Err(refusal)) => format!("refused: {refusal}\n"),
        Answer::SessionsCollected { rows, left } => format!("collected rows: {rows}, left {left:?}\n"),
        Answer::Txn(answer) => format!("{answer:?}\n"),
        Answer::Ticked { more } => format!("ticked, more: {more}\n"),
    }
}

fn session(answer: &SessionAnswer) -> String {
    match answer {
        SessionAnswer::Opened { session, lease_until } => format!("opened {session} until {lease_until}\n"),
        SessionAnswer::Renewed(sessions) => {
            let mut out = "renewed\n".to_owned();
            for (session, lease) in sessions {
                let lease = lease.map_or("gone".to_owned(), |time| time.to_string());
                writeln!(out, "  {session} until {lease}").expect("a string takes all");
            }
            out
        }
        SessionAnswer::Closed => "closed\n".to_owned(),
        SessionAnswer::Expired(sessions) => format!("expired {sessions:?}\n"),
    }
}

fn recorded(known: &Recorded) -> String {
    format!("{:?} at {} {}", known.result, known.revision, known.stamp)
}

pub fn found(found: &Found) -> String {
    match found {
        Found::Decided(known) => format!("decided: {}\n", recorded(known)),
        Found::Settled => "settled\n".to_owned(),
        Found::NotSeen => "not seen\n".to_owned(),
        Found::NoLongerKnown => "no longer known\n".to_owned(),
    }
}

/// A row's key; the numbers in system keys as numbers.
pub fn key(key: &RowKey) -> String {
    let bytes = key.key();
    let number = |from: usize, to: usize| {
        bytes[from..to].iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte))
    };
    match (key.space(), bytes.get(..2), bytes.len()) {
        (Space::System, Some(b"r/"), 10) => format!("floor ses{}", number(2, 10)),
        (Space::System, Some(b"r/"), 11) => format!("place {} of ses{}", number(10, 11), number(2, 10)),
        (Space::System, Some(b"t/"), 18) => format!("record {:032x}", number(2, 18)),
        (Space::System, Some(b"m/"), 10) => format!("session ses{}", number(2, 10)),
        (Space::System, Some(b"n/"), 18) => format!("nonce {}", number(2, 18)),
        (Space::System, Some(b"g/"), 18) => format!("ranges ses{}/{}", number(2, 10), number(10, 18)),
        (Space::System, Some(b"p/"), 18) => format!("prepared ses{}/{}", number(2, 10), number(10, 18)),
        (Space::System, Some(b"x/"), 18) => format!("record ses{}/{}", number(2, 10), number(10, 18)),
        (Space::System | Space::User, _, _) => format!("{key:?}"),
    }
}

/// All rows; the values of users' rows only.
pub fn rows(replica: &Replica) -> String {
    let mut out = String::new();
    for (row_key, row) in &replica.table.rows {
        let head = row.head;
        let (created, modified, stamp) = (head.created, head.modified, head.stamp);
        let line = format!("created={created} modified={modified} version={} stamp={stamp}", head.version);
        let name = key(row_key);
        match row_key.space() {
            Space::User => writeln!(out, "{name} = {:?} {line}", row.value),
            Space::System => writeln!(out, "{name}, value_bytes={} {line}", head.value_bytes),
        }
        .expect("a string takes all");
    }
    if out.is_empty() {
        "empty, hash zero: ".to_owned() + &(replica.carried.hash() == StateHash::EMPTY).to_string()
    } else {
        out
    }
}

pub fn lock(locked: Option<&LockedBy>) -> String {
    match locked {
        None => "free\n".to_owned(),
        Some(LockedBy::Writer(owner)) => format!("written by {owner}\n"),
        Some(LockedBy::Readers(owners)) => format!("read by {owners:?}\n"),
    }
}

/// What waits for a decision, and what for acknowledgements.
pub fn txns(replica: &Replica) -> String {
    let rows = &replica.table;
    let mut out = String::new();
    for txn in txn::prepared_txns(rows, None, 100).expect("a map can be read") {
        let prepared = txn::prepared(rows, txn).expect("a map can be read").expect("it was just found");
        let (anchor, since, first) = (prepared.anchor, prepared.since, prepared.first_incomplete);
        writeln!(out, "{txn} prepared since {since}, anchor {anchor}, first incomplete {first}")
            .expect("a string takes all");
    }
    for record in txn::records(rows, None, 100).expect("a map can be read") {
        writeln!(out, "{} committed, participants {:?}", record.txn, record.participants)
            .expect("a string takes all");
    }
    out
}
