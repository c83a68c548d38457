//! The rows of a shard as the state machine's looks want them: one view, held still.

use kv_state::Rows;
use kv_storage::{PageLimit, Pin, ReadError, RowRange};
use kv_types::{KeyRange, LogIndex, Nanos, Row, RowHead, RowKey, Space};

/// One state of a shard.
#[derive(Debug)]
pub(crate) struct View {
    pin: Pin,
    now: Nanos,
}

impl View {
    pub(crate) fn new(pin: Pin, now: Nanos) -> Self {
        Self { pin, now }
    }

    /// The last entry that is in it.
    pub(crate) fn index(&self) -> LogIndex {
        self.pin.index()
    }
}

impl Rows for View {
    type Error = ReadError;

    fn get(&self, key: &RowKey) -> Result<Option<Row>, ReadError> {
        self.pin.get(key)
    }

    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, ReadError> {
        Ok(self.get(key)?.map(|row| row.head))
    }

    fn heads_in(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(RowKey, RowHead)>, ReadError> {
        // A row beyond the limit costs little, and a page of none would hold one.
        let page = PageLimit { rows: limit.max(1), bytes: usize::MAX };
        let found = self.pin.scan(&RowRange::of(space, range), page, self.now)?.rows;
        Ok(found.into_iter().take(limit).map(|(key, row)| (key, row.head)).collect())
    }
}
