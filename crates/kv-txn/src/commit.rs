//! The manager of one transaction.

use bytes::Bytes;
use futures_util::future::join_all;
use kv_state::txn::{Part, Transaction, TxnAnswer, TxnCommand};
use kv_state::{Command, Envelope};
use kv_types::{Fingerprint, Request, SessionRequest, ShardId};

use crate::planted::{Planted, is_planted};
use crate::shards::{Failure, Named, Place, Shards, Step};

/// A prepare that is refused by a lock is asked so often. What is read and written will have changed when the lock goes, so
/// there is no point in much patience.
const LOCKED_TRIES: u32 = 3;

/// What a transaction has come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Why it is aborted; `None` if it is committed.
    pub aborted: Option<Aborted>,
    /// The entry that says so, as far as it is known.
    pub place: Option<Place>,
}

/// Why a transaction is aborted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Aborted {
    /// A key, or a range that begins there, is not as it was read.
    Conflict(Bytes),
    /// Another transaction has locked a key.
    Locked,
    /// A participant does not answer.
    Unreachable,
    /// It was decided before, and nobody says why.
    Before,
}

/// Commits a transaction: all of it takes effect, or nothing. Whoever has asked may be told a [`Decision`]; a failure says
/// nothing of what the transaction comes to, and the same may be asked again, here or elsewhere.
///
/// # Errors
/// [`Failure::Refused`] if a shard's gate does not let the request pass, [`Failure::Mismatched`] if its number stands for
/// another content at a shard, [`Failure::Busy`] if the anchor's shard has no room for the step that
/// gives it up, [`Failure::Failed`] if it has not answered.
pub async fn commit<S: Shards>(
    shards: &S,
    request: SessionRequest,
    txn: &Transaction,
) -> Result<Decision, Failure<S::Error>> {
    let manager = Manager::new(shards, request, txn);
    let votes = join_all(manager.parts.iter().map(|(at, part)| manager.prepare(*at, part))).await;
    let mut no = None;
    for vote in votes {
        match vote {
            Vote::Yes => {}
            Vote::Committed => return Ok(Decision { aborted: None, place: None }),
            Vote::No(Aborted::Locked | Aborted::Unreachable) if is_planted(shards, Planted::CommitsEarly) => {
            }
            Vote::No(reason) => no = Some(Why::Aborted(reason)),
            Vote::Refused(cause) => {
                no = Some(Why::Refused(cause));
                break;
            }
        }
    }
    match no {
        None => manager.decide().await,
        Some(why) => manager.give_up(why).await,
    }
}

/// Gives a transaction up before anything was prepared: somebody else has its turn at a key.
///
/// # Errors
/// As [`commit`].
pub async fn abort<S: Shards>(
    shards: &S,
    request: SessionRequest,
    txn: &Transaction,
) -> Result<Decision, Failure<S::Error>> {
    Manager::new(shards, request, txn).give_up(Why::Aborted(Aborted::Locked)).await
}

/// What a participant says.
enum Vote<E> {
    Yes,
    /// It is committed, and was resolved here already.
    Committed,
    No(Aborted),
    /// No vote: the gate does not let the request pass, or its number stands for another content.
    Refused(Failure<E>),
}

/// Why a manager gives up.
enum Why<E> {
    Aborted(Aborted),
    /// [`Failure::Refused`] or [`Failure::Mismatched`].
    Refused(Failure<E>),
}

struct Manager<'a, S> {
    shards: &'a S,
    request: SessionRequest,
    txn: &'a Transaction,
    fingerprint: Fingerprint,
    /// The anchor's shard, and its part.
    anchor: (ShardId, Part),
    /// What each participant owns.
    parts: Vec<(ShardId, Part)>,
}

impl<'a, S: Shards> Manager<'a, S> {
    fn new(shards: &'a S, request: SessionRequest, txn: &'a Transaction) -> Self {
        let anchor = shards.owner(txn.anchor().as_ref());
        let mut parts = txn.parts(|key| shards.owner(key));
        let own = parts.remove(&anchor).unwrap_or_default();
        let (fingerprint, parts) = (txn.fingerprint(), parts.into_iter().collect());
        Self { shards, request, txn, fingerprint, anchor: (anchor, own), parts }
    }

    async fn step(&self, at: ShardId, command: TxnCommand) -> Result<Step, Failure<S::Error>> {
        let envelope = Envelope::once(Request::Session(self.request), Command::Txn(command));
        self.shards.step(at, envelope.expect("the request of a session stands beside it")).await
    }

    async fn prepare(&self, at: ShardId, part: &Part) -> Vote<S::Error> {
        let mut failures = 0;
        loop {
            let prepare = TxnCommand::Prepare {
                fingerprint: self.fingerprint,
                anchor: self.txn.anchor().clone(),
                part: part.clone(),
            };
            let (no, again) = match self.step(at, prepare).await {
                Ok(Step { answer: TxnAnswer::Prepared, .. }) => return Vote::Yes,
                Ok(Step { answer: TxnAnswer::Decided { committed: true }, .. }) => return Vote::Committed,
                Ok(Step { answer: TxnAnswer::Conflict { key, .. }, .. }) => {
                    return Vote::No(Aborted::Conflict(key));
                }
                Ok(_) => return Vote::No(Aborted::Before),
                Err(refused @ (Failure::Refused(_) | Failure::Mismatched(_))) => {
                    return Vote::Refused(refused);
                }
                Err(Failure::Locked(_)) => (Aborted::Locked, failures + 1 < LOCKED_TRIES),
                Err(Failure::Busy(_) | Failure::Failed(_)) => (Aborted::Unreachable, true),
            };
            failures += 1;
            if !again || !self.shards.pause(failures).await {
                return Vote::No(no);
            }
        }
    }

    /// All have said yes.
    async fn decide(&self) -> Result<Decision, Failure<S::Error>> {
        let mut failures = 0;
        loop {
            let commit = TxnCommand::Commit {
                fingerprint: self.fingerprint,
                part: self.anchor.1.clone(),
                participants: self.txn.participants(|key| self.shards.owner(key)),
            };
            match self.step(self.anchor.0, commit).await {
                Ok(step) => return Ok(decision(step)),
                Err(Failure::Locked(_)) => {
                    failures += 1;
                    if failures >= LOCKED_TRIES || !self.shards.pause(failures).await {
                        return self.give_up(Why::Aborted(Aborted::Locked)).await;
                    }
                }
                Err(Failure::Busy(_)) => {
                    failures += 1;
                    if !self.shards.pause(failures).await {
                        return self.give_up(Why::Aborted(Aborted::Unreachable)).await;
                    }
                }
                Err(refused @ (Failure::Refused(_) | Failure::Mismatched(_))) => {
                    return self.give_up(Why::Refused(refused)).await;
                }
                Err(failed @ Failure::Failed(_)) => return Err(failed),
            }
        }
    }

    async fn give_up(&self, why: Why<S::Error>) -> Result<Decision, Failure<S::Error>> {
        if matches!(why, Why::Refused(_)) && is_planted(self.shards, Planted::RefusalIsTold) {
            return Ok(Decision { aborted: Some(Aborted::Before), place: None });
        }
        let abort = TxnCommand::Abort { fingerprint: self.fingerprint };
        let refused = match (self.step(self.anchor.0, abort).await, why) {
            (Ok(Step { answer: TxnAnswer::Aborted { .. }, place }), Why::Aborted(reason)) => {
                return Ok(Decision { aborted: Some(reason), place });
            }
            (Ok(step), Why::Refused(mismatched @ Failure::Mismatched(_))) => {
                let decision = decision(step);
                // That the number is aborted would be no answer: what it stands for elsewhere may be committed.
                return if decision.aborted.is_none() { Ok(decision) } else { Err(mismatched) };
            }
            (Ok(step), _) => return Ok(decision(step)),
            (Err(Failure::Refused(_) | Failure::Mismatched(_)), Why::Refused(refused)) => refused,
            (Err(refused @ (Failure::Refused(_) | Failure::Mismatched(_))), Why::Aborted(_)) => refused,
            (Err(failure), _) => return Err(failure),
        };
        // What its client may be told is for an attempt that passes the gate. But the locks shall go.
        let first_incomplete = self.request.first_incomplete;
        match fence(self.shards, self.anchor.0, self.named(), first_incomplete).await? {
            Some(true) => Ok(Decision { aborted: None, place: None }),
            Some(false) if matches!(refused, Failure::Mismatched(_)) => Err(refused),
            Some(false) => Ok(Decision { aborted: Some(Aborted::Before), place: None }),
            None if is_planted(self.shards, Planted::AbsentIsTold) => {
                Ok(Decision { aborted: Some(Aborted::Before), place: None })
            }
            None => Err(refused),
        }
    }

    fn named(&self) -> Named {
        Named { txn: self.request.txn(), fingerprint: self.fingerprint }
    }
}

/// What the anchor's entry says.
fn decision(Step { answer, place }: Step) -> Decision {
    let aborted = match answer {
        TxnAnswer::Committed | TxnAnswer::Decided { committed: true } => None,
        TxnAnswer::Aborted { conflict: Some(key) } => Some(Aborted::Conflict(key)),
        TxnAnswer::Aborted { conflict: None } | TxnAnswer::Decided { committed: false } => {
            Some(Aborted::Before)
        }
        other => unreachable!("a decision is answered {other:?}"),
    };
    Decision { aborted, place }
}

/// Has the anchor's shard decide a transaction that someone waits for: whether it is committed; `None` if it never will be,
/// as far as its locks are still there.
pub(crate) async fn fence<S: Shards>(
    shards: &S,
    anchor: ShardId,
    Named { txn, fingerprint }: Named,
    first_incomplete: u64,
) -> Result<Option<bool>, Failure<S::Error>> {
    match internal(shards, anchor, TxnCommand::Fence { txn, fingerprint, first_incomplete }).await? {
        TxnAnswer::Decided { committed } => Ok(Some(committed)),
        TxnAnswer::Absent => Ok(None),
        other => unreachable!("a fence is answered {other:?}"),
    }
}

/// A step that is no part of a client's request.
pub(crate) async fn internal<S: Shards>(
    shards: &S,
    at: ShardId,
    command: TxnCommand,
) -> Result<TxnAnswer, Failure<S::Error>> {
    let envelope = Envelope::timed(Command::Txn(command)).expect("it needs no request");
    Ok(shards.step(at, envelope).await?.answer)
}
