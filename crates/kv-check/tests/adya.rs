//! The checker of transactions against another one: the crate adya, made after Elle by other people.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test file")]

use std::time::Duration;

use kv_check::workload::{Dice, TransactionWorkload};
use kv_check::{
    Anomalies, AnomalyKind, Event, Recorder, TransactionVerdict, check_transactions, read_transactions,
};

fn events(seed: u64) -> Vec<Event> {
    let mut dice = Dice(seed);
    let workload = TransactionWorkload {
        seed,
        operations_max: 1 + dice.place(4),
        reads: 30 + dice.below(50),
        open: dice.below(200),
        failed: dice.below(200),
        skews: [0, 300, 1000][dice.place(3)],
        lies: [0, 0, 0, 50][dice.place(4)],
        ..TransactionWorkload::new(2 + dice.place(5), 1 + dice.place(5), 3 + dice.place(40))
    };
    workload.events()
}

fn recorded(events: &[Event]) -> String {
    let mut recorder = Recorder::new();
    events.iter().map(|event| recorder.line(event).unwrap() + "\n").collect()
}

/// Whether both call the circles the same, as far as they can be compared: which circles of a component are told is a
/// matter of taste, so it must have circles of one kind only, and nothing else must be wrong.
fn is_named_alike(found: &Anomalies, theirs: &[String]) -> bool {
    let has = |names: &[&str]| theirs.iter().any(|name| names.contains(&name.as_str()));
    let kinds: Vec<_> = found.kinds().collect();
    match kinds.as_slice() {
        [AnomalyKind::G0] => has(&["G0"]),
        [AnomalyKind::G1c] => has(&["G1c"]) && !has(&["G0"]),
        [AnomalyKind::GSingle] => has(&["G-single-item"]) && !has(&["G0", "G1c"]),
        [AnomalyKind::G2] => has(&["G2-item", "G-nonadjacent-item"]) && !has(&["G0", "G1c", "G-single-item"]),
        [AnomalyKind::G1cRealtime] => has(&["G1c-realtime"]),
        [AnomalyKind::GSingleRealtime] => has(&["G-single-item-realtime"]) && !has(&["G0-realtime"]),
        _ => true,
    }
}

/// How many histories are examined.
const HISTORIES: u64 = 4000;

/// Neither calls a violation what the other calls valid. One exception is known: adya does not ask that the appends of one
/// transaction to a key stand in their order.
#[test]
fn another_checker_comes_to_the_same_verdicts() {
    let options = adya::Opts { timeout: Duration::from_secs(600), ..adya::Opts::default() };
    let (mut good, mut bad, mut undecided) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let text = recorded(&events(seed));
        let ours = check_transactions(&read_transactions(&text).unwrap()).verdict;
        let history = adya::History::from_json(&text).unwrap();
        let theirs = adya::check(&history, adya::Workload::ListAppend, &options);
        match (&ours, theirs.valid) {
            (TransactionVerdict::Violation(found), adya::Valid::False) => {
                bad += 1;
                assert!(is_named_alike(found, &theirs.anomaly_types), "{seed}: {found}\n{theirs:?}\n{text}");
            }
            (TransactionVerdict::Violation(found), _) => {
                assert!(found.kinds().eq([AnomalyKind::TornAppends]), "{seed}: {found}\n{theirs:?}\n{text}");
            }
            (_, adya::Valid::True) => good += 1,
            // It says so of histories in which nothing depends on anything.
            (_, adya::Valid::Unknown) => undecided += 1,
            (_, adya::Valid::False) => panic!("{seed}: {ours:?}\n{theirs:?}\n{text}"),
        }
    }
    assert!(good > HISTORIES / 2 && bad > HISTORIES / 5, "{good} good, {bad} bad, {undecided} undecided");
}
