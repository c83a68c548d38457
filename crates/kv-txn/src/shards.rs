//! The shards as the parties reach them.

use kv_state::gate::{Recorded, RecordedResult, Refusal};
use kv_state::txn::{Known, TxnAnswer};
use kv_state::{Answer, Envelope};
use kv_types::{Fingerprint, Lamport, LogId, ShardId, TxnId};

/// A transaction: its id, and what it is about. An id that its client has used for two contents is two transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The id.
    pub txn: TxnId,
    /// Of the whole content.
    pub fingerprint: Fingerprint,
}

/// What an entry answered, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The answer. One that the gate has given again is [`TxnAnswer::Decided`].
    pub answer: TxnAnswer,
    /// The entry; `None` if it was far away, where nobody needs it.
    pub place: Option<Place>,
}

/// An entry that has taken effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Term and index.
    pub id: LogId,
    /// Its stamp.
    pub stamp: Lamport,
    /// Whether an earlier attempt had taken it.
    pub replayed: bool,
}

/// Why a step has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<E> {
    /// Another transaction is in the way; nothing was done, and the same may be asked again.
    Locked(E),
    /// The gate refuses whatever is asked with this request, now and for ever, or until the session is renewed.
    Refused(E),
    /// The request's number stands for another content there, now and for ever: this one has never been committed and never
    /// will be.
    Mismatched(E),
    /// There was no room for it; nothing was done, and the same may be asked again.
    Busy(E),
    /// No answer came, or none from a leader; it may have been done all the same, and may be asked again.
    Failed(E),
}

impl<E> Failure<E> {
    /// The cause.
    pub fn into_inner(self) -> E {
        match self {
            Self::Locked(cause)
            | Self::Refused(cause)
            | Self::Mismatched(cause)
            | Self::Busy(cause)
            | Self::Failed(cause) => cause,
        }
    }
}

/// The shards of a cluster.
pub trait Shards: Sync {
    /// Why something could not be asked.
    type Error: Send;

    /// The shard that owns a key.
    fn owner(&self, key: &[u8]) -> ShardId;

    /// Has a shard's leader replicate and apply a step.
    fn step(
        &self,
        at: ShardId,
        step: Envelope,
    ) -> impl Future<Output = Result<Step, Failure<Self::Error>>> + Send;

    /// What a shard knows of a transaction that is decided there.
    fn known(
        &self,
        at: ShardId,
        txn: Named,
    ) -> impl Future<Output = Result<Known, Failure<Self::Error>>> + Send;

    /// Returns once the rows of a shard that are at hand may be read.
    fn confirm(&self, at: ShardId) -> impl Future<Output = Result<(), Failure<Self::Error>>> + Send;

    /// Whether a transaction has a prepared part, and so its locks, in the rows of a shard that are at hand.
    fn is_prepared(
        &self,
        at: ShardId,
        txn: TxnId,
    ) -> impl Future<Output = Result<bool, Failure<Self::Error>>> + Send;

    /// Waits before something is asked again, for the time of that many failures; whether there is a point in it.
    fn pause(&self, failures: u32) -> impl Future<Output = bool> + Send;

    /// The fault that whoever asks through this acts with.
    #[cfg(feature = "planted")]
    fn planted(&self) -> Option<crate::Planted> {
        None
    }
}

/// What an entry of a transaction answered.
///
/// # Errors
/// The refusal of the gate.
///
/// # Panics
/// If it is the answer to something else.
pub fn answer_of(answer: Answer) -> Result<(TxnAnswer, Option<Recorded>), Refusal> {
    match answer {
        Answer::Txn(answer) => Ok((answer, None)),
        Answer::Replayed(recorded) => {
            let committed = recorded.result == RecordedResult::TxnCommitted;
            Ok((TxnAnswer::Decided { committed }, Some(recorded)))
        }
        Answer::Refused(refusal) => Err(refusal),
        other => unreachable!("a step of a transaction is answered {other:?}"),
    }
}
