//! Requests: from their beginning, over as many attempts as it takes, to an answer that is definite.

use std::time::Duration;

use kv_shard::WriteFailure;
use kv_state::gate::{Found, Recorded, RecordedResult, Refusal};
use kv_state::{Answer, Command, Envelope, Expect};
use kv_types::{
    ClusterTime, NodeId, Outcome, Request, RequestId, Revision, RowKey, SessionRequest, ShardId, TimedId,
};
use rand::RngExt;

use super::super::{Happening, Run};
use super::late::Sent;
use super::{Client, Deed, Purpose};
use crate::cluster::calls::{key_of, value_of};
use crate::oracle::{Ask, End, Looked};
use crate::violation::Violation;
use crate::world::Fate;

/// A request of which its client does not know what became.
#[derive(Clone, Debug)]
pub(super) struct Pending {
    pub(super) shard: ShardId,
    pub(super) id: RequestId,
    command: Command,
    /// Copies that were sent, and those of which it is certain that they did nothing.
    sent: u32,
    denied: u32,
    /// Whether somebody keeps a copy, which may arrive at any time.
    is_kept: bool,
    /// The client wants it ended, be it undone.
    settles: bool,
}

impl Client {
    /// The smallest number of the session that still waits for an answer.
    fn first_incomplete(&self) -> u64 {
        let of_session = self.pending.values().filter_map(|pending| match pending.id {
            RequestId::Session { seq, .. } => Some(seq),
            RequestId::Timed(_) => None,
        });
        of_session.min().unwrap_or(self.seq)
    }

    /// A request as it travels now.
    fn request(&self, id: RequestId, first_incomplete: u64) -> Request {
        match id {
            RequestId::Session { session, seq } => {
                let lease = self.session.as_ref().filter(|open| open.id == session);
                let lease_until = lease.map_or(ClusterTime::ZERO, |open| open.lease_until);
                Request::Session(SessionRequest { session, seq, first_incomplete, lease_until })
            }
            RequestId::Timed(id) => Request::Timed(id),
        }
    }
}

impl Run {
    /// Begins as many requests as the client may have in flight.
    pub(super) fn begin_requests(&mut self, client: usize) {
        if self.is_silent(client) {
            return;
        }
        loop {
            let Some(counting) = self.counting.as_mut() else { return };
            let is_enough = counting.is_ending || counting.is_done();
            let Some(state) = counting.clients.get_mut(client) else { return };
            let is_ready = state.session.as_ref().is_some_and(|open| !open.closes);
            let in_flight = state.pending.len() + state.reading;
            if is_enough || !is_ready || in_flight >= counting.plan.in_flight {
                return;
            }
            let rng = &mut self.dice.counting;
            let shard = ShardId::new(rng.random_range(1..=self.cluster.settings.shards));
            let key = format!("c{}", rng.random_range(0..counting.plan.counters));
            if rng.random_range(0..100) < counting.plan.compared {
                state.reading += 1;
                let ask = Ask::Read(RowKey::user(&key_of(&key)));
                let call = self.send_question(shard, ask, Purpose::Read(client, shard, key));
                let patience = self.cluster.settings.election_timeout * 4;
                self.after(patience, Happening::Count(Deed::NoRead(call)));
            } else {
                let delta = rng.random_range(1..=3);
                self.begin_request(client, shard, Command::Increment { key: key_of(&key), delta });
            }
        }
    }

    /// A counter was read: it is set to one more, if it is still the same.
    pub(super) fn hear_counter(&mut self, client: usize, shard: ShardId, key: &str, call: usize) {
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        state.reading -= 1;
        let call = self.cluster.oracle.call(call);
        if !matches!(call.end, Some(End::Read(_))) || counting.is_ending || state.session.is_none() {
            return;
        }
        let text = call.row.as_ref().map(|row| String::from_utf8_lossy(&row.value).into_owned());
        let number = text.as_ref().map_or(Ok(0), |text| text.parse::<i64>());
        let Ok(number) = number else {
            let detail = format!("{shard}: {key} holds {text:?}, which is no number");
            return self.cluster.report(Err(Violation::new("answers", detail)));
        };
        let expect = text.map_or(Expect::Absent, |text| Expect::Value(value_of(&text)));
        let value = value_of(&(number + 1).to_string());
        self.begin_request(client, shard, Command::CompareAndSet { key: key_of(key), expect, value });
    }

    /// A node that nobody reaches may never answer.
    pub(super) fn give_up_read(&mut self, call: usize) {
        let Some(counting) = self.counting.as_mut() else { return };
        if let Some(Purpose::Read(client, ..)) = counting.calls.remove(&call)
            && let Some(state) = counting.clients.get_mut(client)
        {
            state.reading -= 1;
        }
    }

    fn begin_request(&mut self, client: usize, shard: ShardId, command: Command) {
        let node = self.guess(shard);
        let time = self.cluster.replica(node, shard).and_then(kv_shard::Replica::cluster_time);
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        let rng = &mut self.dice.counting;
        let is_timed = rng.random_range(0..100) < counting.plan.timed;
        let id = match (&state.session, time) {
            (_, Some(time)) if is_timed => RequestId::Timed(TimedId::new(time, rng.random())),
            (Some(open), _) => {
                state.seq += 1;
                RequestId::Session { session: open.id, seq: state.seq - 1 }
            }
            (None, _) => return,
        };
        let is_kept = rng.random_range(0..2) == 0;
        counting.next += 1;
        let number = counting.next;
        let pending = Pending { shard, id, command, sent: 0, denied: 0, is_kept, settles: false };
        state.pending.insert(number, pending);
        self.attempt(client, number);
    }

    /// Sends a request, once or twice, and looks again when an answer should be there.
    fn attempt(&mut self, client: usize, number: u64) {
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        let Some(pending) = state.pending.get(&number).cloned() else { return };
        let rng = &mut self.dice.counting;
        // Less than is true may be claimed.
        let first = match rng.random_range(0..4) {
            0 => state.first_incomplete() / 16 * 16,
            _ => state.first_incomplete(),
        };
        let request = state.request(pending.id, first);
        let command = if pending.settles { Command::Settle } else { pending.command };
        let envelope =
            Envelope::once(request, command).expect("counting clients ask for what clients may ask for");
        let bytes = envelope.encode();
        let copies = 1 + u32::from(rng.random_range(0..100) < counting.plan.doubled);
        let shard = pending.shard;
        if pending.is_kept {
            counting.sent.push(Sent { shard, bytes: bytes.clone() });
        }
        if let Some(pending) = state.pending.get_mut(&number) {
            pending.sent += copies;
        }
        counting.tally.attempts += 1;
        for _ in 0..copies {
            self.send_command(shard, bytes.clone(), Purpose::Attempt(client, number));
        }
        self.look_again(client, number, pending.sent);
    }

    /// The more often it was sent, the later.
    fn look_again(&mut self, client: usize, number: u64, sent: u32) {
        let timeout_us =
            u64::try_from(self.cluster.settings.election_timeout.as_micros()).unwrap_or(u64::MAX);
        let longest_us = timeout_us << sent.min(4);
        let patience = self.dice.counting.random_range(timeout_us / 2..longest_us + timeout_us);
        self.after(Duration::from_micros(patience), Happening::Count(Deed::Again(client, number)));
    }

    /// There is no definite answer yet.
    pub(super) fn send_again(&mut self, client: usize, number: u64) {
        if self.is_silent(client) {
            self.look_again(client, number, 0);
            return;
        }
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        let Some(pending) = state.pending.get(&number) else { return };
        let (shard, request) = (pending.shard, state.request(pending.id, 0));
        let is_tired = pending.sent >= 3;
        let Some(pending) = state.pending.get_mut(&number) else { return };
        match self.dice.counting.random_range(0..20) {
            0 => {
                pending.settles |= is_tired;
                self.attempt(client, number);
            }
            1 | 2 => {
                self.send_question(shard, Ask::Outcome(request), Purpose::Attempt(client, number));
                self.look_again(client, number, 0);
            }
            _ => self.attempt(client, number),
        }
    }

    /// An attempt was answered, or a question what became of the request.
    pub(super) fn hear_attempt(&mut self, client: usize, number: u64, call: usize) {
        let call = self.cluster.oracle.call(call).clone();
        match (call.end, call.answer, call.looked) {
            (Some(End::Written(id)), Some(answer), _) => {
                self.hear_answer(client, number, call.node, (id.index.revision(), &answer));
            }
            (_, _, Some(Looked::Outcome(found))) => self.hear_found(client, number, call.node, found),
            (Some(End::Failed(failure)), ..) => self.hear_failure(client, number, call.node, failure),
            // Nobody knows, so it is sent again in time.
            _ => {}
        }
    }

    fn hear_answer(
        &mut self,
        client: usize,
        number: u64,
        node: NodeId,
        (revision, answer): (Revision, &Answer),
    ) {
        match answer {
            Answer::Replayed(recorded) => self.end_request(client, number, node, recorded_fate(recorded)),
            Answer::Incremented { .. } | Answer::Written => {
                self.end_request(client, number, node, Fate::Applied(revision));
            }
            Answer::Settled | Answer::CompareFailed { .. } | Answer::Refused(Refusal::Settled) => {
                self.end_request(client, number, node, Fate::NotApplied);
            }
            Answer::Refused(refusal) => self.hear_refusal(client, number, *refusal),
            other => {
                let detail = format!("a request that counts is answered {other:?}");
                self.cluster.report(Err(Violation::new("answers", detail)));
            }
        }
    }

    /// A refusal of one attempt says nothing of the others.
    fn hear_refusal(&mut self, client: usize, number: u64, refusal: Refusal) {
        match refusal {
            Refusal::SessionExpired { .. } => self.renew_session(client),
            // It is sent again in time.
            Refusal::WindowOverflow { .. } | Refusal::Settled | Refusal::Locked { .. } => {}
            Refusal::Stale { .. } | Refusal::Mismatch | Refusal::TooOld { .. } | Refusal::TooEarly { .. } => {
                let state = self.counting.as_ref().and_then(|counting| counting.clients.get(client));
                let Some(pending) = state.and_then(|state| state.pending.get(&number)) else { return };
                let detail = format!("{}: {refusal}, but its client waits for it", pending.id);
                self.cluster.report(Err(Violation::new("exactly-once", detail)));
            }
        }
    }

    fn hear_found(&mut self, client: usize, number: u64, node: NodeId, found: Found) {
        match found {
            Found::Decided(recorded) => self.end_request(client, number, node, recorded_fate(&recorded)),
            Found::Settled => self.end_request(client, number, node, Fate::NotApplied),
            Found::NoLongerKnown => self.renew_session(client),
            Found::NotSeen => {}
        }
    }

    /// If every copy that was ever sent did nothing for certain, the client may say so and let it be.
    fn hear_failure(&mut self, client: usize, number: u64, node: NodeId, failure: WriteFailure) {
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        let Some(pending) = state.pending.get_mut(&number) else { return };
        pending.denied += u32::from(failure.outcome() == Outcome::NotApplied);
        let is_certain = pending.denied == pending.sent && !pending.is_kept;
        if is_certain && self.dice.counting.random_range(0..3) == 0 {
            self.end_request(client, number, node, Fate::NotApplied);
        }
    }
}

fn recorded_fate(recorded: &Recorded) -> Fate {
    match recorded.result {
        RecordedResult::Written | RecordedResult::Incremented { .. } | RecordedResult::TxnCommitted => {
            Fate::Applied(recorded.revision)
        }
        RecordedResult::Deleted { .. }
        | RecordedResult::CompareFailed { .. }
        | RecordedResult::IncrementFailed(_)
        | RecordedResult::TxnAborted => Fate::NotApplied,
    }
}
