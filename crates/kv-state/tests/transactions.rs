//! Transactions over three groups, whatever is lost, doubled, late or given up: they are strictly serialisable in the order
//! of their decisions, nothing is half done, and nothing is left behind.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/table.rs"]
mod table;
#[path = "harness/txn_world.rs"]
mod txn_world;

use std::collections::BTreeSet;

use kv_state::gate::Refusal;
use kv_state::sessions::SessionBatch;
use kv_state::txn::{self, Ending, TxnAnswer, TxnCommand};
use kv_state::{Answer, Command};
use kv_types::limits::SESSION_WINDOW;
use kv_types::{ClusterTime, Fingerprint, Key, Request, RowKey, SessionId, SessionRequest, TxnId, Value};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use txn_world::{Fault, REACHED, TxnWorld};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, ..ProptestConfig::default() })]

    #[test]
    fn transactions_are_strictly_serialisable(events in prop::collection::vec(any::<(u8, u16, u16)>(), 1..250)) {
        let outcome = TxnWorld::new().run(&events);
        prop_assert!(outcome.is_ok(), "{}", outcome.unwrap_err());
    }
}

/// The first walk of a fixed sequence that finds something, and what it says.
fn find(make: impl Fn() -> TxnWorld) -> Option<String> {
    let mut runner = TestRunner::deterministic();
    let walks = prop::collection::vec(any::<(u8, u16, u16)>(), 1..250);
    (0..2000).find_map(|_| make().run(&walks.new_tree(&mut runner).unwrap().current()).err())
}

/// A party that breaks a duty of the caller is found by what is promised.
#[test]
fn every_fault_of_a_party_is_found() {
    assert_eq!(find(TxnWorld::new), None);
    for fault in Fault::ALL {
        assert!(find(|| TxnWorld::with(fault)).is_some(), "{fault:?} is not found");
    }
}

#[cfg(feature = "planted")]
#[test]
fn every_planted_bug_is_found() {
    use kv_state::Planted;
    let of_the_gate = [Planted::HorizonForgotten, Planted::FloorForgotten, Planted::DoneNotChecked];
    for bug in Planted::OF_TXNS.into_iter().chain(of_the_gate) {
        let planted = || {
            let mut world = TxnWorld::new();
            world.plant(bug);
            world
        };
        assert!(find(planted).is_some(), "{bug:?} is not found");
    }
}

/// Else the walk above would prove little.
#[test]
fn walks_reach_every_rule() {
    let mut runner = TestRunner::deterministic();
    let walks = prop::collection::vec(any::<(u8, u16, u16)>(), 1..250);
    let mut reached = BTreeSet::new();
    for _ in 0..400 {
        let mut world = TxnWorld::new();
        world.run(&walks.new_tree(&mut runner).unwrap().current()).unwrap();
        reached.append(&mut world.reached);
    }
    assert_eq!(reached, BTreeSet::from(REACHED));
}

/// Its client has counted wrongly. What it did is not forgotten so that it could be done again.
#[test]
fn a_fence_of_a_number_far_ahead_refuses_what_it_takes_the_place_of() {
    let time = |ms| ClusterTime::from_ms(ms).unwrap();
    let session = SessionId::new(1);
    let mut replica = table::Replica::default();
    let mut apply = |command, request| {
        let entry = table::entry(command, request, Some(time(1)));
        replica.apply(&entry).unwrap().answer
    };
    let increment = || {
        let key = Key::new("n").unwrap();
        (
            Command::Increment { key, delta: 1 },
            SessionRequest { session, seq: 5, first_incomplete: 0, lease_until: time(1 << 40) },
        )
    };
    let (command, request) = increment();
    let first = apply(command, Some(Request::Session(request)));
    assert!(matches!(first, Answer::Incremented { .. }), "{first:?}");
    let txn = TxnId { session, seq: 5 + SESSION_WINDOW };
    let fence = TxnCommand::Fence { txn, fingerprint: Fingerprint::from_raw(1), first_incomplete: 0 };
    assert_eq!(apply(Command::Txn(fence), None), Answer::Txn(TxnAnswer::Absent));
    let (command, request) = increment();
    let again = apply(command, Some(Request::Session(request)));
    assert!(matches!(again, Answer::Refused(Refusal::Stale { .. })), "{again:?}");
    replica.check_hash();
}

/// The floor of a session keeps two of its transactions from sharing a place; when it is collected, what they have prepared stays.
#[test]
fn two_of_one_place_end_together_when_their_session_is_dead() {
    let time = |ms| ClusterTime::from_ms(ms).unwrap();
    let session = SessionId::new(1);
    let key = |seq: u64| Key::new(format!("k{seq}")).unwrap();
    let txn = |seq| TxnId { session, seq };
    let (one, other) = (5, 5 + SESSION_WINDOW);
    let fingerprint = Fingerprint::from_raw(1);
    let mut replica = table::Replica::default();
    let mut apply = |command, request| {
        let entry = table::entry(command, request, Some(time(1)));
        replica.apply(&entry).unwrap().answer
    };
    for (seq, first_incomplete) in [(one, 0), (other, 6)] {
        let write = txn::Write { key: key(seq), value: Some(Value::new("v").unwrap()) };
        let part = txn::Part::new(vec![], vec![], vec![write]).unwrap();
        let prepare = TxnCommand::Prepare { fingerprint, anchor: Key::new("z").unwrap(), part };
        let request = SessionRequest { session, seq, first_incomplete, lease_until: time(1 << 40) };
        let answer = apply(Command::Txn(prepare), Some(Request::Session(request)));
        assert_eq!(answer, Answer::Txn(TxnAnswer::Prepared), "{seq}");
    }
    apply(Command::GcSessions { sessions: SessionBatch::new([session]).unwrap(), until: time(2) }, None);
    let ending = Ending { fingerprint, committed: true };
    let endings = [one, other].into_iter().map(|seq| (txn(seq), ending)).collect();
    let answer = apply(Command::Txn(TxnCommand::Resolve { endings }), None);
    assert_eq!(answer, Answer::Txn(TxnAnswer::Resolved));
    replica.check_hash();
    for seq in [one, other] {
        assert!(replica.table.rows.contains_key(&RowKey::user(&key(seq))), "{seq} took effect");
    }
    assert_eq!(txn::prepared_txns(&replica.table, None, 10).unwrap(), []);
}
