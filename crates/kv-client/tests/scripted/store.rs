//! Rows with revisions, in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_proto::request::Scan;
use kv_proto::txn::Commit;
use kv_proto::{checksum, v1};
use kv_types::{Fingerprint, KeyRange, Revision, ShardId};

use super::{header, row};

/// The rows of all shards, and one counter of revisions for all.
pub struct Store {
    rows: BTreeMap<Bytes, (Bytes, u64)>,
    revision: u64,
    pub page_rows: usize,
}

impl Default for Store {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), revision: 0, page_rows: 1024 }
    }
}

impl Store {
    pub fn put(&mut self, key: Bytes, value: Bytes) {
        self.revision += 1;
        self.rows.insert(key, (value, self.revision));
    }

    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.rows.remove(key).is_some()
    }

    pub fn value(&self, key: &[u8]) -> Option<Bytes> {
        self.rows.get(key).map(|(value, _)| value.clone())
    }

    /// 0 of an absent key.
    pub fn revision(&self, key: &[u8]) -> u64 {
        self.rows.get(key).map_or(0, |(_, revision)| *revision)
    }

    pub fn row(&self, key: &Bytes) -> Option<v1::Row> {
        let (value, revision) = self.rows.get(key)?;
        let mut row = v1::Row { mod_revision: *revision, ..row(key, value) };
        row.crc = Some(checksum::row(&row));
        Some(row)
    }

    pub fn keys(&self, range: &KeyRange) -> Vec<Bytes> {
        self.rows.keys().filter(|key| range.contains(key)).cloned().collect()
    }

    /// A page of the shard in which the range begins.
    pub fn page(&self, scan: &Scan, map: &v1::ClusterMapReply) -> v1::ScanReply {
        let (shard, own) = shard_of(scan.range.start(), map);
        let part = scan.range.intersection(&own).unwrap();
        let beyond = own.end().filter(|end| scan.range.contains(end)).cloned();
        let limit = usize::try_from(scan.limit.unwrap_or(u64::MAX)).unwrap();
        let keys = self.keys(&part);
        let taken = keys.len().min(limit).min(self.page_rows);
        let rest = keys.get(taken).cloned().or(beyond);
        let resume_key = if taken == limit { None } else { rest };
        let header = header().map(|header| v1::Header { shard: shard.get(), ..header });
        v1::ScanReply {
            header,
            rows: keys[..taken].iter().filter_map(|key| self.row(key)).collect(),
            resume_key,
        }
    }

    /// The first key, or start of a range, that is not as it was read.
    pub fn conflict(&self, content: &Commit) -> Option<Bytes> {
        let seen = |revision: Option<Revision>| revision.map_or(0, Revision::get);
        let read = content.reads.iter().find(|(key, was)| self.revision(key.as_ref()) != seen(*was));
        let digest = |range: &KeyRange| {
            let keys = self.keys(range);
            Fingerprint::of_scan(keys.iter().map(|key| (&key[..], Revision::new(self.revision(key)))))
        };
        let scanned = || content.scans.iter().find(|(range, was)| digest(range) != *was);
        read.map(|(key, _)| key.bytes().clone()).or_else(|| scanned().map(|(range, _)| range.start().clone()))
    }

    pub fn carry_out(&mut self, content: Commit) {
        for (key, value) in content.writes {
            match value {
                Some(value) => self.put(key.into_bytes(), value.into_bytes()),
                None => drop(self.delete(key.as_ref())),
            }
        }
    }
}

/// The shard of a key, and what it owns.
pub fn shard_of(key: &[u8], map: &v1::ClusterMapReply) -> (ShardId, KeyRange) {
    let range = |shard: &v1::MapShard| {
        let range = shard.range.clone().unwrap();
        KeyRange::new(range.start, range.end).unwrap()
    };
    let shard = map.shards.iter().find(|shard| range(shard).contains(key)).unwrap();
    (ShardId::new(shard.shard), range(shard))
}
