//! Clients: each does one thing at a time. It reads, thinks of what to write, and has that committed.

use std::collections::BTreeSet;
use std::time::Duration;

use kv_state::Command;
use kv_state::txn::Transaction;
use kv_types::{ClusterTime, Nanos, SessionId, SessionRequest, ShardId};
use rand::RngExt;

use super::super::{Happening, Run};
use super::calls::Letter;
use super::ledger::Effect;
use super::sessions::Open;
use super::work::{self, Plan, Work};
use super::{Deed, PULSE_US};
use crate::party::{Caller, Cause, Found, Told};
use crate::scenario::pick;

/// A read is asked for so often; it has no effect, so giving up is free.
const READ_TRIES: u32 = 4;

/// A client.
#[derive(Debug, Default)]
pub(super) struct Client {
    pub(super) nonce: u128,
    pub(super) session: Option<Open>,
    /// The number of the next request in the session.
    pub(super) seq: u64,
    /// The numbers of the session that it waits for.
    pub(super) pending: BTreeSet<u64>,
    pub(super) job: Option<Job>,
    pub(super) ready_at: Nanos,
    pub(super) silent_until: Nanos,
    /// When it has last asked for something about its session.
    pub(super) asked_at: Nanos,
}

/// What a client is at.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) work: Work,
    /// When it began, by the ledger.
    pub(super) begun: u64,
    /// What an answer must name to be heard: the newest read, or the request.
    pub(super) attempt: u64,
    pub(super) tries: u32,
    pub(super) stage: Stage,
}

/// How far it is.
#[derive(Clone, Debug)]
pub(super) enum Stage {
    /// What it has read so far.
    Reads(Vec<Found>),
    /// It waits for a request of its session.
    Waits(Box<Wanted>),
}

/// A request that is under way.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) session: SessionId,
    pub(super) seq: u64,
    pub(super) what: What,
    pub(super) effect: Effect,
}

/// What it is about.
#[derive(Clone, Debug)]
pub(super) enum What {
    Txn(Transaction),
    Write(ShardId, Command),
}

impl Client {
    /// A request as it travels now; less than is true may be claimed.
    pub(super) fn request(&self, session: SessionId, seq: u64, claims_less: bool) -> SessionRequest {
        let first = self.pending.first().copied().unwrap_or(self.seq);
        let lease = self.session.as_ref().filter(|open| open.id == session);
        SessionRequest {
            session,
            seq,
            first_incomplete: if claims_less { first / 16 * 16 } else { first },
            lease_until: lease.map_or(ClusterTime::ZERO, |open| open.lease_until),
        }
    }
}

impl Run {
    pub(super) fn pulse(&mut self, client: usize) {
        let now = self.cluster.now;
        let Some(state) = self.txns.as_ref().and_then(|txns| txns.clients.get(client)) else { return };
        if now < state.silent_until {
            return;
        }
        self.tend_txn_session(client);
        let Some(txns) = self.txns.as_ref() else { return };
        let Some(state) = txns.clients.get(client) else { return };
        let is_ready = state.session.as_ref().is_some_and(|open| !open.closes);
        if !txns.is_ending && is_ready && state.job.is_none() && state.ready_at <= now {
            self.begin_job(client);
        }
    }

    fn begin_job(&mut self, client: usize) {
        let shards = self.cluster.settings.shards;
        let Some(txns) = self.txns.as_mut() else { return };
        let work = work::draw(&mut self.dice.txns, &txns.plan, shards);
        let begun = txns.ledger.tick();
        let Some(state) = txns.clients.get_mut(client) else { return };
        state.job = Some(Job { work, begun, attempt: 0, tries: 0, stage: Stage::Reads(Vec::new()) });
        self.go_on(client);
    }

    /// A client reads what it has not read yet, or thinks.
    fn go_on(&mut self, client: usize) {
        let Some(txns) = self.txns.as_mut() else { return };
        let Some(job) = txns.clients.get_mut(client).and_then(|state| state.job.as_mut()) else { return };
        let Stage::Reads(got) = &job.stage else { return };
        let Some((at, what)) = job.work.next_read(got) else {
            let got = got.clone();
            return self.think(client, &got);
        };
        // Whoever is asked again may answer the first question as well.
        if job.tries == 0 {
            txns.attempts += 1;
            job.attempt = txns.attempts;
        }
        let caller = Caller { client, attempt: job.attempt };
        let patience = txns.plan.patience;
        let to = self.seems_to_lead(at);
        self.post(Letter::Read { to, caller, at, what });
        // As long as the node waits for others, and some more.
        let patience = patience + patience.mul_f64(self.dice.txns.random_range(0.0..1.0));
        self.after(patience, Happening::Txn(Deed::Again(caller)));
    }

    /// It has read everything: what it wants to be done follows from that.
    fn think(&mut self, client: usize, got: &[Found]) {
        let Some(txns) = self.txns.as_mut() else { return };
        let Some(state) = txns.clients.get_mut(client) else { return };
        let Some(job) = state.job.as_ref() else { return };
        let shards = self.cluster.settings.shards;
        let plan = work::plan(&mut self.dice.txns, (&job.work, shards), got, &mut txns.ledger);
        let (what, effect) = match plan {
            Plan::Txn(txn, effect) => (What::Txn(txn), effect),
            Plan::Write(shard, command, effect) => (What::Write(shard, command), effect),
            Plan::Seen(effect) => {
                txns.tally.reads += 1;
                return self.end_job(client, Some(effect), Some(true));
            }
            Plan::Nothing => return self.end_job(client, None, None),
        };
        let Some(open) = state.session.as_ref() else { return self.end_job(client, None, None) };
        let wanted = Box::new(Wanted { session: open.id, seq: state.seq, what, effect });
        state.pending.insert(state.seq);
        state.seq += 1;
        txns.attempts += 1;
        let attempt = txns.attempts;
        if let Some(job) = state.job.as_mut() {
            (job.attempt, job.tries, job.stage) = (attempt, 0, Stage::Waits(wanted.clone()));
        }
        if let What::Txn(txn) = &wanted.what {
            let name = state.request(wanted.session, wanted.seq, false).txn();
            self.see_begun(name, txn);
        }
        self.attempt_request(client);
    }

    /// The more often it was sent, the later.
    pub(super) fn await_answer(&mut self, caller: Caller, tries: u32) {
        let timeout_us =
            u64::try_from(self.cluster.settings.election_timeout.as_micros()).unwrap_or(u64::MAX);
        let longest_us = timeout_us << tries.min(4);
        let patience = self.dice.txns.random_range(timeout_us / 2..longest_us + timeout_us);
        self.after(Duration::from_micros(patience), Happening::Txn(Deed::Again(caller)));
    }

    /// There is no answer yet.
    pub(super) fn ask_again(&mut self, caller: Caller) {
        let now = self.cluster.now;
        let Some(txns) = self.txns.as_mut() else { return };
        let (give_ups, is_ending) = (txns.plan.give_ups, txns.is_ending);
        let Some(state) = txns.clients.get_mut(caller.client) else { return };
        let is_silent = now < state.silent_until;
        let Some(job) = state.job.as_mut().filter(|job| job.attempt == caller.attempt) else { return };
        if is_silent {
            return self.await_answer(caller, 0);
        }
        job.tries += 1;
        match &job.stage {
            Stage::Reads(_) if job.tries >= READ_TRIES => self.end_job(caller.client, None, None),
            Stage::Reads(_) => self.go_on(caller.client),
            Stage::Waits(wanted) => {
                let gives_up = job.tries >= 3 && self.dice.txns.random_range(0..100) < give_ups;
                if gives_up && !is_ending {
                    let effect = wanted.effect.clone();
                    txns.tally.unknown += 1;
                    return self.end_job(caller.client, Some(effect), None);
                }
                self.attempt_request(caller.client);
            }
        }
    }

    /// A client is told what a party has come to.
    pub(super) fn hear_told(&mut self, caller: Caller, told: Told) {
        let now = self.cluster.now;
        let Some(txns) = self.txns.as_mut() else { return };
        let Some(state) = txns.clients.get_mut(caller.client) else { return };
        if now < state.silent_until {
            // It will be asked again.
            return;
        }
        let Some(job) = state.job.as_mut().filter(|job| job.attempt == caller.attempt) else { return };
        match (told, &mut job.stage) {
            (Told::Read(found), Stage::Reads(got)) => {
                got.push(found);
                job.tries = 0;
                self.go_on(caller.client);
            }
            (Told::Decided(_, decision), Stage::Waits(wanted)) => {
                let effect = wanted.effect.clone();
                let committed = decision.aborted.is_none();
                let count = if committed { &mut txns.tally.committed } else { &mut txns.tally.aborted };
                *count += 1;
                self.end_job(caller.client, Some(effect), Some(committed));
            }
            (Told::Failed(failure), Stage::Waits(_)) => {
                if let Cause::Refused(refusal) = failure.into_inner() {
                    self.hear_txn_refusal(caller.client, refusal);
                }
            }
            _ => {}
        }
    }

    /// A client is done with what it was at: all of it took effect, or nothing did, or it does not know.
    pub(super) fn end_job(&mut self, client: usize, effect: Option<Effect>, fate: Option<bool>) {
        let now = self.cluster.now;
        let Some(txns) = self.txns.as_mut() else { return };
        let rest_us = pick(&mut self.dice.txns, &[0, txns.plan.think_us]);
        let rest = Duration::from_micros(self.dice.txns.random_range(0..=rest_us.max(1)));
        let Some(state) = txns.clients.get_mut(client) else { return };
        state.ready_at = now.after(rest);
        let Some(job) = state.job.take() else { return };
        if let Stage::Waits(wanted) = &job.stage {
            state.pending.remove(&wanted.seq);
        }
        if let Some(effect) = effect {
            let noted = txns.ledger.note(&effect, job.begun, fate);
            self.cluster.report(noted);
        }
        if rest < Duration::from_micros(PULSE_US) {
            self.after(rest, Happening::Txn(Deed::Pulse(client)));
        }
    }
}
