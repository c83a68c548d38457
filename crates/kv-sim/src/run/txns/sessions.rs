//! What a client of transactions does for its session: it opens, renews and closes it, or falls silent until it expires.

use std::time::Duration;

use kv_state::sessions::{SessionAnswer, SessionBatch, SessionCommand, SessionRefusal};
use kv_state::{Answer, Command};
use kv_types::{ClusterTime, Nanos, SessionId, ShardId};
use rand::RngExt;

use super::super::Run;
use super::super::counting::timed;
use super::Purpose;
use super::clients::Stage;

/// A session that a client believes to have.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) id: SessionId,
    pub(super) lease_until: ClusterTime,
    renewed_at: Nanos,
    /// No request is begun in it any more.
    pub(super) closes: bool,
}

impl Run {
    /// A client opens a session, renews it, closes it, or falls silent.
    pub(super) fn tend_txn_session(&mut self, client: usize) {
        let now = self.cluster.now;
        let Some(txns) = self.txns.as_mut() else { return };
        let (plan, is_ending, is_closing) = (&txns.plan, txns.is_ending, txns.is_closing);
        let Some(state) = txns.clients.get_mut(client) else { return };
        let rng = &mut self.dice.txns;
        let asked_lately = state.asked_at.after(self.cluster.settings.election_timeout) > now;
        if asked_lately && state.asked_at > Nanos::default() {
            return;
        }
        let Some(open) = state.session.as_mut() else {
            if !is_ending {
                if state.nonce == 0 {
                    state.nonce = rng.random();
                }
                let command = SessionCommand::Open { nonce: state.nonce, ttl: plan.ttl };
                self.send_txn_session(client, command);
            }
            return;
        };
        open.closes |= is_closing || !is_ending && rng.random_range(0..10_000) < plan.closes;
        if open.closes {
            // Closing with a request in flight is rude, and leaves its fate unknown.
            let id = open.id;
            if state.pending.is_empty() || rng.random_range(0..200) == 0 {
                self.send_txn_session(client, SessionCommand::Close { session: id });
            }
            return;
        }
        if !is_ending && rng.random_range(0..10_000) < plan.silences {
            let ttl_us = u64::try_from(plan.ttl.as_micros()).unwrap_or(u64::MAX);
            state.silent_until = now.after(Duration::from_micros(rng.random_range(ttl_us / 2..ttl_us * 3)));
            return;
        }
        if open.renewed_at.after(plan.ttl / 3) <= now {
            self.renew_txn_session(client);
        }
    }

    pub(super) fn renew_txn_session(&mut self, client: usize) {
        let state = self.txns.as_ref().and_then(|txns| txns.clients.get(client));
        if let Some(open) = state.and_then(|state| state.session.as_ref()) {
            let sessions = SessionBatch::new([open.id]).expect("an entry takes a session");
            self.send_txn_session(client, SessionCommand::Renew { sessions });
        }
    }

    fn send_txn_session(&mut self, client: usize, command: SessionCommand) {
        let bytes = timed(Command::Session(command));
        let to = self.seems_to_lead(ShardId::META);
        let call = self.cluster.send(to, ShardId::META, bytes);
        self.wake(to, ShardId::META, self.cluster.now);
        let now = self.cluster.now;
        let Some(txns) = self.txns.as_mut() else { return };
        txns.calls.insert(call, Purpose::Session(client));
        if let Some(state) = txns.clients.get_mut(client) {
            state.asked_at = now;
        }
    }

    pub(super) fn hear_txn_session(&mut self, client: usize, call: usize) {
        let now = self.cluster.now;
        let Some(Answer::Session(answer)) = self.cluster.oracle.call(call).answer.clone() else { return };
        let Some(txns) = self.txns.as_mut() else { return };
        let Some(state) = txns.clients.get_mut(client) else { return };
        match answer {
            // An answer to a second copy comes late.
            Ok(SessionAnswer::Opened { session: id, lease_until }) if state.session.is_none() => {
                txns.tally.opened += 1;
                state.session = Some(Open { id, lease_until, renewed_at: now, closes: false });
                state.seq = 1;
            }
            Ok(SessionAnswer::Renewed(renewed)) => {
                for (id, lease_until) in renewed {
                    let Some(open) = state.session.as_mut().filter(|open| open.id == id) else { continue };
                    match lease_until {
                        Some(lease_until) => {
                            open.lease_until = open.lease_until.max(lease_until);
                            open.renewed_at = now;
                        }
                        None => return self.lose_txn_session(client),
                    }
                }
            }
            Ok(SessionAnswer::Closed) => {
                if state.session.as_ref().is_some_and(|open| open.closes) {
                    self.lose_txn_session(client);
                }
            }
            // It was closed, by a copy of what a client of long ago has sent.
            Err(SessionRefusal::Closed(_)) => state.nonce = 0,
            Ok(SessionAnswer::Opened { .. } | SessionAnswer::Expired(_))
            | Err(SessionRefusal::TooMany | SessionRefusal::TtlOutOfRange) => {}
        }
    }

    /// The session is over: of what is in flight the client will not learn anything any more.
    fn lose_txn_session(&mut self, client: usize) {
        let Some(txns) = self.txns.as_mut() else { return };
        let Some(state) = txns.clients.get_mut(client) else { return };
        state.session = None;
        state.nonce = 0;
        let job = state.job.as_ref().map(|job| job.stage.clone());
        if let Some(Stage::Waits(wanted)) = job {
            txns.tally.unknown += 1;
            self.end_job(client, Some(wanted.effect), None);
        }
        let state = self.txns.as_mut().and_then(|txns| txns.clients.get_mut(client));
        if let Some(state) = state {
            state.pending.clear();
        }
    }
}
