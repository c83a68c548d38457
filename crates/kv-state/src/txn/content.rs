//! What a transaction is about.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use kv_types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX};
use kv_types::{Fingerprint, Key, KeyRange, Revision, Value};

use super::codec;

/// A key that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The key.
    pub key: Key,
    /// The revision that was seen; `None` if it was absent.
    pub seen: Option<Revision>,
}

/// A range that was scanned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The keys: up to the last that was returned, if the scan ended there. They lie in one shard.
    pub range: KeyRange,
    /// Of the keys that were there, and their revisions.
    pub digest: Fingerprint,
}

/// A write that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The key.
    pub key: Key,
    /// Its new value; `None` deletes it.
    pub value: Option<Value>,
}

/// What one shard owns of a transaction.
///
/// # Invariants
/// Reads and writes are in key order, each key once in either; scans by their start, each start once. Checked by
/// [`Part::new`] and the codec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    reads: Vec<Read>,
    scans: Vec<Scan>,
    writes: Vec<Write>,
}

/// A transaction's content.
///
/// # Invariants
/// The anchor is a key of it; it is within its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    anchor: Key,
    all: Part,
}

/// Why this is no transaction.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// One key twice among the reads, or among the writes.
    #[error("the key {0} is named twice")]
    Twice(Key),
    /// Two scans from one key on.
    #[error("two scans begin at {0:?}")]
    ScannedTwice(Bytes),
    /// Too many keys.
    #[error("{0} operations: a transaction has at most {TXN_OPERATIONS_MAX}")]
    Operations(usize),
    /// Too large.
    #[error("{0} bytes of keys and values: a transaction has at most {TXN_BYTES_MAX}")]
    Bytes(usize),
    /// The anchor is none of its keys.
    #[error("the anchor {0} is no key of the transaction")]
    Anchor(Key),
}

impl Part {
    /// Puts reads and writes in order.
    ///
    /// # Errors
    /// [`ContentError::Twice`]
    pub fn new(
        mut reads: Vec<Read>,
        mut scans: Vec<Scan>,
        mut writes: Vec<Write>,
    ) -> Result<Self, ContentError> {
        reads.sort_by(|a, b| a.key.cmp(&b.key));
        writes.sort_by(|a, b| a.key.cmp(&b.key));
        scans.sort_by(|a, b| a.range.start().cmp(b.range.start()));
        let twice = twice(reads.iter().map(|read| &read.key));
        if let Some(key) = twice.or_else(|| self::twice(writes.iter().map(|write| &write.key))) {
            return Err(ContentError::Twice(key.clone()));
        }
        let mut last = None;
        if let Some(scan) =
            scans.iter().find(|scan| last.replace(scan.range.start()) == Some(scan.range.start()))
        {
            return Err(ContentError::ScannedTwice(scan.range.start().clone()));
        }
        Ok(Self { reads, scans, writes })
    }

    /// The keys read.
    pub fn reads(&self) -> &[Read] {
        &self.reads
    }

    /// The ranges scanned.
    pub fn scans(&self) -> &[Scan] {
        &self.scans
    }

    /// The writes.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    /// Whether it writes a key.
    pub(crate) fn writes_key(&self, key: &Key) -> bool {
        self.writes.binary_search_by(|write| write.key.cmp(key)).is_ok()
    }

    /// Keys that are read and not written.
    pub(crate) fn only_read(&self) -> impl Iterator<Item = &Key> {
        self.reads.iter().map(|read| &read.key).filter(|key| !self.writes_key(key))
    }

    /// Keys and values.
    pub fn bytes(&self) -> usize {
        let reads: usize = self.reads.iter().map(|read| read.key.as_ref().len()).sum();
        let value = |write: &Write| write.value.as_ref().map_or(0, |value| value.as_ref().len());
        let writes: usize = self.writes.iter().map(|write| write.key.as_ref().len() + value(write)).sum();
        let end = |scan: &Scan| scan.range.end().map_or(0, Bytes::len);
        let scans: usize = self.scans.iter().map(|scan| scan.range.start().len() + end(scan)).sum();
        reads + scans + writes
    }

    /// Where any of it is.
    fn place(&self) -> Option<Bytes> {
        let key = |key: &Key| Bytes::copy_from_slice(key.as_ref());
        let write = self.writes.first().map(|write| key(&write.key));
        let read = || self.reads.first().map(|read| key(&read.key));
        write.or_else(read).or_else(|| self.scans.first().map(|scan| scan.range.start().clone()))
    }
}

impl Transaction {
    /// A transaction that is decided where `anchor` is.
    ///
    /// # Errors
    /// [`ContentError`]
    pub fn new(
        anchor: Key,
        reads: Vec<Read>,
        scans: Vec<Scan>,
        writes: Vec<Write>,
    ) -> Result<Self, ContentError> {
        let operations = reads.len() + scans.len() + writes.len();
        if operations > TXN_OPERATIONS_MAX {
            return Err(ContentError::Operations(operations));
        }
        let all = Part::new(reads, scans, writes)?;
        if all.bytes() > TXN_BYTES_MAX {
            return Err(ContentError::Bytes(all.bytes()));
        }
        if !all.writes_key(&anchor) && !all.only_read().any(|key| *key == anchor) {
            return Err(ContentError::Anchor(anchor));
        }
        Ok(Self { anchor, all })
    }

    /// Where it is decided.
    pub fn anchor(&self) -> &Key {
        &self.anchor
    }

    /// All of it.
    pub fn all(&self) -> &Part {
        &self.all
    }

    /// Of the anchor, the reads and the writes: one id with two contents is noticed.
    pub fn fingerprint(&self) -> Fingerprint {
        let mut out = BytesMut::with_capacity(self.all.bytes() + 64);
        codec::put_key(&mut out, &self.anchor);
        codec::put_part(&mut out, &self.all);
        Fingerprint::of(&out)
    }

    /// What each owner has of it.
    pub fn parts<O: Ord>(&self, owner: impl Fn(&[u8]) -> O) -> BTreeMap<O, Part> {
        let mut parts: BTreeMap<O, Part> = BTreeMap::new();
        for read in &self.all.reads {
            parts.entry(owner(read.key.as_ref())).or_default().reads.push(read.clone());
        }
        for scan in &self.all.scans {
            parts.entry(owner(scan.range.start())).or_default().scans.push(scan.clone());
        }
        for write in &self.all.writes {
            parts.entry(owner(write.key.as_ref())).or_default().writes.push(write.clone());
        }
        parts
    }

    /// A key of each owner but the anchor's, or where a range of it begins: how a record names the participants.
    pub fn participants<O: Ord>(&self, owner: impl Fn(&[u8]) -> O) -> Vec<Bytes> {
        let own = owner(self.anchor.as_ref());
        let others = self.parts(owner).into_iter().filter(|(owner, _)| *owner != own);
        others.filter_map(|(_, part)| part.place()).collect()
    }
}

/// A key that stands twice in a row of keys in order.
fn twice<'a>(keys: impl Iterator<Item = &'a Key>) -> Option<&'a Key> {
    let mut last = None;
    keys.into_iter().find(|key| last.replace(*key) == Some(*key))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new(name.to_owned()).unwrap()
    }

    fn read(name: &str) -> Read {
        Read { key: key(name), seen: None }
    }

    fn write(name: &str, value: usize) -> Write {
        Write { key: key(name), value: Some(Value::new(vec![0; value]).unwrap()) }
    }

    #[test]
    fn content_is_checked() {
        let new = |reads, writes| Transaction::new(key("a"), reads, vec![], writes);
        let scan = |start: &'static str| Scan {
            range: KeyRange::new(start, None).unwrap(),
            digest: Fingerprint::of_scan([]),
        };
        let twice = Transaction::new(key("a"), vec![], vec![scan("b"), scan("b")], vec![write("a", 1)]);
        assert_eq!(twice, Err(ContentError::ScannedTwice("b".into())));
        assert_eq!(new(vec![read("a"), read("b"), read("a")], vec![]), Err(ContentError::Twice(key("a"))));
        assert_eq!(new(vec![], vec![write("b", 1)]), Err(ContentError::Anchor(key("a"))));
        let many = (0..TXN_OPERATIONS_MAX).map(|n| read(&n.to_string())).collect();
        assert_eq!(new(many, vec![write("a", 1)]), Err(ContentError::Operations(TXN_OPERATIONS_MAX + 1)));
        let large = (0..9).map(|n| write(&n.to_string(), 1 << 20)).chain([write("a", 0)]).collect();
        assert!(matches!(new(vec![], large), Err(ContentError::Bytes(_))));
        assert!(new(vec![read("a")], vec![write("a", 1)]).is_ok(), "a key may be read and written");
    }

    #[test]
    fn each_owner_gets_its_part_and_the_fingerprint_is_of_all() {
        let new = |anchor, value| {
            Transaction::new(
                key(anchor),
                vec![read("b1"), read("a1")],
                vec![],
                vec![write("c1", 1), write("a2", value)],
            )
        };
        let txn = new("a2", 1).unwrap();
        let owner = |key: &[u8]| key.first().copied();
        let parts = txn.parts(owner);
        assert_eq!(parts.len(), 3);
        let a = &parts[&Some(b'a')];
        assert_eq!((a.reads().len(), a.writes().len(), a.only_read().count()), (1, 1, 1));
        assert_eq!(txn.participants(owner), ["b1", "c1"]);
        assert_eq!(txn.fingerprint(), new("a2", 1).unwrap().fingerprint());
        assert_ne!(txn.fingerprint(), new("a2", 2).unwrap().fingerprint());
        assert_ne!(txn.fingerprint(), new("c1", 1).unwrap().fingerprint());
    }
}
