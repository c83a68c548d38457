//! A row as a table holds it.

use bytes::Bytes;
use kv_types::{Row, RowHead};

/// Values up to this size stand in the table itself: records of the gate, locks, counters. Whoever overwrites one touches no
/// other memory, and frees none that has gone cold.
const INLINE_BYTES_MAX: usize = 38;

/// A row whose short value needs no memory of its own.
#[derive(Clone, Debug)]
pub(super) struct Stowed {
    head: RowHead,
    value: Value,
}

#[derive(Clone, Debug)]
enum Value {
    Inline { len: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Shared(Bytes),
}

impl Stowed {
    pub(super) fn new(Row { head, value }: Row) -> Self {
        let mut bytes = [0; INLINE_BYTES_MAX];
        let value = match (bytes.get_mut(..value.len()), u8::try_from(value.len())) {
            (Some(place), Ok(len)) => {
                place.copy_from_slice(&value);
                Value::Inline { len, bytes }
            }
            _ => Value::Shared(value),
        };
        Self { head, value }
    }

    pub(super) fn head(&self) -> RowHead {
        self.head
    }

    pub(super) fn row(&self) -> Row {
        let value = match &self.value {
            Value::Inline { len, bytes } => {
                Bytes::copy_from_slice(bytes.get(..usize::from(*len)).unwrap_or_default())
            }
            Value::Shared(value) => value.clone(),
        };
        Row { head: self.head, value }
    }
}

#[cfg(test)]
mod tests {
    use kv_types::{Lamport, Revision};

    use super::*;

    #[test]
    fn a_row_comes_out_as_it_was_put_in() {
        for len in [0, 1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 300] {
            let row = Row::new(Revision::new(1), Revision::new(2), 2, Lamport::ZERO, &vec![7; len].into());
            let stowed = Stowed::new(row.clone());
            assert_eq!((stowed.head(), stowed.row()), (row.head, row));
            assert_eq!(matches!(stowed.value, Value::Inline { .. }), len <= INLINE_BYTES_MAX);
        }
    }
}
