//! What a transaction has read and wants to write, without any call.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kv_proto::txn::{Commit, Validate};
use kv_types::limits::{KEY_BYTES_MAX, TXN_BYTES_MAX, TXN_OPERATIONS_MAX, TXN_SCANNED_KEYS_MAX};
use kv_types::{Key, KeyRange, Revision, ShardId, Value};

use super::error::LimitExceeded;
use super::row::TxnRow;
use super::scanned::{Piece, Scanned};
use crate::reply::Row;

/// The read set and the write set.
///
/// # Invariants
/// - a key is read once: what was seen first is what every later look finds. Asserted where a read is added;
/// - what was read and what was scanned never speak of two revisions of one key. Checked where a piece is added;
/// - all of it is within the limits of a transaction. Checked where anything is added.
#[derive(Debug, Default)]
pub(super) struct Content {
    reads: BTreeMap<Key, Seen>,
    scanned: Scanned,
    /// The smallest revision of the looks at each shard.
    since: BTreeMap<ShardId, Revision>,
    /// `None` deletes.
    writes: BTreeMap<Key, Option<Value>>,
}

/// What a key was when it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    shard: ShardId,
    /// `None` if it was absent.
    row: Option<Row>,
}

impl Content {
    /// Whether there is nothing to validate and nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.scanned.first_start().is_none() && self.writes.is_empty()
    }

    /// What the transaction sees of a key; `None` if it has to be read.
    pub(super) fn look(&self, key: &Key) -> Option<Option<TxnRow>> {
        if let Some(value) = self.writes.get(key) {
            return Some(value.as_ref().map(|value| own_row(key, value)));
        }
        Some(self.seen(key)?.map(TxnRow::from))
    }

    /// Whether further keys may be read.
    ///
    /// # Errors
    /// [`LimitExceeded`]
    pub(super) fn check_reads<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Result<(), LimitExceeded> {
        let (count, bytes) = keys.fold((0, 0), |(count, bytes), key| (count + 1, bytes + key.as_ref().len()));
        self.check(count, bytes)
    }

    fn seen(&self, key: &Key) -> Option<Option<&Row>> {
        self.reads.get(key).map(|seen| seen.row.as_ref()).or_else(|| self.scanned.look(key))
    }

    /// Remembers what a key was when its shard was looked at, at that revision.
    pub(super) fn add_read(&mut self, key: Key, (shard, revision): (ShardId, Revision), row: Option<Row>) {
        let before = self.seen(&key);
        assert!(before.is_none_or(|before| before == row.as_ref()), "{key} was seen as {before:?} before");
        self.looked(shard, revision);
        self.reads.insert(key, Seen { shard, row });
    }

    fn looked(&mut self, shard: ShardId, revision: Revision) {
        let since = self.since.entry(shard).or_insert(revision);
        *since = revision.min(*since);
    }

    /// Buffers a write.
    ///
    /// # Errors
    /// [`LimitExceeded`]; then nothing is changed.
    pub(super) fn add_write(&mut self, key: Key, value: Option<Value>) -> Result<(), LimitExceeded> {
        let before = self.writes.insert(key.clone(), value);
        let checked = self.check(0, 0);
        if checked.is_err() {
            match before {
                Some(before) => self.writes.insert(key, before),
                None => self.writes.remove(&key),
            };
        }
        checked
    }

    /// Remembers what was scanned.
    ///
    /// # Errors
    /// [`LimitExceeded`]; then nothing is changed.
    pub(super) fn add_pieces(&mut self, pieces: Vec<Piece>) -> Result<(), LimitExceeded> {
        let starts: Vec<Bytes> = pieces.iter().map(|piece| piece.range.start().clone()).collect();
        for piece in pieces {
            self.looked(piece.shard, piece.revision);
            self.scanned.add(piece);
        }
        let keys = self.scanned.keys();
        let checked =
            if keys > TXN_SCANNED_KEYS_MAX { Err(LimitExceeded::ScannedKeys) } else { self.check(0, 0) };
        if checked.is_err() {
            starts.iter().for_each(|start| self.scanned.remove(start));
        }
        checked
    }

    /// A key that was read and is not the same in a piece.
    pub(super) fn contradicted(&self, piece: &Piece) -> Option<&Key> {
        let within = self.reads.iter().filter(|(key, _)| piece.range.contains(key.as_ref()));
        let revision = |row: &Row| row.mod_revision;
        let mut differs = within
            .filter(|(key, seen)| seen.row.as_ref().map(revision) != piece.row(key.as_ref()).map(revision));
        differs.next().map(|(key, _)| key)
    }

    pub(super) fn scanned(&self) -> &Scanned {
        &self.scanned
    }

    /// The writes of a range.
    pub(super) fn writes_in(&self, range: &KeyRange) -> impl Iterator<Item = (&Key, Option<&Value>)> {
        let within = self.writes.iter().filter(|(key, _)| range.contains(key.as_ref()));
        within.map(|(key, value)| (key, value.as_ref()))
    }

    /// The key whose shard decides: one that is read and written, as such a key is the likeliest to be contended; else
    /// one that is written, else one that is read. `None` if nothing but ranges was read.
    pub(super) fn anchor(&self) -> Option<&Key> {
        let is_read = |key: &&Key| self.reads.contains_key(*key) || self.scanned.look(key).is_some();
        let written = self.writes.keys().find(is_read).or_else(|| self.writes.keys().next());
        written.or_else(|| self.reads.keys().next())
    }

    /// What to read so that a transaction that has only scanned has an anchor: the first key it has seen, or else the
    /// key where its first range begins, or the nearest that may be one.
    pub(super) fn anchor_to_read(&self) -> Key {
        if let Some(row) = self.scanned.first_row() {
            return row.key.clone();
        }
        let key = match self.scanned.first_start() {
            Some(start) if !start.is_empty() => start.slice(..start.len().min(KEY_BYTES_MAX)),
            Some(_) | None => Bytes::from_static(&[0]),
        };
        Key::new(key).expect("it has a byte, and no more than a key may have")
    }

    /// Makes a read of what a scan has seen of a key; whether a scan has looked there.
    pub(super) fn add_read_of_scan(&mut self, key: &Key) -> bool {
        let Some(piece) = self.scanned.piece_at(key.as_ref()) else { return false };
        let seen = Seen { shard: piece.shard, row: piece.row(key.as_ref()).cloned() };
        self.reads.insert(key.clone(), seen);
        true
    }

    /// The same as a commit.
    pub(super) fn into_commit(self, anchor: Key) -> Commit {
        let revision = |seen: Seen| seen.row.map(|row| row.mod_revision);
        Commit {
            anchor,
            scans: self.scanned.digests().into_iter().map(|(_, scan)| scan).collect(),
            reads: self.reads.into_iter().map(|(key, seen)| (key, revision(seen))).collect(),
            writes: self.writes.into_iter().collect(),
        }
    }

    /// The keys that it has read or wants to write, in order.
    pub(super) fn keys(&self) -> BTreeSet<Key> {
        self.reads.keys().chain(self.writes.keys()).cloned().collect()
    }

    /// Whether it writes nothing.
    pub(super) fn only_reads(&self) -> bool {
        self.writes.is_empty()
    }

    /// What was read of each shard, to be validated.
    pub(super) fn into_questions(self) -> Vec<Validate> {
        let empty = |since: &Revision| Validate { since: *since, reads: Vec::new(), scans: Vec::new() };
        let mut questions: BTreeMap<ShardId, Validate> =
            self.since.iter().map(|(shard, since)| (*shard, empty(since))).collect();
        for (key, seen) in self.reads {
            let revision = seen.row.map(|row| row.mod_revision);
            questions.entry(seen.shard).and_modify(|of| of.reads.push((key, revision)));
        }
        for (shard, scan) in self.scanned.digests() {
            questions.entry(shard).and_modify(|of| of.scans.push(scan));
        }
        questions.into_values().collect()
    }

    /// Whether it is within its limits with so many further reads.
    fn check(&self, reads: usize, read_bytes: usize) -> Result<(), LimitExceeded> {
        let ranges = self.scanned.ranges();
        let points = self.reads.len() + reads + self.writes.len();
        // One that only scans reads a key beside, to have an anchor.
        let operations = points.max(usize::from(!ranges.is_empty())) + ranges.len();
        if operations > TXN_OPERATIONS_MAX {
            return Err(LimitExceeded::Operations);
        }
        let anchor_bytes = if points == 0 { KEY_BYTES_MAX } else { 0 };
        let range_bytes = |range: &KeyRange| range.start().len() + range.end().map_or(0, Bytes::len);
        let of_ranges: usize = ranges.iter().map(range_bytes).sum();
        let of_reads: usize = self.reads.keys().map(|key| key.as_ref().len()).sum();
        let of_value = |value: &Option<Value>| value.as_ref().map_or(0, |value| value.as_ref().len());
        let of_writes: usize =
            self.writes.iter().map(|(key, value)| key.as_ref().len() + of_value(value)).sum();
        let bytes = of_ranges + of_reads + of_writes + read_bytes + anchor_bytes;
        if bytes > TXN_BYTES_MAX { Err(LimitExceeded::Bytes(bytes)) } else { Ok(()) }
    }
}

/// A row that the transaction has written.
pub(super) fn own_row(key: &Key, value: &Value) -> TxnRow {
    TxnRow { key: key.clone(), value: value.clone(), mod_revision: None }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use kv_types::Lamport;

    const AT: (ShardId, Revision) = (ShardId::new(1), Revision::new(9));

    /// A row that was read.
    pub(in crate::txn) fn row(key: &'static str, value: &'static str, revision: u64) -> Row {
        Row {
            key: self::key(key),
            value: self::value(value),
            create_revision: Revision::new(revision),
            mod_revision: Revision::new(revision),
            version: 1,
            lamport: Lamport::default(),
            lease: 0,
        }
    }

    fn key(text: &'static str) -> Key {
        Key::new(text).unwrap()
    }

    fn value(text: &'static str) -> Value {
        Value::new(text).unwrap()
    }

    fn piece(start: &'static str, end: Option<&'static str>, rows: Vec<Row>) -> Piece {
        let range = KeyRange::new(start, end.map(Bytes::from)).unwrap();
        Piece { range, shard: AT.0, revision: AT.1, rows }
    }

    fn found(content: &Content, text: &'static str) -> Option<Option<Value>> {
        content.look(&key(text)).map(|row| row.map(|row| row.value))
    }

    #[test]
    fn own_writes_come_before_what_was_read() {
        let mut content = Content::default();
        assert!(content.is_empty());
        content.add_read(key("a"), AT, Some(row("a", "1", 4)));
        content.add_read(key("b"), AT, None);
        content.add_pieces(vec![piece("c", Some("e"), vec![row("c", "3", 5)])]).unwrap();
        assert_eq!(content.look(&key("a")).unwrap().unwrap().mod_revision, Some(Revision::new(4)));
        assert_eq!(found(&content, "b"), Some(None));
        assert_eq!((found(&content, "c"), found(&content, "d")), (Some(Some(value("3"))), Some(None)));
        assert_eq!(found(&content, "e"), None);
        for text in ["a", "b", "c", "e"] {
            content.add_write(key(text), Some(value("own"))).unwrap();
            assert_eq!(found(&content, text), Some(Some(value("own"))));
            assert_eq!(content.look(&key(text)).unwrap().unwrap().mod_revision, None);
        }
        content.add_write(key("a"), None).unwrap();
        assert_eq!(found(&content, "a"), Some(None));
    }

    #[test]
    fn a_commit_holds_first_revisions_and_last_writes() {
        let mut content = Content::default();
        content.add_read(key("b"), AT, Some(row("b", "1", 4)));
        content.add_read(key("a"), AT, None);
        content.add_write(key("b"), Some(value("x"))).unwrap();
        content.add_write(key("b"), None).unwrap();
        content.add_pieces(vec![piece("m", None, vec![row("n", "1", 6)])]).unwrap();
        let commit = content.into_commit(key("b"));
        assert_eq!(commit.reads, [(key("a"), None), (key("b"), Some(Revision::new(4)))]);
        assert_eq!(commit.writes, [(key("b"), None)]);
        let digest = kv_types::Fingerprint::of_scan([(&b"n"[..], Revision::new(6))]);
        assert_eq!(commit.scans, [(KeyRange::new("m", None).unwrap(), digest)]);
    }

    #[test]
    fn each_shard_is_asked_about_what_was_read_of_it_since_the_first_look() {
        let mut content = Content::default();
        let at = |shard, revision| (ShardId::new(shard), Revision::new(revision));
        content.add_read(key("b"), at(1, 7), Some(row("b", "1", 4)));
        content.add_read(key("a"), at(1, 5), None);
        content.add_read(key("x"), at(2, 3), None);
        let scanned = Piece { revision: Revision::new(2), ..piece("m", None, vec![row("n", "1", 1)]) };
        content.add_pieces(vec![scanned]).unwrap();
        let digest = kv_types::Fingerprint::of_scan([(&b"n"[..], Revision::new(1))]);
        let scans = vec![(KeyRange::new("m", None).unwrap(), digest)];
        let reads = vec![(key("a"), None), (key("b"), Some(Revision::new(4)))];
        let first = Validate { since: Revision::new(2), reads, scans };
        let second = Validate { since: Revision::new(3), reads: vec![(key("x"), None)], scans: vec![] };
        assert!(content.only_reads());
        assert_eq!(content.into_questions(), [first, second]);
    }

    #[test]
    fn what_a_scan_contradicts_is_noticed() {
        let mut content = Content::default();
        content.add_read(key("b"), AT, Some(row("b", "1", 4)));
        content.add_read(key("c"), AT, None);
        let same = piece("a", Some("d"), vec![row("a", "1", 9), row("b", "1", 4)]);
        assert_eq!(content.contradicted(&same), None);
        let newer = piece("a", Some("d"), vec![row("b", "2", 5)]);
        assert_eq!(content.contradicted(&newer), Some(&key("b")));
        let gone = piece("a", Some("d"), vec![]);
        assert_eq!(content.contradicted(&gone), Some(&key("b")));
        let appeared = piece("c", Some("d"), vec![row("c", "1", 5)]);
        assert_eq!(content.contradicted(&appeared), Some(&key("c")));
        assert_eq!(content.contradicted(&piece("d", None, vec![row("e", "1", 5)])), None);
    }

    #[test]
    fn the_anchor_is_written_and_read_or_written_or_read() {
        let mut content = Content::default();
        content.add_read(key("c"), AT, None);
        content.add_read(key("d"), AT, None);
        assert_eq!(content.anchor(), Some(&key("c")));
        content.add_write(key("a"), None).unwrap();
        assert_eq!(content.anchor(), Some(&key("a")));
        content.add_write(key("d"), None).unwrap();
        assert_eq!(content.anchor(), Some(&key("d")));
        content.add_pieces(vec![piece("a", Some("b"), vec![])]).unwrap();
        assert_eq!(content.anchor(), Some(&key("a")), "it was scanned");
    }

    #[test]
    fn one_that_only_scans_reads_an_anchor() {
        let only = |piece| {
            let mut content = Content::default();
            content.add_pieces(vec![piece]).unwrap();
            let anchor = content.anchor_to_read();
            (content.add_read_of_scan(&anchor), anchor)
        };
        assert_eq!(only(piece("a", None, vec![row("b", "1", 3)])), (true, key("b")));
        assert_eq!(only(piece("a", None, vec![])), (true, key("a")));
        assert_eq!(only(piece("", None, vec![])), (true, key("\0")));
        assert_eq!(only(piece("", Some("\0"), vec![])), (false, key("\0")), "no key lies in it");
        let longest = Bytes::from(vec![7; KEY_BYTES_MAX + 1]);
        let range = KeyRange::new(longest.clone(), None).unwrap();
        let beyond = only(Piece { range, shard: AT.0, revision: AT.1, rows: vec![] });
        assert_eq!(beyond, (false, Key::new(longest.slice(1..)).unwrap()));
    }

    #[test]
    fn what_is_beyond_a_limit_changes_nothing() {
        let mut content = Content::default();
        let number = |n: usize| Key::new(n.to_string()).unwrap();
        (0..TXN_OPERATIONS_MAX - 1).for_each(|n| content.add_write(number(n), None).unwrap());
        content.check_reads([key("r")].iter()).unwrap();
        assert_eq!(content.check_reads([key("r"), key("s")].iter()), Err(LimitExceeded::Operations));
        content.add_write(key("last"), Some(value("v"))).unwrap();
        assert_eq!(content.add_write(key("more"), None), Err(LimitExceeded::Operations));
        assert_eq!(content.look(&key("more")), None);
        content.add_write(key("last"), None).unwrap();
        assert_eq!(content.add_pieces(vec![piece("x", None, vec![])]), Err(LimitExceeded::Operations));
        assert_eq!(found(&content, "x"), None);
    }

    #[test]
    fn bytes_and_scanned_keys_have_limits_too() {
        let mut content = Content::default();
        let large = Value::new(vec![0; 1 << 20]).unwrap();
        let numbers = ["1", "2", "3", "4", "5", "6", "7"];
        numbers.iter().for_each(|text| content.add_write(key(text), Some(large.clone())).unwrap());
        let rest = Value::new(vec![0; (1 << 20) - 8]).unwrap();
        content.add_write(key("8"), Some(rest.clone())).unwrap();
        let over = content.add_write(key("8"), Some(large));
        assert_eq!(over, Err(LimitExceeded::Bytes(TXN_BYTES_MAX + 8)));
        assert_eq!(found(&content, "8"), Some(Some(rest)), "the write before stays");
        let mut content = Content::default();
        let rows = |count: usize| {
            let key = |n: usize| Key::new(format!("{n:04}")).unwrap();
            (0..count).map(|n| Row { key: key(n), ..row("k", "v", 3) }).collect()
        };
        let over = content.add_pieces(vec![piece("", None, rows(TXN_SCANNED_KEYS_MAX + 1))]);
        assert_eq!(over, Err(LimitExceeded::ScannedKeys));
        content.add_pieces(vec![piece("", None, rows(TXN_SCANNED_KEYS_MAX))]).unwrap();
    }
}
