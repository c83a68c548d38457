//! Asks the leaders of shards on other nodes for steps.
//!
//! A step travels in the frames that carry Raft's messages to the same node, and its answer in those that come back: what
//! waits for one socket leaves together. It may be lost as they may be, so it is sent again when no answer comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_proto::v1;
use kv_proto::v1::step_txn_result::Result as Answer;
use kv_types::{NodeId, Outcome, ShardId};

use super::reach::is_of_gate;
use super::wire;
use crate::links::Links;
use crate::step_calls::StepCall;

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
        let call = self.0.step_calls.begin(leader);
        let send = |number, deadline_ms| {
            let step = v1::StepTxn { number, deadline_ms, ask: Some(ask.clone()), reservation, rests };
            self.0.send_step(leader, shard, step)
        };
        asked(call, shard, (until, AGAIN_FIRST), send).await
    }
}

/// Sends a step until it is answered.
async fn asked(
    mut call: StepCall,
    shard: ShardId,
    (until, mut again): (Instant, Duration),
    mut send: impl FnMut(u64, u32) -> bool,
) -> Result<v1::StepTxnOutcome, ApiError> {
    for copies in 0.. {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ApiError::Deadline);
        }
        if !send(call.number, u32::try_from(left.as_millis()).unwrap_or(u32::MAX)) {
            return Err(of_all(copies, shard, ApiError::NoLeader(shard)));
        }
        match tokio::time::timeout(again.min(left), &mut call.answered).await {
            Err(_) => again *= 2,
            // The link broke. A client that is told so shall ask again, not give up.
            Ok(Err(_)) => return Err(ApiError::LeadershipLost(shard)),
            Ok(Ok(Some(Answer::Outcome(outcome)))) => return Ok(outcome),
            Ok(Ok(Some(Answer::Error(error)))) => {
                return Err(of_all(copies, shard, ApiError::from_pipeline(error)));
            }
            Ok(Ok(None)) => return Err(wire::meaningless("the answer to a step is missing")),
        }
    }
    unreachable!("it ends by an answer or by the time")
}

/// What one copy of a step was answered, for all of them. That it was not taken says nothing of those before, which may still
/// be under way; but what the gate says of the request holds for each.
fn of_all(before: u32, shard: ShardId, cause: ApiError) -> ApiError {
    match cause {
        cause if before == 0 || cause.outcome() == Outcome::Unknown || is_of_gate(&cause) => cause,
        _ => ApiError::LeadershipLost(shard),
    }
}

#[cfg(test)]
mod tests {
    use kv_proto::status::Overloaded;

    use super::*;
    use crate::step_calls::StepCalls;

    const SHARD: ShardId = ShardId::new(1);

    /// Enough, and the first wait.
    fn times() -> (Instant, Duration) {
        (Instant::now() + Duration::from_secs(3600), Duration::from_millis(1))
    }

    /// Asks; the second copy is answered with this, or cannot be sent.
    async fn answered_the_second_time(answer: Option<ApiError>) -> ApiError {
        let (calls, leader) = (Arc::new(StepCalls::new()), NodeId::new(2));
        let mut copies = 0;
        let send = |number, _| {
            copies += 1;
            let Some(answer) = answer.clone().filter(|_| copies == 2) else { return copies == 1 };
            let result = Some(Answer::Error(answer.to_pipeline()));
            calls.answered(leader, v1::StepTxnResult { number, kind: 0, result });
            true
        };
        asked(calls.begin(leader), SHARD, times(), send).await.unwrap_err()
    }

    #[tokio::test]
    async fn that_a_second_copy_is_not_taken_says_nothing_of_the_first() {
        let busy = Overloaded { message: "busy".to_owned(), retry_after: Duration::ZERO };
        for answer in [
            None,
            Some(ApiError::Overloaded(busy)),
            Some(ApiError::Locked("by another".to_owned())),
            Some(ApiError::NoLeader(SHARD)),
        ] {
            assert_eq!(answered_the_second_time(answer).await, ApiError::LeadershipLost(SHARD));
        }
        let mismatch = ApiError::RequestMismatch("other content".to_owned());
        assert_eq!(answered_the_second_time(Some(mismatch.clone())).await, mismatch);
    }

    #[tokio::test]
    async fn that_the_only_copy_is_not_taken_is_told() {
        let calls = Arc::new(StepCalls::new());
        let told = asked(calls.begin(NodeId::new(2)), SHARD, times(), |_, _| false).await;
        assert_eq!(told.unwrap_err(), ApiError::NoLeader(SHARD));
    }
}
