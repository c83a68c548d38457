//! What readers see: the active table over the frozen ones over the base.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use kv_types::{LogIndex, Row, RowHead, RowKey};

use crate::base::{Base, Loaded};
use crate::chunks::StoredRow;
use crate::memtable::Memtable;
use crate::row_range::RowRange;
use crate::store_error::StoreError;

/// One consistent stack. Readers load it once and ask it top down; a layer that knows a key hides those below.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) active: Arc<Memtable>,
    /// Newest first.
    pub(crate) frozen: Vec<Arc<Memtable>>,
    pub(crate) base: Arc<Base>,
}

/// A row found by a scan: its value may still lie in chunks.
#[derive(Debug)]
pub(crate) enum Found {
    Memory(Row),
    Stored(StoredRow),
}

impl Found {
    pub(crate) fn head(&self) -> &RowHead {
        match self {
            Self::Memory(row) => &row.head,
            Self::Stored(stored) => &stored.head,
        }
    }
}

impl View {
    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<Memtable>> {
        std::iter::once(&self.active).chain(&self.frozen)
    }

    /// The row as of `at`, without a long value.
    pub(crate) fn find(&self, key: &RowKey, at: LogIndex) -> Result<Option<Found>, StoreError> {
        if let Some(seen) = self.tables().find_map(|table| table.get(key, at)) {
            return Ok(seen.map(Found::Memory));
        }
        Ok(self.base.stored(key)?.map(Found::Stored))
    }

    /// The row as of `at` without its value.
    pub(crate) fn head(&self, key: &RowKey, at: LogIndex) -> Result<Option<RowHead>, StoreError> {
        if let Some(seen) = self.tables().find_map(|table| table.head(key, at)) {
            return Ok(seen);
        }
        Ok(self.base.stored(key)?.map(|stored| stored.head))
    }

    /// The row as of `at`; torn if a merge was replacing it.
    pub(crate) fn get(&self, key: &RowKey, at: LogIndex) -> Result<Option<Loaded>, StoreError> {
        self.find(key, at)?.map(|found| self.load(key, found)).transpose()
    }

    /// Completes a row of a scan.
    pub(crate) fn load(&self, key: &RowKey, found: Found) -> Result<Loaded, StoreError> {
        match found {
            Found::Memory(row) => Ok(Loaded::Row(row)),
            Found::Stored(stored) => self.base.load(key, stored),
        }
    }

    /// The rows of a range as of `at`, in order.
    pub(crate) fn scan(&self, range: &RowRange, at: LogIndex) -> ViewScan<'_> {
        let layer = |source| Layer { source, rest: Some(range.clone()), ahead: VecDeque::new() };
        let tables = self.tables().map(|table| layer(Source::Table(table)));
        ViewScan { at, layers: tables.chain([layer(Source::Base(&self.base))]).collect() }
    }
}

/// Merges the layers of a view in key order.
#[derive(Debug)]
pub(crate) struct ViewScan<'a> {
    at: LogIndex,
    /// Newest first.
    layers: Vec<Layer<'a>>,
}

#[derive(Debug)]
struct Layer<'a> {
    source: Source<'a>,
    /// What was not read yet.
    rest: Option<RowRange>,
    /// What was read and not returned yet; `None` is a tombstone.
    ahead: VecDeque<(RowKey, Option<Found>)>,
}

#[derive(Debug)]
enum Source<'a> {
    Table(&'a Memtable),
    Base(&'a Base),
}

impl Layer<'_> {
    /// Reads on until something is ahead or nothing is left.
    fn fill(&mut self, at: LogIndex) -> Result<(), StoreError> {
        while self.ahead.is_empty() {
            let Some(range) = self.rest.take() else { return Ok(()) };
            let resume_after = match self.source {
                Source::Table(table) => {
                    let batch = table.batch(&range, at);
                    self.ahead.extend(batch.rows.into_iter().map(|(key, row)| (key, row.map(Found::Memory))));
                    batch.resume_after
                }
                Source::Base(base) => {
                    let batch = base.batch(&range)?;
                    let rows = batch.rows.into_iter();
                    self.ahead.extend(rows.map(|(key, stored)| (key, Some(Found::Stored(stored)))));
                    batch.resume_after
                }
            };
            self.rest = resume_after.map(|key| RowRange { from: Bound::Excluded(key), to: range.to });
        }
        Ok(())
    }

    fn pop_if(&mut self, key: &RowKey) -> Option<Option<Found>> {
        self.ahead.pop_front_if(|(ahead, _)| ahead == key).map(|(_, found)| found)
    }
}

impl ViewScan<'_> {
    /// The next row that is not deleted.
    pub(crate) fn next(&mut self) -> Result<Option<(RowKey, Found)>, StoreError> {
        loop {
            for layer in &mut self.layers {
                layer.fill(self.at)?;
            }
            let heads = self.layers.iter().filter_map(|layer| layer.ahead.front());
            let Some(key) = heads.map(|(key, _)| key).min().cloned() else { return Ok(None) };
            let mut newest = None;
            for layer in &mut self.layers {
                let seen = layer.pop_if(&key);
                newest = newest.or(seen);
            }
            if let Some(Some(found)) = newest {
                return Ok(Some((key, found)));
            }
        }
    }
}
