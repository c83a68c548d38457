//! The checker of transactions against another one: the crate adya, made after Elle by other people.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test file")]

use std::time::Duration;

use kv_check::workload::{Dice, TransactionWorkload};
use kv_check::{AnomalyKind, Event, Recorder, TransactionVerdict, check_transactions, read_transactions};

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
            (TransactionVerdict::Violation(_), adya::Valid::False) => bad += 1,
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
