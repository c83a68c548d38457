//! Asks the leaders of shards on other nodes for steps.
//!
//! A step travels in the frames that carry Raft's messages to the same node, and its answer in those that come back: what
//! waits for one socket leaves together. It may be lost as they may be, so it is sent again when no answer comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_proto::v1::step_txn_result::Result as Answer;
use kv_types::{NodeId, ShardId};

use crate::links::Links;

/// The first wait before a step that has no answer is sent again; each further one is twice as long. To have sent one in vain
/// costs another look at the gate.
const AGAIN_FIRST: Duration = Duration::from_millis(500);

/// The way to the leaders of other nodes.
#[derive(Debug)]
pub(crate) struct Courier(Arc<Links>);

impl Courier {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self(links)
    }

    /// Asks the leader of a shard, no longer than `until`; for a step that `rests` nobody waits.
    ///
    /// # Errors
    /// [`ApiError`]: what the leader says, or that it says nothing.
    pub(crate) async fn ask(
        &self,
        (leader, shard): (NodeId, ShardId),
        (ask, reservation): (v1::step_txn::Ask, u64),
        (until, rests): (Instant, bool),
    ) -> Result<v1::StepTxnOutcome, ApiError> {
        let mut call = self.0.step_calls.begin(leader);
        let mut again = AGAIN_FIRST;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ApiError::Deadline);
            }
            let deadline_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX);
            let (number, ask) = (call.number, Some(ask.clone()));
            let step = v1::StepTxn { number, deadline_ms, ask, reservation, rests };
            if !self.0.send_step(leader, shard, step) {
                return Err(ApiError::NoLeader(shard));
            }
            match tokio::time::timeout(again.min(left), &mut call.answered).await {
                Err(_) => again *= 2,
                // The link broke. A client that is told so shall ask again, not give up.
                Ok(Err(_)) => return Err(ApiError::LeadershipLost(shard)),
                Ok(Ok(Some(Answer::Outcome(outcome)))) => return Ok(outcome),
                Ok(Ok(Some(Answer::Error(error)))) => return Err(ApiError::from_pipeline(error)),
                Ok(Ok(None)) => {
                    return Err(ApiError::Unsupported("the answer to a step is missing".to_owned()));
                }
            }
        }
    }
}
