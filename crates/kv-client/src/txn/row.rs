//! A key as a transaction sees it.

use kv_types::{Key, Revision, Value};

use crate::reply::Row;

/// A key as a transaction sees it: as it was when it was first read, or as the transaction has written it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnRow {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Value,
    /// The revision that wrote this value; `None` if the transaction itself has written it, and so has none yet.
    pub mod_revision: Option<Revision>,
}

impl From<&Row> for TxnRow {
    fn from(row: &Row) -> Self {
        Self { key: row.key.clone(), value: row.value.clone(), mod_revision: Some(row.mod_revision) }
    }
}
