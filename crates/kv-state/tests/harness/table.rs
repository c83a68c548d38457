//! Rows in a map, and the entries applied on them, with every check that holds for any entry.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;

use bytes::Bytes;
use kv_state::{Applied, ApplyError, Carried, Command, Envelope, Rows, StateHash, apply, stamp};
use kv_types::{ClusterTime, KeyRange, Lamport, LogIndex, NodeId, Request, Row, RowHead, RowKey, Space};

/// The rows of one shard.
#[derive(Clone, Default)]
pub struct Table {
    pub rows: BTreeMap<RowKey, Row>,
    /// How often rows were asked for.
    pub reads: Cell<usize>,
    /// How often a range was looked through.
    pub scans: Cell<usize>,
    #[cfg(feature = "planted")]
    pub planted: Option<kv_state::Planted>,
}

impl Table {
    /// Takes over the bug that another table has.
    #[cfg(feature = "planted")]
    pub fn clone_planted(&mut self, other: &Self) {
        self.planted = other.planted;
    }

    #[cfg(not(feature = "planted"))]
    pub fn clone_planted(&mut self, _other: &Self) {}
}

impl Rows for Table {
    type Error = Infallible;

    fn get(&self, key: &RowKey) -> Result<Option<Row>, Infallible> {
        self.reads.set(self.reads.get() + 1);
        Ok(self.rows.get(key).cloned())
    }

    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, Infallible> {
        self.reads.set(self.reads.get() + 1);
        Ok(self.rows.get(key).map(|row| row.head))
    }

    fn heads_in(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(RowKey, RowHead)>, Infallible> {
        self.scans.set(self.scans.get() + 1);
        let rows = self.rows.range(RowKey::new(space, range.start())..);
        let inside = rows.take_while(|(key, _)| key.space() == space && range.contains(&key.key()));
        Ok(inside.take(limit).map(|(key, row)| (key.clone(), row.head)).collect())
    }

    #[cfg(feature = "planted")]
    fn planted(&self) -> Option<kv_state::Planted> {
        self.planted
    }
}

/// A replica: its rows and how far it is.
#[derive(Clone, Default)]
pub struct Replica {
    pub table: Table,
    pub carried: Carried,
    pub index: LogIndex,
}

impl Replica {
    /// Applies the next entry and stores what it changed.
    pub fn apply(&mut self, entry: &Bytes) -> Result<Applied, ApplyError<Infallible>> {
        let index = self.index.next();
        let lamport = Lamport { counter: 100 + index.get(), node: NodeId::new(1) };
        let mut anew = Carried::of(self.carried.hash());
        let looks = (self.table.reads.get(), self.table.scans.get());
        let without = apply(&self.table, &mut anew, index, lamport, entry);
        self.table.reads.set(looks.0);
        self.table.scans.set(looks.1);
        let applied = apply(&self.table, &mut self.carried, index, lamport, entry)?;
        assert_eq!(without.as_ref().ok(), Some(&applied), "what is carried along changes nothing");
        let changed: BTreeSet<_> = applied.changes.iter().map(|change| &change.key).collect();
        assert_eq!(changed.len(), applied.changes.len(), "each row is changed once");
        for change in &applied.changes {
            let old = match &change.row {
                Some(row) => self.table.rows.insert(change.key.clone(), row.clone()),
                None => self.table.rows.remove(&change.key),
            };
            assert_eq!(change.previous, old.map(|row| row.head.modified), "{:?}", change.key);
        }
        self.index = index;
        Ok(applied)
    }

    /// Asserts that the running hash is that of the rows.
    pub fn check_hash(&self) {
        let rows = self.table.rows.iter();
        let recomputed = rows.fold(StateHash::EMPTY, |hash, (key, row)| hash.with(key, &row.head));
        assert_eq!(self.carried.hash(), recomputed, "the running hash is the hash of the rows");
    }
}

/// A command as the leader proposes it: with a request, with a time only, or by itself.
pub fn entry(command: Command, request: Option<Request>, time: Option<ClusterTime>) -> Bytes {
    let bytes = match (request, time) {
        (Some(request), _) => Envelope::once(request, command).expect("a client's command").encode(),
        (None, Some(_)) => Envelope::timed(command).expect("no settling").encode(),
        (None, None) => command.encode(),
    };
    stamp(bytes, time.unwrap_or_default())
}
