//! The replica: events in, effects out.

use kv_types::{LogId, LogIndex, Nanos, NodeId, SnapshotMeta, Term};

use crate::candidate::Candidate;
use crate::core::Core;
use crate::follower::{Append, Follower};
use crate::leader::{Ack, Leader};
use crate::planted::Planted;
use crate::read::Reader;
use crate::votes::VoteRequest;
use crate::{
    Config, Corrupt, Fatal, LeaseUpdate, Message, MessageKind, Output, ReadRefused, Restored, Role,
    RoleChange, WriteId,
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
    reported_lease: LeaseUpdate,
    /// The end of a lease is reported one `take` late (a planted bug).
    drop_is_late: bool,
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
        let reported_lease = LeaseUpdate { term: core.term(), until: Nanos::default() };
        Ok(Self {
            reported_role,
            reported_commit: core.commit,
            reported_lease,
            drop_is_late: false,
            core,
            state,
        })
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

    /// A message arrived. Any message may: one that no correct peer sends is ignored. `now` was read after the message
    /// came off the socket: a promise that it asks for begins then.
    pub fn step(&mut self, now: Nanos, message: Message) {
        self.core.advance(now);
        if self.core.fatal.is_some() || message.to != self.core.id() || !message.is_sound() {
            return;
        }
        let Message { from, term, kind, .. } = message;
        // Votes have rules of their own for terms: a candidate must not disturb a live leader.
        if let MessageKind::Vote { last, pre, by_transfer } = kind {
            self.on_vote_request(from, term, VoteRequest { last, pre, by_transfer });
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
            MessageKind::Append { prev, last, entries, commit, round, promise_ms } => {
                if self.follow(from, promise_ms) {
                    self.core.on_append(Append { from, prev, last, entries, commit, round });
                }
            }
            MessageKind::AppendAck { round, result, clock } => {
                if let State::Leader(leader) = &mut self.state {
                    leader.on_ack(&mut self.core, from, Ack { round, result, clock });
                }
            }
            MessageKind::VoteAck { granted, pre } => self.on_vote(from, pre, granted),
            MessageKind::ReadIndex { round } => match &mut self.state {
                State::Leader(leader) => leader.read(&mut self.core, Reader::Peer(from, round)),
                State::Follower(_) | State::Candidate(_) => {
                    let result = if self.core.planted(Planted::ReadWithoutLeader) {
                        Ok(self.core.commit)
                    } else {
                        Err(ReadRefused::NotLeader { hint: self.core.leader })
                    };
                    self.core.send(from, MessageKind::ReadIndexAck { round, result });
                }
            },
            MessageKind::ReadIndexAck { round, result } => {
                if let State::Follower(follower) = &mut self.state {
                    follower.forwards.answer(&mut self.core, round, result);
                }
            }
            MessageKind::TimeoutNow { last } => self.on_timeout_now(from, last),
            MessageKind::Vote { .. } => {}
        }
    }

    /// Writes up to `upto` are durable. May be merged and repeated, never reordered.
    ///
    /// # Panics
    /// If no such write was handed out.
    pub fn persisted(&mut self, now: Nanos, upto: WriteId) {
        self.core.advance(now);
        if self.core.fatal.is_some() {
            return;
        }
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
        if term < self.core.term() || !self.follow(from, 0) || meta.last.index <= self.core.commit {
            return;
        }
        let keep_tail = self.core.log.holds(meta.last);
        self.core.reset(meta, keep_tail);
    }

    /// The state machine had lost its rows and got those of another replica, as they are after `meta.last`: an entry that
    /// this log holds, and that is committed, for the other one has applied it. The answer is a write with a `reset`; what
    /// follows `meta.last` in the log stays, and is applied again.
    ///
    /// # Panics
    /// If the log does not hold `meta.last`.
    pub fn rebuilt(&mut self, meta: SnapshotMeta) {
        if self.core.fatal.is_some() {
            return;
        }
        assert!(self.core.log.holds(meta.last), "rows at {}, which the log does not hold", meta.last);
        self.core.reset(meta, true);
    }

    /// The node may have been stopped without its clock noticing, as a frozen virtual machine is: a lease that runs by
    /// that clock may be over. Only rounds begun after this earn another one.
    pub fn clock_jumped(&mut self, now: Nanos) {
        self.core.advance(now);
        if let State::Leader(leader) = &mut self.state {
            leader.restart_lease(&mut self.core);
        }
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

    /// Hands out the effects so far. Never blocks; may be skipped, repeated, and called after many events.
    ///
    /// It takes no reading of the clock: rounds begin at the newest one that an event brought, which is older than all
    /// that is handed out here.
    pub fn take(&mut self) -> Output {
        if let Some(fatal) = &self.core.fatal {
            return self.stopped(fatal.clone());
        }
        match &mut self.state {
            State::Follower(follower) => follower.forwards.flush(&mut self.core),
            State::Candidate(_) => {}
            State::Leader(leader) => {
                if !leader.flush(&mut self.core) {
                    self.core.leader = None;
                    self.become_follower();
                }
            }
        }
        self.check_pointers();
        let mut output = self.core.outbox.take(self.core.now, self.core.log.last());
        let role = RoleChange { role: self.role(), term: self.core.term(), leader: self.core.leader };
        if role != self.reported_role {
            self.reported_role = role;
            output.role = Some(role);
        }
        if self.core.commit != self.reported_commit {
            self.reported_commit = self.core.commit;
            output.commit = Some(self.core.commit_id());
        }
        output.lease = self.lease_news();
        output
    }

    /// A replica that stops leads nothing and holds no lease.
    fn stopped(&mut self, fatal: Fatal) -> Output {
        self.core.leader = None;
        self.state = State::Follower(Follower::default());
        Output { lease: self.lease_news(), fatal: Some(fatal), ..Output::default() }
    }

    /// The lease, if it changed since it was last reported.
    fn lease_news(&mut self) -> Option<LeaseUpdate> {
        let lease = self.lease();
        if lease.until == self.reported_lease.until {
            return None;
        }
        let drops = lease.until == Nanos::default();
        if drops && self.core.planted(Planted::LeaseDropLate) && !self.drop_is_late {
            self.drop_is_late = true;
            return None;
        }
        self.drop_is_late = false;
        self.reported_lease = lease;
        Some(lease)
    }

    /// When `tick` has something to do next.
    pub fn next_deadline(&self) -> Nanos {
        let core = &self.core;
        if core.fatal.is_some() {
            return Nanos::new(u64::MAX);
        }
        // Who may not campaign waits for it to forget a silent leader.
        let waits = core.may_campaign() || core.leader.is_some();
        let election = if waits { core.election_deadline } else { Nanos::new(u64::MAX) };
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

    /// The lease as of the last event.
    pub fn lease(&self) -> LeaseUpdate {
        let until = match &self.state {
            State::Leader(leader) => leader.lease.until(),
            State::Follower(_) | State::Candidate(_) => Nanos::default(),
        };
        LeaseUpdate { term: self.core.term(), until }
    }

    /// The end of the log.
    pub fn last(&self) -> LogId {
        self.core.log.last()
    }
}
