//! Every planted bug is found by an invariant, in a seed that passes without it. How the seeds were found:
//! `cargo run --release -p kv-sim --features planted -- run --seeds 1000 --plant NAME [--scenario FILE]`.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking, in its functions too")]

use kv_fault::Drill;
use kv_raft::Planted as Core;
use kv_shard::Planted as Shard;
use kv_sim::{Failure, Planted, Scenario, run, run_planted};
use kv_state::Planted as State;
use kv_txn::Planted as Party;

/// A bug, the file that lets it happen if the ordinary mix does not, the first seed that finds it, and the invariant
/// that says so.
struct Case {
    bug: Planted,
    scenario: &'static str,
    seed: u64,
    invariant: &'static str,
}

const fn ordinary(bug: Planted, seed: u64, invariant: &'static str) -> Case {
    Case { bug, scenario: "", seed, invariant }
}

macro_rules! tuned {
    ($bug:expr, $file:literal, $seed:literal, $invariant:literal) => {
        Case {
            bug: $bug,
            scenario: include_str!(concat!("../scenarios/planted/", $file, ".toml")),
            seed: $seed,
            invariant: $invariant,
        }
    };
}

const CASES: &[Case] = &[
    tuned!(Planted::Core(Core::CommitsOldTerm), "commits-old-term", 16, "leader-completeness"),
    ordinary(Planted::Core(Core::VoteRequestBeforeDurable), 1, "persisted-first"),
    ordinary(Planted::Core(Core::VoteBeforeDurable), 1, "persisted-first"),
    ordinary(Planted::Core(Core::SelfAckBeforeDurable), 2, "durability"),
    ordinary(Planted::Core(Core::NoWithholding), 4, "promise-kept"),
    tuned!(Planted::Core(Core::LeaseFromAck), "lease-from-ack", 5, "lease-exclusivity"),
    tuned!(Planted::Core(Core::LeaseAfterTransfer), "lease-after-transfer", 209, "lease-exclusivity"),
    tuned!(Planted::Core(Core::LeaseBeyondBound), "lease-beyond-bound", 7, "lease-exclusivity"),
    ordinary(Planted::Core(Core::PromiseForgotten), 64, "promise-kept"),
    tuned!(Planted::Core(Core::ReadTokenReuse), "read-token-reuse", 278, "linearisability"),
    ordinary(Planted::Core(Core::ReadWithoutLeader), 2, "linearisability"),
    ordinary(Planted::Core(Core::ConfigAtApply), 4, "durability"),
    ordinary(Planted::Core(Core::SecondConfigEarly), 45, "membership"),
    ordinary(Planted::Core(Core::AppendCutsTail), 2, "durability"),
    tuned!(Planted::Core(Core::VoteCleared), "vote-cleared", 45, "monotonicity"),
    tuned!(Planted::Core(Core::LeaseDropLate), "lease-drop-late", 1, "lease-exclusivity"),
    tuned!(Planted::LeaseOnCachedClock, "lease-on-cached-clock", 6, "linearisability"),
    ordinary(Planted::ClockBeforeMessage, 7, "promise-kept"),
    ordinary(Planted::LeasePublishedLate, 3, "lease-exclusivity"),
    ordinary(Planted::WipedDiskVotes, 119, "leader-completeness"),
    ordinary(Planted::TailKeptOverConflict, 19, "log-matching"),
    ordinary(Planted::WalCutAtDamage, 113, "recovery"),
    ordinary(Planted::SnapshotNewerThanIndex, 23, "state-machine-safety"),
    tuned!(Planted::State(State::TableNotInSnapshot), "counting", 14, "exactly-once"),
    tuned!(Planted::GateBeforeLog, "counting", 1, "exactly-once"),
    tuned!(Planted::State(State::HorizonForgotten), "counting", 1, "exactly-once"),
    tuned!(Planted::Shard(Shard::LostSaidNotApplied), "counting", 4, "exactly-once"),
    tuned!(Planted::State(State::ClosedAheadOfLease), "closed-ahead-of-lease", 2, "exactly-once"),
    tuned!(Planted::State(State::DoneNotChecked), "counting", 1, "exactly-once"),
    tuned!(Planted::State(State::FloorForgotten), "counting", 2, "exactly-once"),
];

macro_rules! of_txns {
    ($bug:expr, $seed:literal, $invariant:literal) => {
        Case {
            bug: $bug,
            scenario: include_str!("../scenarios/transactions.toml"),
            seed: $seed,
            invariant: $invariant,
        }
    };
}

/// Bugs of transactions: of a shard, whose answers and rows are not predicted then, and of the parties.
const OF_TXNS: &[Case] = &[
    of_txns!(Planted::State(State::WriteLockIgnored), 11, "strict-serialisability"),
    tuned!(Planted::State(State::ReadLockIgnored), "txns-skew", 1, "strict-serialisability"),
    tuned!(Planted::State(State::ReadsNotLocked), "txns-skew", 1, "strict-serialisability"),
    tuned!(Planted::State(State::RangesNotLocked), "txns-skew", 1, "strict-serialisability"),
    tuned!(Planted::State(State::FenceLeavesNothing), "txns-stuck", 6, "atomicity"),
    of_txns!(Planted::State(State::CommittedForgotten), 5, "atomicity"),
    of_txns!(Planted::State(State::CommitNotGated), 2, "atomicity"),
    of_txns!(Planted::State(State::ResolveGated), 26, "atomicity"),
    of_txns!(Planted::State(State::RecordNotKept), 53, "atomicity"),
    of_txns!(Planted::State(State::CollectDropsPrepared), 1, "leftovers"),
    of_txns!(Planted::Party(Party::CommitsEarly), 11, "atomicity"),
    of_txns!(Planted::Party(Party::ForgetsEarly), 3, "atomicity"),
    of_txns!(Planted::Party(Party::RefusalIsTold), 2, "atomicity"),
    of_txns!(Planted::Party(Party::AbsentIsTold), 2, "atomicity"),
    tuned!(Planted::Party(Party::PresumesAbort), "txns-stuck", 3, "atomicity"),
    tuned!(Planted::Party(Party::ReaderSkipsLocks), "txns-read", 3, "strict-serialisability"),
    tuned!(Planted::Party(Party::ValueBeforeLock), "txns-read", 2, "strict-serialisability"),
    tuned!(Planted::Party(Party::NoSecondLook), "txns-forgotten", 31, "strict-serialisability"),
    of_txns!(Planted::AnchorUnconfirmed, 84, "linearisability"),
    tuned!(Planted::Shard(Shard::DeletesForgotten), "txns-lamp", 1, "strict-serialisability"),
];

#[test]
fn every_planted_bug_is_found_by_its_invariant_and_its_seed_passes_without_it() {
    for Case { bug, scenario, seed, invariant } in CASES.iter().chain(OF_TXNS) {
        let scenario = Scenario::parse(scenario).unwrap();
        let with = run_planted(*seed, &scenario, *bug);
        match &with.failure {
            Some(Failure::Violation(violation)) => {
                assert_eq!(violation.invariant, *invariant, "{bug}: {with}")
            }
            other => panic!("{bug}: seed {seed} came to {other:?}"),
        }
        let without = run(*seed, &scenario, false);
        assert_eq!(without.failure, None, "{bug}: seed {seed} without the bug");
        assert!(without.tally.applied > 0, "{bug}: {without}");
    }
}

#[test]
fn every_bug_has_a_seed() {
    for bug in Planted::all() {
        assert_eq!(CASES.iter().filter(|case| case.bug == bug).count(), 1, "{bug}");
    }
    for bug in Planted::of_txns() {
        assert_eq!(OF_TXNS.iter().filter(|case| case.bug == bug).count(), 1, "{bug}");
    }
    assert!(CASES.len() >= 20, "{} bugs", CASES.len());
    assert!(CASES.iter().chain(OF_TXNS).all(|case| case.seed <= 1000));
}

/// A bug, the drill that brings it out, a seed that does, and the invariant that says so. All that the drill does is needed: with
/// the bug, and without the steps of the drill, the same seed passes.
struct Drilled {
    bug: Planted,
    drill: &'static str,
    seed: u64,
    invariant: &'static str,
}

macro_rules! drilled {
    ($bug:expr, $file:literal, $seed:literal, $invariant:literal) => {
        Drilled {
            bug: $bug,
            drill: include_str!(concat!("../../../drills/", $file, ".toml")),
            seed: $seed,
            invariant: $invariant,
        }
    };
}

const DRILLED: &[Drilled] = &[
    drilled!(Planted::LeaseOnCachedClock, "pause-leader", 1, "linearisability"),
    drilled!(Planted::WipedDiskVotes, "lost-disk", 3, "durability"),
    drilled!(Planted::State(State::DoneNotChecked), "leader-deaf", 4, "exactly-once"),
    drilled!(Planted::Party(Party::ReaderSkipsLocks), "lose-resolves", 2, "strict-serialisability"),
    drilled!(Planted::Party(Party::ForgetsEarly), "lose-resolves", 6, "atomicity"),
    drilled!(Planted::Party(Party::AbsentIsTold), "lose-prepare-replies", 12, "atomicity"),
];

#[test]
fn drills_bring_planted_bugs_out_and_nothing_but_their_steps_does() {
    for Drilled { bug, drill, seed, invariant } in DRILLED {
        let mut drill = Drill::parse(drill).unwrap();
        let name = drill.name.clone();
        let scenario = Scenario::of_drill(drill.clone()).unwrap();
        let with = run_planted(*seed, &scenario, *bug);
        match &with.failure {
            Some(Failure::Violation(violation)) => {
                assert_eq!(violation.invariant, *invariant, "{bug}, {name}: {with}")
            }
            other => panic!("{bug}, {name}: seed {seed} came to {other:?}"),
        }
        let sound = run(*seed, &scenario, false);
        assert_eq!(sound.failure, None, "{name}: seed {seed} without the bug");
        drill.steps.clear();
        let idle = run_planted(*seed, &Scenario::of_drill(drill).unwrap(), *bug);
        assert_eq!(idle.failure, None, "{bug}, {name}: seed {seed} without its steps");
    }
}
