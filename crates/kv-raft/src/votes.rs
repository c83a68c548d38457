//! Votes, the leader's wish to be followed in office, and messages of older terms.

use kv_types::{LogId, NodeId, Term};

use crate::candidate::Candidate;
use crate::planted::Planted;
use crate::raft::{Raft, State};
use crate::{Conflict, MessageKind, ReadRefused, WriteId};

/// A request for a vote, as it arrived.
pub(crate) struct VoteRequest {
    pub(crate) last: LogId,
    pub(crate) pre: bool,
    pub(crate) by_transfer: bool,
}

impl Raft {
    pub(crate) fn on_vote_request(&mut self, from: NodeId, term: Term, request: VoteRequest) {
        let VoteRequest { last, pre, by_transfer } = request;
        let core = &mut self.core;
        if term < core.term() {
            // The answer carries our term: a candidate with the longer log but an older term needs it to win.
            core.send(from, MessageKind::VoteAck { granted: false, pre });
            return;
        }
        // A leader is live: neither the vote nor the candidate's term may disturb it (Raft thesis 4.2.3). If the leader
        // itself wished for this election, it has given its lease up, and no promise to it counts.
        let leads = matches!(&self.state, State::Leader(leader) if leader.in_contact(core));
        let live = core.now < core.withhold_until || leads;
        let wished = by_transfer && !pre;
        if live && !wished && !core.planted(Planted::NoWithholding) {
            return;
        }
        let up_to_date = last >= core.log.last();
        if pre {
            // A question: neither term nor vote nor timers change, whatever the answer.
            let mut answer = core.message(from, MessageKind::VoteAck { granted: up_to_date, pre });
            if up_to_date {
                answer.term = term;
            }
            core.outbox.send(answer);
            return;
        }
        if term > core.term() {
            self.enter_term(term);
        }
        let core = &mut self.core;
        let free = core.hard.vote == Some(from) || (core.hard.vote.is_none() && core.leader.is_none());
        let granted = free && up_to_date;
        if granted {
            core.vote_for(from);
            core.draw_election_deadline();
        }
        let answer = core.message(from, MessageKind::VoteAck { granted, pre });
        let durable = core.outbox.hard_write();
        let after = if core.planted(Planted::VoteBeforeDurable) { WriteId::ZERO } else { durable };
        core.outbox.send_after(after, answer);
    }

    /// The leader wishes that this replica takes over. Obeyed at once, without a pre-vote, since the leader is alive and
    /// agrees; but only with a log that durably ends where the leader's does. A wish that was held up on its way finds
    /// another term, or another end.
    pub(crate) fn on_timeout_now(&mut self, from: NodeId, last: LogId) {
        let core = &mut self.core;
        let from_leader = core.led_by.is_none_or(|leader| leader == from);
        let equal = core.log.last() == last && core.outbox.durable() == last.index;
        let follows = matches!(self.state, State::Follower(_));
        if from_leader && equal && follows && core.electable && core.is_voter() {
            let candidate = Candidate::campaign(core, true);
            self.enter(State::Candidate(candidate));
            self.count_votes();
        }
    }

    pub(crate) fn on_vote(&mut self, from: NodeId, pre: bool, granted: bool) {
        if let State::Candidate(candidate) = &mut self.state {
            candidate.on_vote(from, pre, granted);
            self.count_votes();
        }
    }

    /// A message of an older term: whoever waits for an answer learns the newer one.
    pub(crate) fn on_stale(&mut self, from: NodeId, kind: MessageKind) {
        let core = &mut self.core;
        match kind {
            MessageKind::Append { round, .. } => {
                let result = Err(Conflict::default());
                let answer = core.message(from, MessageKind::AppendAck { round, result, clock: core.now });
                core.outbox.send_after(core.outbox.hard_write(), answer);
            }
            MessageKind::ReadIndex { round } => {
                let result = Err(ReadRefused::NotLeader { hint: core.leader });
                core.send(from, MessageKind::ReadIndexAck { round, result });
            }
            MessageKind::AppendAck { .. }
            | MessageKind::Vote { .. }
            | MessageKind::VoteAck { .. }
            | MessageKind::ReadIndexAck { .. }
            | MessageKind::TimeoutNow { .. } => {}
        }
    }
}
