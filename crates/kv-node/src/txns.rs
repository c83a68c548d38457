//! The transactions that this node drives, and what it does for those of others.
//!
//! Who does what when is `kv-txn`; here are the shards as it reaches them (`reach`), the tasks that look after what is left
//! (`keeper`), and which transactions are under way on this node: one is driven once at a time, and nobody fences one whose
//! manager is at work.

mod courier;
mod keeper;
mod left;
mod reach;
mod reservations;
mod resting;
pub(crate) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use courier::Courier;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_state::gate::{self, Found};
use kv_state::txn::{Known, Transaction};
use kv_txn::{Decision, Failure, Looked, Named, Place};
use kv_types::{LogId, NodeId, Outcome, Request, SessionRequest, ShardId, TxnId};
use reach::Reach;
use reservations::{Reservations, Token};
use resting::Resting;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::fatal::Fatal;
use crate::gateway::{Gateway, ShardHandle};
use crate::links::Links;
use crate::rows::PinnedRows;

/// How long a manager tries to have a transaction decided, and no longer than its client waits.
const DECIDE_MAX: Duration = Duration::from_secs(5);

/// How long it tries to have the participants end their parts; then whoever looks after the records does.
const FINISH_MAX: Duration = Duration::from_secs(5);

/// How often it is looked at what an earlier attempt has come to.
const EARLIER_POLL: Duration = Duration::from_millis(10);

/// What this node does about transactions.
#[derive(Debug)]
pub(crate) struct Txns {
    gateway: Arc<Gateway>,
    links: Arc<Links>,
    courier: Courier,
    /// Parts to be ended, of shards led here, that nobody waits for.
    resting: Resting,
    /// Those whose manager is at work here, at their anchors' shards.
    driving: Arc<UnderWay>,
    /// Parts that are being unblocked.
    unblocking: Arc<UnderWay>,
    /// Records that may be forgotten.
    finished: Finished,
    /// Turns at contended keys.
    pub(crate) reservations: Arc<Reservations>,
    tasks: TaskTracker,
    stop: CancellationToken,
    fatal: Fatal,
}

type UnderWay = Mutex<BTreeSet<(ShardId, TxnId)>>;

/// Something that is under way; over when it is dropped.
#[derive(Debug)]
struct Driven {
    all: Arc<UnderWay>,
    what: (ShardId, TxnId),
}

impl Driven {
    fn begin(all: Arc<UnderWay>, what: (ShardId, TxnId)) -> Option<Self> {
        let is_new = all.lock().unwrap_or_else(PoisonError::into_inner).insert(what);
        is_new.then_some(Self { all, what })
    }
}

/// Records of committed transactions that every participant has acknowledged, by the shard that has them. Lost with the node:
/// then whoever looks after the records asks the participants again.
#[derive(Debug, Default)]
struct Finished(Mutex<BTreeMap<ShardId, BTreeSet<TxnId>>>);

impl Finished {
    fn add(&self, anchor: ShardId, txn: TxnId, committed: bool) {
        if committed {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.entry(anchor).or_default().insert(txn);
        }
    }

    fn take(&self) -> BTreeMap<ShardId, BTreeSet<TxnId>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn contains(&self, anchor: ShardId, txn: TxnId) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(&anchor).is_some_and(|txns| txns.contains(&txn))
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.what);
    }
}

impl Txns {
    pub(crate) fn new(
        (gateway, links): (Arc<Gateway>, Arc<Links>),
        (tasks, stop): (TaskTracker, CancellationToken),
        fatal: Fatal,
    ) -> Self {
        let (driving, unblocking) = (Arc::default(), Arc::default());
        let (courier, resting) = (Courier::new(Arc::clone(&links)), Resting::default());
        let (finished, reservations) = (Finished::default(), Arc::default());
        Self {
            gateway,
            links,
            courier,
            resting,
            driving,
            unblocking,
            finished,
            reservations,
            tasks,
            stop,
            fatal,
        }
    }

    /// The driving of a transaction that is decided at this shard, unless it is under way.
    fn drive(&self, anchor: ShardId, txn: TxnId) -> Option<Driven> {
        Driven::begin(Arc::clone(&self.driving), (anchor, txn))
    }

    fn is_driven(&self, anchor: ShardId, txn: TxnId) -> bool {
        self.driving.lock().unwrap_or_else(PoisonError::into_inner).contains(&(anchor, txn))
    }

    /// Commits a transaction whose anchor's shard this node leads. It goes on if the caller goes away.
    ///
    /// # Errors
    /// [`ApiError`]; it says nothing of what the transaction comes to.
    pub(crate) async fn commit(
        self: &Arc<Self>,
        shard: &ShardHandle,
        (request, token): (SessionRequest, Token),
        txn: Transaction,
        deadline: Option<Duration>,
    ) -> Result<Decision, ApiError> {
        let (at, id) = (shard.shard, request.txn());
        let patience = deadline.unwrap_or(DECIDE_MAX).min(DECIDE_MAX);
        let until = Instant::now() + patience;
        let driven = loop {
            if let Some(driven) = self.drive(at, id) {
                break driven;
            }
            if let Some(decision) = self.of_earlier(shard, request, &txn, until).await? {
                return Ok(decision);
            }
            if Instant::now() + EARLIER_POLL >= until {
                return Err(ApiError::Deadline);
            }
            tokio::time::sleep(EARLIER_POLL).await;
        };
        let term = self.leads(at).ok_or(ApiError::NoLeader(at))?;
        let (answer, answered) = oneshot::channel();
        let txns = Arc::clone(self);
        self.tasks.spawn(async move {
            let office = Some((at, term));
            let reach = Reach { token, drives: Some(id), ..txns.reach(patience, office) };
            // Whoever meets somebody else's turn here has no chance, and others need not prepare for it.
            let own = txn.parts(|key| txns.gateway.map.shard_of(key)).remove(&at);
            let decided = match own.is_some_and(|own| txns.reservations.is_in_the_way(&own, token)) {
                true => kv_txn::abort(&reach, request, &txn).await,
                false => kv_txn::commit(&reach, request, &txn).await,
            };
            txns.reservations.release(token);
            let participants = txn.participants(|key| txns.gateway.map.shard_of(key));
            let committed = match &decided {
                Ok(decision) => Some(decision.aborted.is_none()),
                // It was fenced, so that what is prepared may go.
                Err(Failure::Refused(_) | Failure::Mismatched(_)) => Some(false),
                Err(Failure::Locked(_) | Failure::Busy(_) | Failure::Failed(_)) => None,
            };
            // A caller that has gone away asks again, or not.
            let _ = answer.send(decided);
            if let Some(committed) = committed.filter(|_| !participants.is_empty()) {
                let named = Named { txn: id, fingerprint: txn.fingerprint() };
                // Where keys are contended somebody does wait.
                let rests = token == 0 && resting::may_rest(&txn);
                let reach = Reach { token, rests, ..txns.reach(FINISH_MAX, office) };
                if kv_txn::finish(&reach, named, &participants, committed).await {
                    txns.finished.add(at, id, committed);
                }
            }
            drop(driven);
        });
        let decided = answered.await.map_err(|_| ApiError::Stopped)?;
        let decision = decided.map_err(Failure::into_inner)?;
        match decision.place {
            Some(_) => Ok(decision),
            None => Ok(Decision { place: self.recorded(shard, request, until).await, ..decision }),
        }
    }

    /// Whether an earlier attempt that is still under way has committed: whoever has done so may be waiting for participants, and
    /// its client need not. Of anything else a client is told by an attempt that passes the gate; until then it is not known
    /// what becomes of the transaction, and nothing here may say that it was not applied.
    async fn of_earlier(
        &self,
        shard: &ShardHandle,
        request: SessionRequest,
        txn: &Transaction,
        until: Instant,
    ) -> Result<Option<Decision>, ApiError> {
        let named = Named { txn: request.txn(), fingerprint: txn.fingerprint() };
        let known = self.known(shard, named, until.saturating_duration_since(Instant::now())).await;
        let in_doubt = |cause: ApiError| match cause.outcome() {
            Outcome::NotApplied => ApiError::LeadershipLost(shard.shard),
            Outcome::Unknown => cause,
        };
        match known.map_err(in_doubt)? {
            Known::Committed => {
                Ok(Some(Decision { aborted: None, place: self.recorded(shard, request, until).await }))
            }
            Known::Aborted | Known::Absent => Ok(None),
        }
    }

    /// The entry that has decided a transaction, if the gate's record still names it: for whoever has heard the decision from
    /// a participant.
    async fn recorded(&self, shard: &ShardHandle, request: SessionRequest, until: Instant) -> Option<Place> {
        let patience = until.saturating_duration_since(Instant::now());
        self.gateway.confirm(shard, Some(patience)).await.ok()?;
        let pin = shard.pin().ok()?;
        match gate::outcome(&PinnedRows(&pin), &Request::Session(request)).ok()? {
            Found::Decided(recorded) => Some(Place {
                id: LogId::new(shard.leadership.term(), recorded.revision.index()),
                stamp: recorded.stamp,
                replayed: true,
            }),
            Found::Settled | Found::NotSeen | Found::NoLongerKnown => None,
        }
    }

    /// Answers what another node asks about transactions, each as soon as it can be.
    pub(crate) fn serve(self: &Arc<Self>, peer: NodeId, steps: Vec<(ShardId, v1::StepTxn)>) {
        let txns = Arc::clone(self);
        self.tasks.spawn(async move {
            let answers = steps.into_iter().map(|(shard, step)| txns.answer(shard, step));
            let mut answers: FuturesUnordered<_> = answers.collect();
            while let Some((shard, result)) = answers.next().await {
                txns.links.send_result(peer, shard, result);
            }
        });
    }

    async fn answer(self: &Arc<Self>, shard: ShardId, step: v1::StepTxn) -> (ShardId, v1::StepTxnResult) {
        use v1::step_txn_result::Result as Answer;
        let (number, asked) = (step.number, wire::read(&step));
        let kind = asked.as_ref().map_or(v1::StepKind::Unspecified, wire::Asked::kind);
        let answer = match asked {
            Ok(asked) => self.answer_one(shard, &step, asked).await,
            Err(cause) => Err(cause),
        };
        let result = match answer {
            Ok(outcome) => Answer::Outcome(outcome),
            Err(cause) => Answer::Error(cause.to_pipeline()),
        };
        (shard, v1::StepTxnResult { number, kind: kind.into(), result: Some(result) })
    }

    async fn answer_one(
        self: &Arc<Self>,
        shard: ShardId,
        step: &v1::StepTxn,
        asked: wire::Asked,
    ) -> Result<v1::StepTxnOutcome, ApiError> {
        let handle = self.gateway.shards.get(&shard).ok_or(ApiError::UnknownShard(shard))?;
        if self.leads(shard).is_none() {
            return Err(self.gateway.not_leader(handle));
        }
        let patience = Duration::from_millis(u64::from(step.deadline_ms));
        match asked {
            wire::Asked::Known(txn) => Ok(wire::known_to_wire(self.known(handle, txn, patience).await?)),
            wire::Asked::Step(command, encoded) => {
                self.may_fence(shard, &command, None)?;
                let how = How { token: step.reservation, rests: step.rests, patience };
                Ok(wire::answer_to_wire(self.step(handle, (&command, encoded), how).await?.answer))
            }
        }
    }
}

/// How a step is to be taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    /// What its transaction has reserved its keys by.
    pub(crate) token: Token,
    /// Nobody waits for it.
    pub(crate) rests: bool,
    /// How long it may take.
    pub(crate) patience: Duration,
}

impl Txns {
    /// Reads rows of a shard, where `look` looks at them once they may be read linearisably: at locks, too.
    ///
    /// # Errors
    /// [`ApiError`]
    pub(crate) async fn read<T: Send>(
        self: &Arc<Self>,
        shard: &ShardHandle,
        deadline: Option<Duration>,
        mut look: impl FnMut() -> Result<Looked<T>, ApiError> + Send,
    ) -> Result<T, ApiError> {
        self.gateway.confirm(shard, deadline).await?;
        let looked = look()?;
        if looked.owners.is_empty() {
            return Ok(looked.found);
        }
        self.gateway.metrics.txns.reads_locked.inc();
        let reach = self.reach(deadline.unwrap_or(DECIDE_MAX), None);
        kv_txn::past_locks(&reach, shard.shard, looked, look).await.map_err(Failure::into_inner)
    }
}
