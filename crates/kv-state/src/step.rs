//! One entry being applied: what it reads, and the changes it collects.

use bytes::Bytes;
use kv_types::{ClusterTime, KeyRange, Lamport, LogIndex, Row, RowChange, RowHead, RowKey, Space, StateHash};

use crate::apply::{ApplyError, Rows};
use crate::codec::DecodeError;
use crate::gate::GateState;
use crate::system_key;

/// What a part of an entry gives.
pub(crate) type Stepped<T, R> = Result<T, ApplyError<<R as Rows>::Error>>;

/// One entry being applied. Each row is changed once: what the entry has changed is not read again.
pub(crate) struct Step<'a, R> {
    pub(crate) rows: &'a R,
    pub(crate) index: LogIndex,
    stamp: Lamport,
    hash: StateHash,
    changes: Vec<RowChange>,
    gate: Option<LoadedGate>,
}

/// The gate's row, read when it is first needed and written at the end if it changed.
struct LoadedGate {
    state: GateState,
    before: GateState,
    old: Option<RowHead>,
}

impl<'a, R: Rows> Step<'a, R> {
    pub(crate) fn new(rows: &'a R, hash: StateHash, index: LogIndex, stamp: Lamport) -> Self {
        // A write, and what a request id adds to it: its record, its session's floor, the time.
        Self { rows, index, stamp, hash, changes: Vec::with_capacity(4), gate: None }
    }

    /// Ends the entry: the changes, the hash after them, and the cluster time if the entry needed it.
    pub(crate) fn finish(mut self) -> (Vec<RowChange>, StateHash, Option<ClusterTime>) {
        let time = self.gate.as_ref().map(|gate| gate.state.time);
        if let Some(gate) = self.gate.take().filter(|gate| gate.state != gate.before) {
            assert!(gate.before.time <= gate.state.time, "cluster time runs back: {:?}", gate.state);
            assert!(gate.before.horizon <= gate.state.horizon, "the horizon sinks: {:?}", gate.state);
            self.write(system_key::gate(), gate.old, &gate.state.encode());
        }
        (self.changes, self.hash, time)
    }

    /// The gate's row as this entry has it so far.
    pub(crate) fn gate(&mut self) -> Stepped<&mut GateState, R> {
        let loaded = match self.gate.take() {
            Some(loaded) => loaded,
            None => {
                let row = self.get(&system_key::gate())?;
                let state =
                    row.as_ref().map_or(Ok(GateState::default()), |row| GateState::decode(&row.value));
                let state = state.map_err(|cause| self.unreadable(cause))?;
                LoadedGate { before: state.clone(), state, old: row.map(|row| row.head) }
            }
        };
        Ok(&mut self.gate.insert(loaded).state)
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

    /// A system row that makes no sense.
    pub(crate) fn unreadable(&self, cause: DecodeError) -> ApplyError<R::Error> {
        ApplyError::SystemRow { index: self.index, cause }
    }

    pub(crate) fn write(&mut self, key: RowKey, old: Option<RowHead>, value: &Bytes) {
        let revision = self.index.revision();
        let (created, version) = old.map_or((revision, 1), |head| (head.created, head.version + 1));
        let row = Row::new(created, revision, version, self.stamp, value);
        self.replace(key, old, Some(row));
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
            self.hash = self.hash.without(&key, head);
        }
        if let Some(row) = &row {
            self.hash = self.hash.with(&key, &row.head);
        }
        self.changes.push(RowChange { key, row, previous: old.map(|head| head.modified) });
    }
}
