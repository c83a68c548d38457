//! A range of rows.

use std::ops::Bound;

use kv_types::{KeyRange, RowKey, Space};

/// Rows between two bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowRange {
    /// Where it begins.
    pub from: Bound<RowKey>,
    /// Where it ends.
    pub to: Bound<RowKey>,
}

impl RowRange {
    /// Every row of a shard.
    pub const ALL: Self = Self { from: Bound::Unbounded, to: Bound::Unbounded };

    /// The rows of a key range in a space.
    pub fn of(space: Space, range: &KeyRange) -> Self {
        let to = match (range.end(), space) {
            (Some(end), _) => Bound::Excluded(RowKey::new(space, end)),
            (None, Space::System) => Bound::Excluded(RowKey::new(Space::User, b"")),
            (None, Space::User) => Bound::Unbounded,
        };
        Self { from: Bound::Included(RowKey::new(space, range.start())), to }
    }

    /// The part of the range that begins at `key`, to resume a scan.
    #[must_use]
    pub fn starting_at(&self, key: RowKey) -> Self {
        Self { from: Bound::Included(key), to: self.to.clone() }
    }

    /// Whether no row can lie in it.
    pub fn is_empty(&self) -> bool {
        match (&self.from, &self.to) {
            (Bound::Included(from), Bound::Included(to)) => from > to,
            (Bound::Included(from) | Bound::Excluded(from), Bound::Included(to) | Bound::Excluded(to)) => {
                from >= to
            }
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_rows_end_before_user_rows() {
        let system = RowRange::of(Space::System, &KeyRange::all());
        let last = RowKey::new(Space::System, &[255; 9]);
        assert!(matches!(&system.to, Bound::Excluded(end) if last < *end));
        assert!(!system.is_empty() && !RowRange::ALL.is_empty());
        let key = RowKey::new(Space::User, b"");
        assert!(system.starting_at(key).is_empty());
    }
}
