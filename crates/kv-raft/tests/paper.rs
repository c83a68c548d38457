//! The rules of the Raft paper, one test a rule, in the paper's order. Where ours is stricter (a pre-vote before each
//! election, votes withheld while a leader is live, votes and copies that count once durable) the test says so.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/one.rs"]
mod one;

use std::collections::BTreeSet;

use kv_raft::{Message, MessageKind, Role};
use kv_types::LogId;
use one::{E, One, append, appends, entry, i, id, n, round, t, vote};

// Section 5.1.

fn updates_term_from_message(mut one: One) {
    one.step(2, 9, append(LogId::ZERO, &[], 0));
    assert_eq!((one.role(), one.term()), (Role::Follower, 9));
    assert_eq!(one.raft.leader(), Some(n(2)));
}

/// If one's term is smaller than another's, it is updated to the larger value.
#[test]
fn follower_update_term_from_message() {
    updates_term_from_message(One::new(3, &[], 1));
}

/// A candidate whose term is out of date reverts to follower.
#[test]
fn candidate_update_term_from_message() {
    let mut one = One::new(3, &[], 1);
    one.candidate();
    assert_eq!(one.role(), Role::Candidate);
    updates_term_from_message(one);
}

/// So does a leader.
#[test]
fn leader_update_term_from_message() {
    let mut one = One::new(3, &[], 1);
    one.lead();
    updates_term_from_message(one);
}

/// A request of a stale term is rejected; the answer carries the newer term.
#[test]
fn reject_stale_term_message() {
    let mut one = One::new(3, &[1], 5);
    let sent = one.step(2, 4, append(id(1, 1), &[4], 2));
    assert_eq!((one.terms(), one.commit(), one.raft.leader()), (vec![1], 0, None));
    assert!(
        matches!(sent[..], [Message { term, kind: MessageKind::AppendAck { result: Err(_), .. }, .. }] if term == t(5))
    );
    let sent = one.step(2, 4, vote(id(4, 9)));
    assert!(
        matches!(sent[..], [Message { term, kind: MessageKind::VoteAck { granted: false, .. }, .. }] if term == t(5))
    );
}

// Section 5.2.

/// A server starts as a follower.
#[test]
fn start_as_follower() {
    assert_eq!(One::new(3, &[], 0).role(), Role::Follower);
}

/// A leader sends heartbeats to all followers at each interval, without entries.
#[test]
fn leader_bcast_beat() {
    let mut one = One::new(3, &[], 1);
    one.lead();
    let sent = appends(&one.pass(20));
    assert_eq!(sent, [(2, LogId::ZERO, LogId::ZERO, 0), (3, LogId::ZERO, LogId::ZERO, 0)]);
}

/// A server without a leader for an election timeout asks for votes, in a new term and with a vote for itself. Ours asks
/// in the old term first whether that would succeed.
fn starts_election(mut one: One, before: Role) {
    let term = one.term();
    assert_eq!(one.role(), before);
    let asked = one.pass(2 * E);
    assert_eq!((one.role(), one.term()), (Role::PreCandidate, term));
    let to: BTreeSet<u64> = asked.iter().map(|message| message.to.get()).collect();
    assert_eq!(to, BTreeSet::from([2, 3]));
    let sent = one.step(2, term, MessageKind::VoteAck { granted: true, pre: true });
    assert_eq!((one.role(), one.term()), (Role::Candidate, term + 1));
    assert_eq!(one.raft.status().vote, Some(n(1)));
    let votes: Vec<(u64, u64)> = sent.iter().map(|message| (message.to.get(), message.term.get())).collect();
    assert_eq!(votes, [(2, term + 1), (3, term + 1)]);
    assert!(sent.iter().all(|message| matches!(message.kind, MessageKind::Vote { pre: false, .. })));
}

/// A follower that hears nothing begins an election.
#[test]
fn follower_start_election() {
    starts_election(One::new(3, &[], 1), Role::Follower);
}

/// A candidate whose election ends without a winner begins a new one.
#[test]
fn candidate_start_new_election() {
    let mut one = One::new(3, &[], 1);
    one.candidate();
    starts_election(one, Role::Candidate);
}

/// The votes decide an election in one round: won with a majority, lost if that is out of reach, else open.
#[test]
fn leader_election_in_one_round_rpc() {
    let cases: [(u64, &[u64], &[u64], Role); 10] = [
        (1, &[], &[], Role::Leader),
        (3, &[2, 3], &[], Role::Leader),
        (3, &[2], &[], Role::Leader),
        (5, &[2, 3, 4, 5], &[], Role::Leader),
        (5, &[2, 3], &[], Role::Leader),
        (3, &[], &[2, 3], Role::Follower),
        (5, &[], &[2, 3, 4], Role::Follower),
        (5, &[2], &[3, 4, 5], Role::Follower),
        (3, &[], &[], Role::Candidate),
        (5, &[2], &[], Role::Candidate),
    ];
    for (voters, yes, no, role) in cases {
        let mut one = One::new(voters, &[], 1);
        one.candidate();
        for from in yes {
            one.step(*from, 2, MessageKind::VoteAck { granted: true, pre: false });
        }
        for from in no {
            one.step(*from, 2, MessageKind::VoteAck { granted: false, pre: false });
        }
        assert_eq!((one.role(), one.term()), (role, 2), "{voters} voters, {yes:?} for it");
    }
}

/// A follower votes for at most one candidate a term, first come first served.
#[test]
fn follower_vote() {
    for (voted, asks, granted) in [(None, 2, true), (None, 3, true), (Some(2), 2, true), (Some(3), 3, true)]
        .into_iter()
        .chain([(Some(2), 3, false), (Some(3), 2, false)])
    {
        let mut one = One::new(3, &[], 0);
        if let Some(first) = voted {
            one.step(first, 1, vote(LogId::ZERO));
        }
        let sent = one.step(asks, 1, vote(LogId::ZERO));
        let answer = MessageKind::VoteAck { granted, pre: false };
        assert_eq!(sent, [Message { from: n(1), to: n(asks), term: t(1), kind: answer }], "{voted:?}");
    }
}

/// A candidate that hears from a leader of its term, or of a later one, follows it.
#[test]
fn candidate_fallback() {
    for later in [0, 3] {
        let mut one = One::new(3, &[], 1);
        one.candidate();
        let term = one.term() + later;
        one.step(2, term, append(LogId::ZERO, &[], 0));
        assert_eq!((one.role(), one.term(), one.raft.leader()), (Role::Follower, term, Some(n(2))));
    }
}

/// The timeouts that a server draws, in milliseconds after the last event.
fn timeouts(candidate: bool) -> BTreeSet<u64> {
    let mut one = One::new(3, &[], 1);
    let drawn = (0..200).map(|_| {
        if candidate {
            one.pass(1);
            one.candidate();
        } else {
            let term = one.term();
            one.step(2, term, append(LogId::ZERO, &[], 0));
        }
        let deadline = one.raft.status().election_deadline;
        let drawn = deadline.since(one.now).as_millis();
        one.now = deadline;
        one.on(|raft, now| raft.tick(now));
        u64::try_from(drawn).unwrap()
    });
    drawn.collect()
}

fn are_random(drawn: &BTreeSet<u64>) {
    assert!(drawn.iter().all(|millis| (E..2 * E).contains(millis)), "{drawn:?}");
    assert!(drawn.len() > 60, "only {} different ones", drawn.len());
    assert!(*drawn.first().unwrap() < E + 10 && *drawn.last().unwrap() > 2 * E - 10, "{drawn:?}");
}

/// A follower's election timeout is drawn at random from E to 2 E.
#[test]
fn follower_election_timeout_randomized() {
    are_random(&timeouts(false));
}

/// And so is a candidate's.
#[test]
fn candidate_election_timeout_randomized() {
    are_random(&timeouts(true));
}

/// How often the two earliest of five servers time out within a heartbeat of each other, of 200 draws.
fn conflicts(candidates: bool) -> usize {
    let mut conflicts = 0;
    for seed in 0..200 {
        let mut deadlines: Vec<_> = (1..=5)
            .map(|node| {
                let config = kv_raft::Config { id: n(node), seed, ..one::config() };
                let mut one = One::with(config, 5, &[], 0);
                if candidates {
                    one.on(|raft, now| raft.campaign(now)).unwrap();
                }
                one.raft.status().election_deadline
            })
            .collect();
        deadlines.sort();
        conflicts += usize::from(deadlines[1].since(deadlines[0]).as_millis() < 4);
    }
    conflicts
}

/// Random timeouts make it rare that two followers time out within the time a message takes: the one reason for split
/// votes. With five servers and 4 ms of 100 the chance is about one in five.
#[test]
fn followers_election_timeout_nonconflict() {
    let conflicts = conflicts(false);
    assert!((1..60).contains(&conflicts), "{conflicts} of 200");
}

/// The same for candidates after a split vote.
#[test]
fn candidates_election_timeout_nonconflict() {
    let conflicts = conflicts(true);
    assert!((1..60).contains(&conflicts), "{conflicts} of 200");
}

// Section 5.3.

/// A leader of three whose blank entry at index 1 is committed.
fn settled() -> One {
    let mut one = One::new(3, &[], 0);
    let sent = one.lead();
    one.ack(2, round(&sent), 1);
    one.ack(3, round(&sent), 1);
    assert_eq!((one.commit(), one.term()), (1, 1));
    one
}

/// A leader appends a command to its log and sends it to all, with the entry before it.
#[test]
fn leader_start_replication() {
    let mut one = settled();
    let sent = appends(&one.propose("x"));
    assert_eq!(sent, [(2, id(1, 1), id(1, 2), 1), (3, id(1, 1), id(1, 2), 1)]);
    assert_eq!(one.terms(), [1, 1]);
}

/// An entry that a majority holds is committed, and the followers are told by the next append.
#[test]
fn leader_commit_entry() {
    let mut one = settled();
    let sent = one.propose("x");
    assert_eq!(appends(&one.ack(2, round(&sent), 2)), []);
    assert_eq!(one.commit(), 2);
    let told = one.propose("y");
    assert_eq!(appends(&told), [(2, id(1, 2), id(1, 3), 2), (3, id(1, 2), id(1, 3), 2)]);
}

/// Committed means a majority, this server counted.
#[test]
fn leader_acknowledge_commit() {
    let cases: [(u64, &[u64], bool); 9] = [
        (1, &[], true),
        (3, &[], false),
        (3, &[2], true),
        (3, &[2, 3], true),
        (5, &[], false),
        (5, &[2], false),
        (5, &[2, 3], true),
        (5, &[2, 3, 4], true),
        (5, &[2, 3, 4, 5], true),
    ];
    for (voters, acked, committed) in cases {
        let mut one = One::new(voters, &[], 0);
        let mut sent = one.lead();
        for from in 2..=voters {
            one.ack(from, round(&sent), 1);
        }
        let proposed = one.propose("x");
        if voters > 1 {
            sent = proposed;
        }
        for from in acked {
            one.ack(*from, round(&sent), 2);
        }
        assert_eq!(one.commit() == 2, committed, "{voters} voters, {acked:?}");
    }
}

/// A committed entry commits all before it, those of earlier leaders too.
#[test]
fn leader_commit_preceding_entries() {
    for terms in [&[][..], &[2], &[1, 2], &[1]] {
        let mut one = One::new(3, terms, 2);
        let sent = one.lead();
        let last = terms.len() as u64 + 1;
        one.ack(2, round(&sent), last);
        assert_eq!(one.commit(), last, "{terms:?}");
        assert_eq!(one.raft.status().applied, i(last), "{terms:?}");
    }
}

/// A follower that learns of a commit applies the entries in order.
#[test]
fn follower_commit_entry() {
    for (terms, commit) in [(&[1][..], 1), (&[1, 1], 2), (&[1, 1], 1)] {
        let mut one = One::new(3, &[], 1);
        one.step(2, 1, append(LogId::ZERO, terms, commit));
        assert_eq!((one.commit(), one.raft.status().applied), (commit, i(commit)));
    }
}

/// A follower refuses entries whose predecessor it does not hold, and names one that may match.
#[test]
fn follower_check_msg_app() {
    let cases = [
        (LogId::ZERO, Ok(0)),
        (id(1, 1), Ok(1)),
        (id(2, 2), Ok(2)),
        (id(1, 2), Err((2, id(1, 1)))),
        (id(3, 3), Err((3, id(2, 2)))),
    ];
    for (prev, expected) in cases {
        let mut one = One::new(3, &[1, 2], 3);
        let sent = one.step(2, 3, append(prev, &[], 0));
        let [Message { kind: MessageKind::AppendAck { result, .. }, .. }] = &sent[..] else {
            panic!("{sent:?}")
        };
        let answer = result.map(|index| index.get()).map_err(|conflict| (conflict.prev.get(), conflict.hint));
        assert_eq!(answer, expected, "{prev}");
    }
}

/// What conflicts goes, with all that follows it; what is there already stays.
#[test]
fn follower_append_entries() {
    let cases: [(LogId, &[u64], &[u64]); 4] = [
        (id(2, 2), &[3], &[1, 2, 3]),
        (id(1, 1), &[3, 3], &[1, 3, 3]),
        (LogId::ZERO, &[1], &[1, 2]),
        (LogId::ZERO, &[3], &[3]),
    ];
    for (prev, sent, log) in cases {
        let mut one = One::new(3, &[1, 2], 3);
        one.step(2, 3, append(prev, sent, 0));
        assert_eq!(one.terms(), log, "{sent:?} after {prev}");
        assert_eq!(one.raft.status().durable, i(log.len() as u64));
    }
}

/// Figure 7: a leader brings every follower's log to its own, whatever it holds.
#[test]
fn leader_sync_follower_log() {
    let leader_log = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6];
    let followers: [&[u64]; 6] = [
        &[1, 1, 1, 4, 4, 5, 5, 6, 6],
        &[1, 1, 1, 4],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        &[1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        &[1, 1, 1, 4, 4, 4, 4],
        &[1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ];
    for terms in followers {
        let mut leader = One::new(3, &leader_log, 8);
        // Node 1 leads; the same node 1 plays the follower, whose messages are turned around.
        let mut follower = One::new(3, terms, 8);
        let mut sent = leader.lead();
        for _ in 0..40 {
            let Some(mut message) = sent.iter().find(|message| message.to == n(2)).cloned() else { break };
            if let MessageKind::Append { prev, last, entries, .. } = &mut message.kind {
                let range = prev.index.next()..last.index.next();
                entries.extend(leader.log.range(range).map(|(_, entry)| entry.clone()));
            }
            let answers = follower.step(2, message.term.get(), message.kind);
            let Some(answer) = answers.into_iter().next() else { break };
            sent = leader.step(2, answer.term.get(), answer.kind);
        }
        let mut expected = leader_log.to_vec();
        expected.push(9);
        assert_eq!(follower.terms(), expected, "from {terms:?}");
    }
}

// Section 5.4.

/// A vote request says where the candidate's log ends.
#[test]
fn vote_request() {
    for terms in [&[1][..], &[1, 2], &[2, 2, 3]] {
        let mut one = One::new(3, terms, 3);
        let sent = one.candidate();
        let last = id(*terms.last().unwrap(), terms.len() as u64);
        let votes = sent.iter().filter(|message| message.kind == vote(last) && message.term == t(4));
        assert_eq!(votes.count(), 2, "{sent:?}");
    }
}

/// A voter refuses a candidate whose log is less up to date than its own: of an older last term, or shorter in the same.
#[test]
fn voter() {
    let cases: [(&[u64], LogId, bool); 8] = [
        (&[1], id(1, 1), true),
        (&[1], id(1, 2), true),
        (&[1, 1], id(1, 1), false),
        (&[1], id(2, 1), true),
        (&[1], id(2, 2), true),
        (&[1, 1], id(2, 1), true),
        (&[2], id(1, 1), false),
        (&[2], id(1, 2), false),
    ];
    for (terms, last, granted) in cases {
        let mut one = One::new(3, terms, 2);
        let sent = one.step(2, 3, vote(last));
        let kind = MessageKind::VoteAck { granted, pre: false };
        assert_eq!(sent, [Message { from: n(1), to: n(2), term: t(3), kind }], "{terms:?}, {last}");
    }
}

/// Figure 8: only an entry of the leader's own term is committed by counting copies.
#[test]
fn leader_only_commits_log_from_current_term() {
    for (matched, commit) in [(1, 0), (2, 0), (3, 3)] {
        let mut one = One::new(3, &[1, 2], 2);
        let sent = one.lead();
        assert_eq!(one.log[&i(2)], entry(2, 2));
        one.ack(2, round(&sent), matched);
        assert_eq!(one.commit(), commit, "match {matched}");
    }
}
