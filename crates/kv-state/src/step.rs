//! One entry being applied: what it reads, and the changes it collects.

use bytes::Bytes;
use kv_types::{
    ClusterTime, KeyRange, Lamport, LogIndex, Revision, Row, RowChange, RowHead, RowKey, Space, StateHash,
};

use crate::apply::{ApplyError, Rows};
use crate::codec::DecodeError;
use crate::gate::{GateState, Known, Recall};
use crate::read::{Looked, ReadError};
use crate::system_key;

/// What a part of an entry gives.
pub(crate) type Stepped<T, R> = Result<T, ApplyError<<R as Rows>::Error>>;

/// What goes from entry to entry beside the rows: their hash, and what the gate knows of them without a look.
#[derive(Clone, Debug, Default)]
pub struct Carried {
    hash: StateHash,
    pub(crate) recall: Recall,
}

impl Carried {
    /// Rows with that hash, of which nothing is known yet.
    pub fn of(hash: StateHash) -> Self {
        Self { hash, recall: Recall::default() }
    }

    /// The hash of all rows.
    pub fn hash(&self) -> StateHash {
        self.hash
    }

    /// Whether a key may be locked by a transaction: it may as long as no entry has had to know.
    pub fn may_be_locked(&self) -> bool {
        self.recall.held.as_ref().is_none_or(|held| !held.is_empty())
    }
}

/// One entry being applied. Each row is changed once: what the entry has changed is not read again.
pub(crate) struct Step<'a, R> {
    pub(crate) rows: &'a R,
    pub(crate) index: LogIndex,
    stamp: Lamport,
    pub(crate) carried: &'a mut Carried,
    changes: Vec<RowChange>,
    /// The gate's row as this entry has it so far, if it needs it; what was before is in the recall.
    gate: Option<GateState>,
}

impl<'a, R: Rows> Step<'a, R> {
    pub(crate) fn new(rows: &'a R, carried: &'a mut Carried, index: LogIndex, stamp: Lamport) -> Self {
        // A write, and what a request id adds to it: its record, its session's floor, the time.
        Self { rows, index, stamp, carried, changes: Vec::with_capacity(4), gate: None }
    }

    /// Ends the entry: the changes, the hash after them, and the cluster time if the entry needed it.
    pub(crate) fn finish(mut self) -> (Vec<RowChange>, StateHash, Option<ClusterTime>) {
        self.write_locks();
        if let (Some(now), Some(Known { content: before, head })) = (self.gate, self.carried.recall.gate)
            && now != before
        {
            assert!(before.time <= now.time, "cluster time runs back: {now:?}");
            assert!(before.horizon <= now.horizon, "the horizon sinks: {now:?}");
            let head = Some(self.write_own(system_key::gate(), head, &now.encode()));
            self.carried.recall.gate = Some(Known { content: now, head });
        }
        (self.changes, self.carried.hash, self.gate.map(|gate| gate.time))
    }

    /// The gate's row as this entry has it so far.
    pub(crate) fn gate(&mut self) -> Stepped<&mut GateState, R> {
        let now = match (self.gate, &self.carried.recall.gate) {
            (Some(now), _) => now,
            (None, Some(known)) => known.content,
            (None, None) => {
                let known = self.look_up_gate()?;
                self.carried.recall.gate.insert(known).content
            }
        };
        Ok(self.gate.insert(now))
    }

    fn look_up_gate(&self) -> Stepped<Known<GateState>, R> {
        let row = self.get(&system_key::gate())?;
        let state = row.as_ref().map_or(Ok(GateState::default()), |row| GateState::decode(&row.value));
        Ok(Known { content: state.map_err(|cause| self.unreadable(cause))?, head: row.map(|row| row.head) })
    }

    pub(crate) fn get(&self, key: &RowKey) -> Stepped<Option<Row>, R> {
        self.rows.get(key).map_err(|cause| ApplyError::Rows { index: self.index, cause })
    }

    pub(crate) fn head(&self, key: &RowKey) -> Stepped<Option<RowHead>, R> {
        self.rows.head(key).map_err(|cause| ApplyError::Rows { index: self.index, cause })
    }

    pub(crate) fn heads_in(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Stepped<Vec<(RowKey, RowHead)>, R> {
        let found = self.rows.heads_in(space, range, limit);
        found.map_err(|cause| ApplyError::Rows { index: self.index, cause })
    }

    pub(crate) fn decoded<T>(
        &self,
        key: &RowKey,
        decode: impl FnOnce(&Row) -> Result<T, DecodeError>,
    ) -> Stepped<Option<(T, RowHead)>, R> {
        let Some(row) = self.get(key)? else { return Ok(None) };
        let content = decode(&row).map_err(|cause| self.unreadable(cause))?;
        Ok(Some((content, row.head)))
    }

    /// The same look at rows that readers take.
    pub(crate) fn seen<T>(&self, looked: Looked<T, R>) -> Stepped<T, R> {
        looked.map_err(|cause| match cause {
            ReadError::Rows(cause) => ApplyError::Rows { index: self.index, cause },
            ReadError::SystemRow { cause, .. } => self.unreadable(cause),
        })
    }

    /// A system row that makes no sense.
    pub(crate) fn unreadable(&self, cause: DecodeError) -> ApplyError<R::Error> {
        ApplyError::SystemRow { index: self.index, cause }
    }

    pub(crate) fn write(&mut self, key: RowKey, old: Option<RowHead>, value: &Bytes) {
        let (created, version) = self.life(old.as_ref());
        let row = Row::new(created, self.index.revision(), version, self.stamp, value);
        self.replace(key, old, Some(row));
    }

    /// Writes a small row of the system; its head.
    pub(crate) fn write_own(&mut self, key: RowKey, old: Option<RowHead>, value: &[u8]) -> RowHead {
        self.write_whole(key, old, Bytes::copy_from_slice(value))
    }

    /// Writes a row whose value is no part of a larger buffer; its head.
    pub(crate) fn write_whole(&mut self, key: RowKey, old: Option<RowHead>, value: Bytes) -> RowHead {
        let (created, version) = self.life(old.as_ref());
        let row = Row::of_own_value(created, self.index.revision(), version, self.stamp, value);
        let head = row.head;
        self.replace(key, old, Some(row));
        head
    }

    /// When the key of a row that is written was created, and its version.
    fn life(&self, old: Option<&RowHead>) -> (Revision, u64) {
        old.map_or((self.index.revision(), 1), |head| (head.created, head.version + 1))
    }

    pub(crate) fn remove(&mut self, key: RowKey, old: RowHead) {
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
        }
        self.carried.hash = self.carried.hash.replaced(&key, old.as_ref(), row.as_ref().map(|row| &row.head));
        self.changes.push(RowChange { key, row, previous: old.map(|head| head.modified) });
    }
}
