//! Client requests, checked: what a server works with, and what a client builds.

use kv_types::limits::MULTI_GET_KEYS_MAX;
use kv_types::{Key, KeyRange, Revision, Value};

use crate::checksum;
use crate::status::ApiError;
use crate::txn;
use crate::v1::{self, compare_and_set_request as cas, pipeline_request as pipeline};
use crate::validate::{self, WireError};

/// Writes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Value,
}

/// Reads a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Get {
    /// The key.
    pub key: Key,
}

/// Reads several keys of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiGet {
    /// The keys: at least one, at most [`MULTI_GET_KEYS_MAX`].
    pub keys: Vec<Key>,
}

/// Deletes a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delete {
    /// The key.
    pub key: Key,
}

/// Deletes the first keys of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteRange {
    /// The range.
    pub range: KeyRange,
}

/// Reads the rows of a range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// The range.
    pub range: KeyRange,
    /// Most rows wanted; `None` is all.
    pub limit: Option<u64>,
    /// Whether values are left out.
    pub keys_only: bool,
}

/// What a key must be for a compare-and-set to write it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expect {
    /// It exists and has this value.
    Value(Value),
    /// It exists and was last written at this revision.
    Revision(Revision),
    /// It does not exist.
    Absent,
}

/// Writes a key if it is as expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompareAndSet {
    /// The key.
    pub key: Key,
    /// What it must be.
    pub expect: Expect,
    /// The new value.
    pub value: Value,
}

/// Adds to a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    /// The key.
    pub key: Key,
    /// What is added.
    pub delta: i64,
}

/// Commits a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// What it has read and what it writes.
    pub content: txn::Commit,
    /// That of its turn at contended keys; 0 if it has none.
    pub reservation: u64,
}

/// Any of the requests that a pipeline carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Writes a key.
    Put(Put),
    /// Reads a key.
    Get(Get),
    /// Reads several keys of one shard.
    MultiGet(MultiGet),
    /// Deletes a key.
    Delete(Delete),
    /// Deletes the first keys of a range.
    DeleteRange(DeleteRange),
    /// Reads one page of a range.
    ScanPage(Scan),
    /// Writes a key if it is as expected.
    CompareAndSet(CompareAndSet),
    /// Adds to a number.
    Increment(Increment),
    /// Commits a transaction.
    Commit(Commit),
}

impl Request {
    /// Whether the request may change something, so that its outcome matters.
    pub fn is_write(&self) -> bool {
        match self {
            Self::Put(_)
            | Self::Delete(_)
            | Self::DeleteRange(_)
            | Self::CompareAndSet(_)
            | Self::Increment(_)
            | Self::Commit(_) => true,
            Self::Get(_) | Self::MultiGet(_) | Self::ScanPage(_) => false,
        }
    }

    /// The key whose shard answers; for a range, its start, which need not be a key.
    pub fn routing_key(&self) -> &[u8] {
        match self {
            Self::Put(put) => put.key.as_ref(),
            Self::Get(get) => get.key.as_ref(),
            Self::MultiGet(get) => get.keys.first().map_or(&[], AsRef::as_ref),
            Self::Delete(delete) => delete.key.as_ref(),
            Self::DeleteRange(delete) => delete.range.start(),
            Self::ScanPage(scan) => scan.range.start(),
            Self::CompareAndSet(cas) => cas.key.as_ref(),
            Self::Increment(increment) => increment.key.as_ref(),
            Self::Commit(commit) => commit.content.anchor.as_ref(),
        }
    }
}

impl TryFrom<v1::PutRequest> for Put {
    type Error = ApiError;

    fn try_from(wire: v1::PutRequest) -> Result<Self, ApiError> {
        if let Some(stated) = wire.crc {
            checksum::check("put", Some(stated), checksum::put(&wire.key, &wire.value))?;
        }
        Ok(Self { key: validate::key(wire.key)?, value: validate::value(wire.value)? })
    }
}

impl From<Put> for v1::PutRequest {
    fn from(put: Put) -> Self {
        let crc = Some(checksum::put(put.key.as_ref(), put.value.as_ref()));
        Self { context: None, key: put.key.into_bytes(), value: put.value.into_bytes(), crc }
    }
}

impl TryFrom<v1::GetRequest> for Get {
    type Error = ApiError;

    fn try_from(wire: v1::GetRequest) -> Result<Self, ApiError> {
        validate::linearizable(wire.consistency)?;
        Ok(Self { key: validate::key(wire.key)? })
    }
}

impl From<Get> for v1::GetRequest {
    fn from(get: Get) -> Self {
        Self { context: None, key: get.key.into_bytes(), consistency: v1::Consistency::Linearizable.into() }
    }
}

impl TryFrom<v1::MultiGetRequest> for MultiGet {
    type Error = ApiError;

    fn try_from(wire: v1::MultiGetRequest) -> Result<Self, ApiError> {
        validate::linearizable(wire.consistency)?;
        validate::at_most("keys", wire.keys.len(), MULTI_GET_KEYS_MAX)?;
        if wire.keys.is_empty() {
            return Err(WireError::Missing("keys").into());
        }
        let keys = wire.keys.into_iter().map(validate::key).collect::<Result<_, _>>()?;
        Ok(Self { keys })
    }
}

impl From<MultiGet> for v1::MultiGetRequest {
    fn from(get: MultiGet) -> Self {
        Self {
            context: None,
            keys: get.keys.into_iter().map(Key::into_bytes).collect(),
            consistency: v1::Consistency::Linearizable.into(),
        }
    }
}

impl TryFrom<v1::DeleteRequest> for Delete {
    type Error = ApiError;

    fn try_from(wire: v1::DeleteRequest) -> Result<Self, ApiError> {
        if let Some(stated) = wire.crc {
            checksum::check("delete", Some(stated), checksum::delete(&wire.key))?;
        }
        Ok(Self { key: validate::key(wire.key)? })
    }
}

impl From<Delete> for v1::DeleteRequest {
    fn from(delete: Delete) -> Self {
        let crc = Some(checksum::delete(delete.key.as_ref()));
        Self { context: None, key: delete.key.into_bytes(), crc }
    }
}

impl TryFrom<v1::DeleteRangeRequest> for DeleteRange {
    type Error = ApiError;

    fn try_from(wire: v1::DeleteRangeRequest) -> Result<Self, ApiError> {
        // A range lost on the way must not become "every key", so here it has to be there.
        let range = wire.range.ok_or(WireError::Missing("range"))?;
        let range = validate::range(Some(range))?;
        checksum::check("delete-range", wire.crc, checksum::delete_range(&range))?;
        Ok(Self { range })
    }
}

impl From<DeleteRange> for v1::DeleteRangeRequest {
    fn from(delete: DeleteRange) -> Self {
        let crc = Some(checksum::delete_range(&delete.range));
        Self { context: None, range: Some(validate::range_to_wire(&delete.range)), crc }
    }
}

impl TryFrom<v1::ScanRequest> for Scan {
    type Error = ApiError;

    fn try_from(wire: v1::ScanRequest) -> Result<Self, ApiError> {
        validate::linearizable(wire.consistency)?;
        let limit = (wire.limit > 0).then_some(wire.limit);
        Ok(Self { range: validate::range(wire.range)?, limit, keys_only: wire.keys_only })
    }
}

impl From<Scan> for v1::ScanRequest {
    fn from(scan: Scan) -> Self {
        Self {
            context: None,
            range: Some(validate::range_to_wire(&scan.range)),
            limit: scan.limit.unwrap_or_default(),
            keys_only: scan.keys_only,
            consistency: v1::Consistency::Linearizable.into(),
        }
    }
}

impl TryFrom<v1::CompareAndSetRequest> for CompareAndSet {
    type Error = ApiError;

    fn try_from(wire: v1::CompareAndSetRequest) -> Result<Self, ApiError> {
        let expect = match wire.expect.ok_or(WireError::Missing("expect"))? {
            cas::Expect::ExpectValue(value) => Expect::Value(validate::value(value)?),
            cas::Expect::ExpectRevision(revision) => Expect::Revision(Revision::new(revision)),
            cas::Expect::ExpectAbsent(true) => Expect::Absent,
            cas::Expect::ExpectAbsent(false) => return Err(WireError::Missing("expect_absent").into()),
        };
        let computed = checksum::compare_and_set(&wire.key, &expect, &wire.value);
        checksum::check("compare-and-set", wire.crc, computed)?;
        Ok(Self { key: validate::key(wire.key)?, expect, value: validate::value(wire.value)? })
    }
}

impl From<CompareAndSet> for v1::CompareAndSetRequest {
    fn from(request: CompareAndSet) -> Self {
        let CompareAndSet { key, expect, value } = request;
        let crc = Some(checksum::compare_and_set(key.as_ref(), &expect, value.as_ref()));
        let expect = match expect {
            Expect::Value(value) => cas::Expect::ExpectValue(value.into_bytes()),
            Expect::Revision(revision) => cas::Expect::ExpectRevision(revision.get()),
            Expect::Absent => cas::Expect::ExpectAbsent(true),
        };
        Self { context: None, key: key.into_bytes(), expect: Some(expect), value: value.into_bytes(), crc }
    }
}

impl TryFrom<v1::IncrementRequest> for Increment {
    type Error = ApiError;

    fn try_from(wire: v1::IncrementRequest) -> Result<Self, ApiError> {
        checksum::check("increment", wire.crc, checksum::increment(&wire.key, wire.delta))?;
        Ok(Self { key: validate::key(wire.key)?, delta: wire.delta })
    }
}

impl From<Increment> for v1::IncrementRequest {
    fn from(request: Increment) -> Self {
        let Increment { key, delta } = request;
        let crc = Some(checksum::increment(key.as_ref(), delta));
        Self { context: None, key: key.into_bytes(), delta, crc }
    }
}

impl TryFrom<v1::CommitRequest> for Commit {
    type Error = ApiError;

    fn try_from(wire: v1::CommitRequest) -> Result<Self, ApiError> {
        Ok(Self { reservation: wire.reservation, content: wire.try_into()? })
    }
}

impl From<Commit> for v1::CommitRequest {
    fn from(Commit { content, reservation }: Commit) -> Self {
        Self { reservation, ..content.into() }
    }
}

impl TryFrom<Option<pipeline::Op>> for Request {
    type Error = ApiError;

    fn try_from(wire: Option<pipeline::Op>) -> Result<Self, ApiError> {
        Ok(match wire.ok_or(WireError::Missing("op"))? {
            pipeline::Op::Put(wire) => Self::Put(wire.try_into()?),
            pipeline::Op::Get(wire) => Self::Get(wire.try_into()?),
            pipeline::Op::MultiGet(wire) => Self::MultiGet(wire.try_into()?),
            pipeline::Op::Delete(wire) => Self::Delete(wire.try_into()?),
            pipeline::Op::DeleteRange(wire) => Self::DeleteRange(wire.try_into()?),
            pipeline::Op::ScanPage(wire) => Self::ScanPage(wire.try_into()?),
            pipeline::Op::CompareAndSet(wire) => Self::CompareAndSet(wire.try_into()?),
            pipeline::Op::Increment(wire) => Self::Increment(wire.try_into()?),
            pipeline::Op::Commit(wire) => Self::Commit(wire.try_into()?),
        })
    }
}

impl From<Request> for pipeline::Op {
    fn from(request: Request) -> Self {
        match request {
            Request::Put(put) => Self::Put(put.into()),
            Request::Get(get) => Self::Get(get.into()),
            Request::MultiGet(get) => Self::MultiGet(get.into()),
            Request::Delete(delete) => Self::Delete(delete.into()),
            Request::DeleteRange(delete) => Self::DeleteRange(delete.into()),
            Request::ScanPage(scan) => Self::ScanPage(scan.into()),
            Request::CompareAndSet(cas) => Self::CompareAndSet(cas.into()),
            Request::Increment(increment) => Self::Increment(increment.into()),
            Request::Commit(commit) => Self::Commit(commit.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::limits::VALUE_BYTES_MAX;
    use prost::Message as _;

    fn key(text: &'static str) -> Key {
        Key::new(text).unwrap()
    }

    fn value(text: &'static str) -> Value {
        Value::new(text).unwrap()
    }

    fn each() -> Vec<Request> {
        let cas =
            |expect| Request::CompareAndSet(CompareAndSet { key: key("k"), expect, value: value("new") });
        let range = KeyRange::new("a", Some("b".into())).unwrap();
        let content = txn::Commit {
            anchor: key("k"),
            reads: vec![(key("r"), None)],
            scans: Vec::new(),
            writes: vec![(key("k"), Some(value("v")))],
        };
        vec![
            Request::Put(Put { key: key("k"), value: value("") }),
            Request::Get(Get { key: key("k") }),
            Request::MultiGet(MultiGet { keys: vec![key("k"), key("l")] }),
            Request::Delete(Delete { key: key("k") }),
            Request::DeleteRange(DeleteRange { range: range.clone() }),
            Request::DeleteRange(DeleteRange { range: KeyRange::all() }),
            Request::ScanPage(Scan { range, limit: Some(3), keys_only: true }),
            cas(Expect::Value(value("old"))),
            cas(Expect::Revision(Revision::new(9))),
            cas(Expect::Absent),
            Request::Increment(Increment { key: key("k"), delta: -3 }),
            Request::Commit(Commit { content, reservation: 5 }),
        ]
    }

    #[test]
    fn every_request_round_trips() {
        for sent in each() {
            let op = Some(pipeline::Op::from(sent.clone()));
            let wire = v1::PipelineRequest { id: 1, op, ..v1::PipelineRequest::default() }.encode_to_vec();
            let received = v1::PipelineRequest::decode(&wire[..]).unwrap();
            assert_eq!(Request::try_from(received.op), Ok(sent));
        }
    }

    #[test]
    fn a_changed_write_is_data_loss() {
        let mut wire = v1::PutRequest::from(Put { key: key("k"), value: value("v") });
        wire.value = "w".into();
        assert!(matches!(Put::try_from(wire.clone()), Err(ApiError::Checksum(_))));
        wire.crc = None;
        assert!(Put::try_from(wire).is_ok(), "a client need not compute a checksum");
    }

    #[test]
    fn what_is_missing_is_refused() {
        let range = v1::DeleteRangeRequest::default();
        assert!(matches!(DeleteRange::try_from(range), Err(ApiError::Invalid(_))));
        let cas = v1::CompareAndSetRequest { key: "k".into(), ..v1::CompareAndSetRequest::default() };
        assert!(matches!(CompareAndSet::try_from(cas), Err(ApiError::Invalid(_))));
        assert!(matches!(MultiGet::try_from(v1::MultiGetRequest::default()), Err(ApiError::Invalid(_))));
        assert!(matches!(Request::try_from(None), Err(ApiError::Invalid(_))));
    }

    #[test]
    fn what_is_too_large_is_refused() {
        let put = v1::PutRequest {
            key: "k".into(),
            value: vec![0; VALUE_BYTES_MAX + 1].into(),
            ..v1::PutRequest::default()
        };
        assert!(matches!(Put::try_from(put), Err(ApiError::TooLarge(_))));
        let keys = vec!["k".into(); MULTI_GET_KEYS_MAX + 1];
        let get = v1::MultiGetRequest { keys, ..v1::MultiGetRequest::default() };
        assert!(matches!(MultiGet::try_from(get), Err(ApiError::TooLarge(_))));
    }
}
