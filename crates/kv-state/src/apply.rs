//! Applying one entry.

use std::error::Error;

use bytes::Bytes;
use kv_types::limits::DELETE_RANGE_KEYS_MAX;
use kv_types::{Key, KeyRange, Lamport, LogIndex, Row, RowChange, RowHead, RowKey, StateHash, Value};

use crate::cluster::{ClusterCommand, ClusterRefusal, ClusterState};
use crate::codec::DecodeError;
use crate::command::{Command, Expect};

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

    /// The first `limit` rows of users in a range, in key order, without their values.
    ///
    /// # Errors
    /// Of the store; the replica stops.
    fn heads_in(&self, range: &KeyRange, limit: usize) -> Result<Vec<(RowKey, RowHead)>, Self::Error>;
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
}

/// What an entry answers. The revision of whatever it wrote is its log index.
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
    /// The cluster was changed, or not.
    Cluster(Result<(), ClusterRefusal>),
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
    /// The cluster's own row makes no sense to this build.
    #[error("the cluster's row that {index} needs cannot be read: {cause}")]
    ClusterRow {
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

/// Applies the command of the entry at `index`, stamped `stamp`, on `rows`, whose hash is `hash`.
///
/// # Errors
/// [`ApplyError`]: the replica must stop.
pub fn apply<R: Rows>(
    rows: &R,
    hash: StateHash,
    index: LogIndex,
    stamp: Lamport,
    command: &Bytes,
) -> Result<Applied, ApplyError<R::Error>> {
    let command =
        Command::decode(command.clone()).map_err(|cause| ApplyError::Undecodable { index, cause })?;
    let mut step = Step { rows, index, stamp, hash, changes: Vec::with_capacity(1) };
    let answer = step.run(command)?;
    Ok(Applied { changes: step.changes, hash: step.hash, answer })
}

/// One entry being applied.
struct Step<'a, R> {
    rows: &'a R,
    index: LogIndex,
    stamp: Lamport,
    hash: StateHash,
    changes: Vec<RowChange>,
}

impl<R: Rows> Step<'_, R> {
    fn run(&mut self, command: Command) -> Result<Answer, ApplyError<R::Error>> {
        let answer = match command {
            Command::Put { key, value } => self.put(&key, &value),
            Command::Delete { key } => self.delete(&key),
            Command::DeleteRange { range } => self.delete_range(&range),
            Command::CompareAndSet { key, expect, value } => self.compare_and_set(&key, &expect, &value),
            Command::Cluster(command) => return self.cluster(command),
        };
        answer.map_err(|cause| ApplyError::Rows { index: self.index, cause })
    }

    /// A command that changes nothing writes nothing: reports that come twice leave no trace.
    fn cluster(&mut self, command: ClusterCommand) -> Result<Answer, ApplyError<R::Error>> {
        let (index, key) = (self.index, ClusterState::row_key());
        let old = self.rows.get(&key).map_err(|cause| ApplyError::Rows { index, cause })?;
        let before = old.as_ref().map_or(Ok(ClusterState::default()), |row| ClusterState::decode(&row.value));
        let before = before.map_err(|cause| ApplyError::ClusterRow { index, cause })?;
        let mut after = before.clone();
        let result = after.apply(index.revision(), command);
        if result.is_ok() && after != before {
            self.write(key, old.map(|row| row.head), &after.encode());
        }
        Ok(Answer::Cluster(result))
    }

    fn put(&mut self, key: &Key, value: &Value) -> Result<Answer, R::Error> {
        let key = RowKey::user(key);
        let old = self.rows.head(&key)?;
        self.write(key, old, value.bytes());
        Ok(Answer::Written)
    }

    fn delete(&mut self, key: &Key) -> Result<Answer, R::Error> {
        let key = RowKey::user(key);
        let Some(old) = self.rows.head(&key)? else {
            return Ok(Answer::Deleted { count: 0, resume: None });
        };
        self.remove(key, old);
        Ok(Answer::Deleted { count: 1, resume: None })
    }

    fn delete_range(&mut self, range: &KeyRange) -> Result<Answer, R::Error> {
        // One more than the limit tells where the rest begins.
        let mut found = self.rows.heads_in(range, DELETE_RANGE_KEYS_MAX + 1)?;
        let resume =
            if found.len() > DELETE_RANGE_KEYS_MAX { found.pop().map(|(key, _)| key.key()) } else { None };
        let count = found.len() as u64;
        for (key, head) in found {
            self.remove(key, head);
        }
        Ok(Answer::Deleted { count, resume })
    }

    fn compare_and_set(&mut self, key: &Key, expect: &Expect, value: &Value) -> Result<Answer, R::Error> {
        let key = RowKey::user(key);
        let old = self.rows.get(&key)?;
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

    fn write(&mut self, key: RowKey, old: Option<RowHead>, value: &Bytes) {
        let revision = self.index.revision();
        let (created, version) = old.map_or((revision, 1), |head| (head.created, head.version + 1));
        let row = Row::new(created, revision, version, self.stamp, value);
        self.replace(key, old, Some(row));
    }

    fn remove(&mut self, key: RowKey, old: RowHead) {
        self.replace(key, Some(old), None);
    }

    fn replace(&mut self, key: RowKey, old: Option<RowHead>, row: Option<Row>) {
        if let Some(head) = &old {
            assert!(
                head.modified.index() < self.index,
                "{:?} holds {} when {} is applied: entries are applied once and in order",
                key,
                head.modified,
                self.index
            );
            self.hash = self.hash.without(&key, head);
        }
        if let Some(row) = &row {
            self.hash = self.hash.with(&key, &row.head);
        }
        self.changes.push(RowChange { key, row, previous: old.map(|head| head.modified) });
    }
}
