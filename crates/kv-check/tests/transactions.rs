//! The checker of transactions against a search of all orders, on thousands of small histories; and on a large one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test file")]

use std::collections::{BTreeMap, BTreeSet};

use kv_check::workload::{Dice, TransactionWorkload};
use kv_check::{
    ANOMALIES_MAX, AnomalyKind, Datum, Ending, Event, MicroOperation, Recorder, Transaction,
    TransactionHistory, TransactionVerdict, check_transactions, read_transactions,
};
use proptest::prelude::*;

type Lists = BTreeMap<Datum, Vec<i64>>;

/// The lists after a transaction, if it reads what it says.
fn step(lists: &Lists, transaction: &Transaction) -> Option<Lists> {
    let mut lists = lists.clone();
    for operation in &transaction.operations {
        let list = lists.entry(operation.key().clone()).or_default();
        match operation {
            MicroOperation::Append { element, .. } => list.push(*element),
            MicroOperation::Read { list: Some(read), .. } if transaction.ending == Ending::Committed => {
                if *list != **read {
                    return None;
                }
            }
            MicroOperation::Read { .. } => {}
        }
    }
    Some(lists)
}

/// Whether some order explains the transactions: every permutation is tried, with every choice of open transactions.
fn is_explained(all: &[Transaction], keeps_time: bool) -> bool {
    fn go(all: &[Transaction], keeps_time: bool, placed: &mut [bool], lists: &Lists) -> bool {
        if all.iter().zip(&*placed).all(|(txn, placed)| *placed || txn.ending != Ending::Committed) {
            return true;
        }
        (0..all.len()).any(|next| {
            let is_late = |other: usize| {
                keeps_time && !placed[other] && all[other].ret.is_some_and(|ret| ret < all[next].call)
            };
            if placed[next] || all[next].ending == Ending::Failed || (0..all.len()).any(is_late) {
                return false;
            }
            let Some(after) = step(lists, &all[next]) else { return false };
            placed[next] = true;
            let found = go(all, keeps_time, placed, &after);
            placed[next] = false;
            found
        })
    }
    go(all, keeps_time, &mut vec![false; all.len()], &Lists::new())
}

/// What a store would do, serial or with lies.
fn likely(dice: &mut Dice) -> TransactionHistory {
    let workload = TransactionWorkload {
        seed: dice.next_number(),
        operations_max: 2 + dice.place(2),
        reads: 40 + dice.below(40),
        open: dice.below(300),
        failed: dice.below(200),
        skews: [0, 1000][dice.place(2)],
        lies: [0, 700][dice.place(2)],
        ..TransactionWorkload::new(2 + dice.place(3), 1 + dice.place(3), 4 + dice.place(3))
    };
    TransactionHistory::from_events(workload.events()).unwrap()
}

/// A serial execution at times that have nothing to do with its order, and perhaps some reads that are wrong.
fn arbitrary(dice: &mut Dice) -> TransactionHistory {
    let mut lists = Lists::new();
    let mut element = 0;
    let mut transactions = Vec::new();
    let (keys, span) = (1 + dice.below(3), 2 + dice.below(12));
    for process in 0..2 + i64::try_from(dice.below(4)).unwrap() {
        let mut after = lists.clone();
        let mut operations = Vec::new();
        for _ in 0..1 + dice.place(3) {
            let key = Datum::text(["x", "y", "z"][usize::try_from(dice.below(keys)).unwrap()]);
            let list = after.entry(key.clone()).or_default();
            operations.push(if dice.below(2) == 0 {
                MicroOperation::read_as(key, wrong(list, dice))
            } else {
                element += 1;
                list.push(element);
                MicroOperation::append(key, element)
            });
        }
        let call = dice.below(20);
        let transaction = Transaction::open(process, operations, call);
        let (transaction, applies) = match dice.below(8) {
            0 => (transaction.failed(), dice.below(20) == 0),
            1 | 2 => (transaction, dice.below(2) == 0),
            _ => (transaction.committed(call + dice.below(span)), dice.below(40) > 0),
        };
        lists = if applies { after } else { lists };
        transactions.push(transaction);
    }
    TransactionHistory::from_transactions(transactions).unwrap()
}

/// Rarely another list.
fn wrong(list: &[i64], dice: &mut Dice) -> Vec<i64> {
    let mut list = list.to_vec();
    match dice.below(40) {
        0 => drop(list.pop()),
        1 => list.push(i64::try_from(dice.below(6)).unwrap()),
        2 => list.reverse(),
        3 => list.truncate(dice.place(list.len() + 1)),
        _ => {}
    }
    list
}

/// All that is promised of one history. Returns what is wrong with it, and whether it is explained.
fn examine(history: &TransactionHistory) -> (BTreeSet<AnomalyKind>, bool) {
    let all = history.transactions();
    let explained = is_explained(all, true);
    let report = check_transactions(history);
    let kinds = match &report.verdict {
        TransactionVerdict::Valid | TransactionVerdict::NotExercised { .. } => BTreeSet::new(),
        TransactionVerdict::Violation(anomalies) => {
            for anomaly in &anomalies.found {
                assert!(!anomaly.reasons.is_empty() && !anomaly.transactions.is_empty(), "{anomaly}");
            }
            anomalies.kinds().collect()
        }
    };
    assert_eq!(kinds.is_empty(), explained, "{:#?} of {all:#?}", report.verdict);
    // What is wrong without a look at time is so exactly if there is no order even without one.
    let is_serial = kinds.iter().all(|kind| *kind >= AnomalyKind::G0Realtime);
    assert_eq!(is_serial, is_explained(all, false), "{:#?} of {all:#?}", report.verdict);
    assert_eq!(report, check_transactions(history));
    (kinds, explained)
}

/// How many histories of each sort are examined.
const HISTORIES: usize = 20_000;

#[test]
fn every_verdict_is_that_of_all_orders() {
    let mut dice = Dice(20);
    let mut kinds: BTreeMap<AnomalyKind, usize> = BTreeMap::new();
    for (name, make) in [("likely", likely as fn(&mut _) -> _), ("arbitrary", arbitrary)] {
        let mut explained = 0;
        for _ in 0..HISTORIES {
            let (found, is_explained) = examine(&make(&mut dice));
            found.into_iter().for_each(|kind| *kinds.entry(kind).or_default() += 1);
            explained += usize::from(is_explained);
        }
        assert!(
            (HISTORIES / 5..HISTORIES - HISTORIES / 5).contains(&explained),
            "{explained} {name} histories are explained: too one-sided to show anything"
        );
    }
    let missing: Vec<_> = AnomalyKind::ALL.iter().filter(|kind| !kinds.contains_key(kind)).collect();
    assert!(missing.is_empty(), "never met with: {missing:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// The same with seeds of every run's own; a failing one is kept.
    #[test]
    fn no_seed_gives_another_verdict(seed in any::<u64>()) {
        let mut dice = Dice(seed);
        examine(&likely(&mut dice));
        examine(&arbitrary(&mut dice));
    }
}

fn recorded(events: &[Event]) -> String {
    let mut recorder = Recorder::new();
    events.iter().map(|event| recorder.line(event).unwrap() + "\n").collect()
}

fn large(skews: u64, lies: u64) -> TransactionWorkload {
    TransactionWorkload { open: 5, failed: 20, skews, lies, ..TransactionWorkload::new(64, 20, 100_000) }
}

#[test]
fn a_hundred_thousand_transactions_are_no_trouble() {
    let history = read_transactions(&recorded(&large(0, 0).events())).unwrap();
    let report = check_transactions(&history);
    assert_eq!(report.verdict, TransactionVerdict::Valid);
    assert_eq!(report.committed + report.failed + report.open, 100_000);
    assert!(report.open > 300 && report.failed > 1000 && report.keys > 1000, "{report:?}");
}

/// One lie among many transactions is found; and many, which put nearly all transactions into circles, are found too.
#[test]
fn lies_among_many_transactions_are_found() {
    for (skews, lies, kind) in [
        (1, 0, AnomalyKind::GSingle),
        (1000, 0, AnomalyKind::LostUpdate),
        (0, 1, AnomalyKind::IncompatibleOrder),
        (0, 500, AnomalyKind::G1a),
    ] {
        let history = TransactionHistory::from_events(large(skews, lies).events()).unwrap();
        let TransactionVerdict::Violation(found) = check_transactions(&history).verdict else {
            panic!("{skews} {lies}")
        };
        assert!(found.counts.contains_key(&kind), "{skews} {lies}: {:?}", found.counts);
        for (kind, count) in &found.counts {
            let told = found.found.iter().filter(|anomaly| anomaly.kind == *kind).count();
            assert_eq!(told, ANOMALIES_MAX.min(*count), "{kind}");
        }
    }
}

#[test]
fn anomalies_are_told_in_json() {
    let write = Transaction::open(0, [MicroOperation::append("x", 1)], 1).committed(2);
    let read = Transaction::open(1, [MicroOperation::read_as("x", [])], 3).committed(4);
    let history = TransactionHistory::from_transactions(vec![write, read]).unwrap();
    let TransactionVerdict::Violation(found) = check_transactions(&history).verdict else { panic!() };
    let json = found.to_json();
    assert_eq!(json["counts"]["G-single-realtime"], 1);
    let anomaly = &json["found"][0];
    assert_eq!(anomaly["kind"], "G-single-realtime");
    assert_eq!(anomaly["transactions"][0]["number"], 1);
    assert_eq!(anomaly["transactions"][0]["value"].to_string(), r#"[["append","x",1]]"#);
    assert_eq!(anomaly["transactions"][1]["ending"], "committed");
    assert_eq!(anomaly["reasons"][0], "T1 was before T2 because T1 returned before T2 was called");
}
