//! Clients that count: each has a session, adds to shared counters, and sends every request again, under the same id,
//! until it knows what became of it. What was sent once may arrive again at any later time.

use std::collections::BTreeMap;
use std::time::Duration;

use kv_state::Answer;
use kv_state::sessions::Dead;
use kv_types::{Nanos, NodeId, RequestId, ShardId};
use rand::RngExt;

use super::{Happening, Run};
use crate::report::CountingTally;
use crate::scenario::{CountingPlan, pick};
use crate::world::{Fate, Seen};

mod collect;
mod end;
mod late;
mod requests;
mod sessions;

pub(super) use late::Sent;
use requests::Pending;
use sessions::Open;
pub(super) use sessions::timed;

/// How often a client looks after its session and its requests.
const PULSE_US: u64 = 20_000;

/// What is to be done at a time.
#[derive(Debug)]
pub(super) enum Deed {
    /// A client looks after its session, and begins requests.
    Pulse(usize),
    /// A client begins requests, as many as it may have in flight.
    Begin(usize),
    /// A client that has no answer yet sends a request again.
    Again(usize, u64),
    /// A client waits for a read no longer.
    NoRead(usize),
    /// Something that was sent long ago arrives.
    Late,
    /// The meta group's leader ends sessions whose time is over.
    Expire,
    /// A shard's leader asks which of the sessions it knows are dead.
    AskDead(ShardId),
    /// It is told so.
    Collect(ShardId, Dead),
}

/// What a call is for; the answer may be lost.
#[derive(Debug)]
enum Purpose {
    /// An attempt of a request, or a question what became of it.
    Attempt(usize, u64),
    /// A counter is read, to be compared and set.
    Read(usize, ShardId, String),
    /// Something about the session of a client.
    Session(usize),
    /// Which sessions are dead.
    Dead(ShardId),
    /// Nobody waits for it.
    Nothing,
}

/// A client.
#[derive(Debug, Default)]
struct Client {
    nonce: u128,
    session: Option<Open>,
    /// The number of the next request in the session.
    seq: u64,
    /// Requests of which it does not know what became, by a number of its own.
    pending: BTreeMap<u64, Pending>,
    /// Counters that are being read.
    reading: usize,
    silent_until: Nanos,
    /// When it has last asked for something about its session.
    asked_at: Nanos,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Counting {
    plan: CountingPlan,
    clients: Vec<Client>,
    calls: BTreeMap<usize, Purpose>,
    pub(super) sent: Vec<Sent>,
    next: u64,
    /// No request is begun any more; then, sessions end; then, nothing is done at all.
    is_ending: bool,
    is_closing: bool,
    is_over: bool,
    pub(super) tally: CountingTally,
}

impl Counting {
    /// The mean time between two deliveries of what was sent long ago.
    pub(super) fn late_ms(&self) -> u64 {
        self.plan.late_ms
    }

    /// What is acknowledged by now was to be.
    pub(super) fn suffice(&mut self) {
        self.plan.increments = self.tally.acknowledged;
    }

    /// Whether all increments are acknowledged.
    pub(super) fn is_done(&self) -> bool {
        self.tally.acknowledged >= self.plan.increments
    }
}

impl Run {
    pub(super) fn begin_counting(&mut self, plan: CountingPlan) {
        let clients = (0..plan.clients).map(|_| Client::default()).collect();
        self.counting = Some(Counting {
            clients,
            calls: BTreeMap::new(),
            sent: Vec::new(),
            next: 0,
            is_ending: false,
            is_closing: false,
            is_over: false,
            tally: CountingTally::default(),
            plan: plan.clone(),
        });
        for client in 0..plan.clients {
            self.after(Duration::ZERO, Happening::Count(Deed::Pulse(client)));
        }
        self.after(Duration::from_millis(plan.late_ms), Happening::Count(Deed::Late));
        self.after(Duration::from_millis(100), Happening::Count(Deed::Expire));
        for shard in 1..=self.cluster.settings.shards {
            self.after(Duration::from_millis(100), Happening::Count(Deed::AskDead(ShardId::new(shard))));
        }
    }

    pub(super) fn count(&mut self, deed: Deed) {
        if self.counting.as_ref().is_none_or(|counting| counting.is_over) {
            return;
        }
        match deed {
            Deed::Pulse(client) => {
                let pause = self.dice.counting.random_range(1..=2 * PULSE_US);
                self.after(Duration::from_micros(pause), Happening::Count(Deed::Pulse(client)));
                if !self.is_silent(client) {
                    self.tend_session(client);
                    self.begin_requests(client);
                }
            }
            Deed::Begin(client) => self.begin_requests(client),
            Deed::Again(client, number) => self.send_again(client, number),
            Deed::NoRead(call) => self.give_up_read(call),
            Deed::Late => self.deliver_something_late(),
            Deed::Expire => self.expire_sessions(),
            Deed::AskDead(shard) => self.ask_dead(shard),
            Deed::Collect(shard, dead) => self.collect_sessions(shard, &dead),
        }
    }

    /// A call has ended that may be one of these.
    pub(super) fn count_heard(&mut self, call: usize) {
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(purpose) = counting.calls.remove(&call) else { return };
        match &self.cluster.oracle.call(call).answer {
            Some(Answer::Replayed(_)) => counting.tally.replayed += 1,
            Some(Answer::Refused(_)) => counting.tally.refused += 1,
            _ => {}
        }
        let is_lost = self.dice.counting.random_range(0..100) < counting.plan.lost;
        match purpose {
            // Whoever lost the answer sends the request again, in time.
            Purpose::Attempt(client, number) if !is_lost => self.hear_attempt(client, number, call),
            Purpose::Read(client, shard, key) => self.hear_counter(client, shard, &key, call),
            Purpose::Session(client) if !is_lost => self.hear_session(client, call),
            Purpose::Dead(shard) => self.hear_dead(shard, call),
            Purpose::Attempt(..) | Purpose::Session(_) | Purpose::Nothing => {}
        }
    }

    fn is_silent(&self, client: usize) -> bool {
        let client = self.counting.as_ref().and_then(|counting| counting.clients.get(client));
        client.is_none_or(|client| self.cluster.now < client.silent_until)
    }

    /// Who leads, or believes so, mostly, else any node.
    fn guess(&mut self, shard: ShardId) -> NodeId {
        let leads =
            |node: &NodeId| self.cluster.replica(*node, shard).is_some_and(kv_shard::Replica::is_leader);
        let leaders: Vec<NodeId> = self.cluster.settings.nodes().filter(leads).collect();
        let rng = &mut self.dice.counting;
        if leaders.is_empty() || rng.random_range(0..10) == 0 {
            return NodeId::new(rng.random_range(1..=self.cluster.settings.nodes));
        }
        pick(rng, &leaders)
    }

    /// Sends a command to whoever seems to lead.
    fn send_command(&mut self, shard: ShardId, command: bytes::Bytes, purpose: Purpose) {
        let node = self.guess(shard);
        let call = self.cluster.send(node, shard, command);
        self.wake(node, shard, self.cluster.now);
        if let Some(counting) = self.counting.as_mut() {
            counting.calls.insert(call, purpose);
        }
    }

    /// Asks for something that changes nothing, of whoever seems to lead.
    fn send_question(&mut self, shard: ShardId, ask: crate::oracle::Ask, purpose: Purpose) -> usize {
        let node = self.guess(shard);
        let call = self.cluster.ask(node, shard, ask);
        if let Some(counting) = self.counting.as_mut() {
            counting.calls.insert(call, purpose);
        }
        let delay = Duration::from_micros(self.dice.counting.random_range(50..400));
        self.after(delay, Happening::ReadArrives(node, shard, call));
        call
    }

    /// A client knows what became of a request, or gives up finding out.
    fn end_request(&mut self, client: usize, number: u64, node: NodeId, fate: Fate) {
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(pending) = counting.clients.get_mut(client).and_then(|it| it.pending.remove(&number)) else {
            return;
        };
        match fate {
            Fate::Applied(_) => counting.tally.acknowledged += 1,
            Fate::NotApplied => counting.tally.not_applied += 1,
            Fate::Unknown => counting.tally.unknown += 1,
        }
        let id: RequestId = pending.id;
        self.cluster.see(node, pending.shard, Seen::Told(id, fate));
        let pause = Duration::from_micros(self.dice.counting.random_range(0..=self.plan.think_us.min(5_000)));
        self.after(pause, Happening::Count(Deed::Begin(client)));
    }

    /// What the counting has come to.
    pub(crate) fn counted(&self) -> CountingTally {
        self.counting.as_ref().map(|counting| counting.tally).unwrap_or_default()
    }
}
