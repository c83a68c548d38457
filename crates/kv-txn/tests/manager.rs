//! A manager against shards that answer by a script, each step in its order.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file")]

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll, Waker};

use kv_state::txn::{Known, Transaction, TxnAnswer, TxnCommand, Write};
use kv_state::{Command, Envelope};
use kv_txn::{Aborted, Decision, Failure, Named, Shards, Step};
use kv_types::{ClusterTime, Key, SessionId, SessionRequest, ShardId, TxnId, Value};

type Answered = Result<TxnAnswer, Failure<&'static str>>;

/// Two shards: keys below `m`, and the others.
struct Scripted {
    script: Mutex<VecDeque<(&'static str, Answered)>>,
    /// How often something may be asked again.
    pauses: AtomicU32,
}

impl Shards for Scripted {
    type Error = &'static str;

    fn owner(&self, key: &[u8]) -> ShardId {
        ShardId::new(if key < b"m".as_slice() { 1 } else { 2 })
    }

    async fn step(&self, at: ShardId, step: Envelope) -> Result<Step, Failure<&'static str>> {
        let asked = match step.command() {
            Command::Txn(TxnCommand::Prepare { .. }) => "prepare",
            Command::Txn(TxnCommand::Commit { .. }) => "commit",
            Command::Txn(TxnCommand::Abort { .. }) => "abort",
            other => panic!("{other:?} is asked of {at}"),
        };
        let next = self.script.lock().unwrap().pop_front();
        let (expected, answer) = next.unwrap_or_else(|| panic!("{asked} is asked of {at} after the end"));
        assert_eq!(asked, expected);
        answer.map(|answer| Step { answer, place: None })
    }

    async fn known(&self, _: ShardId, _: Named) -> Result<Known, Failure<&'static str>> {
        unreachable!("a manager does not ask")
    }

    async fn confirm(&self, _: ShardId) -> Result<(), Failure<&'static str>> {
        unreachable!("a manager reads nothing")
    }

    async fn is_prepared(&self, _: ShardId, _: TxnId) -> Result<bool, Failure<&'static str>> {
        unreachable!("a manager reads nothing")
    }

    async fn pause(&self, _: u32) -> bool {
        let take = |left: u32| left.checked_sub(1);
        self.pauses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// Commits a transaction of one key on each shard, anchored at the first, by this script, to its end.
fn commits(
    pauses: u32,
    script: impl IntoIterator<Item = (&'static str, Answered)>,
) -> Result<Decision, Failure<&'static str>> {
    let script = Mutex::new(script.into_iter().collect());
    let shards = Scripted { script, pauses: AtomicU32::new(pauses) };
    let write =
        |key: &'static str| Write { key: Key::new(key).unwrap(), value: Some(Value::new("v").unwrap()) };
    let txn = Transaction::new(Key::new("a").unwrap(), vec![], vec![], vec![write("a"), write("z")]).unwrap();
    let request = SessionRequest {
        session: SessionId::new(7),
        seq: 3,
        first_incomplete: 1,
        lease_until: ClusterTime::MAX,
    };
    let decided = pin!(kv_txn::commit(&shards, request, &txn));
    let Poll::Ready(decided) = Future::poll(decided, &mut Context::from_waker(Waker::noop())) else {
        panic!("nothing here waits")
    };
    assert!(shards.script.lock().unwrap().is_empty(), "not all of it was asked");
    decided
}

const COMMITTED: Decision = Decision { aborted: None, place: None };

fn aborted(why: Aborted) -> Decision {
    Decision { aborted: Some(why), place: None }
}

#[test]
fn what_an_anchor_has_no_room_for_is_asked_again() {
    let decided = commits(
        2,
        [
            ("prepare", Err(Failure::Busy("full"))),
            ("prepare", Ok(TxnAnswer::Prepared)),
            ("commit", Err(Failure::Busy("full"))),
            ("commit", Ok(TxnAnswer::Committed)),
        ],
    );
    assert_eq!(decided, Ok(COMMITTED));
}

#[test]
fn what_an_anchor_has_no_room_for_to_the_end_is_given_up_and_leaves_no_lock() {
    let decided = commits(
        1,
        [
            ("prepare", Ok(TxnAnswer::Prepared)),
            ("commit", Err(Failure::Busy("full"))),
            ("commit", Err(Failure::Busy("full"))),
            ("abort", Ok(TxnAnswer::Aborted { conflict: None })),
        ],
    );
    assert_eq!(decided, Ok(aborted(Aborted::Unreachable)));
}

#[test]
fn a_participant_that_is_silent_for_too_long_has_it_given_up() {
    let decided = commits(
        1,
        [
            ("prepare", Err(Failure::Failed("silent"))),
            ("prepare", Err(Failure::Failed("silent"))),
            ("abort", Ok(TxnAnswer::Aborted { conflict: None })),
        ],
    );
    assert_eq!(decided, Ok(aborted(Aborted::Unreachable)));
}

#[test]
fn a_commit_that_may_be_under_way_is_not_given_up() {
    let decided =
        commits(9, [("prepare", Ok(TxnAnswer::Prepared)), ("commit", Err(Failure::Failed("silent")))]);
    assert_eq!(decided, Err(Failure::Failed("silent")));
}
