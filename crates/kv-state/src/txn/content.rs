//! What a transaction is about.

use std::collections::BTreeMap;

use bytes::BytesMut;
use kv_types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX};
use kv_types::{Fingerprint, Key, Revision, Value};

use super::codec;

/// A key that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    /// The key.
    pub key: Key,
    /// The revision that was seen; `None` if it was absent.
    pub seen: Option<Revision>,
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
/// Reads and writes are in key order, each key once in either. Checked by [`Part::new`] and the codec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    reads: Vec<Read>,
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
    pub fn new(mut reads: Vec<Read>, mut writes: Vec<Write>) -> Result<Self, ContentError> {
        reads.sort_by(|a, b| a.key.cmp(&b.key));
        writes.sort_by(|a, b| a.key.cmp(&b.key));
        let twice = twice(reads.iter().map(|read| &read.key));
        if let Some(key) = twice.or_else(|| self::twice(writes.iter().map(|write| &write.key))) {
            return Err(ContentError::Twice(key.clone()));
        }
        Ok(Self { reads, writes })
    }

    /// The keys read.
    pub fn reads(&self) -> &[Read] {
        &self.reads
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
    pub(crate) fn bytes(&self) -> usize {
        let reads: usize = self.reads.iter().map(|read| read.key.as_ref().len()).sum();
        let value = |write: &Write| write.value.as_ref().map_or(0, |value| value.as_ref().len());
        let writes: usize = self.writes.iter().map(|write| write.key.as_ref().len() + value(write)).sum();
        reads + writes
    }

    /// Any key of it.
    fn first_key(&self) -> Option<&Key> {
        let write = self.writes.first().map(|write| &write.key);
        write.or_else(|| self.reads.first().map(|read| &read.key))
    }
}

impl Transaction {
    /// A transaction that is decided where `anchor` is.
    ///
    /// # Errors
    /// [`ContentError`]
    pub fn new(anchor: Key, reads: Vec<Read>, writes: Vec<Write>) -> Result<Self, ContentError> {
        let operations = reads.len() + writes.len();
        if operations > TXN_OPERATIONS_MAX {
            return Err(ContentError::Operations(operations));
        }
        let all = Part::new(reads, writes)?;
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
    pub fn parts<O: Ord>(&self, owner: impl Fn(&Key) -> O) -> BTreeMap<O, Part> {
        let mut parts: BTreeMap<O, Part> = BTreeMap::new();
        for read in &self.all.reads {
            parts.entry(owner(&read.key)).or_default().reads.push(read.clone());
        }
        for write in &self.all.writes {
            parts.entry(owner(&write.key)).or_default().writes.push(write.clone());
        }
        parts
    }

    /// A key of each owner but the anchor's: how a record names the participants.
    pub fn participants<O: Ord>(&self, owner: impl Fn(&Key) -> O) -> Vec<Key> {
        let own = owner(&self.anchor);
        let others = self.parts(owner).into_iter().filter(|(owner, _)| *owner != own);
        others.filter_map(|(_, part)| part.first_key().cloned()).collect()
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
        let new = |reads, writes| Transaction::new(key("a"), reads, writes);
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
                vec![write("c1", 1), write("a2", value)],
            )
        };
        let txn = new("a2", 1).unwrap();
        let owner = |key: &Key| key.as_ref().first().copied();
        let parts = txn.parts(owner);
        assert_eq!(parts.len(), 3);
        let a = &parts[&Some(b'a')];
        assert_eq!((a.reads().len(), a.writes().len(), a.only_read().count()), (1, 1, 1));
        assert_eq!(txn.participants(owner), [key("b1"), key("c1")]);
        assert_eq!(txn.fingerprint(), new("a2", 1).unwrap().fingerprint());
        assert_ne!(txn.fingerprint(), new("a2", 2).unwrap().fingerprint());
        assert_ne!(txn.fingerprint(), new("c1", 1).unwrap().fingerprint());
    }
}
