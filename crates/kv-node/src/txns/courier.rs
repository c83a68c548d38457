//! Carries steps to the leaders of shards on other nodes, many in one call.
//!
//! Steps for one shard gather while calls are under way, and the next call takes all that have: when there is little to do
//! a step leaves at once, and when there is much a call costs each of its steps a fraction. A call is answered as a whole;
//! what it waits for is the shard's log, in which its steps stand side by side.
//!
//! A step that nobody waits for rests for a moment, for the next call to take it along: a client that commits one transaction
//! after another has the end of the last travel with the beginning of the next, in one entry's write and sync.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::v1::step_txn_result::Result as Outcome;
use kv_proto::{sealed, v1};
use kv_types::limits::{PEER_FRAME_BYTES_MAX, TXN_BYTES_MAX};
use kv_types::{ClusterId, NodeId, ShardId};
use prost::Message as _;
use tokio::sync::{Semaphore, oneshot};

use crate::links::Links;

/// Calls under way for one shard: more would each carry less.
const CALLS_MAX: usize = 4;

/// How long a step rests that nobody waits for. Its locks stay for as long.
const REST: Duration = Duration::from_millis(1);

/// Bytes of steps in one call, but for one step.
const CALL_BYTES_MAX: usize = 1 << 20;

/// Steps in one call.
const CALL_STEPS_MAX: usize = 256;

const _: () =
    assert!(CALL_BYTES_MAX + TXN_BYTES_MAX + (1 << 20) < PEER_FRAME_BYTES_MAX, "a call fits into a frame");

/// The way to the leaders of other nodes.
#[derive(Debug)]
pub(crate) struct Courier {
    links: Arc<Links>,
    cluster_id: ClusterId,
    shards: Mutex<BTreeMap<ShardId, Arc<Queue>>>,
}

#[derive(Debug)]
struct Queue {
    letters: Mutex<Vec<Letter>>,
    calls: Arc<Semaphore>,
}

/// A step that waits to be carried.
#[derive(Debug)]
struct Letter {
    step: v1::StepTxn,
    until: Instant,
    answer: oneshot::Sender<Result<v1::StepTxnOutcome, ApiError>>,
}

impl Courier {
    pub(crate) fn new(links: Arc<Links>, cluster_id: ClusterId) -> Self {
        Self { links, cluster_id, shards: Mutex::default() }
    }

    /// Asks the leader of a shard, no longer than `until`; a step that `rests` waits a moment for company.
    ///
    /// # Errors
    /// [`ApiError`]: what the leader says, or that it says nothing.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        (leader, shard): (NodeId, ShardId),
        (ask, reservation): (v1::step_txn::Ask, u64),
        (until, rests): (Instant, bool),
    ) -> Result<v1::StepTxnOutcome, ApiError> {
        let queue = self.queue(shard);
        let (answer, answered) = oneshot::channel();
        let left = until.saturating_duration_since(Instant::now());
        let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
        queue.put(Letter { step: v1::StepTxn { deadline_ms, ask: Some(ask), reservation }, until, answer });
        let waiting = async {
            tokio::pin!(answered);
            if rests && let Ok(answer) = tokio::time::timeout(REST, &mut answered).await {
                return answer;
            }
            loop {
                tokio::select! {
                    biased;
                    // Whoever had room before has taken it along.
                    answer = &mut answered => return answer,
                    room = Arc::clone(&queue.calls).acquire_owned() => {
                        let letters = queue.take();
                        if letters.is_empty() {
                            drop(room);
                            return answered.await;
                        }
                        let courier = Arc::clone(self);
                        // A task of its own: whoever asks may go away, and these are not only his.
                        tokio::spawn(async move {
                            courier.carry((leader, shard), letters).await;
                            drop(room);
                        });
                    }
                }
            }
        };
        match tokio::time::timeout(left, waiting).await {
            Err(_) => Err(ApiError::Deadline),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Ok(Ok(answer)) => answer,
        }
    }

    fn queue(&self, shard: ShardId) -> Arc<Queue> {
        let new =
            || Arc::new(Queue { letters: Mutex::default(), calls: Arc::new(Semaphore::new(CALLS_MAX)) });
        let mut shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(shards.entry(shard).or_insert_with(new))
    }

    async fn carry(&self, (leader, shard): (NodeId, ShardId), letters: Vec<Letter>) {
        let until = letters.iter().map(|letter| letter.until).max();
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        let (steps, answers): (Vec<_>, Vec<_>) =
            letters.into_iter().map(|letter| (letter.step, letter.answer)).unzip();
        let called = tokio::time::timeout(left, self.call((leader, shard), steps)).await;
        let mut results = called.unwrap_or(Err(ApiError::Deadline)).map(Vec::into_iter);
        for answer in answers {
            let result = match &mut results {
                Ok(results) => results.next().map_or(Err(missing()), result),
                Err(cause) => Err(cause.clone()),
            };
            // Whoever has gone away does not mind.
            let _ = answer.send(result);
        }
    }

    async fn call(
        &self,
        (leader, shard): (NodeId, ShardId),
        steps: Vec<v1::StepTxn>,
    ) -> Result<Vec<v1::StepTxnResult>, ApiError> {
        let Some(mut client) = self.links.calls(leader) else { return Err(ApiError::NoLeader(shard)) };
        let subject = v1::StepTxnsSubject { cluster_id: self.cluster_id.get(), shard: shard.get(), steps };
        let request = sealed::seal::<v1::StepTxnsRequest>(&subject);
        let reply =
            client.step_txns(request).await.map_err(|status| match ApiError::from_status(&status) {
                // Nobody said so: the connection broke. A client that is told so shall ask again, not give up.
                ApiError::Foreign(_) => ApiError::LeadershipLost(shard),
                told => told,
            })?;
        let outcome = sealed::open(reply.into_inner());
        Ok(outcome.map_err(|cause| ApiError::Checksum(cause.to_string()))?.results)
    }
}

impl Queue {
    fn put(&self, letter: Letter) {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).push(letter);
    }

    /// Takes the oldest, as many as one call shall carry.
    fn take(&self) -> Vec<Letter> {
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = 0;
        let fits = |letter: &&Letter| {
            let room = bytes < CALL_BYTES_MAX;
            bytes += letter.step.encoded_len();
            room
        };
        let count = letters.iter().take(CALL_STEPS_MAX).take_while(fits).count();
        letters.drain(..count).collect()
    }
}

fn missing() -> ApiError {
    ApiError::Unsupported("the answer to a step is missing".to_owned())
}

fn result(wire: v1::StepTxnResult) -> Result<v1::StepTxnOutcome, ApiError> {
    match wire.result {
        Some(Outcome::Outcome(outcome)) => Ok(outcome),
        Some(Outcome::Error(error)) => Err(ApiError::from_pipeline(error)),
        None => Err(missing()),
    }
}
