//! What can go wrong when system rows are only looked at.

use std::error::Error;

use kv_types::{Row, RowKey};

use crate::apply::Rows;
use crate::codec::DecodeError;

/// Why system rows could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError<E: Error + Send + Sync + 'static> {
    /// A row could not be read.
    #[error("the system rows cannot be read")]
    Rows(#[source] E),
    /// A row makes no sense to this build.
    #[error("the row {key:?} cannot be read: {cause}")]
    SystemRow {
        /// The row.
        key: RowKey,
        /// What is wrong with it.
        cause: DecodeError,
    },
}

/// What a look at system rows gives.
pub(crate) type Looked<T, R> = Result<T, ReadError<<R as Rows>::Error>>;

/// A system row, decoded.
pub(crate) fn look<R: Rows, T>(
    rows: &R,
    key: RowKey,
    decode: impl FnOnce(&Row) -> Result<T, DecodeError>,
) -> Looked<Option<T>, R> {
    let row = rows.get(&key).map_err(ReadError::Rows)?;
    row.map(|row| decode(&row)).transpose().map_err(|cause| ReadError::SystemRow { key, cause })
}
