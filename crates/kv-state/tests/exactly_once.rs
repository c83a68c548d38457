//! Requests that come late, twice and out of order, while floors move, sessions end and shards forget: each takes effect
//! at most once and always has the same answer.

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

use std::collections::BTreeSet;

use event::event;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use world::{KINDS, World};

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn each_request_takes_effect_at_most_once(events in prop::collection::vec(event(), 1..150)) {
        let outcome = World::new(true).run(&events);
        prop_assert!(outcome.is_ok(), "{:?}", outcome);
    }
}

/// Else the walk above would prove little.
#[test]
fn walks_reach_every_rule() {
    let mut runner = TestRunner::deterministic();
    let walks = prop::collection::vec(event(), 1..150);
    let mut reached = BTreeSet::new();
    for _ in 0..200 {
        let mut world = World::new(true);
        world.run(&walks.new_tree(&mut runner).unwrap().current()).unwrap();
        reached.append(&mut world.reached);
    }
    assert_eq!(reached, BTreeSet::from(KINDS));
}
