//! The replica: events in, effects out.

use bytes::Bytes;
use kv_types::{LogId, LogIndex, Nanos, NodeId, SnapshotMeta, Term};

use crate::candidate::Candidate;
use crate::core::Core;
use crate::follower::{Append, Follower};
use crate::leader::Leader;
use crate::quorum::Tally;
use crate::read::Reader;
use crate::{
    Config, Conflict, Corrupt, Fatal, Message, MessageKind, Output, Proposed, ReadRefused, Refused, Restored,
    Role, RoleChange, Ticket, WriteId,
};

/// The role, with what only it has: a follower has no progress to misuse.
#[derive(Debug)]
pub(crate) enum State {
    Follower(Follower),
    Candidate(Candidate),
    Leader(Box<Leader>),
}

/// One replica of one group.
#[derive(Debug)]
pub struct Raft {
    pub(crate) core: Core,
    pub(crate) state: State,
    /// What the last `take` reported.
    reported_role: RoleChange,
    reported_commit: LogIndex,
}

impl Raft {
    /// A follower with what its disk holds.
    ///
    /// # Errors
    /// [`Corrupt`] if no replica can have left that behind.
    pub fn new(config: Config, now: Nanos, restored: Restored) -> Result<Self, Corrupt> {
        let core = Core::new(config, now, restored)?;
        let state = State::Follower(Follower::default());
        let reported_role = RoleChange { role: Role::Follower, term: core.term(), leader: None };
        Ok(Self { reported_role, reported_commit: core.commit, core, state })
    }

    /// Time passed: campaigns, sends heartbeats or steps down if one of them is due.
    pub fn tick(&mut self, now: Nanos) {
        self.core.advance(now);
        if self.core.fatal.is_some() {
            return;
        }
        match &mut self.state {
            State::Follower(follower) => {
                follower.forwards.tick(self.core.now);
                self.campaign_if_due();
            }
            State::Candidate(_) => self.campaign_if_due(),
            State::Leader(leader) => {
                if !leader.tick(&mut self.core) {
                    self.core.leader = None;
                    self.become_follower();
                }
            }
        }
    }

    /// A message arrived. Any message may: one that no correct peer sends is ignored.
    pub fn step(&mut self, now: Nanos, message: Message) {
        self.core.advance(now);
        if self.core.fatal.is_some() || message.to != self.core.id() || !message.is_sound() {
            return;
        }
        let Message { from, term, kind, .. } = message;
        // Votes have rules of their own for terms: a candidate must not disturb a live leader.
        if let MessageKind::Vote { last, pre } = kind {
            self.on_vote_request(from, term, last, pre);
            return;
        }
        let echo = matches!(kind, MessageKind::VoteAck { pre: true, granted: true });
        if term > self.core.term() && !echo {
            self.enter_term(term);
        }
        if term < self.core.term() {
            self.on_stale(from, kind);
            return;
        }
        match kind {
            MessageKind::Append { prev, last, entries, commit, round } => {
                if self.follow(from) {
                    self.core.on_append(Append { from, prev, last, entries, commit, round });
                }
            }
            MessageKind::AppendAck { round, result } => {
                if let State::Leader(leader) = &mut self.state {
                    leader.on_ack(&mut self.core, from, round, result);
                }
            }
            MessageKind::VoteAck { granted, pre } => self.on_vote(from, pre, granted),
            MessageKind::ReadIndex { round } => match &mut self.state {
                State::Leader(leader) => leader.read(&self.core, Reader::Peer(from, round)),
                State::Follower(_) | State::Candidate(_) => {
                    let result = Err(ReadRefused::NotLeader { hint: self.core.leader });
                    self.core.send(from, MessageKind::ReadIndexAck { round, result });
                }
            },
            MessageKind::ReadIndexAck { round, result } => {
                if let State::Follower(follower) = &mut self.state {
                    follower.forwards.answer(&mut self.core, round, result);
                }
            }
            MessageKind::Vote { .. } => {}
        }
    }

    /// Writes up to `upto` are durable. May be merged and repeated, never reordered.
    ///
    /// # Panics
    /// If no such write was handed out.
    pub fn persisted(&mut self, now: Nanos, upto: WriteId) {
        self.core.advance(now);
        self.core.outbox.on_persisted(upto);
        match &mut self.state {
            State::Follower(_) => {}
            State::Candidate(candidate) => {
                candidate.on_persisted(&self.core);
                self.count_votes();
            }
            State::Leader(leader) => {
                leader.advance_commit(&mut self.core);
                leader.answer_reads(&mut self.core);
            }
        }
    }

    /// The state machine has applied entries up to `upto`.
    ///
    /// # Panics
    /// If that is not committed.
    pub fn applied(&mut self, upto: LogIndex) {
        assert!(upto <= self.core.commit, "{upto} is applied, {} is committed", self.core.commit);
        self.core.applied = self.core.applied.max(upto);
    }

    /// The driver has dropped entries up to `upto`.
    ///
    /// # Panics
    /// If that is not applied, or not an entry of the log.
    pub fn compacted(&mut self, upto: LogId) {
        assert!(upto.index <= self.core.applied, "{upto} is dropped, {} is applied", self.core.applied);
        if upto.index > self.core.log.start().index {
            self.core.log.compact(upto);
        }
    }

    /// A whole snapshot from the leader `from` of `term` lies ready. The answer is a write with a `reset`; a snapshot
    /// that is not ahead of what is committed here is ignored.
    pub fn snapshot_received(&mut self, now: Nanos, from: NodeId, term: Term, meta: SnapshotMeta) {
        self.core.advance(now);
        let sound = meta.membership.check().is_ok() && !meta.membership.voters.is_empty();
        if self.core.fatal.is_some() || !sound || meta.last.term > term || from == self.core.id() {
            return;
        }
        if term > self.core.term() {
            self.enter_term(term);
        }
        if term < self.core.term() || !self.follow(from) || meta.last.index <= self.core.commit {
            return;
        }
        let keep_tail = self.core.log.holds(meta.last);
        self.core.reset(meta, keep_tail);
    }

    /// The stream of a [`SnapshotJob`](crate::SnapshotJob) ended: with what the receiver has installed, or without
    /// success.
    pub fn snapshot_sent(&mut self, now: Nanos, to: NodeId, result: Result<LogId, ()>) {
        self.core.advance(now);
        if let State::Leader(leader) = &mut self.state {
            leader.on_snapshot_sent(&self.core, to, result);
        }
    }

    /// Messages to `peer` were lost.
    pub fn unreachable(&mut self, peer: NodeId) {
        if let State::Leader(leader) = &mut self.state {
            leader.on_unreachable(peer);
        }
    }

    /// Appends commands to the log, if this replica leads.
    ///
    /// # Errors
    /// [`Refused`]; nothing was appended.
    pub fn propose(&mut self, batch: Vec<Bytes>) -> Result<Proposed, Refused> {
        self.running()?;
        match &mut self.state {
            State::Leader(leader) => leader.propose(&mut self.core, batch),
            State::Follower(_) | State::Candidate(_) => Err(Refused::NotLeader { hint: self.core.leader }),
        }
    }

    /// Asks for an index that a linearisable read must wait for; it comes out in `Output.reads`. A follower asks its
    /// leader. The caller bounds how many reads wait.
    ///
    /// # Errors
    /// [`Refused`] if there is no leader to ask.
    pub fn read(&mut self, now: Nanos, ticket: Ticket) -> Result<(), Refused> {
        self.core.advance(now);
        self.running()?;
        match &mut self.state {
            State::Leader(leader) => leader.read(&self.core, Reader::Local(ticket)),
            State::Follower(follower) if self.core.leader.is_some() => follower.forwards.push(ticket),
            State::Follower(_) | State::Candidate(_) => return Err(Refused::NotLeader { hint: None }),
        }
        Ok(())
    }

    /// Starts an election at once, with a pre-vote. Nothing happens on a leader, and on a replica that does not vote.
    pub fn campaign(&mut self, now: Nanos) {
        self.core.advance(now);
        let leads = matches!(self.state, State::Leader(_));
        if self.core.fatal.is_none() && !leads && self.core.may_campaign() {
            let candidate = Candidate::pre_campaign(&mut self.core);
            self.enter(State::Candidate(candidate));
            self.count_votes();
        }
    }

    /// Whether it may campaign: a replica whose state machine cannot serve votes and acknowledges, and leaves leading to
    /// others. One that leads already goes on. A replica may campaign from the start.
    pub fn set_electable(&mut self, electable: bool) {
        self.core.electable = electable;
    }

    /// Hands out the effects so far. Never blocks; may be skipped, repeated, and called after many events.
    pub fn take(&mut self) -> Output {
        if let Some(fatal) = &self.core.fatal {
            return Output { fatal: Some(fatal.clone()), ..Output::default() };
        }
        match &mut self.state {
            State::Follower(follower) => follower.forwards.flush(&mut self.core),
            State::Candidate(_) => {}
            State::Leader(leader) => leader.flush(&mut self.core),
        }
        self.check_pointers();
        let mut output = self.core.outbox.take(self.core.log.last());
        let role = RoleChange { role: self.role(), term: self.core.term(), leader: self.core.leader };
        if role != self.reported_role {
            self.reported_role = role;
            output.role = Some(role);
        }
        if self.core.commit != self.reported_commit {
            self.reported_commit = self.core.commit;
            output.commit = Some(self.core.commit_id());
        }
        output
    }

    /// When `tick` has something to do next.
    pub fn next_deadline(&self) -> Nanos {
        let core = &self.core;
        if core.fatal.is_some() {
            return Nanos::new(u64::MAX);
        }
        let election = if core.may_campaign() { core.election_deadline } else { Nanos::new(u64::MAX) };
        match &self.state {
            State::Follower(follower) => match follower.forwards.ask_again() {
                Some(ask_again) => ask_again.min(election),
                None => election,
            },
            State::Candidate(_) => election,
            State::Leader(leader) => leader.next_deadline(core),
        }
    }

    /// The term of an entry, if the log knows it.
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        self.core.log.term_of(index)
    }

    /// The role.
    pub fn role(&self) -> Role {
        match &self.state {
            State::Follower(_) => Role::Follower,
            State::Candidate(candidate) if candidate.pre => Role::PreCandidate,
            State::Candidate(_) => Role::Candidate,
            State::Leader(_) => Role::Leader,
        }
    }

    /// Whether this replica leads its term.
    pub fn is_leader(&self) -> bool {
        matches!(self.state, State::Leader(_))
    }

    /// The leader of the term, once known.
    pub fn leader(&self) -> Option<NodeId> {
        self.core.leader
    }

    /// The term.
    pub fn term(&self) -> Term {
        self.core.term()
    }

    /// The end of what is committed.
    pub fn commit(&self) -> LogId {
        self.core.commit_id()
    }

    /// The end of the log.
    pub fn last(&self) -> LogId {
        self.core.log.last()
    }

    fn running(&self) -> Result<(), Refused> {
        if self.core.fatal.is_some() { Err(Refused::Stopped) } else { Ok(()) }
    }
}

// Changes of role.
impl Raft {
    fn campaign_if_due(&mut self) {
        if self.core.now >= self.core.election_deadline {
            let now = self.core.now;
            self.campaign(now);
        }
    }

    /// Leaves the old role in good order.
    fn enter(&mut self, state: State) {
        match std::mem::replace(&mut self.state, state) {
            State::Follower(mut follower) => follower.forwards.refuse(&mut self.core),
            State::Candidate(_) => {}
            State::Leader(mut leader) => leader.abdicate(&mut self.core),
        }
    }

    /// Follows, or waits for, whoever `core.leader` says.
    fn become_follower(&mut self) {
        self.core.draw_election_deadline();
        self.enter(State::Follower(Follower::default()));
    }

    /// A message of a newer term arrived.
    fn enter_term(&mut self, term: Term) {
        self.core.enter_term(term, None);
        if matches!(self.state, State::Follower(_)) {
            // Keeps its election deadline: a stranger's term is no sign of life of a leader.
            self.enter(State::Follower(Follower::default()));
        } else {
            self.become_follower();
        }
    }

    /// `leader` speaks for our term. Returns whether it may.
    fn follow(&mut self, leader: NodeId) -> bool {
        if let Some(known) = self.core.led_by
            && known != leader
        {
            let term = self.core.term();
            self.core.fatal = Some(Fatal::TwoLeaders { term, first: known, second: leader });
            return false;
        }
        self.core.heard_leader(leader);
        if !matches!(self.state, State::Follower(_)) {
            self.become_follower();
        }
        true
    }

    /// Acts on the votes so far.
    fn count_votes(&mut self) {
        let State::Candidate(candidate) = &self.state else { return };
        let pre = candidate.pre;
        match candidate.tally(&self.core) {
            Tally::Open => {}
            Tally::Lost => self.enter(State::Follower(Follower::default())),
            Tally::Won if pre => {
                let candidate = Candidate::campaign(&mut self.core);
                self.enter(State::Candidate(candidate));
            }
            Tally::Won => {
                let leader = Leader::new(&mut self.core);
                self.enter(State::Leader(Box::new(leader)));
            }
        }
    }
}

// Votes, and messages of older terms.
impl Raft {
    fn on_vote_request(&mut self, from: NodeId, term: Term, last: LogId, pre: bool) {
        let core = &mut self.core;
        if term < core.term() {
            // The answer carries our term: a candidate with the longer log but an older term needs it to win.
            core.send(from, MessageKind::VoteAck { granted: false, pre });
            return;
        }
        // A leader is live: neither the vote nor the candidate's term may disturb it (Raft thesis 4.2.3). A leader
        // has a quorum's contact, or it would have stepped down.
        if core.now < core.withhold_until || matches!(self.state, State::Leader(_)) {
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
        core.outbox.send_after(core.outbox.hard_write(), answer);
    }

    fn on_vote(&mut self, from: NodeId, pre: bool, granted: bool) {
        if let State::Candidate(candidate) = &mut self.state {
            candidate.on_vote(from, pre, granted);
            self.count_votes();
        }
    }

    /// A message of an older term: whoever waits for an answer learns the newer one.
    fn on_stale(&mut self, from: NodeId, kind: MessageKind) {
        let core = &mut self.core;
        match kind {
            MessageKind::Append { round, .. } => {
                let answer =
                    core.message(from, MessageKind::AppendAck { round, result: Err(Conflict::default()) });
                core.outbox.send_after(core.outbox.hard_write(), answer);
            }
            MessageKind::ReadIndex { round } => {
                let result = Err(ReadRefused::NotLeader { hint: core.leader });
                core.send(from, MessageKind::ReadIndexAck { round, result });
            }
            MessageKind::AppendAck { .. }
            | MessageKind::Vote { .. }
            | MessageKind::VoteAck { .. }
            | MessageKind::ReadIndexAck { .. } => {}
        }
    }
}
