//! The shards as this node reaches them for the parties of a transaction.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_shard::Written;
use kv_state::txn::{self, Ending, Known, TxnAnswer, TxnCommand};
use kv_state::{Command, Envelope};
use kv_txn::{Failure, Named, Place, Shards, Step};
use kv_types::{NodeId, ShardId, Term, TxnId};

use super::reservations::Token;
use super::{How, Txns, resting, wire};
use crate::gateway::{ShardHandle, until};
use crate::once;
use crate::rows::PinnedRows;

/// The first wait before something is asked again.
const PAUSE_FIRST: Duration = Duration::from_millis(2);

/// The longest.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// The way to the shards, for one party.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    pub(crate) txns: Arc<Txns>,
    /// Nothing is asked after this.
    pub(crate) until: Instant,
    /// Nothing is asked again after this, and nobody waits longer for a participant: what is left is for giving up.
    pub(crate) again_until: Instant,
    /// Nothing is asked any more when this node does not lead the shard in this term.
    pub(crate) office: Option<(ShardId, Term)>,
    /// What the transaction has reserved its keys by.
    pub(crate) token: Token,
    /// Nobody waits for its steps.
    pub(crate) rests: bool,
    /// The transaction whose manager it is: that may fence it.
    pub(crate) drives: Option<TxnId>,
}

type Answered<T> = Result<T, Failure<ApiError>>;

/// What a party makes of an error: what the gate says stands, everything else may be asked again.
fn failure(cause: ApiError) -> Failure<ApiError> {
    match cause {
        ApiError::Locked(_) => Failure::Locked(cause),
        ApiError::RequestMismatch(_) => Failure::Mismatched(cause),
        _ if is_of_gate(&cause) => Failure::Refused(cause),
        ApiError::Overloaded(_) | ApiError::Quota(_) => Failure::Busy(cause),
        _ => Failure::Failed(cause),
    }
}

/// Whether it is what a shard's gate says of a request, however often that is sent.
pub(super) fn is_of_gate(cause: &ApiError) -> bool {
    matches!(
        cause,
        ApiError::RequestMismatch(_)
            | ApiError::SessionExpired(_)
            | ApiError::RequestStale(_)
            | ApiError::WindowOverflow(_)
            | ApiError::RequestTooOld(_)
            | ApiError::RequestTooEarly(_)
            | ApiError::RequestSettled(_)
    )
}

impl Reach {
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }

    /// The time by which a step must have been taken.
    fn until(&self, step: &Command) -> Instant {
        match step {
            Command::Txn(TxnCommand::Prepare { .. }) => self.again_until,
            _ => self.until,
        }
    }

    fn handle(&self, at: ShardId) -> Answered<&ShardHandle> {
        let handle = self.txns.gateway.shards.get(&at);
        let handle = handle.ok_or(failure(ApiError::UnknownShard(at)))?;
        if self.left().is_zero() { Err(failure(ApiError::Deadline)) } else { Ok(handle) }
    }

    /// Who leads a shard; `None` if this node does.
    fn elsewhere(&self, handle: &ShardHandle) -> Answered<Option<NodeId>> {
        match handle.leadership.leader() {
            None => Err(failure(ApiError::NoLeader(handle.shard))),
            Some(leader) => Ok((leader != self.txns.gateway.node).then_some(leader)),
        }
    }

    async fn ask(
        &self,
        to: (NodeId, ShardId),
        ask: v1::step_txn::Ask,
        until: Instant,
    ) -> Answered<v1::StepTxnOutcome> {
        self.txns.courier.ask(to, (ask, self.token), (until, self.rests)).await.map_err(failure)
    }
}

impl Shards for Reach {
    type Error = ApiError;

    fn owner(&self, key: &[u8]) -> ShardId {
        self.txns.gateway.map.shard_of(key)
    }

    async fn step(&self, at: ShardId, step: Envelope) -> Answered<Step> {
        let handle = self.handle(at)?;
        let until = self.until(step.command());
        if let Some(leader) = self.elsewhere(handle)? {
            let ask = v1::step_txn::Ask::Step(step.encode());
            let answer = wire::answer_to(step.command(), self.ask((leader, at), ask, until).await?);
            return Ok(Step { answer: answer.map_err(Failure::Failed)?, place: None });
        }
        let step = (step.command(), step.encode());
        self.txns.may_fence(handle.shard, step.0, self.drives).map_err(failure)?;
        let patience = until.saturating_duration_since(Instant::now());
        let how = How { token: self.token, rests: self.rests, patience };
        self.txns.step(handle, step, how).await.map_err(failure)
    }

    async fn known(&self, at: ShardId, txn: Named) -> Answered<Known> {
        let handle = self.handle(at)?;
        if let Some(leader) = self.elsewhere(handle)? {
            let ask = v1::step_txn::Ask::Known(wire::name_to_wire(txn));
            let outcome = self.ask((leader, at), ask, self.until).await?;
            return wire::known_from_wire(&outcome).map_err(Failure::Failed);
        }
        self.txns.known(handle, txn, self.left()).await.map_err(failure)
    }

    async fn confirm(&self, at: ShardId) -> Answered<()> {
        let handle = self.handle(at)?;
        self.txns.gateway.confirm(handle, Some(self.left())).await.map_err(failure)
    }

    async fn is_prepared(&self, at: ShardId, txn: TxnId) -> Answered<bool> {
        let pin = self.handle(at)?.pin().map_err(failure)?;
        let prepared = txn::prepared(&PinnedRows(&pin), txn);
        Ok(prepared.map_err(|cause| failure(ApiError::Checksum(cause.to_string())))?.is_some())
    }

    async fn pause(&self, failures: u32) -> bool {
        let longest = PAUSE_FIRST.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
        let pause = longest.mul_f64(rand::random());
        let in_office = self.office.is_none_or(|(shard, term)| self.txns.leads(shard) == Some(term));
        if !in_office || self.again_until.saturating_duration_since(Instant::now()) <= pause {
            return false;
        }
        tokio::select! {
            () = self.txns.stop.cancelled() => false,
            () = tokio::time::sleep(pause) => true,
        }
    }
}

impl Txns {
    /// The term in which this node leads a shard.
    pub(crate) fn leads(&self, shard: ShardId) -> Option<Term> {
        let leadership = &self.gateway.shards.get(&shard)?.leadership;
        (leadership.leader() == Some(self.gateway.node)).then(|| leadership.term())
    }

    /// A transaction whose manager is at work here is fenced by nobody else.
    ///
    /// # Errors
    /// [`ApiError::Locked`] if this step would be that.
    pub(super) fn may_fence(
        &self,
        at: ShardId,
        step: &Command,
        drives: Option<TxnId>,
    ) -> Result<(), ApiError> {
        match step {
            Command::Txn(TxnCommand::Fence { txn, .. })
                if drives != Some(*txn) && self.is_driven(at, *txn) =>
            {
                Err(ApiError::Locked(format!("{txn} is being committed here")))
            }
            _ => Ok(()),
        }
    }

    /// Takes a step, given also as it is encoded, at a shard that this node leads.
    pub(crate) async fn step(
        self: &Arc<Self>,
        handle: &ShardHandle,
        (command, encoded): (&Command, Bytes),
        How { token, rests, patience }: How,
    ) -> Result<Step, ApiError> {
        match command {
            // What takes up room is refused where there is none; all else gives some back.
            Command::Txn(TxnCommand::Prepare { part, .. } | TxnCommand::Commit { part, .. }) => {
                self.gateway.admit_write(handle)?;
                if self.reservations.is_in_the_way(part, token) {
                    return Err(ApiError::Locked("another transaction has its turn at a key".to_owned()));
                }
            }
            Command::Txn(_) => {}
            _ => return Err(ApiError::Invalid("this is no step of a transaction".to_owned())),
        }
        let written = match (command, rests) {
            (Command::Txn(TxnCommand::Resolve { endings }), true) if endings.len() == 1 => {
                let (txn, ending) = endings.iter().next().expect("there is one");
                self.rest(handle, (*txn, *ending), patience).await?
            }
            _ => {
                let (mail, written) = self.gateway.begin(handle, Some(patience), encoded);
                // First what rests: it may have the locks that this one meets.
                let mut mails = self.resting.take(handle.shard);
                mails.push(mail);
                self.gateway.mail_all(handle, mails);
                written.await?
            }
        };
        let (answer, recorded) =
            kv_txn::answer_of(written.answer).map_err(|refusal| once::refused(&refusal))?;
        self.count(&answer);
        match (command, &answer) {
            (Command::Txn(TxnCommand::Prepare { .. }), answer) if *answer != TxnAnswer::Prepared => {
                self.reservations.release(token);
            }
            // Its locks are gone, and its turn with them.
            (Command::Txn(TxnCommand::Resolve { .. }), _) => self.reservations.release(token),
            _ => {}
        }
        let place = match recorded {
            None => Place { id: written.id, stamp: written.stamp, replayed: false },
            Some(recorded) => Place {
                id: kv_types::LogId::new(written.id.term, recorded.revision.index()),
                stamp: recorded.stamp,
                replayed: true,
            },
        };
        Ok(Step { answer, place: Some(place) })
    }

    /// Ends a part together with others, if there are some.
    async fn rest(
        self: &Arc<Self>,
        handle: &ShardHandle,
        ending: (TxnId, Ending),
        patience: Duration,
    ) -> Result<Written, ApiError> {
        let (is_first, answered) = self.resting.put(handle.shard, ending, until(Some(patience)));
        if is_first {
            self.wake(handle.clone());
        }
        self.gateway.written(handle, Some(patience), answered).await
    }

    /// Sees to it that what rests at a shard goes on.
    fn wake(self: &Arc<Self>, handle: ShardHandle) {
        let txns = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(resting::REST).await;
            txns.gateway.mail_all(&handle, txns.resting.take(handle.shard));
        });
    }

    /// What a shard that this node leads knows of a transaction.
    pub(crate) async fn known(
        &self,
        handle: &ShardHandle,
        Named { txn, fingerprint }: Named,
        patience: Duration,
    ) -> Result<Known, ApiError> {
        self.gateway.confirm(handle, Some(patience)).await?;
        let pin = handle.pin()?;
        txn::known(&PinnedRows(&pin), txn, fingerprint).map_err(|cause| ApiError::Checksum(cause.to_string()))
    }

    fn count(&self, answer: &TxnAnswer) {
        let counts = &self.gateway.metrics.txns;
        match answer {
            TxnAnswer::Prepared => counts.prepared.inc(),
            TxnAnswer::Committed => counts.committed.inc(),
            TxnAnswer::Aborted { .. } => counts.aborted.inc(),
            TxnAnswer::Absent => counts.fenced.inc(),
            TxnAnswer::Conflict { .. }
            | TxnAnswer::Decided { .. }
            | TxnAnswer::Resolved
            | TxnAnswer::Forgotten => 0,
        };
    }
}
