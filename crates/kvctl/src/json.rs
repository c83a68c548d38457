//! The json objects.

use kv_client::{Header, Row};
use kv_types::Lamport;
use serde::Serialize;

use crate::bytes_text::to_base64;

/// A Lamport stamp.
#[derive(Debug, Serialize)]
pub(crate) struct StampJson {
    counter: u64,
    node: u64,
}

/// Where, by whom and when.
#[derive(Debug, Serialize)]
pub(crate) struct HeaderJson {
    cluster: String,
    shard: u32,
    epoch: u64,
    leader: u64,
    revision: u64,
    lamport: StampJson,
}

/// A row.
#[derive(Debug, Serialize)]
pub(crate) struct RowJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    key_base64: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    shard: u32,
    create_revision: u64,
    mod_revision: u64,
    version: u64,
    lease: u64,
    lamport: StampJson,
    header: HeaderJson,
}

/// A write that was decided.
#[derive(Debug, Serialize)]
pub(crate) struct WriteJson {
    pub(crate) outcome: &'static str,
    pub(crate) shard: u32,
    pub(crate) revision: u64,
    pub(crate) lamport: StampJson,
    pub(crate) header: HeaderJson,
    /// Whether the write had been done before, under the same request id.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) replayed: bool,
    /// Of an increment: the sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) value: Option<i64>,
    /// Of a delete: how many keys there were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) deleted: Option<u64>,
    /// Of a compare-and-set: whether the key was as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) swapped: Option<bool>,
    /// Of a compare-and-set that found something else: what it found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<RowJson>,
}

impl From<Lamport> for StampJson {
    fn from(stamp: Lamport) -> Self {
        Self { counter: stamp.counter, node: stamp.node.get() }
    }
}

impl From<&Header> for HeaderJson {
    fn from(header: &Header) -> Self {
        Self {
            cluster: header.cluster.to_string(),
            shard: header.shard.get(),
            epoch: header.epoch.get(),
            leader: header.leader.get(),
            revision: header.revision.get(),
            lamport: header.lamport.into(),
        }
    }
}

impl RowJson {
    /// A row and the header it came with; `with_value` is false if only keys were asked for.
    pub(crate) fn new(row: &Row, header: &Header, with_value: bool) -> Self {
        let value = with_value.then_some(row.value.as_ref());
        Self {
            key: text(row.key.as_ref()),
            key_base64: to_base64(row.key.as_ref()),
            value: value.and_then(text),
            value_base64: value.map(to_base64),
            shard: header.shard.get(),
            create_revision: row.create_revision.get(),
            mod_revision: row.mod_revision.get(),
            version: row.version,
            lease: row.lease,
            lamport: row.lamport.into(),
            header: header.into(),
        }
    }
}

impl WriteJson {
    /// A write that was applied, or, by its condition, was not.
    pub(crate) fn new(header: &Header, applied: bool) -> Self {
        Self {
            outcome: if applied { "applied" } else { "not_applied" },
            shard: header.shard.get(),
            revision: header.revision.get(),
            lamport: header.lamport.into(),
            header: header.into(),
            replayed: header.replayed,
            value: None,
            deleted: None,
            swapped: None,
            current: None,
        }
    }
}

/// Bytes as text, if they are.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    std::str::from_utf8(bytes).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Key, NodeId, Revision, ShardId, Term, Value};

    fn header() -> Header {
        Header {
            cluster: "c".into(),
            shard: ShardId::new(1),
            epoch: Term::new(3),
            leader: NodeId::new(2),
            revision: Revision::new(9),
            lamport: Lamport { counter: 7, node: NodeId::new(2) },
            cluster_time: kv_types::ClusterTime::ZERO,
            replayed: false,
        }
    }

    fn row(key: &'static [u8]) -> Row {
        Row {
            key: Key::new(key).unwrap(),
            value: Value::new("v").unwrap(),
            create_revision: Revision::new(8),
            mod_revision: Revision::new(9),
            version: 2,
            lamport: Lamport { counter: 7, node: NodeId::new(2) },
            lease: 0,
        }
    }

    const HEADER: &str =
        r#"{"cluster":"c","shard":1,"epoch":3,"leader":2,"revision":9,"lamport":{"counter":7,"node":2}}"#;

    #[test]
    fn rows_have_their_shape() {
        let shape = |key, keys_only: bool| {
            serde_json::to_string(&RowJson::new(&row(key), &header(), !keys_only)).unwrap()
        };
        let rest = format!(
            r#""shard":1,"create_revision":8,"mod_revision":9,"version":2,"lease":0,"lamport":{{"counter":7,"node":2}},"header":{HEADER}}}"#
        );
        assert_eq!(
            shape(b"k", false),
            format!(r#"{{"key":"k","key_base64":"aw==","value":"v","value_base64":"dg==",{rest}"#)
        );
        assert_eq!(shape(b"\xff", true), format!(r#"{{"key_base64":"/w==",{rest}"#));
    }

    #[test]
    fn writes_have_their_shape() {
        let written = WriteJson::new(&header(), true);
        assert_eq!(
            serde_json::to_string(&written).unwrap(),
            format!(
                r#"{{"outcome":"applied","shard":1,"revision":9,"lamport":{{"counter":7,"node":2}},"header":{HEADER}}}"#
            )
        );
    }
}
