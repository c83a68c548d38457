//! What a client does for its session: it opens, renews and closes it, or falls silent until it expires.

use std::time::Duration;

use bytes::Bytes;
use kv_state::sessions::{SessionAnswer, SessionBatch, SessionCommand, SessionRefusal};
use kv_state::{Answer, Command, Envelope};
use kv_types::{ClusterTime, Nanos, NodeId, RequestId, SessionId, ShardId};
use rand::RngExt;

use super::super::Run;
use super::Purpose;
use super::late::Sent;
use crate::world::Fate;

/// A session that a client believes to have.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) id: SessionId,
    pub(super) lease_until: ClusterTime,
    renewed_at: Nanos,
    /// No request is begun in it any more.
    pub(super) closes: bool,
}

/// A command that concerns sessions, as bytes.
pub(in crate::run) fn timed(command: Command) -> Bytes {
    Envelope::timed(command).expect("sessions need no request id").encode()
}

fn one(session: SessionId) -> SessionBatch {
    SessionBatch::new([session]).expect("an entry takes a session")
}

impl Run {
    /// A client opens a session, renews it, closes it, or falls silent.
    pub(super) fn tend_session(&mut self, client: usize) {
        let now = self.cluster.now;
        let Some(counting) = self.counting.as_mut() else { return };
        let (plan, is_ending, is_closing) = (&counting.plan, counting.is_ending, counting.is_closing);
        let Some(state) = counting.clients.get_mut(client) else { return };
        let rng = &mut self.dice.counting;
        if state.asked_at.after(self.cluster.settings.election_timeout) > now
            && state.asked_at > Nanos::default()
        {
            return;
        }
        let Some(open) = state.session.as_mut() else {
            if !is_ending {
                if state.nonce == 0 {
                    state.nonce = rng.random();
                }
                let command = SessionCommand::Open { nonce: state.nonce, ttl: plan.ttl };
                self.send_session_command(client, command);
            }
            return;
        };
        open.closes |= is_closing || !is_ending && rng.random_range(0..10_000) < plan.closes;
        if open.closes {
            // Closing with requests in flight is rude, and leaves their fate unknown.
            let id = open.id;
            let waits = state.pending.values().any(|pending| is_of(pending.id, id));
            if !waits || rng.random_range(0..200) == 0 {
                self.send_session_command(client, SessionCommand::Close { session: id });
            }
            return;
        }
        let is_calm = state.pending.is_empty() || rng.random_range(0..10) == 0;
        if !is_ending && is_calm && rng.random_range(0..10_000) < plan.silences {
            let ttl_us = u64::try_from(plan.ttl.as_micros()).unwrap_or(u64::MAX);
            state.silent_until = now.after(Duration::from_micros(rng.random_range(ttl_us / 2..ttl_us * 3)));
            return;
        }
        if open.renewed_at.after(plan.ttl / 3) <= now {
            self.renew_session(client);
        }
    }

    pub(super) fn renew_session(&mut self, client: usize) {
        let state = self.counting.as_ref().and_then(|counting| counting.clients.get(client));
        if let Some(open) = state.and_then(|state| state.session.as_ref()) {
            let sessions = one(open.id);
            self.send_session_command(client, SessionCommand::Renew { sessions });
        }
    }

    fn send_session_command(&mut self, client: usize, command: SessionCommand) {
        let bytes = timed(Command::Session(command));
        let Some(counting) = self.counting.as_mut() else { return };
        if let Some(state) = counting.clients.get_mut(client) {
            state.asked_at = self.cluster.now;
        }
        if self.dice.counting.random_range(0..4) == 0 {
            counting.sent.push(Sent { shard: ShardId::META, bytes: bytes.clone() });
        }
        self.send_command(ShardId::META, bytes, Purpose::Session(client));
    }

    pub(super) fn hear_session(&mut self, client: usize, call: usize) {
        let now = self.cluster.now;
        let call = self.cluster.oracle.call(call);
        let (node, Some(Answer::Session(answer))) = (call.node, call.answer.clone()) else { return };
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        match answer {
            // An answer to a second copy comes late.
            Ok(SessionAnswer::Opened { session: id, lease_until }) if state.session.is_none() => {
                counting.tally.opened += 1;
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
                        None => return self.lose_session(client, node),
                    }
                }
            }
            Ok(SessionAnswer::Closed) => {
                if state.session.as_ref().is_some_and(|open| open.closes) {
                    self.lose_session(client, node);
                }
            }
            // It was closed, by a copy of what a client of long ago has sent.
            Err(SessionRefusal::Closed(_)) => state.nonce = 0,
            Ok(SessionAnswer::Opened { .. } | SessionAnswer::Expired(_))
            | Err(SessionRefusal::TooMany | SessionRefusal::TtlOutOfRange) => {}
        }
    }

    /// The session is over: of what is in flight the client will not learn anything any more.
    fn lose_session(&mut self, client: usize, node: NodeId) {
        let Some(counting) = self.counting.as_mut() else { return };
        let Some(state) = counting.clients.get_mut(client) else { return };
        let Some(open) = state.session.take() else { return };
        state.nonce = 0;
        let lost = state.pending.iter().filter(|(_, pending)| is_of(pending.id, open.id));
        let lost: Vec<u64> = lost.map(|(number, _)| *number).collect();
        for number in lost {
            self.end_request(client, number, node, Fate::Unknown);
        }
    }
}

fn is_of(id: RequestId, of: SessionId) -> bool {
    matches!(id, RequestId::Session { session, .. } if session == of)
}
