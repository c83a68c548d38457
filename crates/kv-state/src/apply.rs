//! Applying one entry.

use std::error::Error;

use bytes::Bytes;
use kv_types::limits::DELETE_RANGE_KEYS_MAX;
use kv_types::{
    ClusterTime, Key, KeyRange, Lamport, LogIndex, Row, RowChange, RowHead, RowKey, SessionId, Space,
    StateHash, Value,
};

use crate::cluster::{ClusterCommand, ClusterRefusal, ClusterState};
use crate::codec::DecodeError;
use crate::command::{Command, Expect};
use crate::envelope::Opened;
use crate::gate::{Recorded, Refusal};
use crate::increment::{self, IncrementFailure};
use crate::sessions::{SessionAnswer, SessionRefusal};
use crate::step::{Carried, Step, Stepped};
use crate::txn::TxnAnswer;

/// The newest rows of a shard, as all entries before the one being applied left them.
pub trait Rows {
    /// Why a row could not be read.
    type Error: Error + Send + Sync + 'static;

    /// A row.
    ///
    /// # Errors
    /// Of the store; the replica stops.
    fn get(&self, key: &RowKey) -> Result<Option<Row>, Self::Error>;

    /// A row without its value.
    ///
    /// # Errors
    /// Of the store; the replica stops.
    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, Self::Error>;

    /// The first `limit` rows of a space in a range, in key order, without their values.
    ///
    /// # Errors
    /// Of the store; the replica stops.
    fn heads_in(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(RowKey, RowHead)>, Self::Error>;

    /// The bug that entries are applied with on these rows.
    #[cfg(feature = "planted")]
    fn planted(&self) -> Option<crate::Planted> {
        None
    }

    /// The last entry of the snapshot that these rows began with, for a planted bug.
    #[cfg(feature = "planted")]
    fn snapshot(&self) -> LogIndex {
        LogIndex::ZERO
    }
}

/// What applying an entry did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The rows it changed, each at most once.
    pub changes: Vec<RowChange>,
    /// The state hash after it.
    pub hash: StateHash,
    /// The answer for whoever proposed it.
    pub answer: Answer,
    /// The cluster time after it; `None` if the entry neither carries nor needs one.
    pub time: Option<ClusterTime>,
}

/// What an entry answers. The revision of whatever it wrote is its log index, unless it is [`Answer::Replayed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The value was written.
    Written,
    /// Keys were removed.
    Deleted {
        /// How many.
        count: u64,
        /// Where the rest of the range begins, if keys are left in it.
        resume: Option<Bytes>,
    },
    /// The key was not as expected; nothing was written.
    CompareFailed {
        /// What the key is instead; `None` if it is absent.
        found: Option<Row>,
    },
    /// The number was written.
    Incremented {
        /// The sum.
        value: i64,
    },
    /// Nothing was added.
    IncrementFailed(IncrementFailure),
    /// The request had its outcome before; this is it again, and this entry did nothing.
    Replayed(Recorded),
    /// The request was refused; this entry did nothing.
    Refused(Refusal),
    /// The request has no outcome and never will have: it was not applied.
    Settled,
    /// The cluster was changed, or not.
    Cluster(Result<(), ClusterRefusal>),
    /// Sessions were changed, or not.
    Session(Result<SessionAnswer, SessionRefusal>),
    /// Dead sessions were forgotten, or what living ones need no more.
    SessionsCollected {
        /// How many rows that took.
        rows: u64,
        /// The sessions of which rows are left: to be named again.
        left: Vec<SessionId>,
    },
    /// A step of a transaction was taken, or was not possible.
    Txn(TxnAnswer),
    /// The cluster time moved on.
    Ticked {
        /// Whether more is due to be collected: another tick takes it.
        more: bool,
    },
}

/// Why an entry could not be applied here. The replica stops: its peers may well have applied it.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError<E: Error + Send + Sync + 'static> {
    /// The command makes no sense to this build.
    #[error("the command of {index} cannot be read: {cause}")]
    Undecodable {
        /// The entry.
        index: LogIndex,
        /// What is wrong with it.
        cause: DecodeError,
    },
    /// A system row makes no sense to this build.
    #[error("a system row that {index} needs cannot be read: {cause}")]
    SystemRow {
        /// The entry.
        index: LogIndex,
        /// What is wrong with it.
        cause: DecodeError,
    },
    /// A row could not be read.
    #[error("the rows that {index} needs cannot be read")]
    Rows {
        /// The entry.
        index: LogIndex,
        /// Why.
        #[source]
        cause: E,
    },
}

/// Applies the command of the entry at `index`, stamped `stamp`, on `rows`. What is `carried` is that of the entries
/// before, or new for these rows.
///
/// # Errors
/// [`ApplyError`]: the replica must stop.
///
/// # Panics
/// If the entry is not newer than the rows it changes.
pub fn apply<R: Rows>(
    rows: &R,
    carried: &mut Carried,
    index: LogIndex,
    stamp: Lamport,
    command: &Bytes,
) -> Result<Applied, ApplyError<R::Error>> {
    let opened = Opened::decode(command.clone()).map_err(|cause| ApplyError::Undecodable { index, cause })?;
    let mut step = Step::new(rows, carried, index, stamp);
    let answer = match opened {
        Opened::Plain(command) => step.run(command)?,
        Opened::Timed { time, command } => {
            step.gate()?.advance(time);
            step.run(command)?
        }
        Opened::Once { time, request, fingerprint, command } => {
            step.gate()?.advance(time);
            step.once(&request, fingerprint, command)?
        }
    };
    let (changes, hash, time) = step.finish();
    Ok(Applied { changes, hash, answer, time })
}

impl<R: Rows> Step<'_, R> {
    pub(crate) fn run(&mut self, command: Command) -> Stepped<Answer, R> {
        match command {
            Command::Put { key, value } => self.put(&key, &value),
            Command::Delete { key } => self.delete(&key),
            Command::DeleteRange { range } => self.delete_range(&range),
            Command::CompareAndSet { key, expect, value } => self.compare_and_set(&key, &expect, &value),
            Command::Increment { key, delta } => self.increment(&key, delta),
            // Its effect is the record that the gate writes.
            Command::Settle => Ok(Answer::Settled),
            Command::Cluster(command) => self.cluster(command),
            Command::Session(command) => self.session(command),
            Command::GcSessions { sessions, until } => self.gc_sessions(&sessions, until),
            Command::TrimSessions { sessions } => self.trim_sessions(&sessions),
            Command::Txn(command) => self.txn_internal(&command),
            Command::Tick => Ok(Answer::Ticked { more: self.collect_timed()? }),
        }
    }

    /// A command that changes nothing writes nothing: reports that come twice leave no trace.
    fn cluster(&mut self, command: ClusterCommand) -> Stepped<Answer, R> {
        let key = ClusterState::row_key();
        let old = self.get(&key)?;
        let before = old.as_ref().map_or(Ok(ClusterState::default()), |row| ClusterState::decode(&row.value));
        let before = before.map_err(|cause| self.unreadable(cause))?;
        let mut after = before.clone();
        let result = after.apply(self.index.revision(), command);
        if result.is_ok() && after != before {
            self.write(key, old.map(|row| row.head), &after.encode());
        }
        Ok(Answer::Cluster(result))
    }

    fn put(&mut self, key: &Key, value: &Value) -> Stepped<Answer, R> {
        if let Some(refusal) = self.write_blocked(key)? {
            return Ok(Answer::Refused(refusal));
        }
        let key = RowKey::user(key);
        let old = self.head(&key)?;
        self.write(key, old, value.bytes());
        Ok(Answer::Written)
    }

    fn delete(&mut self, key: &Key) -> Stepped<Answer, R> {
        if let Some(refusal) = self.write_blocked(key)? {
            return Ok(Answer::Refused(refusal));
        }
        let key = RowKey::user(key);
        let Some(old) = self.head(&key)? else {
            return Ok(Answer::Deleted { count: 0, resume: None });
        };
        self.remove(key, old);
        Ok(Answer::Deleted { count: 1, resume: None })
    }

    fn delete_range(&mut self, range: &KeyRange) -> Stepped<Answer, R> {
        if let Some(refusal) = self.range_blocked(range)? {
            return Ok(Answer::Refused(refusal));
        }
        // One more than the limit tells where the rest begins.
        let mut found = self.heads_in(Space::User, range, DELETE_RANGE_KEYS_MAX + 1)?;
        let resume =
            if found.len() > DELETE_RANGE_KEYS_MAX { found.pop().map(|(key, _)| key.key()) } else { None };
        let count = found.len() as u64;
        for (key, head) in found {
            self.remove(key, head);
        }
        Ok(Answer::Deleted { count, resume })
    }

    fn compare_and_set(&mut self, key: &Key, expect: &Expect, value: &Value) -> Stepped<Answer, R> {
        if let Some(refusal) = self.write_blocked(key)? {
            return Ok(Answer::Refused(refusal));
        }
        let key = RowKey::user(key);
        let old = self.get(&key)?;
        let holds = match expect {
            Expect::Absent => old.is_none(),
            Expect::Revision(revision) => old.as_ref().is_some_and(|row| row.head.modified == *revision),
            Expect::Value(expected) => old.as_ref().is_some_and(|row| row.value == *expected.bytes()),
        };
        if !holds {
            return Ok(Answer::CompareFailed { found: old });
        }
        self.write(key, old.map(|row| row.head), value.bytes());
        Ok(Answer::Written)
    }

    fn increment(&mut self, key: &Key, delta: i64) -> Stepped<Answer, R> {
        if let Some(refusal) = self.write_blocked(key)? {
            return Ok(Answer::Refused(refusal));
        }
        let key = RowKey::user(key);
        let old = self.get(&key)?;
        match increment::sum(old.as_ref().map(|row| &row.value), delta) {
            Ok(value) => {
                self.write(key, old.map(|row| row.head), &Bytes::from(value.to_string()));
                Ok(Answer::Incremented { value })
            }
            Err(failure) => Ok(Answer::IncrementFailed(failure)),
        }
    }
}
