//! Steps of transactions that other nodes are asked for, until they are answered.
//!
//! A step and its answer are messages of two links, one each way. Either may be lost with its link, or without: so whoever
//! waits is told when a link breaks, and asks again when nothing comes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kv_proto::v1;
use kv_proto::v1::step_txn_result::Result as Answer;
use kv_types::NodeId;
use tokio::sync::oneshot;

/// The steps that wait for an answer.
#[derive(Debug)]
pub(crate) struct StepCalls {
    open: Mutex<HashMap<u64, Open>>,
    next: AtomicU64,
}

#[derive(Debug)]
struct Open {
    peer: NodeId,
    answer: oneshot::Sender<Option<Answer>>,
}

/// One of them; nobody waits any more when it is dropped.
#[derive(Debug)]
pub(crate) struct StepCall {
    all: Arc<StepCalls>,
    pub(crate) number: u64,
    /// Ends without a word when a link to or from the peer breaks.
    pub(crate) answered: oneshot::Receiver<Option<Answer>>,
}

impl StepCalls {
    /// Counts from a number drawn at random: an answer to an earlier life of this node finds nobody.
    pub(crate) fn new() -> Self {
        Self { open: Mutex::default(), next: AtomicU64::new(rand::random()) }
    }

    /// A step that this peer will be asked for.
    pub(crate) fn begin(self: &Arc<Self>, peer: NodeId) -> StepCall {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.with(|open| open.insert(number, Open { peer, answer }));
        StepCall { all: Arc::clone(self), number, answered }
    }

    /// A peer has answered. An answer that came twice, or late, or was given by somebody else, is nobody's.
    pub(crate) fn answered(&self, peer: NodeId, result: v1::StepTxnResult) {
        let is_asked = |open: &HashMap<u64, Open>| open.get(&result.number).is_some_and(|of| of.peer == peer);
        let open = self.with(|open| if is_asked(open) { open.remove(&result.number) } else { None });
        if let Some(Open { answer, .. }) = open {
            // Whoever has just gone away does not mind.
            let _ = answer.send(result.result);
        }
    }

    /// A link to or from this peer is broken: what is open may have been lost with it.
    pub(crate) fn lost(&self, peer: NodeId) {
        self.with(|open| open.retain(|_, call| call.peer != peer));
    }

    fn with<T>(&self, look: impl FnOnce(&mut HashMap<u64, Open>) -> T) -> T {
        look(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for StepCall {
    fn drop(&mut self) {
        self.all.with(|open| open.remove(&self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId::new(2);

    fn result(number: u64) -> v1::StepTxnResult {
        let outcome = Some(Answer::Outcome(v1::StepTxnOutcome::default()));
        v1::StepTxnResult { number, kind: 0, result: outcome }
    }

    #[test]
    fn an_answer_finds_who_asked_that_peer_for_that_and_nobody_else() {
        let calls = Arc::new(StepCalls::new());
        let (mut one, mut other) = (calls.begin(PEER), calls.begin(PEER));
        calls.answered(NodeId::new(3), result(one.number));
        calls.answered(PEER, result(other.number.wrapping_add(1)));
        assert!(one.answered.try_recv().is_err() && other.answered.try_recv().is_err());
        calls.answered(PEER, result(one.number));
        calls.answered(PEER, result(one.number));
        assert!(matches!(one.answered.try_recv(), Ok(Some(Answer::Outcome(_)))));
        assert!(matches!(other.answered.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    }

    #[test]
    fn a_broken_link_ends_what_was_asked_over_it() {
        let calls = Arc::new(StepCalls::new());
        let (mut lost, mut other) = (calls.begin(PEER), calls.begin(NodeId::new(3)));
        calls.lost(PEER);
        assert!(matches!(lost.answered.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(matches!(other.answered.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
    }

    #[test]
    fn whoever_goes_away_leaves_nothing() {
        let calls = Arc::new(StepCalls::new());
        drop(calls.begin(PEER));
        assert!(calls.with(|open| open.is_empty()));
    }
}
