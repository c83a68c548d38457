//! A transaction's content, checked.

use bytes::Bytes;
use kv_types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX};
use kv_types::{Fingerprint, Key, KeyRange, Revision, Value};

use crate::checksum;
use crate::status::ApiError;
use crate::v1;
use crate::validate::{self, WireError};

/// Commits a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// Whose shard decides.
    pub anchor: Key,
    /// The keys read, and the revisions seen; `None` of an absent key.
    pub reads: Vec<(Key, Option<Revision>)>,
    /// The ranges scanned, and the digests of what was in them.
    pub scans: Vec<(KeyRange, Fingerprint)>,
    /// The keys written, and their new values; `None` to delete.
    pub writes: Vec<(Key, Option<Value>)>,
}

/// Asks whether what was read of one shard still is as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validate {
    /// The smallest revision of the looks at the shard.
    pub since: Revision,
    /// The keys read, and the revisions seen; `None` of an absent key.
    pub reads: Vec<(Key, Option<Revision>)>,
    /// The ranges scanned, and the digests of what was in them.
    pub scans: Vec<(KeyRange, Fingerprint)>,
}

impl TryFrom<v1::ValidateRequest> for Validate {
    type Error = ApiError;

    fn try_from(wire: v1::ValidateRequest) -> Result<Self, ApiError> {
        validate::at_most("reads and scans", wire.reads.len() + wire.scans.len(), TXN_OPERATIONS_MAX)?;
        if wire.reads.is_empty() && wire.scans.is_empty() {
            return Err(WireError::Missing("reads").into());
        }
        Ok(Self {
            since: Revision::new(wire.since),
            reads: wire.reads.into_iter().map(read).collect::<Result<_, WireError>>()?,
            scans: wire.scans.into_iter().map(scan).collect::<Result<_, WireError>>()?,
        })
    }
}

impl From<Validate> for v1::ValidateRequest {
    fn from(content: Validate) -> Self {
        Self {
            context: None,
            since: content.since.get(),
            reads: content.reads.into_iter().map(read_to_wire).collect(),
            scans: content.scans.into_iter().map(scan_to_wire).collect(),
        }
    }
}

impl TryFrom<v1::CommitRequest> for Commit {
    type Error = ApiError;

    fn try_from(wire: v1::CommitRequest) -> Result<Self, ApiError> {
        if let Some(stated) = wire.crc {
            checksum::check("transaction", Some(stated), checksum::commit(&wire))?;
        }
        let operations = wire.reads.len() + wire.scans.len() + wire.writes.len();
        validate::at_most("reads, scans and writes", operations, TXN_OPERATIONS_MAX)?;
        let write = |write: v1::TxnWrite| {
            let value = write.value.map(validate::value).transpose()?;
            Ok((validate::key(write.key)?, value))
        };
        let content = Self {
            anchor: validate::key(wire.anchor)?,
            reads: wire.reads.into_iter().map(read).collect::<Result<_, WireError>>()?,
            scans: wire.scans.into_iter().map(scan).collect::<Result<_, WireError>>()?,
            writes: wire.writes.into_iter().map(write).collect::<Result<_, WireError>>()?,
        };
        validate::at_most("keys and values", content.bytes(), TXN_BYTES_MAX)?;
        Ok(content)
    }
}

fn read(wire: v1::TxnRead) -> Result<(Key, Option<Revision>), WireError> {
    let seen = (wire.seen > 0).then(|| Revision::new(wire.seen));
    Ok((validate::key(wire.key)?, seen))
}

fn read_to_wire((key, seen): (Key, Option<Revision>)) -> v1::TxnRead {
    v1::TxnRead { key: key.into_bytes(), seen: seen.map_or(0, Revision::get) }
}

fn scan_to_wire((range, digest): (KeyRange, Fingerprint)) -> v1::TxnScan {
    v1::TxnScan {
        range: Some(validate::range_to_wire(&range)),
        digest: Bytes::copy_from_slice(&digest.get().to_be_bytes()),
    }
}

fn scan(wire: v1::TxnScan) -> Result<(KeyRange, Fingerprint), WireError> {
    // A range lost on the way must not become "every key".
    let range = wire.range.ok_or(WireError::Missing("range"))?;
    let digest = <[u8; 16]>::try_from(&wire.digest[..]).map_err(|_| WireError::Missing("digest"))?;
    Ok((validate::range(Some(range))?, Fingerprint::from_raw(u128::from_be_bytes(digest))))
}

impl Commit {
    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        let reads: usize = self.reads.iter().map(|(key, _)| key.as_ref().len()).sum();
        let value = |value: &Option<Value>| value.as_ref().map_or(0, |value| value.as_ref().len());
        let writes: usize = self.writes.iter().map(|(key, new)| key.as_ref().len() + value(new)).sum();
        let end = |range: &KeyRange| range.end().map_or(0, Bytes::len);
        let scans: usize = self.scans.iter().map(|(range, _)| range.start().len() + end(range)).sum();
        reads + writes + scans
    }
}

impl From<Commit> for v1::CommitRequest {
    fn from(content: Commit) -> Self {
        let write = |(key, value): (Key, Option<Value>)| v1::TxnWrite {
            key: key.into_bytes(),
            value: value.map(Value::into_bytes),
        };
        let mut wire = Self {
            context: None,
            anchor: content.anchor.into_bytes(),
            reads: content.reads.into_iter().map(read_to_wire).collect(),
            scans: content.scans.into_iter().map(scan_to_wire).collect(),
            writes: content.writes.into_iter().map(write).collect(),
            crc: None,
            reservation: 0,
        };
        wire.crc = Some(checksum::commit(&wire));
        wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &'static str) -> Key {
        Key::new(text).unwrap()
    }

    fn content() -> Commit {
        Commit {
            anchor: key("a"),
            reads: vec![(key("a"), Some(Revision::new(3))), (key("b"), None)],
            scans: vec![
                (KeyRange::new("c", Some("d".into())).unwrap(), Fingerprint::of(b"x")),
                (KeyRange::new("e", None).unwrap(), Fingerprint::of_scan([])),
            ],
            writes: vec![(key("a"), Some(Value::new("v").unwrap())), (key("f"), None)],
        }
    }

    #[test]
    fn it_round_trips_and_damage_is_seen() {
        let wire = v1::CommitRequest::from(content());
        assert_eq!(Commit::try_from(wire.clone()), Ok(content()));
        for damage in [
            |wire: &mut v1::CommitRequest| wire.reads[1].seen = 4,
            |wire: &mut v1::CommitRequest| wire.writes[1].value = Some(Bytes::new()),
            |wire: &mut v1::CommitRequest| wire.writes.truncate(1),
            |wire: &mut v1::CommitRequest| wire.scans[1].range.as_mut().unwrap().end = Some("z".into()),
            |wire: &mut v1::CommitRequest| wire.anchor = "f".into(),
        ] {
            let mut damaged = wire.clone();
            damage(&mut damaged);
            assert!(matches!(Commit::try_from(damaged), Err(ApiError::Checksum(_))));
        }
    }

    #[test]
    fn a_question_round_trips_and_is_about_something() {
        let Commit { reads, scans, .. } = content();
        let question = Validate { since: Revision::new(7), reads, scans };
        assert_eq!(Validate::try_from(v1::ValidateRequest::from(question.clone())), Ok(question));
        assert!(matches!(Validate::try_from(v1::ValidateRequest::default()), Err(ApiError::Invalid(_))));
    }

    #[test]
    fn what_is_too_much_or_missing_is_refused() {
        let many = (0..=TXN_OPERATIONS_MAX).map(|n| (Key::new(n.to_string()).unwrap(), None)).collect();
        let wire = v1::CommitRequest::from(Commit { reads: many, ..content() });
        assert!(matches!(Commit::try_from(wire), Err(ApiError::TooLarge(_))));
        let large = Value::new(vec![0; 1 << 20]).unwrap();
        let many = (0..9).map(|n| (Key::new(n.to_string()).unwrap(), Some(large.clone()))).collect();
        let wire = v1::CommitRequest::from(Commit { writes: many, ..content() });
        assert!(matches!(Commit::try_from(wire), Err(ApiError::TooLarge(_))));
        let mut wire = v1::CommitRequest { crc: None, ..content().into() };
        wire.scans[0].range = None;
        assert!(matches!(Commit::try_from(wire), Err(ApiError::Invalid(_))));
    }
}
