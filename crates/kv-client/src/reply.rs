//! Answers, checked.

use std::sync::Arc;

use bytes::Bytes;
use kv_proto::validate::{self, WireError};
use kv_proto::{checksum, v1};
use kv_types::{ClusterTime, Key, Lamport, NodeId, Revision, ShardId, Term, Value};

use crate::error::Failure;

/// Where, by whom and when a call was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The cluster's name.
    pub cluster: Arc<str>,
    /// The shard that answered.
    pub shard: ShardId,
    /// The epoch (Raft term) of its leader.
    pub epoch: Term,
    /// Its leader.
    pub leader: NodeId,
    /// Of a write, the revision it made; of a read, the revision it saw.
    pub revision: Revision,
    /// Of a write, its stamp; of a read, the stamp of the last entry it saw.
    pub lamport: Lamport,
    /// The shard's cluster time, as the answering node knows it.
    pub cluster_time: ClusterTime,
    /// Whether an earlier attempt of the write had been carried out; revision and stamp are those it had.
    pub replayed: bool,
}

/// A key and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Key,
    /// The value; empty if only keys were asked for.
    pub value: Value,
    /// The revision that created the key.
    pub create_revision: Revision,
    /// The revision that wrote this value.
    pub mod_revision: Revision,
    /// How often the key was written since it was created.
    pub version: u64,
    /// The stamp of the entry that wrote this value.
    pub lamport: Lamport,
    /// The lease the key hangs on; 0 is none.
    pub lease: u64,
}

/// A put that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Where, by whom and when.
    pub header: Header,
}

/// What a get found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Got {
    /// Where, by whom and when.
    pub header: Header,
    /// The row; `None` if the key is absent.
    pub row: Option<Row>,
}

/// What a multi-get found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MultiGot {
    /// One per key asked for, in that order, with the header of the look at its shard.
    pub found: Vec<Got>,
}

/// A delete that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deleted {
    /// Where, by whom and when.
    pub header: Header,
    /// 1 if the key existed, 0 if not.
    pub deleted: u64,
}

/// A range deletion that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeDeleted {
    /// The header of the last step.
    pub header: Header,
    /// How many keys were deleted.
    pub deleted: u64,
}

/// A compare-and-set that was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swapped {
    /// Where, by whom and when.
    pub header: Header,
    /// Whether the key was as expected, and so written.
    pub swapped: bool,
    /// If not swapped, the row that was found; `None` if the key is absent.
    pub current: Option<Row>,
    /// Whether the value of `current` is left out because it is long; a get returns it.
    pub value_omitted: bool,
}

/// An increment that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incremented {
    /// Where, by whom and when.
    pub header: Header,
    /// The sum.
    pub value: i64,
}

/// One page of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Where, by whom and when.
    pub header: Header,
    /// The rows, in key order; may be none.
    pub rows: Vec<Row>,
    /// Where the rest begins; `None` if nothing is left.
    pub resume_key: Option<Bytes>,
}

/// Names the answering node in failures, and the cluster in headers.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    pub(crate) endpoint: Arc<str>,
    pub(crate) cluster: Arc<str>,
}

impl Source {
    pub(crate) fn header(&self, wire: Option<v1::Header>) -> Result<Header, Failure> {
        let wire = wire.ok_or_else(|| self.bad("it has no header"))?;
        let same = wire.cluster.is_empty() || *wire.cluster == *self.cluster;
        Ok(Header {
            cluster: if same { Arc::clone(&self.cluster) } else { wire.cluster.into() },
            shard: ShardId::new(wire.shard),
            epoch: Term::new(wire.epoch),
            leader: NodeId::new(wire.leader),
            revision: Revision::new(wire.revision),
            lamport: validate::lamport(wire.lamport).map_err(|error| self.wrong(&error))?,
            cluster_time: ClusterTime::from_ms(wire.cluster_time_ms)
                .ok_or_else(|| self.bad("its cluster time is beyond the last one"))?,
            replayed: wire.replayed,
        })
    }

    /// The row a compare-and-set found: its key is the request's and does not travel.
    pub(crate) fn found(&self, key: &Key, mut wire: v1::Row) -> Result<Row, Failure> {
        checksum::check_row(&wire)?;
        wire.key = key.bytes().clone();
        wire.crc = None;
        self.row(wire)
    }

    pub(crate) fn row(&self, wire: v1::Row) -> Result<Row, Failure> {
        checksum::check_row(&wire)?;
        Ok(Row {
            key: validate::key(wire.key).map_err(|error| self.wrong(&error))?,
            value: validate::value(wire.value).map_err(|error| self.wrong(&error))?,
            create_revision: Revision::new(wire.create_revision),
            mod_revision: Revision::new(wire.mod_revision),
            version: wire.version,
            lamport: validate::lamport(wire.lamport).map_err(|error| self.wrong(&error))?,
            lease: wire.lease,
        })
    }

    pub(crate) fn rows(&self, wire: Vec<v1::Row>) -> Result<Vec<Row>, Failure> {
        wire.into_iter().map(|row| self.row(row)).collect()
    }

    pub(crate) fn page(&self, wire: v1::ScanReply) -> Result<Page, Failure> {
        Ok(Page {
            header: self.header(wire.header)?,
            rows: self.rows(wire.rows)?,
            resume_key: wire.resume_key,
        })
    }

    pub(crate) fn bad(&self, cause: &str) -> Failure {
        Failure::BadReply { endpoint: self.endpoint.to_string(), cause: cause.to_owned() }
    }

    fn wrong(&self, error: &WireError) -> Failure {
        self.bad(&error.to_string())
    }
}
