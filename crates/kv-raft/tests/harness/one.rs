//! One core and its messages, by hand: what it sends is looked at, what it hears is made up. Its disk is done at once
//! unless it is held.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_raft::invariants::{check_state, check_transition};
use kv_raft::{
    Config, Conflict, EntryShape, Fatal, LeaseConfig, Message, MessageKind, Raft, Restored, Role, RoleChange,
    Round, Ticket, Write, WriteId,
};
use kv_types::{
    Body, Entry, HardState, Lamport, LogId, LogIndex, Membership, Nanos, NodeId, SnapshotMeta, Term,
};

/// E, in milliseconds.
pub(crate) const E: u64 = 100;

pub(crate) fn n(raw: u64) -> NodeId {
    NodeId::new(raw)
}

pub(crate) fn t(raw: u64) -> Term {
    Term::new(raw)
}

pub(crate) fn i(raw: u64) -> LogIndex {
    LogIndex::new(raw)
}

pub(crate) fn id(term: u64, index: u64) -> LogId {
    LogId::new(t(term), i(index))
}

pub(crate) fn entry(term: u64, index: u64) -> Entry {
    let body = Body::Command(Bytes::from(format!("{term}.{index}")));
    Entry { id: id(term, index), stamp: Lamport::ZERO, body }
}

/// A configuration of a core under test.
pub(crate) fn config() -> Config {
    Config {
        election_timeout_min: Duration::from_millis(E),
        heartbeat: Duration::from_millis(20),
        ..Config::new(n(1), 1, 1)
    }
}

/// An append from a leader, with the entries of these terms after `prev`.
pub(crate) fn append(prev: LogId, terms: &[u64], commit: u64) -> MessageKind {
    let entries: Vec<Entry> =
        (prev.index.get() + 1..).zip(terms).map(|(index, term)| entry(*term, index)).collect();
    let last = entries.last().map_or(prev, |entry| entry.id);
    let round = Round { incarnation: 9, number: 1 };
    MessageKind::Append { prev, last, entries, commit: i(commit), round, promise_ms: 0 }
}

pub(crate) fn vote(last: LogId) -> MessageKind {
    MessageKind::Vote { last, pre: false, by_transfer: false }
}

/// A core, and what it has asked for.
pub(crate) struct One {
    pub(crate) raft: Raft,
    pub(crate) now: Nanos,
    /// Messages not looked at yet.
    pub(crate) sent: Vec<Message>,
    pub(crate) log: BTreeMap<LogIndex, Entry>,
    /// Writes not durable yet, if the disk is held.
    pub(crate) writes: Vec<Write>,
    after: Vec<(WriteId, Message)>,
    pub(crate) disk_held: bool,
    pub(crate) reads: Vec<(Ticket, bool)>,
    pub(crate) roles: Vec<RoleChange>,
    pub(crate) fatal: Option<Fatal>,
}

impl One {
    /// Node 1 of `voters`, with a log of these terms from index 1 on, in `term`.
    pub(crate) fn new(voters: u64, terms: &[u64], term: u64) -> Self {
        Self::with(config(), voters, terms, term)
    }

    pub(crate) fn leased(voters: u64) -> Self {
        let lease = LeaseConfig { drift_ppm: 10_000, granularity: Duration::ZERO };
        Self::with(Config { lease: Some(lease), ..config() }, voters, &[], 0)
    }

    pub(crate) fn with(config: Config, voters: u64, terms: &[u64], term: u64) -> Self {
        let log: Vec<Entry> = (1..).zip(terms).map(|(index, term)| entry(*term, index)).collect();
        let membership = Membership::of_voters((1..=voters).map(n));
        let shape = |entry: &Entry| EntryShape { id: entry.id, bytes: entry.body.payload_bytes() };
        let restored = Restored {
            hard: HardState { term: t(term), ..HardState::default() },
            base: SnapshotMeta { last: LogId::ZERO, membership },
            entries: log.iter().map(shape).collect(),
            ..Restored::default()
        };
        let now = Nanos::new(0);
        let mut one = Self {
            raft: Raft::new(config, now, restored).unwrap(),
            now,
            sent: Vec::new(),
            log: log.into_iter().map(|entry| (entry.id.index, entry)).collect(),
            writes: Vec::new(),
            after: Vec::new(),
            disk_held: false,
            reads: Vec::new(),
            roles: Vec::new(),
            fatal: None,
        };
        one.ready();
        // A log means a past, and a past may hold a promise.
        one.now = one.now.after(Duration::from_millis(E));
        one
    }

    /// An event, and all that follows from it.
    pub(crate) fn on<T>(&mut self, event: impl FnOnce(&mut Raft, Nanos) -> T) -> T {
        let before = self.raft.status();
        let result = event(&mut self.raft, self.now);
        self.ready();
        if self.fatal.is_none() {
            check_state(&self.raft);
            check_transition(&before, &self.raft.status());
        }
        result
    }

    fn ready(&mut self) {
        loop {
            let output = self.raft.take();
            let quiet = output.write.is_none() && output.commit.is_none();
            self.sent.extend(output.send);
            self.after.extend(output.send_after);
            self.roles.extend(output.role);
            self.reads.extend(output.reads.into_iter().map(|(ticket, result)| (ticket, result.is_ok())));
            self.fatal = output.fatal.or(self.fatal.take());
            if let Some(write) = output.write {
                if let Some(from) = write.truncate_from {
                    self.log.split_off(&from);
                }
                self.log.extend(write.append.iter().map(|entry| (entry.id.index, entry.clone())));
                self.writes.push(write);
            }
            if let Some(commit) = output.commit {
                self.raft.applied(commit.index);
            }
            if !self.disk_held {
                self.persist();
            }
            if quiet {
                return;
            }
        }
    }

    /// All writes handed out become durable.
    pub(crate) fn persist(&mut self) {
        if let Some(last) = self.writes.drain(..).next_back() {
            for (_, message) in self.after.extract_if(.., |(write, _)| *write <= last.id) {
                self.sent.push(message);
            }
            self.raft.persisted(self.now, last.id);
        }
    }

    /// A message arrives; what is sent in answer.
    pub(crate) fn step(&mut self, from: u64, term: u64, kind: MessageKind) -> Vec<Message> {
        self.sent.clear();
        let message = Message { from: n(from), to: n(1), term: t(term), kind };
        self.on(|raft, now| raft.step(now, message));
        std::mem::take(&mut self.sent)
    }

    /// Time passes, with a tick whenever one is due; what is sent in between.
    pub(crate) fn pass(&mut self, millis: u64) -> Vec<Message> {
        self.sent.clear();
        let end = self.now.after(Duration::from_millis(millis));
        while self.raft.next_deadline() <= end {
            self.now = self.now.max(self.raft.next_deadline());
            self.on(|raft, now| raft.tick(now));
        }
        self.now = end;
        self.on(|raft, now| raft.tick(now));
        std::mem::take(&mut self.sent)
    }

    pub(crate) fn role(&self) -> Role {
        self.raft.role()
    }

    pub(crate) fn term(&self) -> u64 {
        self.raft.term().get()
    }

    pub(crate) fn commit(&self) -> u64 {
        self.raft.commit().index.get()
    }

    pub(crate) fn terms(&self) -> Vec<u64> {
        self.log.values().map(|entry| entry.id.term.get()).collect()
    }

    /// A candidate of the next term: the pre-vote is won, the own vote durable, the requests are out.
    pub(crate) fn candidate(&mut self) -> Vec<Message> {
        self.sent.clear();
        self.on(|raft, now| raft.campaign(now)).unwrap();
        let (term, voters) = (self.term(), self.raft.status().membership.voters.len() as u64);
        let mut sent = std::mem::take(&mut self.sent);
        for from in 2..=voters {
            if self.role() == Role::PreCandidate {
                sent.extend(self.step(from, term, MessageKind::VoteAck { granted: true, pre: true }));
            }
        }
        sent
    }

    /// A leader of the next term, elected by the votes of nodes 2, 3, ...
    pub(crate) fn lead(&mut self) -> Vec<Message> {
        self.candidate();
        let mut sent = Vec::new();
        let voters = self.raft.status().membership.voters.len() as u64;
        for from in 2..=voters {
            if self.role() == Role::Candidate {
                sent = self.step(from, self.term(), MessageKind::VoteAck { granted: true, pre: false });
            }
        }
        assert_eq!(self.role(), Role::Leader);
        sent
    }

    /// The round of the newest append sent, to be echoed.
    pub(crate) fn ack(&mut self, from: u64, round: Round, index: u64) -> Vec<Message> {
        let kind = MessageKind::AppendAck { round, result: Ok(i(index)), clock: self.now };
        self.step(from, self.term(), kind)
    }

    pub(crate) fn reject(&mut self, from: u64, round: Round, prev: u64, hint: LogId) -> Vec<Message> {
        let result = Err(Conflict { prev: i(prev), hint });
        self.step(from, self.term(), MessageKind::AppendAck { round, result, clock: self.now })
    }

    pub(crate) fn propose(&mut self, text: &str) -> Vec<Message> {
        self.sent.clear();
        let command = Bytes::copy_from_slice(text.as_bytes());
        self.on(|raft, _| raft.propose(vec![command])).unwrap();
        std::mem::take(&mut self.sent)
    }
}

/// The appends among messages: to whom, `prev`, `last`, commit.
pub(crate) fn appends(sent: &[Message]) -> Vec<(u64, LogId, LogId, u64)> {
    let append = |message: &Message| match &message.kind {
        MessageKind::Append { prev, last, commit, .. } => {
            Some((message.to.get(), *prev, *last, commit.get()))
        }
        _ => None,
    };
    sent.iter().filter_map(append).collect()
}

/// The newest round among appends.
pub(crate) fn round(sent: &[Message]) -> Round {
    let round = |message: &Message| match &message.kind {
        MessageKind::Append { round, .. } => Some(*round),
        _ => None,
    };
    sent.iter().filter_map(round).max().expect("an append was sent")
}
