//! Clients: each has one call at a time, and notes what it asked and what it was told.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_check::{Datum, Function, Operation, Outcome};
use kv_shard::WriteFailure;
use kv_state::{Answer, Command, Expect};
use kv_types::{Nanos, NodeId, Outcome as Fate, ShardId};
use rand::RngExt;

use super::{Happening, Run};
use crate::cluster::calls::{key_of, put, value_of};
use crate::invariants::linearisability::{self, Checked};
use crate::oracle::End;

/// In a drill, where nodes are gone for longer than clients wait, a client that got no answer in this time leaves the node alone
/// for as long, as those of `kv-client` do.
const PATIENCE: Duration = Duration::from_secs(1);

/// A call that has not ended for its client.
#[derive(Clone, Debug)]
struct Open {
    call: usize,
    client: usize,
    operation: Operation,
}

/// All clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// The name of each client in the history; it changes when it gives a call up.
    processes: Vec<i64>,
    next_process: i64,
    open: Vec<Open>,
    /// Nodes that clients leave alone, and until when.
    left_alone: BTreeMap<(usize, NodeId), Nanos>,
    history: Vec<Operation>,
    /// Numbers the beginnings and ends of calls.
    position: u64,
    /// Numbers the values that are written.
    writes: u64,
    pub(super) acknowledged: usize,
    pub(super) reads: usize,
    pub(super) is_undecided: bool,
    pub(super) is_quiet: bool,
}

impl Clients {
    pub(super) fn new(count: usize) -> Self {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        Self { processes: (0..count).collect(), next_process: count, ..Self::default() }
    }

    fn tick(&mut self) -> u64 {
        self.position += 1;
        self.position
    }
}

impl Run {
    /// Who leads, or believes so, mostly, else any node.
    fn target(&mut self, client: usize, shard: ShardId) -> NodeId {
        let now = self.cluster.now;
        self.clients.left_alone.retain(|_, until| *until > now);
        let leads = |node: &NodeId| {
            self.cluster.replica(*node, shard).is_some_and(kv_shard::Replica::is_leader)
                && !self.clients.left_alone.contains_key(&(client, *node))
        };
        let leaders: Vec<NodeId> = self.cluster.settings.nodes().filter(leads).collect();
        let rng = &mut self.dice.clients;
        if leaders.is_empty() || rng.random_range(0..4) == 0 {
            return NodeId::new(rng.random_range(1..=self.cluster.settings.nodes));
        }
        crate::scenario::pick(rng, &leaders)
    }

    /// A client begins its next call.
    pub(super) fn call(&mut self, client: usize) {
        if self.clients.is_quiet || self.clients.open.iter().any(|open| open.client == client) {
            return;
        }
        let shard = ShardId::new(self.dice.clients.random_range(1..=self.cluster.settings.shards));
        let node = self.target(client, shard);
        let rng = &mut self.dice.clients;
        let key = format!("k{}", rng.random_range(0..self.plan.keys));
        let is_read = rng.random_range(0..100) < self.plan.reads;
        let process = self.clients.processes.get(client).copied().unwrap_or_default();
        let begun = self.clients.tick();
        let name = format!("{shard}/{key}");
        let (call, operation) = if is_read {
            let operation = Operation::open(process, Function::Read, Datum::Nil, begun);
            let call = self.cluster.begin_read(node, shard, &key);
            let delay = Duration::from_micros(self.dice.clients.random_range(50..400));
            self.after(delay, Happening::ReadArrives(node, shard, call));
            (call, operation)
        } else {
            let (command, function, input) = self.command(&key);
            let call = self.cluster.write(node, shard, &command);
            self.wake(node, shard, self.cluster.now);
            (call, Operation::open(process, function, input, begun))
        };
        let patience = match self.is_drilled() {
            true => PATIENCE,
            false => self.cluster.settings.election_timeout * 4,
        };
        self.clients.open.push(Open { call, client, operation: operation.on(name.as_str()) });
        self.after(patience, Happening::GiveUp(client, call));
    }

    fn command(&mut self, key: &str) -> (Command, Function, Datum) {
        self.clients.writes += 1;
        let rng = &mut self.dice.clients;
        // Now and then a long one, so that a snapshot has several chunks.
        let tail = if rng.random_range(0..150) == 0 { 40_000 } else { rng.random_range(0..40) };
        let short = format!("v{}", self.clients.writes);
        let value = format!("{short}{}", "x".repeat(tail));
        match rng.random_range(0..10) {
            0..7 => (put(key, &value), Function::Write, Datum::text(&value)),
            7 => (Command::Delete { key: key_of(key) }, Function::Delete, Datum::Nil),
            kind => {
                let expected = format!("v{}", rng.random_range(1..=self.clients.writes));
                let (expect, found) = match kind {
                    8 => (Expect::Absent, Datum::Nil),
                    _ => (Expect::Value(value_of(&expected)), Datum::text(&expected)),
                };
                let command = Command::CompareAndSet { key: key_of(key), expect, value: value_of(&value) };
                (command, Function::Cas, Datum::list([found, Datum::text(&value)]))
            }
        }
    }

    /// Clients hear of calls that have ended.
    pub(super) fn hear(&mut self) {
        while !self.cluster.oracle.ended.is_empty() {
            self.hear_all();
        }
    }

    fn hear_all(&mut self) {
        for call in std::mem::take(&mut self.cluster.oracle.ended) {
            self.watch_call(call);
            if self.txns_heard(call) {
                continue;
            }
            let Some(at) = self.clients.open.iter().position(|open| open.call == call) else {
                self.count_heard(call);
                continue;
            };
            let open = self.clients.open.remove(at);
            let client = open.client;
            self.note(open);
            let pause = Duration::from_micros(self.dice.clients.random_range(0..=self.plan.think_us));
            self.after(pause, Happening::Call(client));
        }
    }

    fn note(&mut self, open: Open) {
        let Open { call, client, operation } = open;
        let call = self.cluster.oracle.call(call);
        let (end, row, answer) = (call.end.clone(), call.row.clone(), call.answer.clone());
        match end {
            Some(End::Written(id)) => {
                let now = self.clients.tick();
                self.clients.acknowledged += 1;
                let mut done = operation.returned(now, Datum::Nil).revised(id.index.get());
                if matches!(answer, Some(Answer::CompareFailed { .. })) {
                    done.outcome = Outcome::Mismatch;
                }
                self.clients.history.push(done);
            }
            Some(End::Read(applied)) => {
                let now = self.clients.tick();
                self.clients.reads += 1;
                let value = row.map_or(Datum::Nil, |row| Datum::text(&String::from_utf8_lossy(&row.value)));
                self.clients.history.push(operation.returned(now, value).revised(applied.get()));
            }
            Some(End::Failed(failure)) if knows_better(failure) => {}
            // A read that came to nothing says nothing.
            Some(End::NoLeader) => {}
            Some(End::Failed(_) | End::Broken) | None => self.leave_open(client, operation),
        }
    }

    /// Nobody knows whether this was done: it stays open, and the client goes on under another name.
    fn leave_open(&mut self, client: usize, operation: Operation) {
        self.clients.history.push(operation);
        self.clients.next_process += 1;
        if let Some(process) = self.clients.processes.get_mut(client) {
            *process = self.clients.next_process;
        }
    }

    /// A client has waited long enough.
    pub(super) fn give_up(&mut self, client: usize, call: usize) {
        let Some(at) = self.clients.open.iter().position(|open| open.call == call) else { return };
        let open = self.clients.open.remove(at);
        self.leave_open(client, open.operation);
        if self.is_drilled() {
            let (node, until) = (self.cluster.oracle.call(call).node, self.cluster.now.after(PATIENCE));
            self.clients.left_alone.insert((client, node), until);
        }
        self.after(Duration::ZERO, Happening::Call(client));
    }

    /// Writes and reads that were answered, and whether their history could not be decided.
    pub(crate) fn heard(&self) -> (usize, usize, usize) {
        (self.clients.acknowledged, self.clients.reads, usize::from(self.clients.is_undecided))
    }

    /// All that the clients saw must have an order.
    pub(super) fn check_history(&mut self) {
        let mut calls = std::mem::take(&mut self.clients.history);
        calls.extend(std::mem::take(&mut self.clients.open).into_iter().map(|open| open.operation));
        match linearisability::holds(calls) {
            Ok(Checked::Linearisable) => {}
            Ok(Checked::Undecided) => self.clients.is_undecided = true,
            Err(violation) => self.cluster.report(Err(violation)),
        }
    }
}

/// Whether it is certain that the write did not happen.
fn knows_better(failure: WriteFailure) -> bool {
    failure.outcome() == Fate::NotApplied
}
