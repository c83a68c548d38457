//! What the scans of a transaction have seen.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use kv_types::{Fingerprint, Key, KeyRange, Revision, ShardId};

use crate::reply::Row;

/// A part of the key space that was scanned, within one shard: what is not among its rows was absent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) range: KeyRange,
    pub(super) shard: ShardId,
    /// Of the look.
    pub(super) revision: Revision,
    /// In key order.
    pub(super) rows: Vec<Row>,
}

/// All that was scanned. What was scanned once is not scanned again: a further scan takes it from here and reads only
/// what lies between.
///
/// # Invariants
/// No two pieces overlap. Asserted where one is added.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// By where they begin.
    pieces: BTreeMap<Bytes, Piece>,
}

impl Piece {
    /// What was seen of a key within the range.
    pub(super) fn row(&self, key: &[u8]) -> Option<&Row> {
        let place = self.rows.binary_search_by(|row| row.key.as_ref().cmp(key)).ok()?;
        self.rows.get(place)
    }

    /// The same, within another range; `None` if they have nothing in common.
    pub(super) fn within(&self, range: &KeyRange) -> Option<Self> {
        let range = self.range.intersection(range)?;
        let rows = self.rows.iter().filter(|row| range.contains(row.key.as_ref())).cloned().collect();
        Some(Self { range, shard: self.shard, revision: self.revision, rows })
    }
}

impl Scanned {
    /// The piece in which a key lies.
    pub(super) fn piece_at(&self, key: &[u8]) -> Option<&Piece> {
        let (_, piece) =
            self.pieces.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()?;
        piece.range.contains(key).then_some(piece)
    }

    /// Where the first piece after a place begins.
    pub(super) fn start_after(&self, place: &[u8]) -> Option<&Bytes> {
        let (start, _) = self.pieces.range::<[u8], _>((Bound::Excluded(place), Bound::Unbounded)).next()?;
        Some(start)
    }

    /// What was seen of a key, if it was scanned.
    pub(super) fn look(&self, key: &Key) -> Option<Option<&Row>> {
        self.piece_at(key.as_ref()).map(|piece| piece.row(key.as_ref()))
    }

    pub(super) fn add(&mut self, piece: Piece) {
        let start = piece.range.start().clone();
        let before = self.piece_at(&start);
        assert!(before.is_none(), "{:?} was scanned before: {before:?}", piece.range);
        let after = self.start_after(&start).filter(|next| piece.range.contains(next));
        assert!(after.is_none(), "{:?} is scanned beyond {after:?}", piece.range);
        self.pieces.insert(start, piece);
    }

    pub(super) fn remove(&mut self, start: &Bytes) {
        self.pieces.remove(start);
    }

    /// The first row of all.
    pub(super) fn first_row(&self) -> Option<&Row> {
        self.pieces.values().find_map(|piece| piece.rows.first())
    }

    /// Where the first of all begins.
    pub(super) fn first_start(&self) -> Option<&Bytes> {
        self.pieces.keys().next()
    }

    /// Keys that were there.
    pub(super) fn keys(&self) -> usize {
        self.pieces.values().map(|piece| piece.rows.len()).sum()
    }

    /// The ranges, as few as can be: those of one shard that touch are one.
    pub(super) fn ranges(&self) -> Vec<KeyRange> {
        self.joined().into_iter().map(|(range, _)| range).collect()
    }

    /// The ranges, their shards, and the digests of what was in them.
    pub(super) fn digests(&self) -> Vec<(ShardId, (KeyRange, Fingerprint))> {
        let digest = |pieces: &[&Piece]| {
            let rows = pieces.iter().flat_map(|piece| &piece.rows);
            Fingerprint::of_scan(rows.map(|row| (row.key.as_ref(), row.mod_revision)))
        };
        let shard = |pieces: &[&Piece]| pieces.first().map(|piece| piece.shard).unwrap_or_default();
        let joined = self.joined().into_iter();
        joined.map(|(range, pieces)| (shard(&pieces), (range, digest(&pieces)))).collect()
    }

    fn joined(&self) -> Vec<(KeyRange, Vec<&Piece>)> {
        let mut all: Vec<(KeyRange, Vec<&Piece>)> = Vec::new();
        for piece in self.pieces.values() {
            let touched = all.last_mut().filter(|(range, pieces)| {
                let is_same = pieces.last().is_some_and(|last| last.shard == piece.shard);
                is_same && range.end() == Some(piece.range.start())
            });
            let joined = touched.and_then(|(range, pieces)| {
                *range = KeyRange::new(range.start().clone(), piece.range.end().cloned()).ok()?;
                pieces.push(piece);
                Some(())
            });
            if joined.is_none() {
                all.push((piece.range.clone(), vec![piece]));
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::txn::content::tests::row;

    fn range(start: &'static str, end: Option<&'static str>) -> KeyRange {
        KeyRange::new(start, end.map(Bytes::from)).unwrap()
    }

    fn piece(start: &'static str, end: Option<&'static str>, shard: u32, keys: &[&'static str]) -> Piece {
        let rows = keys.iter().map(|key| row(key, "v", 7)).collect();
        let revision = Revision::new(9);
        Piece { range: range(start, end), shard: ShardId::new(shard), revision, rows }
    }

    fn scanned(pieces: impl IntoIterator<Item = Piece>) -> Scanned {
        let mut scanned = Scanned::default();
        pieces.into_iter().for_each(|piece| scanned.add(piece));
        scanned
    }

    fn key(text: &'static str) -> Key {
        Key::new(text).unwrap()
    }

    #[test]
    fn what_lies_in_a_piece_is_known_also_if_it_is_absent() {
        let scanned = scanned([piece("b", Some("d"), 1, &["b", "c"]), piece("m", None, 2, &["n"])]);
        let look = |text| scanned.look(&key(text)).map(|row| row.is_some());
        let looks = [look("a"), look("b"), look("bb"), look("d"), look("m"), look("n"), look("z")];
        assert_eq!(looks, [None, Some(true), Some(false), None, Some(false), Some(true), Some(false)]);
        assert_eq!(scanned.start_after(b"b").unwrap(), "m");
        assert_eq!(scanned.start_after(b"m"), None);
        assert_eq!((scanned.keys(), scanned.first_start().unwrap()), (3, &Bytes::from("b")));
    }

    #[test]
    fn pieces_of_one_shard_that_touch_are_one_range() {
        let scanned = scanned([
            piece("c", Some("d"), 1, &["c"]),
            piece("a", Some("c"), 1, &["a", "b"]),
            piece("d", Some("f"), 2, &[]),
            piece("g", None, 2, &["x"]),
        ]);
        let digest = |keys: &[&'static str]| {
            Fingerprint::of_scan(keys.iter().map(|key| (key.as_bytes(), Revision::new(7))))
        };
        let expected = vec![
            (ShardId::new(1), (range("a", Some("d")), digest(&["a", "b", "c"]))),
            (ShardId::new(2), (range("d", Some("f")), digest(&[]))),
            (ShardId::new(2), (range("g", None), digest(&["x"]))),
        ];
        assert_eq!(scanned.digests(), expected);
        assert_eq!(scanned.ranges().len(), 3);
    }

    #[test]
    fn a_piece_can_be_cut() {
        let whole = piece("a", None, 1, &["a", "b", "c"]);
        assert_eq!(whole.within(&range("b", Some("c"))), Some(piece("b", Some("c"), 1, &["b"])));
        assert_eq!(whole.within(&KeyRange::all()), Some(whole.clone()));
        let short = piece("a", Some("b"), 1, &["a"]);
        assert_eq!(short.within(&range("b", None)), None);
    }

    #[test]
    #[should_panic(expected = "was scanned before")]
    fn an_overlap_is_a_mistake_of_this_crate() {
        scanned([piece("a", Some("c"), 1, &[]), piece("b", None, 1, &[])]);
    }
}
