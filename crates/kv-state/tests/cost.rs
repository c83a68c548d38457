//! What a request id costs: rows read and changed, however many sessions there are; and the limits of sessions, reached.

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

use std::time::Duration;

use bytes::Bytes;
use kv_state::sessions::{self, SessionBatch, SessionCommand, SessionRefusal};
use kv_state::txn::{Part, Scan, TxnAnswer, TxnCommand, Write};
use kv_state::{Answer, Applied, Command, gate};
use kv_types::limits::{SESSION_WINDOW, SESSIONS_MAX};
use kv_types::{
    ClusterTime, Fingerprint, Key, KeyRange, Request, Revision, SessionId, SessionRequest, Value,
};
use table::{Replica, entry};

fn ms(ms: u64) -> ClusterTime {
    ClusterTime::from_ms(ms).unwrap()
}

fn put() -> Command {
    Command::Put { key: Key::new("key").unwrap(), value: Value::default() }
}

fn of(session: u64, seq: u64, first_incomplete: u64) -> Option<Request> {
    let session = SessionId::new(session);
    Some(Request::Session(SessionRequest { session, seq, first_incomplete, lease_until: ms(1 << 40) }))
}

/// Reads, scans and changes of one more entry.
fn cost(replica: &mut Replica, request: Option<Request>, time: Option<u64>) -> (usize, usize, usize) {
    replica.table.reads.set(0);
    replica.table.scans.set(0);
    let Applied { changes, answer, .. } = replica.apply(&entry(put(), request, time.map(ms))).unwrap();
    assert_eq!(answer, Answer::Written);
    (replica.table.reads.get(), replica.table.scans.get(), changes.len())
}

#[test]
fn a_request_of_ten_thousand_sessions_costs_what_one_of_a_single_one_does() {
    let mut replica = Replica::default();
    assert_eq!(cost(&mut replica, None, None), (1, 4, 1), "what transactions hold is looked up once");
    assert_eq!(cost(&mut replica, None, None), (1, 0, 1), "a write without an id");
    for sessions in [1, 10_000] {
        for session in 1..=sessions {
            cost(&mut replica, of(session, 100, 100), Some(1));
        }
        // Record and key, and the floor if too many others came between; key and record.
        let floor = usize::from(sessions > 1);
        assert_eq!(cost(&mut replica, of(1, 101, 100), Some(1)), (2 + floor, 0, 2));
        // Beside that the floor is written.
        assert_eq!(cost(&mut replica, of(1, 102, 102), Some(1)), (2, 0, 3));
        // Whose place it takes is known: the key alone.
        assert_eq!(cost(&mut replica, of(1, 102 + SESSION_WINDOW, 103), Some(1)), (1, 0, 3));
        replica = Replica::default();
    }
    assert_eq!(cost(&mut replica, of(1, 1, 0), Some(7)), (4, 4, 3), "and the gate, once a millisecond");
    assert_eq!(cost(&mut replica, of(1, 2, 0), Some(7)), (2, 0, 2));
}

#[test]
fn a_session_has_a_window_of_rows_and_few_once_it_is_trimmed() {
    let mut replica = Replica::default();
    let window = usize::try_from(SESSION_WINDOW).unwrap();
    let records =
        |replica: &Replica| gate::session_progress(&replica.table, SessionId::new(1), 1000).unwrap().records;
    for seq in 1..=10 * SESSION_WINDOW {
        cost(&mut replica, of(1, seq, seq.saturating_sub(3)), Some(1));
    }
    assert_eq!(records(&replica), window);
    assert_eq!(cost(&mut replica, of(1, 5000, 5000), Some(1)), (1, 0, 3), "however many are passed at once");
    let sessions = SessionBatch::new([SessionId::new(1)]).unwrap();
    let trimmed = replica.apply(&entry(Command::TrimSessions { sessions }, None, Some(ms(1)))).unwrap();
    assert_eq!((trimmed.changes.len(), records(&replica)), (window - 1, 1));
}

#[test]
fn sessions_are_found_with_their_rows_by_few_looks() {
    let mut replica = Replica::default();
    for session in 1..=600 {
        cost(&mut replica, of(session, 1, 0), Some(1));
    }
    for seq in 2..=300 {
        cost(&mut replica, of(300, seq, seq), Some(1));
    }
    replica.table.scans.set(0);
    let found = gate::session_rows(&replica.table, None, 1000).unwrap();
    assert!(replica.table.scans.get() <= 5, "{} looks", replica.table.scans.get());
    let rows = |session: u64| if session == 300 { 256 } else { 1 };
    let expected: Vec<_> = (1..=600).map(|session| (SessionId::new(session), rows(session))).collect();
    assert_eq!(found, expected);
    for limit in [1, 299, 300, 301] {
        let after = Some(SessionId::new(5));
        assert_eq!(gate::session_rows(&replica.table, after, limit).unwrap(), expected[5..5 + limit]);
    }
}

#[test]
fn there_are_no_more_sessions_than_their_limit() {
    let mut replica = Replica::default();
    let mut session = |command: SessionCommand, time: u64| {
        let entry = entry(Command::Session(command), None, Some(ms(time)));
        (replica.apply(&entry).unwrap().answer, sessions::count(&replica.table).unwrap())
    };
    let open = |nonce| SessionCommand::Open { nonce, ttl: Duration::from_secs(1) };
    for nonce in 0..SESSIONS_MAX {
        assert!(matches!(session(open(u128::from(nonce)), 0), (Answer::Session(Ok(_)), _)));
    }
    let full = session(open(u128::MAX), 0);
    assert_eq!(full, (Answer::Session(Err(SessionRefusal::TooMany)), SESSIONS_MAX));
    let first = SessionBatch::new([SessionId::new(1)]).unwrap();
    session(SessionCommand::Expire { sessions: first }, 1000);
    assert!(matches!(session(open(u128::MAX), 1000), (Answer::Session(Ok(_)), SESSIONS_MAX)));
}

/// What a commit looks at is bounded, whatever its ranges are: a thousand that overlap would hold every replica up.
#[test]
fn the_scans_of_a_transaction_find_a_thousand_keys_in_all() {
    let mut replica = Replica::default();
    let mut keys = Vec::new();
    for number in 0..600_u64 {
        let key = Key::new(format!("k{number:03}")).unwrap();
        let put = Command::Put { key: key.clone(), value: Value::default() };
        replica.apply(&entry(put, None, None)).unwrap();
        keys.push((key, Revision::new(number + 1)));
    }
    let digest = Fingerprint::of_scan(keys.iter().map(|(key, revision)| (key.as_ref(), *revision)));
    let scan = |start: &str| {
        let range = KeyRange::new(start.to_owned(), Some(Bytes::from_static(b"l"))).unwrap();
        Scan { range, digest }
    };
    let mut commit = |seq: u64, starts: &[&str]| {
        let write = Write { key: Key::new("z").unwrap(), value: Some(Value::default()) };
        let part = Part::new(vec![], starts.iter().map(|start| scan(start)).collect(), vec![write]).unwrap();
        let fingerprint = Fingerprint::of_scan([]);
        let commit = TxnCommand::Commit { fingerprint, part, participants: Vec::new() };
        replica.apply(&entry(Command::Txn(commit), of(1, seq, 0), Some(ms(1)))).unwrap().answer
    };
    assert_eq!(commit(1, &["k"]), Answer::Txn(TxnAnswer::Committed));
    let refused = Answer::Txn(TxnAnswer::Aborted { conflict: Some(Bytes::from_static(b"k0")) });
    assert_eq!(commit(2, &["k", "k0"]), refused, "600 keys twice");
}
