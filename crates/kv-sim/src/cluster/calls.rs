//! What clients ask for, and how reads are served.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_state::txn::TxnCommand;
use kv_state::{Command, Expect, Opened, gate, sessions, txn};
use kv_storage::{PageLimit, RowRange};
use kv_types::{Body, Key, LogId, LogIndex, NodeId, Request, Row, RowKey, ShardId, TxnId, Value};

use super::Cluster;
use crate::oracle::{Ask, Call, Looked};
use crate::planted::Planted;
use crate::view::View;
use crate::violation::Violation;
use crate::world::{Attempt, Seen, TxnStep};

impl Cluster {
    /// A client asks a node to write; the number of the call.
    pub(crate) fn write(&mut self, node: NodeId, shard: ShardId, command: &Command) -> usize {
        self.send(node, shard, command.encode())
    }

    /// The same, with a command that is encoded already; also with one that was sent before.
    pub(crate) fn send(&mut self, node: NodeId, shard: ShardId, command: Bytes) -> usize {
        self.see(node, shard, Seen::Asked(&command));
        let call = self.oracle.begin(self.now, (node, shard), Ask::Write(command.clone()));
        if self.settings.is_planted(Planted::GateBeforeLog) && self.answer_by_rows(node, shard, call) {
            return call;
        }
        match self.life(node) {
            Some(life) => life.mail.entry(shard).or_default().writes.push((command, call)),
            None => self.oracle.node_gone(node),
        }
        call
    }

    /// A leader whose rows know what became of a request says so at once; whether it did.
    fn answer_by_rows(&mut self, node: NodeId, shard: ShardId, call: usize) -> bool {
        let Call { ask: Ask::Write(bytes), floor, .. } = self.oracle.call(call).clone() else { return false };
        let Ok(Opened::Once { request, .. }) = Opened::decode(bytes) else { return false };
        let leads = self.replica(node, shard).is_some_and(kv_shard::Replica::is_leader);
        let Some((view, applied)) = self.view(node, shard) else { return false };
        match gate::outcome(&view, &request) {
            Ok(found) if leads && applied >= floor && found != gate::Found::NotSeen => {
                let result = self.oracle.looked(call, applied, Looked::Outcome(found));
                self.report(result);
                true
            }
            _ => false,
        }
    }

    /// A client asks a node to read.
    pub(crate) fn read(&mut self, node: NodeId, shard: ShardId, key: &str) -> usize {
        let call = self.begin_read(node, shard, key);
        self.read_by_round(node, shard, call);
        call
    }

    /// A client begins to read; the request is still on its way.
    pub(crate) fn begin_read(&mut self, node: NodeId, shard: ShardId, key: &str) -> usize {
        self.ask(node, shard, Ask::Read(RowKey::user(&key_of(key))))
    }

    /// A client begins to ask for something that changes nothing; the request is still on its way.
    pub(crate) fn ask(&mut self, node: NodeId, shard: ShardId, ask: Ask) -> usize {
        let call = self.oracle.begin(self.now, (node, shard), ask);
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
    pub(crate) fn serve(&mut self, node: NodeId, shard: ShardId, call: usize) {
        let Some(replica) = self.replica(node, shard) else { return };
        let reader = replica.reader();
        let row = match &self.oracle.call(call).ask {
            Ask::Read(key) => reader.get(key),
            Ask::Write(_) => Ok(None),
            Ask::Outcome(_) | Ask::Dead(_) | Ask::Known(_) | Ask::Confirm => {
                return self.look(node, shard, call);
            }
        };
        match row {
            Ok(row) => {
                let result = self.oracle.read(call, reader.applied(), row.as_ref());
                self.report(result);
            }
            Err(cause) => self.stop(node, &format!("{shard}: {cause:?}")),
        }
    }

    /// Looks at system rows as they are now.
    fn look(&mut self, node: NodeId, shard: ShardId, call: usize) {
        let Some((view, applied)) = self.view(node, shard) else { return };
        let looked = match &self.oracle.call(call).ask {
            Ask::Outcome(request) => gate::outcome(&view, request).map(Looked::Outcome),
            Ask::Dead(batch) => sessions::dead(&view, applied, batch).map(Looked::Dead),
            Ask::Known(of) => txn::known(&view, of.txn, of.fingerprint).map(Looked::Known),
            Ask::Confirm => Ok(Looked::Confirmed),
            Ask::Read(_) | Ask::Write(_) => return,
        };
        match looked {
            Ok(looked) => {
                let result = self.oracle.looked(call, applied, looked);
                self.report(result);
            }
            Err(cause) => self.stop(node, &format!("{shard}: {cause:?}")),
        }
    }

    /// All rows of a replica as they are now, and its last entry; `None` if it is down or its rows are damaged.
    pub(crate) fn view(&self, node: NodeId, shard: ShardId) -> Option<(View, LogIndex)> {
        let replica = self.replica(node, shard).filter(|replica| replica.damage().is_none())?;
        let now = self.clock(node);
        let pin = replica.reader().pin(now).ok()?;
        let applied = pin.index();
        Some((View::new(pin, now), applied))
    }

    /// A replica has applied an entry. If it is an attempt of a request, the row that it is about tells whether it took
    /// effect here.
    pub(super) fn attempted(&mut self, node: NodeId, shard: ShardId, id: LogId) {
        let entry = self.world.groups.get(&shard).and_then(|group| group.entries.get(&id));
        let Some(Body::Command(bytes)) = entry.map(|entry| &entry.body) else { return };
        let Ok(opened) = Opened::decode(bytes.clone()) else { return };
        let txns = txns_of(&opened);
        if !txns.is_empty() {
            for txn in txns {
                self.stepped(node, shard, (id, txn));
            }
            return;
        }
        let Opened::Once { request, command, .. } = opened else { return };
        let adds = adds(&command);
        let row = match &adds {
            Some((key, _)) => {
                self.replica(node, shard).map(|replica| replica.reader().get(&RowKey::user(key)))
            }
            None => None,
        };
        // Rows that cannot be read are found by others.
        let row = row.and_then(Result::ok).flatten();
        let took_effect = row.is_some_and(|row| row.head.modified.index() == id.index);
        let attempt = Attempt { request: request.id(), adds, took_effect };
        self.see(node, shard, Seen::Attempted(id, &attempt));
    }

    /// A replica has applied a step of a transaction. No two that an entry ends write the same key.
    fn stepped(&mut self, node: NodeId, shard: ShardId, (id, name): (LogId, TxnId)) {
        let Some((view, _)) = self.view(node, shard) else { return };
        let Some(content) = self.world.txns.get(&name) else { return };
        let Ok(known) = txn::known(&view, name, content.fingerprint()) else { return };
        let writes = content.all().writes();
        let is_of = |key: &Key| crate::party::owner(key.as_ref()) == shard;
        let mut rows =
            writes.iter().filter(|write| write.value.is_some() && is_of(&write.key)).map(|write| {
                let row = kv_state::Rows::get(&view, &RowKey::user(&write.key)).ok().flatten();
                row.is_some_and(|row| row.head.modified.index() == id.index)
            });
        // All of them: one that is left out is as wrong as one on another shard.
        let took_effect = rows.next().is_some_and(|first| first && rows.all(|row| row));
        let step = TxnStep { txn: name, known, took_effect };
        self.see(node, shard, Seen::Stepped(id, &step));
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
) -> Result<(LogIndex, BTreeMap<RowKey, Row>), String> {
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

/// The transactions that an entry is a step of.
fn txns_of(opened: &Opened) -> Vec<TxnId> {
    match opened {
        Opened::Once { request: Request::Session(request), command: Command::Txn(_), .. } => {
            vec![request.txn()]
        }
        Opened::Timed { command: Command::Txn(TxnCommand::Fence { txn, .. }), .. } => vec![*txn],
        Opened::Timed { command: Command::Txn(TxnCommand::Resolve { endings }), .. } => {
            endings.keys().copied().collect()
        }
        Opened::Timed { command: Command::Txn(TxnCommand::Forget { txns }), .. } => {
            txns.iter().copied().collect()
        }
        _ => Vec::new(),
    }
}

/// What a request of a counting client adds to which counter, if it takes effect.
fn adds(command: &Command) -> Option<(Key, i64)> {
    let number = |value: &Value| std::str::from_utf8(value.bytes()).ok()?.parse::<i64>().ok();
    match command {
        Command::Increment { key, delta } => Some((key.clone(), *delta)),
        Command::CompareAndSet { key, expect, value } => {
            let before = match expect {
                Expect::Absent => 0,
                Expect::Value(before) => number(before)?,
                Expect::Revision(_) => return None,
            };
            Some((key.clone(), number(value)?.checked_sub(before)?))
        }
        Command::Put { .. }
        | Command::Delete { .. }
        | Command::DeleteRange { .. }
        | Command::Settle
        | Command::Cluster(_)
        | Command::Session(_)
        | Command::GcSessions { .. }
        | Command::TrimSessions { .. }
        | Command::Txn(_)
        | Command::Tick => None,
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
