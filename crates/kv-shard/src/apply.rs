//! The rows as the state machine sees them.

use kv_state::Rows;
use kv_storage::{RowRange, ShardStore, StoreError};
use kv_types::{KeyRange, Row, RowHead, RowKey, Space};

/// The newest rows of a store.
pub(crate) struct StoreRows<'a>(pub(crate) &'a ShardStore);

impl Rows for StoreRows<'_> {
    type Error = StoreError;

    fn get(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        self.0.get(key)
    }

    fn head(&self, key: &RowKey) -> Result<Option<RowHead>, StoreError> {
        self.0.head(key)
    }

    fn heads_in(&self, range: &KeyRange, limit: usize) -> Result<Vec<(RowKey, RowHead)>, StoreError> {
        self.0.keys(&RowRange::of(Space::User, range), limit)
    }
}
