//! What a core makes of states, clocks and wishes that no golden script reaches.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/one.rs"]
mod one;

use std::time::Duration;

use kv_raft::{
    Config, Corrupt, EntryShape, Fatal, LeaseConfig, Message, MessageKind, NoLease, Raft, Refused, Restored,
    Role, Target, Ticket,
};
use kv_types::{HardState, Membership, Nanos, SnapshotMeta};
use one::{E, One, append, config, i, id, n, round, t, vote};

fn base(term: u64, index: u64) -> SnapshotMeta {
    SnapshotMeta { last: id(term, index), membership: Membership::of_voters((1..=3).map(n)) }
}

#[test]
fn a_hard_state_behind_the_snapshot_is_raised_to_it() {
    let restored = Restored { base: base(1, 10), log_start: id(1, 10), ..Restored::default() };
    let mut raft = Raft::new(config(), Nanos::new(5), restored).unwrap();
    let status = raft.status();
    assert_eq!((status.role, status.term, status.vote, status.leader), (Role::Follower, t(1), None, None));
    assert_eq!((status.commit, status.applied, status.first, status.last), (i(10), i(10), i(11), id(1, 10)));
    let hard = raft.take().write.unwrap().hard;
    assert_eq!(hard, Some(HardState { term: t(1), ..HardState::default() }), "the raise is written");
    assert_eq!(raft.campaign(Nanos::new(5)), Ok(()), "it has promised nothing: it was never started");
}

#[test]
fn status_tells_the_term_of_every_entry_held() {
    let entries = [(1, 11), (1, 12), (4, 13), (5, 14), (5, 15)];
    let restored = Restored {
        hard: HardState { term: t(7), vote: Some(n(2)), promise_ms: 0 },
        base: base(1, 11),
        log_start: id(1, 10),
        entries: entries.map(|(term, index)| EntryShape { id: id(term, index), bytes: 3 }).to_vec(),
        ..Restored::default()
    };
    let status = Raft::new(config(), Nanos::new(0), restored).unwrap().status();
    let terms: Vec<Option<u64>> = (9..=16).map(|at| status.term_of(i(at)).map(|term| term.get())).collect();
    assert_eq!(terms, [None, Some(1), Some(1), Some(1), Some(4), Some(5), Some(5), None]);
    assert_eq!((status.first, status.last, status.vote), (i(11), id(5, 15), Some(n(2))));
}

#[test]
fn a_replica_sits_its_longest_promise_out() {
    for (promise_ms, waits) in [(0, E), (40, E), (300, 300)] {
        let hard = HardState { term: t(1), vote: None, promise_ms };
        let restored = Restored { hard, base: base(1, 1), log_start: id(1, 1), ..Restored::default() };
        let start = Nanos::new(7_000_000_000);
        let mut raft = Raft::new(config(), start, restored).unwrap();
        let until = start.after(Duration::from_millis(waits));
        let just_before = Nanos::new(until.get() - 1);
        assert_eq!(raft.campaign(just_before), Err(Refused::Withheld { until }));
        let ask = Message { from: n(2), to: n(1), term: t(2), kind: vote(id(1, 1)) };
        raft.step(just_before, ask.clone());
        assert_eq!(raft.take().send_after, [], "no vote within {waits} ms");
        raft.step(until, ask);
        assert_eq!(raft.take().send_after.len(), 1);
    }
}

#[test]
fn settings_out_of_range_are_refused() {
    let refused = |config: Config| {
        let restored = Restored { base: base(1, 1), log_start: id(1, 1), ..Restored::default() };
        Raft::new(config, Nanos::new(0), restored).err()
    };
    assert_eq!(refused(config()), None);
    let slow = Config { election_timeout_min: Duration::from_secs(61), ..config() };
    assert_eq!(refused(slow), Some(Corrupt::Setting("election_timeout_min")));
    let wild = LeaseConfig { drift_ppm: 1_000_000, granularity: Duration::ZERO };
    assert_eq!(refused(Config { lease: Some(wild), ..config() }), Some(Corrupt::Setting("lease")));
    let mut one = One::new(3, &[], 0);
    assert!(one.on(|raft, now| raft.set_lease(now, Some(wild))).is_err());
}

#[test]
fn a_clock_that_runs_back_stops_the_replica_and_its_lease() {
    let mut one = One::leased(3);
    let sent = one.lead();
    one.ack(2, round(&sent), 1);
    one.pass(0);
    let leased = one.raft.lease();
    assert!(leased.until > one.now, "{:?}", one.raft.status().lease);
    let (before, now) = (one.now, Nanos::new(one.now.get() - 1));
    one.raft.tick(now);
    let output = one.raft.take();
    assert_eq!(output.fatal, Some(Fatal::ClockRanBack { before, now }));
    assert_eq!(output.lease.unwrap().until, Nanos::default(), "and it says so");
    assert_eq!(one.raft.propose(vec!["x".into()]), Err(Refused::Stopped));
    assert_eq!(one.raft.read(before, Ticket::new(1)), Err(Refused::Stopped));
    assert_eq!(one.raft.transfer(before, n(2)), Err(Refused::Stopped));
    assert_eq!(one.raft.reconfigure(before, Target::default()), Err(Refused::Stopped));
    assert_eq!(one.raft.campaign(before), Err(Refused::Stopped));
    assert!(one.raft.take().fatal.is_some(), "for good");
}

#[test]
fn a_wish_to_take_over_needs_a_durable_log_that_ends_where_it_says() {
    let wish = |index| MessageKind::TimeoutNow { last: id(2, index) };
    let mut one = One::new(3, &[1], 2);
    one.disk_held = true;
    one.step(2, 2, append(id(1, 1), &[2], 0));
    one.step(2, 2, wish(2));
    assert_eq!(one.role(), Role::Follower, "not durable");
    one.persist();
    one.disk_held = false;
    one.step(2, 2, wish(1));
    one.step(2, 2, wish(3));
    one.step(2, 1, wish(2));
    one.step(3, 2, wish(2));
    assert_eq!((one.role(), one.term()), (Role::Follower, 2), "another end, an older term, no leader");
    one.on(|raft, _| raft.set_electable(false));
    one.step(2, 2, wish(2));
    assert_eq!(one.role(), Role::Follower, "its state machine cannot serve");
    assert_eq!(one.on(|raft, now| raft.campaign(now)), Err(Refused::NotElectable));
    one.on(|raft, _| raft.set_electable(true));
    let sent = one.step(2, 2, wish(2));
    assert_eq!((one.role(), one.term()), (Role::Candidate, 3));
    let by_transfer =
        |message: &&Message| matches!(message.kind, MessageKind::Vote { by_transfer: true, pre: false, .. });
    assert_eq!(sent.iter().filter(by_transfer).count(), 2, "{sent:?}");
    one.step(2, 3, wish(2));
    assert_eq!(one.term(), 3, "a doubled wish finds a candidate");
}

#[test]
fn a_leader_whose_state_machine_cannot_serve_hands_over_to_who_has_most_or_steps_down() {
    let mut one = One::new(3, &[], 0);
    let sent = one.lead();
    one.ack(3, round(&sent), 1);
    one.on(|raft, _| raft.set_electable(false));
    let sent = one.pass(1);
    let told: Vec<_> =
        sent.iter().filter(|message| matches!(message.kind, MessageKind::TimeoutNow { .. })).collect();
    assert!(matches!(told[..], [message] if message.to == n(3)), "{sent:?}");
    assert_eq!(one.on(|raft, _| raft.propose(vec!["x".into()])), Err(Refused::Transferring { to: n(3) }));
    one.pass(E);
    assert_eq!(one.role(), Role::Follower, "the hand-over failed");
    let mut alone = One::new(1, &[], 0);
    alone.lead();
    alone.on(|raft, _| raft.set_electable(false));
    alone.pass(3 * E);
    assert_eq!(alone.role(), Role::Leader, "nobody else could");
}

#[test]
fn rows_of_another_replica_become_the_base_and_leave_the_tail() {
    let mut one = One::new(3, &[1, 1, 1], 1);
    one.step(2, 1, append(id(1, 3), &[1], 3));
    let output = {
        one.raft.rebuilt(base(1, 3));
        one.raft.take()
    };
    let reset = output.write.unwrap().reset.unwrap();
    assert_eq!((reset.meta.last, reset.keep_tail), (id(1, 3), true));
    let status = one.raft.status();
    assert_eq!((status.applied, status.commit, status.first, status.last), (i(3), i(3), i(4), id(1, 4)));
}

#[test]
fn only_a_real_vote_by_transfer_passes_a_promise() {
    let ask = |pre, by_transfer| MessageKind::Vote { last: id(9, 9), pre, by_transfer };
    let mut one = One::new(3, &[], 1);
    one.step(2, 1, append(id(0, 0), &[], 0));
    assert_eq!(one.step(3, 2, ask(false, false)), []);
    assert_eq!(one.step(3, 2, ask(true, true)), [], "a pre-vote is never by transfer");
    assert_eq!((one.term(), one.raft.leader()), (1, Some(n(2))));
    let sent = one.step(3, 9, ask(false, true));
    assert!(matches!(sent[..], [Message { kind: MessageKind::VoteAck { granted: true, .. }, .. }]));
}

#[test]
fn the_lease_is_dropped_in_the_output_that_lets_go_of_the_office() {
    let mut one = One::leased(3);
    let sent = one.lead();
    one.ack(2, round(&sent), 1);
    one.pass(0);
    let leased = one.raft.lease();
    assert!(leased.until > one.now);
    // A vote by transfer, as from a target that this leader would have told: the lease and the vote in one output.
    let kind = MessageKind::Vote { last: id(1, 9), pre: false, by_transfer: true };
    one.raft.step(one.now, Message { from: n(3), to: n(1), term: t(2), kind });
    let output = one.raft.take();
    assert_eq!(output.lease.unwrap().until, Nanos::default());
    assert_eq!(output.send_after.len(), 1);
    assert_eq!(one.raft.status().lease.none, Some(NoLease::NotLeader));
}

#[test]
fn a_round_is_stamped_before_anything_of_it_leaves() {
    let mut one = One::leased(3);
    let sent = one.lead();
    one.ack(2, round(&sent), 1);
    one.pass(0);
    let begun = one.now;
    // A heartbeat of the next interval, and no other event until its answer: `take` cannot make its stamp later.
    let beat = one.pass(20);
    let sent_at = one.now;
    one.now = one.now.after(Duration::from_millis(30));
    one.ack(2, round(&beat), 1);
    let length = LeaseConfig { drift_ppm: 10_000, granularity: Duration::ZERO }.length(100);
    assert_eq!(one.raft.lease().until, sent_at.after(length));
    assert!(sent_at > begun && sent_at < one.now);
}

#[test]
fn a_membership_has_a_largest_size() {
    let mut one = One::new(3, &[], 0);
    let sent = one.lead();
    one.ack(2, round(&sent), 1);
    let target = |count: u64| Target { voters: (1..=count).map(n).collect(), ..Target::default() };
    assert_eq!(
        one.on(|raft, now| raft.reconfigure(now, target(65))),
        Err(Refused::TooManyMembers { members: 65 })
    );
    assert_eq!(one.on(|raft, now| raft.reconfigure(now, target(64))), Ok(i(2)));
}

#[test]
fn a_ticket_used_twice_is_two_reads() {
    let mut one = One::new(3, &[], 0);
    let sent = one.lead();
    one.ack(2, round(&sent), 1);
    let read = |one: &mut One| {
        one.sent.clear();
        one.on(|raft, now| raft.read(now, Ticket::new(7))).unwrap();
        std::mem::take(&mut one.sent)
    };
    let first = round(&read(&mut one));
    assert_eq!(read(&mut one), [], "the second read waits for the next round");
    let second = round(&one.ack(2, first, 1));
    assert_eq!(one.reads, [(Ticket::new(7), true)], "an answer to the first round is none to the second");
    one.ack(3, first, 1);
    assert_eq!(one.reads.len(), 1);
    one.ack(3, second, 1);
    assert_eq!(one.reads.len(), 2);
}
