//! Requests of sessions: transactions, and writes of one key beside them on the same keys.

use kv_state::gate::{RecordedResult, Refusal};
use kv_state::txn::Transaction;
use kv_state::{Answer, Envelope};
use kv_types::{NodeId, Request, ShardId, TxnId};
use rand::RngExt;

use super::super::Run;
use super::Purpose;
use super::calls::Letter;
use super::clients::{Stage, What};
use crate::oracle::End;
use crate::party::{Caller, owner};
use crate::violation::Violation;
use crate::world::Seen;

impl Run {
    /// A client sends its request, for the first time or again.
    pub(super) fn attempt_request(&mut self, client: usize) {
        let claims_less = self.dice.txns.random_range(0..4) == 0;
        let Some(txns) = self.txns.as_mut() else { return };
        txns.tally.attempts += 1;
        let Some(state) = txns.clients.get(client) else { return };
        let Some(job) = state.job.as_ref() else { return };
        let Stage::Waits(wanted) = &job.stage else { return };
        let caller = Caller { client, attempt: job.attempt };
        let (what, tries) = (wanted.what.clone(), job.tries);
        let request = state.request(wanted.session, wanted.seq, claims_less);
        match what {
            What::Txn(txn) => {
                let to = self.seems_to_lead(owner(txn.anchor().as_ref()));
                let letter = Letter::Commit { to, caller, request, txn };
                self.keep_letter(&letter);
                self.post(letter);
            }
            What::Write(shard, command) => {
                let envelope = Envelope::once(Request::Session(request), command);
                let bytes = envelope.expect("clients ask for what clients may ask for").encode();
                let to = self.seems_to_lead(shard);
                self.keep_copy(shard, &bytes);
                let call = self.cluster.send(to, shard, bytes);
                self.wake(to, shard, self.cluster.now);
                if let Some(txns) = self.txns.as_mut() {
                    txns.calls.insert(call, Purpose::Write(caller));
                }
            }
        }
        self.await_answer(caller, tries);
    }

    /// A write without a transaction is answered.
    pub(super) fn hear_write(&mut self, caller: Caller, call: usize) {
        let now = self.cluster.now;
        let call = self.cluster.oracle.call(call).clone();
        let Some(txns) = self.txns.as_mut() else { return };
        let Some(state) = txns.clients.get_mut(caller.client) else { return };
        let Some(job) = state.job.as_ref().filter(|job| job.attempt == caller.attempt) else { return };
        let Stage::Waits(wanted) = &job.stage else { return };
        if now < state.silent_until {
            return;
        }
        let effect = wanted.effect.clone();
        let done = match (&call.end, &call.answer) {
            (Some(End::Written(_)), Some(answer)) => match answer {
                Answer::Written | Answer::Incremented { .. } => Some(true),
                Answer::CompareFailed { .. } => Some(false),
                Answer::Replayed(recorded) => Some(matches!(
                    recorded.result,
                    RecordedResult::Written | RecordedResult::Incremented { .. }
                )),
                Answer::Refused(refusal) => return self.hear_txn_refusal(caller.client, *refusal),
                _ => None,
            },
            // Nobody knows, so it is sent again in time.
            _ => None,
        };
        if let Some(done) = done {
            let count = if done { &mut txns.tally.written } else { &mut txns.tally.mismatched };
            *count += 1;
            self.end_job(caller.client, Some(effect), Some(done));
        }
    }

    /// A refusal of one attempt says nothing of the others.
    pub(super) fn hear_txn_refusal(&mut self, client: usize, refusal: Refusal) {
        if let Some(txns) = self.txns.as_mut() {
            txns.tally.refused += 1;
        }
        match refusal {
            Refusal::SessionExpired { .. } => self.renew_txn_session(client),
            // It is sent again in time.
            Refusal::WindowOverflow { .. } | Refusal::Locked { .. } => {}
            Refusal::Settled
            | Refusal::Stale { .. }
            | Refusal::Mismatch
            | Refusal::TooOld { .. }
            | Refusal::TooEarly { .. } => {
                let detail = format!("client {client} waits for a request, which is answered: {refusal}");
                self.cluster.report(Err(Violation::new("exactly-once", detail)));
            }
        }
    }

    /// A client fixes the content of a transaction.
    pub(super) fn see_begun(&mut self, name: TxnId, txn: &Transaction) {
        let shard = owner(txn.anchor().as_ref());
        self.cluster.see(NodeId::new(1), shard, Seen::Begun(name, txn));
    }

    /// A node tells what a transaction has come to.
    pub(super) fn see_outcome(&mut self, node: NodeId, name: TxnId, committed: bool) {
        let txn = self.cluster.world.txns.get(&name);
        let shard = txn.map_or(ShardId::META, |txn| owner(txn.anchor().as_ref()));
        self.cluster.see(node, shard, Seen::Outcome(name, committed));
    }
}
