//! The core is total: no message, however wrong, and no request, whenever it comes, makes a replica panic or breaks its
//! invariants.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use kv_raft::invariants::{check_state, check_transition};
use kv_raft::{Config, Conflict, LeaseConfig, Message, MessageKind, Raft, Restored, Round, Target, Ticket};
use kv_types::{Body, Entry, Lamport, LogId, LogIndex, Membership, Nanos, NodeId, SnapshotMeta, Term};
use proptest::prelude::*;

fn raft() -> Raft {
    let config = Config {
        election_timeout_min: Duration::from_millis(100),
        heartbeat: Duration::from_millis(20),
        in_flight_appends_max: 4,
        in_flight_bytes_max: 100,
        append_bytes_max: 100,
        append_entries_max: 4,
        uncommitted_bytes_max: 100,
        lease: Some(LeaseConfig { drift_ppm: 10_000, granularity: Duration::ZERO }),
        ..Config::new(NodeId::new(1), 1, 1)
    };
    let last = LogId::new(Term::new(1), LogIndex::new(1));
    let base = SnapshotMeta { last, membership: Membership::of_voters((1..=3).map(NodeId::new)) };
    Raft::new(config, Nanos::new(0), Restored { base, log_start: last, ..Restored::default() }).unwrap()
}

/// Small numbers mostly, so that messages meet the state; the largest, too.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![20 => 0_u64..6, 1 => Just(u64::MAX), 1 => Just(1 << 62)]
}

fn id() -> impl Strategy<Value = LogId> {
    (number(), number()).prop_map(|(term, index)| LogId::new(Term::new(term), LogIndex::new(index)))
}

fn append() -> impl Strategy<Value = MessageKind> {
    let entries = prop::collection::vec(0_u64..2, 0..4);
    let promise = prop_oneof![Just(0_u32), 0..400_u32, Just(60_001), Just(u32::MAX)];
    (id(), entries, number(), number(), promise).prop_map(|(prev, steps, commit, number, promise_ms)| {
        let mut entries: Vec<Entry> = Vec::new();
        for step in steps {
            let before = entries.last().map_or(prev, |entry| entry.id);
            let term = Term::new(before.term.get().saturating_add(step));
            let index = LogIndex::new(before.index.get().saturating_add(1));
            entries.push(Entry { id: LogId::new(term, index), stamp: Lamport::ZERO, body: Body::Blank });
        }
        let last = entries.last().map_or(prev, |entry| entry.id);
        let round = Round { incarnation: 1, number };
        MessageKind::Append { prev, last, entries, commit: LogIndex::new(commit), round, promise_ms }
    })
}

fn ack(round: Round, result: Result<LogIndex, Conflict>, clock: u64) -> MessageKind {
    MessageKind::AppendAck { round, result, clock: Nanos::new(clock) }
}

fn kind() -> impl Strategy<Value = MessageKind> {
    let round = || number().prop_map(|number| Round { incarnation: 1, number });
    let conflict = || (number(), id()).prop_map(|(prev, hint)| Conflict { prev: LogIndex::new(prev), hint });
    prop_oneof![
        4 => append(),
        1 => (round(), number(), number()).prop_map(|(round, index, clock)| {
            ack(round, Ok(LogIndex::new(index)), clock)
        }),
        1 => (round(), conflict(), number()).prop_map(|(round, conflict, clock)| ack(round, Err(conflict), clock)),
        1 => (id(), any::<bool>(), any::<bool>())
            .prop_map(|(last, pre, by_transfer)| MessageKind::Vote { last, pre, by_transfer }),
        1 => id().prop_map(|last| MessageKind::TimeoutNow { last }),
        3 => (any::<bool>(), any::<bool>()).prop_map(|(granted, pre)| MessageKind::VoteAck { granted, pre }),
        1 => round().prop_map(|round| MessageKind::ReadIndex { round }),
        1 => (round(), number()).prop_map(|(round, i)| MessageKind::ReadIndexAck { round, result: Ok(LogIndex::new(i)) }),
    ]
}

/// What a caller may ask for at any time.
#[derive(Clone, Debug)]
enum Request {
    Campaign,
    Propose,
    Read,
    Transfer(u64),
    Reconfigure(u8, u8),
    Lease(Option<u32>),
    Jumped,
    Unreachable(u64),
    Back,
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        3 => Just(Request::Campaign),
        3 => Just(Request::Propose),
        2 => Just(Request::Read),
        2 => (0_u64..5).prop_map(Request::Transfer),
        3 => (any::<u8>(), any::<u8>()).prop_map(|(voters, learners)| Request::Reconfigure(voters, learners)),
        1 => prop::option::of(any::<u32>()).prop_map(Request::Lease),
        1 => Just(Request::Jumped),
        1 => (0_u64..5).prop_map(Request::Unreachable),
        1 => Just(Request::Back),
    ]
}

fn set(bits: u8) -> std::collections::BTreeSet<NodeId> {
    (0..8).filter(|bit| bits >> bit & 1 == 1).map(NodeId::new).collect()
}

fn ask(raft: &mut Raft, now: Nanos, request: Request) {
    match request {
        Request::Campaign => _ = raft.campaign(now),
        Request::Propose => _ = raft.propose(vec!["x".into(), "y".into()]),
        Request::Read => _ = raft.read(now, Ticket::new(1)),
        Request::Transfer(to) => _ = raft.transfer(now, NodeId::new(to)),
        Request::Reconfigure(voters, learners) => {
            let target = Target { voters: set(voters), learners: set(learners) };
            _ = raft.reconfigure(now, target);
        }
        Request::Lease(drift) => {
            let lease = drift.map(|drift_ppm| LeaseConfig { drift_ppm, granularity: Duration::ZERO });
            _ = raft.set_lease(now, lease);
        }
        Request::Jumped => raft.clock_jumped(now),
        Request::Unreachable(peer) => raft.unreachable(NodeId::new(peer)),
        Request::Back => raft.tick(Nanos::new(now.get().saturating_sub(1))),
    }
}

/// A `take`, carried out; the disk may answer later.
fn ready(raft: &mut Raft, now: Nanos, disk_answers: bool) {
    for _ in 0..3 {
        let output = raft.take();
        if let Some(write) = output.write.filter(|_| disk_answers) {
            raft.persisted(now, write.id);
        }
        if let Some(commit) = output.commit {
            raft.applied(commit.index);
        }
    }
}

/// Three replies that make a leader of node 1, if nothing else is going on.
fn elect(raft: &mut Raft, now: Nanos) {
    _ = raft.campaign(now);
    for pre in [true, false] {
        ready(raft, now, true);
        let kind = MessageKind::VoteAck { granted: true, pre };
        raft.step(now, Message { from: NodeId::new(2), to: NodeId::new(1), term: raft.term(), kind });
    }
    ready(raft, now, true);
}

proptest! {
    #[test]
    fn no_message_breaks_a_replica(
        messages in prop::collection::vec((0_u64..5, number(), kind(), 0_u64..300), 1..60),
    ) {
        let mut raft = raft();
        let mut now = Nanos::new(0);
        for (from, term, kind, millis) in messages {
            let before = raft.status();
            now = now.after(Duration::from_millis(millis));
            raft.tick(now);
            raft.step(now, Message { from: NodeId::new(from), to: NodeId::new(1), term: Term::new(term), kind });
            if let Some(write) = raft.take().write {
                raft.persisted(now, write.id);
            }
            check_state(&raft);
            check_transition(&before, &raft.status());
        }
    }

    #[test]
    fn no_request_breaks_a_leader(
        events in prop::collection::vec(
            (request(), 0_u64..5, kind(), 0_u64..60, any::<bool>()), 1..60,
        ),
    ) {
        let mut raft = raft();
        let mut now = Nanos::new(0);
        for (request, from, kind, millis, disk_answers) in events {
            if !raft.is_leader() {
                elect(&mut raft, now);
            }
            let before = raft.status();
            now = now.after(Duration::from_millis(millis));
            raft.tick(now);
            ask(&mut raft, now, request);
            // Of the replica's own term, which gets furthest.
            let term = raft.term();
            raft.step(now, Message { from: NodeId::new(from), to: NodeId::new(1), term, kind });
            ready(&mut raft, now, disk_answers);
            check_state(&raft);
            check_transition(&before, &raft.status());
        }
    }
}
