//! The rows of one view, as the state machine's looks want them.

use kv_state::Rows;
use kv_storage::{PageLimit, Pin, ReadError, RowRange};
use kv_types::limits::SCAN_PAGE_BYTES_MAX;
use kv_types::{KeyRange, Row, RowHead, RowKey, Space};

use crate::clock;

/// Rows that do not change while they are looked at.
#[derive(Debug)]
pub(crate) struct PinnedRows<'a>(pub(crate) &'a Pin);

impl Rows for PinnedRows<'_> {
    type Error = ReadError;

    fn get(&self, key: &RowKey) -> Result<Option<Row>, ReadError> {
        self.0.get(key)
    }

    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, ReadError> {
        Ok(self.0.get(key)?.map(|row| row.head))
    }

    fn heads_in(
        &self,
        space: Space,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(RowKey, RowHead)>, ReadError> {
        let mut found: Vec<(RowKey, RowHead)> = Vec::new();
        let mut range = RowRange::of(space, range);
        while found.len() < limit {
            let room = PageLimit { rows: limit - found.len(), bytes: SCAN_PAGE_BYTES_MAX };
            let page = self.0.scan(&range, room, clock::now())?;
            found.extend(page.rows.into_iter().map(|(key, row)| (key, row.head)));
            match page.resume {
                Some(key) => range = range.starting_at(key),
                None => break,
            }
        }
        Ok(found)
    }
}
