//! Small histories whose verdict is known: `testdata/MODEL/VERDICT_WHY`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file")]

use std::fs;
use std::path::{Path, PathBuf};

use kv_check::{
    AnomalyKind, Budget, History, ModelKind, TransactionVerdict, Verdict, check, check_transactions, read,
    read_transactions,
};

/// Every history of a model with its name.
fn histories(kind: ModelKind) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(kind.name());
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
    paths.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

fn verdict(history: &History, kind: ModelKind) -> Verdict {
    check(history, kind, &Budget::steps(1_000_000)).unwrap().verdict
}

#[test]
fn every_history_has_the_verdict_of_its_name() {
    for kind in ModelKind::ALL {
        let (mut good, mut bad) = (0, 0);
        for (name, text) in histories(kind) {
            let says_why = text.lines().next().unwrap().strip_prefix("# ").is_some_and(|why| why.len() > 20);
            assert!(says_why, "{}/{name} does not begin with a line that says what and why", kind.name());
            let history = read(&text).unwrap_or_else(|error| panic!("{}/{name}: {error}", kind.name()));
            let word = verdict(&history, kind).word().to_lowercase().replace(' ', "_");
            assert!(name.starts_with(&format!("{word}_")), "{}/{name} is {word}", kind.name());
            good += usize::from(word == "valid");
            bad += usize::from(word == "violation");
        }
        assert!(good > 0 && bad > 0, "{}: {good} good and {bad} bad ones", kind.name());
    }
}

/// What a counterexample shows is enough: on its own it is a violation too.
#[test]
fn counterexamples_are_violations() {
    for kind in ModelKind::ALL {
        for (name, text) in histories(kind).iter().filter(|(name, _)| name.starts_with("violation")) {
            let Verdict::Violation(found) = verdict(&read(text).unwrap(), kind) else { panic!("{name}") };
            assert!(found.is_minimal, "{name}");
            let alone = History::from_operations(found.operations.clone()).unwrap();
            assert!(matches!(verdict(&alone, kind), Verdict::Violation(_)), "{name}: {found}");
        }
    }
}

#[test]
fn a_counterexample_tells_its_story() {
    let (_, text) =
        histories(ModelKind::Kv).into_iter().find(|(name, _)| name.contains("one_key_of_many")).unwrap();
    let Verdict::Violation(found) = verdict(&read(&text).unwrap(), ModelKind::Kv) else {
        panic!("no violation")
    };
    let expected = "key \"y\"
3 of 3 operations contradict each other, no fewer do:
  1. process 1: write 2, ok (lines 4 and 5)
  2. process 1: write 3, ok (lines 6 and 7)
  3. process 0: read -> 2 (lines 10 and 11)
the longest possible order is 1, 2; the state is then 3
3 must have taken effect by then, and cannot have";
    assert_eq!(found.to_string(), expected);
}

#[test]
fn the_witness_decides_what_it_explains_and_nothing_else() {
    let report = |part: &str| {
        let (_, text) = histories(ModelKind::Kv).into_iter().find(|(name, _)| name.contains(part)).unwrap();
        check(&read(&text).unwrap(), ModelKind::Kv, &Budget::steps(1_000_000)).unwrap()
    };
    assert_eq!(report("wrong_revisions").witnessed, 0);
    assert_eq!(report("right_revisions").witnessed, 0);
}

/// What stands between a history of transactions and what is to be said of it, in comments that no reader sees.
const SAID: &str = "\n# says:\n";

/// Each history of transactions ends with the whole verdict in words. `UPDATE_GOLDENFILES=1` writes it anew.
#[test]
fn every_history_of_transactions_is_told_as_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/list-append");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 25, "{} histories", paths.len());
    let mut kinds = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.lines().next().unwrap().starts_with("# "), "{name} does not say why");
        let history = read_transactions(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let verdict = check_transactions(&history).verdict;
        let word = verdict.word().to_lowercase().replace(' ', "_");
        assert!(name.starts_with(&format!("{word}_")), "{name} is {word}");
        let told = match &verdict {
            TransactionVerdict::Valid => "valid".to_owned(),
            TransactionVerdict::NotExercised { missing } => format!("not exercised: no {missing}"),
            TransactionVerdict::Violation(found) => {
                kinds.extend(found.kinds());
                found.to_string()
            }
        };
        let (events, said) = text.split_once(SAID).unwrap_or((text.trim_end(), ""));
        let told: String = told.lines().map(|line| format!("# {line}\n")).collect();
        if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
            fs::write(&path, format!("{events}{SAID}{told}")).unwrap();
        } else {
            assert_eq!(told, said, "{name}");
        }
    }
    for kind in AnomalyKind::ALL {
        assert!(kinds.contains(&kind), "no history shows {kind}");
    }
}
