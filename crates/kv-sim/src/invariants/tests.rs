//! Each invariant is shown what it must refuse, and what it must let pass.

use bytes::Bytes;
use kv_raft::{LeaseUpdate, Message, MessageKind};
use kv_state::StateHash;
use kv_state::txn::{Known, Transaction, Write};
use kv_storage::WalOp;
use kv_types::{
    Body, Entry, HardState, Key, Lamport, LogId, LogIndex, Nanos, NodeId, RequestId, Revision, SessionId,
    ShardId, Term, TxnId, Value,
};

use super::all;
use crate::held::Held;
use crate::world::{Attempt, Event, Fate, Seen, TxnStep, World};

const S1: ShardId = ShardId::new(1);

fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

fn entry(term: u64, index: u64, command: &'static [u8]) -> Entry {
    let stamp = Lamport { counter: term * 100 + index, node: NodeId::new(1) };
    let body = if command.is_empty() { Body::Blank } else { Body::Command(Bytes::from_static(command)) };
    Entry { id: id(term, index), stamp, body }
}

fn append(entries: &[Entry]) -> WalOp {
    WalOp::Raft { hard: None, truncate_from: None, append: entries.to_vec() }
}

/// Everything that has been seen, and the names of the invariants that refused some of it.
struct Show {
    world: World,
    invariants: Vec<Box<dyn super::Invariant>>,
    refused: Vec<&'static str>,
}

impl Show {
    fn new(nodes: u64) -> Self {
        let mut show = Self { world: World::default(), invariants: all(), refused: Vec::new() };
        show.world.election_timeout = std::time::Duration::from_nanos(100);
        for node in 1..=nodes {
            show.see(node, Seen::Started(&Held::default(), &[]));
        }
        show
    }

    fn see(&mut self, node: u64, seen: Seen<'_>) {
        let event = Event { node: NodeId::new(node), shard: S1, seen };
        for invariant in &mut self.invariants {
            if let Err(violation) = invariant.check(&event, &self.world) {
                assert_eq!(violation.invariant, invariant.name());
                self.refused.push(violation.invariant);
            }
        }
        self.world.note(&event);
    }

    fn wrote(&mut self, node: u64, op: &WalOp) {
        self.see(node, Seen::Wrote(op, None));
    }
}

#[test]
fn one_leader_a_term() {
    let mut show = Show::new(3);
    show.see(1, Seen::Leads(Some(Term::new(1))));
    show.see(2, Seen::Leads(Some(Term::new(2))));
    assert!(show.refused.is_empty());
    show.see(3, Seen::Leads(Some(Term::new(2))));
    assert_eq!(show.refused, ["election-safety"]);
}

#[test]
fn a_leader_only_appends() {
    let mut show = Show::new(1);
    show.wrote(1, &append(&[entry(1, 1, b""), entry(1, 2, b"")]));
    let cut = WalOp::Raft { hard: None, truncate_from: Some(LogIndex::new(2)), append: vec![] };
    show.wrote(1, &cut);
    assert!(show.refused.is_empty(), "a follower may cut");
    show.see(1, Seen::Leads(Some(Term::new(2))));
    show.see(1, Seen::Wrote(&append(&[entry(2, 2, b"")]), Some(Term::new(2))));
    assert!(show.refused.is_empty());
    show.see(1, Seen::Wrote(&cut, Some(Term::new(2))));
    assert_eq!(show.refused, ["leader-append-only"]);
}

#[test]
fn an_id_names_one_entry_after_one_other() {
    let mut show = Show::new(3);
    show.wrote(1, &append(&[entry(1, 1, b""), entry(1, 2, b"a")]));
    show.wrote(2, &append(&[entry(1, 1, b""), entry(1, 2, b"a")]));
    assert!(show.refused.is_empty());
    show.wrote(3, &append(&[entry(1, 1, b""), entry(1, 2, b"b")]));
    assert_eq!(show.refused, ["log-matching"]);
    let mut show = Show::new(2);
    show.wrote(1, &append(&[entry(1, 1, b""), entry(2, 2, b"")]));
    show.wrote(2, &append(&[entry(2, 1, b"")]));
    show.wrote(2, &append(&[entry(2, 2, b"")]));
    assert_eq!(show.refused, ["log-matching"]);
}

#[test]
fn a_leader_has_what_is_committed() {
    let mut show = Show::new(2);
    let hard = HardState { term: Term::new(3), ..HardState::default() };
    let log = WalOp::Raft { hard: Some(hard), truncate_from: None, append: vec![entry(1, 1, b"")] };
    show.wrote(1, &log);
    show.see(1, Seen::Commit(LogIndex::new(1)));
    show.see(2, Seen::Leads(Some(Term::new(2))));
    assert!(show.refused.is_empty(), "a late vote made a leader of a term before the one that committed");
    show.see(2, Seen::Leads(Some(Term::new(3))));
    assert!(show.refused.is_empty(), "what its own term commits comes later");
    show.see(2, Seen::Leads(Some(Term::new(4))));
    assert_eq!(show.refused, ["leader-completeness"]);
}

#[test]
fn all_commit_and_apply_the_same_in_order() {
    let mut show = Show::new(2);
    show.wrote(1, &append(&[entry(1, 1, b"")]));
    show.wrote(2, &append(&[entry(2, 1, b"")]));
    show.see(1, Seen::Commit(LogIndex::new(1)));
    show.see(1, Seen::Applied(id(1, 1), StateHash::EMPTY));
    assert!(show.refused.is_empty());
    show.see(2, Seen::Commit(LogIndex::new(1)));
    assert_eq!(show.refused, ["uniform-agreement"]);
    show.see(2, Seen::Applied(id(2, 1), StateHash::EMPTY));
    assert_eq!(show.refused, ["uniform-agreement", "state-machine-safety"]);
    show.see(1, Seen::Applied(id(1, 0), StateHash::EMPTY));
    assert_eq!(show.refused.last(), Some(&"monotonicity"));
}

#[test]
fn a_command_takes_effect_once_and_only_if_asked_for() {
    let mut show = Show::new(1);
    show.see(1, Seen::Asked(b"a"));
    show.wrote(1, &append(&[entry(1, 1, b"a"), entry(1, 2, b"a"), entry(1, 3, b"b")]));
    show.see(1, Seen::Commit(LogIndex::new(3)));
    show.see(1, Seen::Applied(id(1, 1), StateHash::EMPTY));
    assert!(show.refused.is_empty());
    show.see(1, Seen::Applied(id(1, 2), StateHash::EMPTY));
    assert_eq!(show.refused, ["integrity"]);
    show.see(1, Seen::Applied(id(1, 3), StateHash::EMPTY));
    assert_eq!(show.refused, ["integrity", "validity"]);
}

#[test]
fn a_vote_stays_and_is_durable_before_it_leaves() {
    let hard = |term, vote| HardState { term: Term::new(term), vote, promise_ms: 0 };
    let write = |hard| WalOp::Raft { hard: Some(hard), truncate_from: None, append: vec![] };
    let (one, two) = (NodeId::new(1), NodeId::new(2));
    let granted = Message {
        from: one,
        to: two,
        term: Term::new(4),
        kind: MessageKind::VoteAck { granted: true, pre: false },
    };
    let mut show = Show::new(2);
    show.wrote(1, &write(hard(4, Some(two))));
    show.see(1, Seen::Durable(&write(hard(4, Some(two)))));
    show.see(1, Seen::Sent(&granted));
    assert!(show.refused.is_empty());
    show.wrote(1, &write(hard(4, None)));
    assert_eq!(show.refused, ["monotonicity"]);
    show.see(2, Seen::Sent(&Message { from: two, to: one, ..granted }));
    assert_eq!(show.refused, ["monotonicity", "persisted-first"]);
}

#[test]
fn a_lease_excludes_later_leaders_until_its_end() {
    let mut show = Show::new(2);
    show.see(1, Seen::Leads(Some(Term::new(1))));
    show.see(1, Seen::Lease(LeaseUpdate { term: Term::new(1), until: Nanos::new(50) }));
    show.world.now = Nanos::new(50);
    show.see(2, Seen::Leads(Some(Term::new(2))));
    assert!(show.refused.is_empty());
    show.see(1, Seen::Lease(LeaseUpdate { term: Term::new(1), until: Nanos::new(51) }));
    assert_eq!(show.refused, ["lease-exclusivity"]);
}

#[test]
fn nobody_lets_go_of_what_was_committed_but_for_an_older_leader() {
    let shown = |by: u64| {
        let mut show = Show::new(2);
        let hard = HardState { term: Term::new(3), ..HardState::default() };
        let log = WalOp::Raft { hard: Some(hard), truncate_from: None, append: vec![entry(1, 1, b"")] };
        show.wrote(1, &log);
        show.wrote(2, &append(&[entry(1, 1, b"")]));
        show.see(1, Seen::Commit(LogIndex::new(1)));
        let from = Some(LogIndex::new(1));
        show.wrote(2, &WalOp::Raft { hard: None, truncate_from: from, append: vec![entry(by, 1, b"")] });
        show.refused
    };
    assert!(shown(2).is_empty(), "the leader of term 2 knew nothing of what term 3 would commit");
    assert_eq!(shown(3), ["durability"]);
    assert_eq!(shown(4), ["durability"]);
}

fn request(seq: u64) -> RequestId {
    RequestId::Session { session: SessionId::new(9), seq }
}

fn attempt(seq: u64, took_effect: bool) -> Attempt {
    Attempt { request: request(seq), adds: Some((Key::new("c").unwrap(), 2)), took_effect }
}

#[test]
fn a_request_takes_effect_once_on_all_replicas() {
    let mut show = Show::new(2);
    show.see(1, Seen::Attempted(id(1, 5), &attempt(1, true)));
    show.see(2, Seen::Attempted(id(1, 5), &attempt(1, true)));
    show.see(1, Seen::Attempted(id(1, 6), &attempt(1, false)));
    assert!(show.refused.is_empty());
    show.see(2, Seen::Attempted(id(1, 6), &attempt(1, true)));
    assert_eq!(show.refused, ["exactly-once"]);
}

#[test]
fn what_a_client_is_told_of_a_request_is_true_and_stays_so() {
    let mut show = Show::new(1);
    show.see(1, Seen::Told(request(1), Fate::NotApplied));
    show.see(1, Seen::Attempted(id(1, 5), &attempt(1, false)));
    show.see(1, Seen::Attempted(id(1, 6), &attempt(2, true)));
    show.see(1, Seen::Told(request(2), Fate::Applied(Revision::new(6))));
    assert!(show.refused.is_empty());
    show.see(1, Seen::Attempted(id(1, 7), &attempt(1, true)));
    assert_eq!(show.refused, ["exactly-once"], "it was said not to be applied");
    show.see(1, Seen::Told(request(3), Fate::Applied(Revision::new(8))));
    assert_eq!(show.refused.len(), 2, "it did nothing");
    show.see(1, Seen::Attempted(id(1, 9), &attempt(4, true)));
    show.see(1, Seen::Told(request(4), Fate::NotApplied));
    assert_eq!(show.refused.len(), 3, "it did something");
    show.see(1, Seen::Told(request(4), Fate::Unknown));
    assert_eq!(show.refused.len(), 4, "it was told already");
}

#[test]
fn a_counter_is_the_sum_of_what_took_effect() {
    let (mut show, key) = (Show::new(1), Key::new("c").unwrap());
    show.see(1, Seen::Attempted(id(1, 5), &attempt(1, true)));
    show.see(1, Seen::Told(request(1), Fate::Applied(Revision::new(5))));
    show.see(1, Seen::Attempted(id(1, 6), &attempt(2, true)));
    show.see(1, Seen::Told(request(2), Fate::Unknown));
    show.see(1, Seen::Told(request(3), Fate::Unknown));
    for (value, after) in [(4, 6), (4, 9), (2, 5)] {
        show.see(1, Seen::Counted(&key, value, LogIndex::new(after)));
    }
    assert!(show.refused.is_empty());
    show.see(1, Seen::Counted(&key, 6, LogIndex::new(9)));
    show.see(1, Seen::Counted(&key, 2, LogIndex::new(9)));
    assert_eq!(show.refused, ["exactly-once", "exactly-once"]);
}

#[test]
fn a_transaction_is_decided_once_and_told_so_and_takes_effect_as_a_whole() {
    let name = |seq| TxnId { session: SessionId::new(1), seq };
    let step = |seq, known, took_effect| TxnStep { txn: name(seq), known, took_effect };
    let key = |name: &str| Key::new(name.to_owned()).unwrap();
    let write = |name: &str| Write { key: key(name), value: Some(Value::new("v").unwrap()) };
    let txn = Transaction::new(key("1a"), vec![], vec![], vec![write("1a"), write("2a")]).unwrap();
    let mut show = Show::new(1);
    for seq in 1..=3 {
        show.see(1, Seen::Begun(name(seq), &txn));
    }
    show.see(1, Seen::Stepped(id(1, 5), &step(1, Known::Absent, false)));
    show.see(1, Seen::Stepped(id(1, 6), &step(1, Known::Committed, true)));
    show.see(1, Seen::Stepped(id(1, 6), &step(1, Known::Committed, true)));
    show.see(1, Seen::Outcome(name(1), true));
    show.see(1, Seen::Outcome(name(2), false));
    show.see(1, Seen::Stepped(id(1, 7), &step(2, Known::Aborted, false)));
    assert!(show.refused.is_empty());
    show.see(1, Seen::Stepped(id(1, 8), &step(1, Known::Aborted, false)));
    assert_eq!(show.refused, ["atomicity"], "it is decided otherwise");
    show.refused.clear();
    let refused = [
        Seen::Stepped(id(1, 9), &step(1, Known::Committed, true)),
        Seen::Outcome(name(1), false),
        Seen::Stepped(id(1, 10), &step(2, Known::Committed, false)),
        Seen::Outcome(name(3), true),
        Seen::Stepped(id(1, 11), &step(3, Known::Absent, true)),
        Seen::AtRest,
    ];
    for (at, seen) in refused.into_iter().enumerate() {
        show.see(1, seen);
        assert_eq!(show.refused, vec!["atomicity"; at + 1]);
    }
}
