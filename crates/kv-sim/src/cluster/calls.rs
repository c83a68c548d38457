//! What clients ask for, and how reads are served.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_state::Command;
use kv_storage::{PageLimit, RowRange};
use kv_types::{Key, NodeId, Row, RowKey, ShardId, Value};

use super::Cluster;
use crate::oracle::Ask;
use crate::planted::Planted;
use crate::violation::Violation;
use crate::world::Seen;

impl Cluster {
    /// A client asks a node to write; the number of the call.
    pub(crate) fn write(&mut self, node: NodeId, shard: ShardId, command: &Command) -> usize {
        let command = command.encode();
        self.see(node, shard, Seen::Asked(&command));
        let call = self.oracle.begin(node, shard, Ask::Write(command.clone()));
        match self.life(node) {
            Some(life) => life.mail.entry(shard).or_default().writes.push((command, call)),
            None => self.oracle.node_gone(node),
        }
        call
    }

    /// A client asks a node to read.
    pub(crate) fn read(&mut self, node: NodeId, shard: ShardId, key: &str) -> usize {
        let call = self.begin_read(node, shard, key);
        self.read_by_round(node, shard, call);
        call
    }

    /// A client begins to read; the request is still on its way.
    pub(crate) fn begin_read(&mut self, node: NodeId, shard: ShardId, key: &str) -> usize {
        let call = self.oracle.begin(node, shard, Ask::Read(RowKey::user(&key_of(key))));
        if self.life(node).is_none() {
            self.oracle.node_gone(node);
        }
        call
    }

    fn read_by_round(&mut self, node: NodeId, shard: ShardId, call: usize) {
        match self.life(node) {
            Some(life) => life.mail.entry(shard).or_default().reads.push(call),
            None => self.oracle.node_gone(node),
        }
    }

    /// A request for a read arrives. If there is a lease it is served without a turn of the replica: the end of the
    /// lease is loaded, then the clock read, then what is committed loaded, and it waits until that is applied.
    pub(crate) fn read_arrives(&mut self, node: NodeId, shard: ShardId, call: usize) {
        let clock = self.clock(node);
        let is_cached = self.settings.is_planted(Planted::LeaseOnCachedClock);
        if self.oracle.call(call).end.is_some() {
            return;
        }
        let Some(life) = self.life(node) else { return };
        let cached = life.readings.get(&shard).copied().unwrap_or_default();
        let published = life.published.get(&shard).copied().unwrap_or_default();
        let reading = if is_cached { cached } else { clock };
        if reading < published.lease.until {
            life.lease_reads.entry(shard).or_default().push((published.commit, call));
            self.counts.lease_reads += 1;
            self.release_lease_reads(node, shard);
        } else {
            self.read_by_round(node, shard, call);
        }
    }

    /// Serves the reads by a lease whose entry is applied.
    pub(super) fn release_lease_reads(&mut self, node: NodeId, shard: ShardId) {
        let Some(life) = self.life(node) else { return };
        let Some(waiting) = life.lease_reads.get_mut(&shard).filter(|waiting| !waiting.is_empty()) else {
            return;
        };
        let Some(replica) = life.replicas.get(&shard) else { return };
        let applied = replica.applied().index;
        let ready: Vec<usize> =
            waiting.iter().filter(|(index, _)| *index <= applied).map(|(_, call)| *call).collect();
        waiting.retain(|(index, _)| *index > applied);
        for call in ready {
            self.serve(node, shard, call);
        }
    }

    /// Reads the rows as they are now.
    pub(super) fn serve(&mut self, node: NodeId, shard: ShardId, call: usize) {
        let Some(replica) = self.replica(node, shard) else { return };
        let reader = replica.reader();
        let row = match &self.oracle.call(call).ask {
            Ask::Read(key) => reader.get(key),
            Ask::Write(_) => Ok(None),
        };
        match row {
            Ok(row) => {
                let result = self.oracle.read(call, reader.applied(), row.as_ref());
                self.report(result);
            }
            Err(cause) => self.stop(node, &format!("{shard}: {cause:?}")),
        }
    }

    /// Compares all rows of a replica with the model.
    pub(crate) fn check_rows(&mut self, node: NodeId, shard: ShardId) {
        let now = self.clock(node);
        let Some(replica) = self.replica(node, shard) else { return };
        if self.spoiled.contains_key(&(node, shard)) {
            // What it may not serve is nobody's business.
            return;
        }
        let result = all_rows(&replica.reader(), now).map_err(|cause| {
            Violation::new("no-replica-stops", format!("{node} {shard}: the rows cannot be read: {cause}"))
        });
        let result = result.and_then(|(index, rows)| self.oracle.rows(node, shard, index, &rows));
        self.report(result);
    }
}

fn all_rows(
    reader: &std::sync::Arc<kv_storage::ShardReader>,
    now: kv_types::Nanos,
) -> Result<(kv_types::LogIndex, BTreeMap<RowKey, Row>), String> {
    let failed = |cause: &dyn std::fmt::Debug| format!("{cause:?}");
    let pin = reader.pin(now).map_err(|cause| failed(&cause))?;
    let mut rows: BTreeMap<RowKey, Row> = BTreeMap::new();
    let mut range = RowRange::ALL;
    loop {
        let page =
            pin.scan(&range, PageLimit { rows: 50, bytes: 1 << 20 }, now).map_err(|cause| failed(&cause))?;
        rows.extend(page.rows);
        match page.resume {
            Some(key) => range = range.starting_at(key),
            None => return Ok((pin.index(), rows)),
        }
    }
}

/// A key of a client.
pub(crate) fn key_of(key: &str) -> Key {
    Key::new(Bytes::copy_from_slice(key.as_bytes())).expect("keys of the workload are short and not empty")
}

/// A value of a client.
pub(crate) fn value_of(value: &str) -> Value {
    Value::new(Bytes::copy_from_slice(value.as_bytes())).expect("values of the workload are short")
}

/// Sets a key.
pub(crate) fn put(key: &str, value: &str) -> Command {
    Command::Put { key: key_of(key), value: value_of(value) }
}
