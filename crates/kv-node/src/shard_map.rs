//! Which shard owns a key.

use bytes::Bytes;
use kv_types::limits::SHARDS_MAX;
use kv_types::{KeyRange, ShardId};

/// The shards of a cluster by key: shard 0 is the meta group and owns none, shards 1, 2, ... own one range each.
///
/// # Invariants
/// Checked by `split_at`: split keys rise strictly, so the ranges are not empty, do not overlap and cover
/// every key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    splits: Vec<Bytes>,
}

/// Why split keys make no map.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardMapError {
    /// A key is empty or not above the one before it.
    #[error("split key `{0}` is not above the one before it; they must rise and not be empty")]
    NotRising(String),
    /// Too many of them.
    #[error("{0} split keys make more than {SHARDS_MAX} shards with the meta group")]
    TooMany(usize),
}

impl ShardMap {
    /// The shards between these keys.
    ///
    /// # Errors
    /// [`ShardMapError`] names the key that is out of order.
    pub fn split_at(splits: Vec<Bytes>) -> Result<Self, ShardMapError> {
        if splits.len() + 2 > SHARDS_MAX {
            return Err(ShardMapError::TooMany(splits.len()));
        }
        let mut before = &Bytes::new();
        for split in &splits {
            if split <= before {
                return Err(ShardMapError::NotRising(split.escape_ascii().to_string()));
            }
            before = split;
        }
        Ok(Self { splits })
    }

    /// The split keys.
    pub fn splits(&self) -> &[Bytes] {
        &self.splits
    }

    /// The shard that owns a key.
    pub fn shard_of(&self, key: &[u8]) -> ShardId {
        let before = self.splits.partition_point(|split| split[..] <= *key);
        ShardId::new(u32::try_from(before).unwrap_or(u32::MAX).saturating_add(1))
    }

    /// The keys a shard owns; `None` for the meta group and unknown shards.
    pub fn range_of(&self, shard: ShardId) -> Option<KeyRange> {
        let at = usize::try_from(shard.get()).ok()?.checked_sub(1)?;
        if at > self.splits.len() {
            return None;
        }
        let start = at.checked_sub(1).and_then(|before| self.splits.get(before)).cloned().unwrap_or_default();
        KeyRange::new(start, self.splits.get(at).cloned()).ok()
    }

    /// Every shard, the meta group first.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + use<> {
        let last = u32::try_from(self.splits.len()).unwrap_or(u32::MAX).saturating_add(1);
        (0..=last).map(ShardId::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(splits: &[&'static str]) -> ShardMap {
        ShardMap::split_at(splits.iter().map(|split| Bytes::from(*split)).collect()).unwrap()
    }

    #[test]
    fn every_key_has_the_shard_whose_range_holds_it() {
        let map = map(&["g", "n", "t"]);
        assert_eq!(map.shards().count(), 5);
        for (key, shard) in [("a", 1), ("g", 2), ("m", 2), ("n", 3), ("zzz", 4), ("f\u{ff}", 1)] {
            let shard = ShardId::new(shard);
            assert_eq!(map.shard_of(key.as_bytes()), shard, "{key}");
            assert!(map.range_of(shard).unwrap().contains(key.as_bytes()), "{key}");
        }
        assert_eq!(map.range_of(ShardId::META), None);
        assert_eq!(map.range_of(ShardId::new(5)), None);
        assert_eq!(ShardMap::split_at(Vec::new()).unwrap().range_of(ShardId::new(1)), Some(KeyRange::all()));
    }

    #[test]
    fn split_keys_must_rise() {
        let splits = vec![Bytes::from("n"), Bytes::from("g")];
        assert_eq!(ShardMap::split_at(splits), Err(ShardMapError::NotRising("g".to_owned())));
        assert!(ShardMap::split_at(vec![Bytes::new()]).is_err());
    }
}
