//! Every planted bug is found by the walk that finds nothing without it, and by what must hold of answers and rows, not
//! by a prediction of them.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/event.rs"]
mod event;
#[path = "harness/naive.rs"]
mod naive;
#[path = "harness/table.rs"]
mod table;
#[path = "harness/world.rs"]
mod world;

use event::event;
use kv_state::Planted;
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};
use world::World;

/// The first walk of a fixed sequence that finds the bug, and what it says.
fn find(bug: Option<Planted>) -> Option<String> {
    let config = ProptestConfig {
        cases: 1024,
        max_shrink_iters: 0,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    let walks = prop::collection::vec(event(), 1..150);
    let found = runner.run(&walks, |events| {
        let mut world = World::new(false);
        if let Some(bug) = bug {
            world.plant(bug);
        }
        world.run(&events).map_err(TestCaseError::fail)
    });
    found.err().map(|error| error.to_string())
}

#[test]
fn every_planted_bug_is_found() {
    assert_eq!(find(None), None);
    // There is no snapshot in these walks.
    for bug in Planted::ALL.into_iter().filter(|bug| *bug != Planted::TableNotInSnapshot) {
        let verdict = find(Some(bug)).unwrap_or_else(|| panic!("{bug:?} is not found"));
        let is_a_broken_promise = ["is applied twice", "is applied though settled"];
        assert!(is_a_broken_promise.iter().any(|text| verdict.contains(text)), "{bug:?}: {verdict}");
    }
}
