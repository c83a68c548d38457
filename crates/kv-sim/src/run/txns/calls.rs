//! What parties ask travels between nodes, and so do their answers: it takes time, is lost, is doubled, and meets cuts.

use std::time::Duration;

use bytes::Bytes;
use kv_state::Answer;
use kv_state::gate::Refusal;
use kv_state::txn::{Transaction, TxnAnswer};
use kv_txn::{Failure, Place, Step, answer_of};
use kv_types::{LogId, NodeId, SessionRequest, ShardId};
use rand::RngExt;

use super::super::counting::Sent;
use super::super::{Happening, Run};
use super::{Deed, Purpose};
use crate::oracle::{Ask, Call, End, Looked};
use crate::party::{About, Asked, Bounds, Caller, Cause, LookAt, Question, Reply, Told, owner};
use crate::planted::Planted;

/// The first wait of a party before it asks again, and the longest, as in the daemon.
const PAUSE_FIRST: Duration = Duration::from_millis(2);
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Whose question it is: a node in one of its lives, and the question's number there.
pub(in crate::run) type Origin = (NodeId, u64, u64);

/// What travels.
#[derive(Clone, Debug)]
pub(in crate::run) enum Letter {
    /// A question for whoever leads a shard.
    Ask { to: NodeId, origin: Origin, question: Question },
    /// Its answer.
    Reply { from: NodeId, origin: Origin, reply: Reply },
    /// A client wants a transaction committed.
    Commit { to: NodeId, caller: Caller, request: SessionRequest, txn: Transaction },
    /// A client reads.
    Read { to: NodeId, caller: Caller, at: ShardId, what: LookAt },
    /// What a client is told.
    Told { caller: Caller, told: Told },
}

impl Letter {
    pub(in crate::run) fn path(&self) -> (Option<NodeId>, Option<NodeId>) {
        match self {
            Self::Ask { to, origin, .. } => (Some(origin.0), Some(*to)),
            Self::Reply { from, origin, .. } => (Some(*from), Some(origin.0)),
            Self::Commit { to, .. } | Self::Read { to, .. } => (None, Some(*to)),
            Self::Told { .. } => (None, None),
        }
    }

    /// Whether its way is cut; clients reach every node.
    fn is_cut(&self, run: &Run) -> bool {
        matches!(self.path(), (Some(from), Some(to)) if run.cluster.network.is_cut(from, to))
    }
}

impl Run {
    /// Sends a letter.
    pub(super) fn post(&mut self, letter: Letter) {
        let Some(letter) = self.carry_letter(letter) else { return };
        let is_cut = letter.is_cut(self);
        let Some(plan) = self.txns.as_ref().map(|txns| &txns.plan) else { return };
        let is_of_party = match &letter {
            Letter::Ask { question, .. } => !plan.slow_decided || question.is_after_decision(),
            Letter::Reply { .. } => !plan.slow_decided,
            Letter::Commit { .. } | Letter::Read { .. } | Letter::Told { .. } => false,
        };
        let (slow, slow_us) = match (plan.slow, plan.slow_us) {
            (Some(slow), Some(slow_us)) if is_of_party => (slow, slow_us),
            _ => (self.plan.slow, self.plan.slow_us),
        };
        let lost_by_client = plan.lost;
        let rng = &mut self.dice.txns;
        let (low, high) = self.plan.delay_us;
        let mut delay = rng.random_range(low..=high);
        let chance = rng.random_range(0..10_000);
        let (lost, slow, doubled) = match self.is_troubled {
            true => (self.plan.loss, slow, self.plan.doubled),
            false => (0, 0, 0),
        };
        if is_cut {
            if rng.random_range(0..100) >= self.plan.late {
                return;
            }
            delay += rng.random_range(0..=self.plan.lasts_ms * 1000);
        }
        if chance < lost || matches!(letter, Letter::Told { .. }) && rng.random_range(0..100) < lost_by_client
        {
            return;
        }
        if chance < lost + slow {
            delay += rng.random_range(0..=slow_us);
        }
        if rng.random_range(0..10_000) < doubled {
            let again = Duration::from_micros(rng.random_range(low..=high + slow_us));
            self.after(again, Happening::Txn(Deed::Letter(letter.clone())));
        }
        self.after(Duration::from_micros(delay), Happening::Txn(Deed::Letter(letter)));
    }

    pub(super) fn letter_arrives(&mut self, letter: Letter) {
        if letter.is_cut(self) {
            return;
        }
        if let (_, Some(to)) = letter.path() {
            if !self.cluster.is_up(to) {
                return;
            }
            if let Some(until) = self.awake(to) {
                return self.at(until, Happening::Txn(Deed::Letter(letter)));
            }
        }
        match letter {
            Letter::Ask { to, origin, question } => self.serve_question(to, origin, question),
            Letter::Reply { origin, reply, .. } => self.answer_party(origin, reply),
            Letter::Commit { to, caller, request, txn } => self.begin_commit(to, caller, request, txn),
            Letter::Read { to, caller, at, what } => self.begin_txn_read(to, caller, at, what),
            Letter::Told { caller, told } => self.hear_told(caller, told),
        }
    }

    fn begin_commit(&mut self, node: NodeId, caller: Caller, request: SessionRequest, txn: Transaction) {
        let anchor = owner(txn.anchor().as_ref());
        let about = About::Drives(anchor, request.txn());
        let Some(term) = self.leads(node, anchor) else {
            return self.post(Letter::Told { caller, told: Told::Failed(Failure::Failed(Cause::NoLeader)) });
        };
        let decide = self.txns.as_ref().map(|txns| txns.plan.decide).unwrap_or_default();
        let bounds = Bounds { until: self.in_time_of(decide), office: Some((anchor, term)) };
        let readers = self.readers(node);
        let Some(life) = self.cluster.life(node) else { return };
        if life.parties.is_about(about) {
            let told = Told::Failed(Failure::Locked(Cause::Driven));
            return self.post(Letter::Told { caller, told });
        }
        // It finishes for as long again, counted from now: then whoever looks after the records does.
        let finishing = Bounds { until: bounds.until.after(decide), ..bounds };
        let ways = (life.parties.reach(readers.clone(), bounds), life.parties.reach(readers, finishing));
        let party = life.parties.commit(caller, ways, (request, txn));
        self.turn_of_party(node, party);
    }

    fn begin_txn_read(&mut self, node: NodeId, caller: Caller, at: ShardId, what: LookAt) {
        let decide = self.txns.as_ref().map(|txns| txns.plan.decide).unwrap_or_default();
        let bounds = Bounds { until: self.in_time_of(decide), office: None };
        let readers = self.readers(node);
        let Some(life) = self.cluster.life(node) else { return };
        let reach = life.parties.reach(readers, bounds);
        let party = life.parties.read(caller, reach, (at, what));
        self.turn_of_party(node, party);
    }

    /// A party has its turn: what it asks is taken where it belongs.
    pub(super) fn turn_of_party(&mut self, node: NodeId, party: u64) {
        let (now, number) = (self.cluster.clock(node), self.cluster.of(node).lives);
        let Some(life) = self.cluster.life(node) else { return };
        let (asked, told) = life.parties.turn(party, now);
        for (caller, told) in told {
            if let Told::Decided(txn, decision) = &told {
                self.see_outcome(node, *txn, decision.aborted.is_none());
            }
            self.post(Letter::Told { caller, told });
        }
        for asked in asked {
            self.take_question((node, number), asked);
        }
    }

    fn take_question(&mut self, (node, life): (NodeId, u64), Asked { number, question, bounds }: Asked) {
        let origin = (node, life, number);
        let left = bounds.until.since(self.cluster.now);
        if let Question::Pause(failures) = question {
            let longest = PAUSE_FIRST.saturating_mul(1 << failures.min(10)).min(PAUSE_MAX);
            let longest_us = u64::try_from(longest.as_micros()).unwrap_or(u64::MAX);
            let pause = Duration::from_micros(self.dice.txns.random_range(0..=longest_us));
            let in_office = bounds.office.is_none_or(|(shard, term)| self.leads(node, shard) == Some(term));
            if !in_office || left <= pause {
                return self.answer_party(origin, Reply::Paused(false));
            }
            return self.after(pause, Happening::Txn(Deed::Answer(node, life, number, Reply::Paused(true))));
        }
        if left.is_zero() {
            return self.answer_party(origin, Reply::Failed(Failure::Failed(Cause::Deadline)));
        }
        let patience = self.txns.as_ref().map(|txns| txns.plan.patience).unwrap_or_default();
        let late = Reply::Failed(Failure::Failed(Cause::Deadline));
        self.after(left.min(patience), Happening::Txn(Deed::Answer(node, life, number, late)));
        match question {
            Question::Confirm(_) | Question::Pause(_) => self.serve_question(node, origin, question),
            Question::Step(at, ..) | Question::Known(at, _) => {
                let leader = self.cluster.replica(node, at).and_then(|replica| replica.leadership().1);
                match leader {
                    None => self.answer_party(origin, Reply::Failed(Failure::Failed(Cause::NoLeader))),
                    Some(leader) if leader == node => self.serve_question(node, origin, question),
                    Some(to) => self.post(Letter::Ask { to, origin, question }),
                }
            }
        }
    }

    /// A node serves a question about a shard, as its leader does.
    fn serve_question(&mut self, node: NodeId, origin: Origin, question: Question) {
        let (Question::Step(at, ..) | Question::Known(at, _) | Question::Confirm(at)) = question else {
            return;
        };
        let is_for_leader = match question {
            Question::Confirm(_) => false,
            Question::Known(..) => !self.cluster.settings.is_planted(Planted::AnchorUnconfirmed),
            Question::Step(..) | Question::Pause(_) => true,
        };
        if is_for_leader && self.leads(node, at).is_none() {
            return self.reply(node, origin, Reply::Failed(Failure::Failed(Cause::NoLeader)));
        }
        let call = match question {
            Question::Step(_, bytes, fences) => {
                let parties = self.cluster.life(node).map(|life| &life.parties);
                let is_driven =
                    fences.is_some_and(|txn| parties.is_some_and(|it| it.is_about(About::Drives(at, txn))));
                if is_driven {
                    return self.reply(node, origin, Reply::Failed(Failure::Locked(Cause::Driven)));
                }
                if self.rests(node, at, origin, &bytes) {
                    return;
                }
                let life = self.cluster.of(node).lives;
                self.rested(node, life, at);
                self.keep_copy(at, &bytes);
                self.cluster.send(node, at, bytes)
            }
            Question::Known(_, txn) => self.ask_now(node, at, Ask::Known(txn)),
            Question::Confirm(_) | Question::Pause(_) => self.ask_now(node, at, Ask::Confirm),
        };
        self.wake(node, at, self.cluster.now);
        if let Some(txns) = self.txns.as_mut() {
            txns.calls.insert(call, Purpose::Serve(node, vec![origin]));
        }
    }

    /// Somebody keeps what was sent: it may arrive again at any time.
    pub(super) fn keep_copy(&mut self, shard: ShardId, bytes: &Bytes) {
        let kept = self.txns.as_ref().map_or(0, |txns| txns.plan.kept);
        if self.dice.txns.random_range(0..100) < kept
            && let Some(counting) = self.counting.as_mut()
        {
            counting.sent.push(Sent { shard, bytes: bytes.clone() });
        }
    }

    /// Asks a replica of this node something that changes nothing.
    pub(super) fn ask_now(&mut self, node: NodeId, at: ShardId, ask: Ask) -> usize {
        let is_unconfirmed =
            matches!(ask, Ask::Known(_)) && self.cluster.settings.is_planted(Planted::AnchorUnconfirmed);
        let call = self.cluster.ask(node, at, ask);
        if is_unconfirmed {
            self.cluster.serve(node, at, call);
        } else {
            self.cluster.read_arrives(node, at, call);
        }
        self.wake(node, at, self.cluster.now);
        call
    }

    /// What was asked of a node has an answer.
    pub(super) fn served(&mut self, node: NodeId, origin: Origin, call: usize) {
        let call = self.cluster.oracle.call(call).clone();
        if call.end == Some(End::Broken) {
            // Nobody is there who could say so.
            return;
        }
        let reply = reply_of(call);
        if let (Some(txns), Reply::Step(step)) = (self.txns.as_mut(), &reply) {
            match step.answer {
                TxnAnswer::Prepared => txns.tally.prepared += 1,
                TxnAnswer::Absent => txns.tally.fenced += 1,
                _ => {}
            }
        }
        self.reply(node, origin, reply);
    }

    fn reply(&mut self, from: NodeId, origin: Origin, reply: Reply) {
        if from == origin.0 {
            self.answer_party(origin, reply);
        } else {
            self.post(Letter::Reply { from, origin, reply });
        }
    }

    /// A party has an answer, if its life goes on and it waits for one.
    pub(super) fn answer_party(&mut self, (node, life, number): Origin, reply: Reply) {
        if self.cluster.of(node).lives != life {
            return;
        }
        if let Some(until) = self.awake(node) {
            return self.at(until, Happening::Txn(Deed::Answer(node, life, number, reply)));
        }
        let party = self.cluster.life(node).and_then(|life| life.parties.answer(number, reply));
        if let Some(party) = party {
            self.turn_of_party(node, party);
        }
    }
}

fn reply_of(call: Call) -> Reply {
    match (call.end, call.answer, call.looked) {
        (Some(End::Written(id)), Some(answer), _) => step_of(id, answer),
        (_, _, Some(Looked::Known(known))) => Reply::Known(known),
        (_, _, Some(Looked::Confirmed)) => Reply::Confirmed,
        _ => Reply::Failed(Failure::Failed(Cause::Broken)),
    }
}

fn step_of(id: LogId, answer: Answer) -> Reply {
    match answer_of(answer) {
        Ok((answer, recorded)) => {
            let place = recorded.map(|recorded| Place {
                id: LogId::new(id.term, recorded.revision.index()),
                stamp: recorded.stamp,
                replayed: true,
            });
            Reply::Step(Step { answer, place })
        }
        Err(refusal @ Refusal::Locked { .. }) => Reply::Failed(Failure::Locked(Cause::Refused(refusal))),
        Err(refusal @ Refusal::Mismatch) => Reply::Failed(Failure::Mismatched(Cause::Refused(refusal))),
        Err(refusal) => Reply::Failed(Failure::Refused(Cause::Refused(refusal))),
    }
}
