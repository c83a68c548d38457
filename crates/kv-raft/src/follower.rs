//! A replica that follows, or waits for, a leader.

use kv_types::{Body, Entry, LogId, LogIndex, NodeId};

use crate::core::Core;
use crate::planted::Planted;
use crate::read::Forwards;
use crate::{Conflict, Fatal, MessageKind, Round, WriteId};

/// A follower: all it has of its own is the reads it has passed on.
#[derive(Debug, Default)]
pub(crate) struct Follower {
    pub(crate) forwards: Forwards,
}

/// An append, as it arrived from the leader of our term.
pub(crate) struct Append {
    pub(crate) from: NodeId,
    pub(crate) prev: LogId,
    pub(crate) last: LogId,
    pub(crate) entries: Vec<Entry>,
    pub(crate) commit: LogIndex,
    pub(crate) round: Round,
}

impl Core {
    /// Takes an append of the leader (Raft paper 5.3, Figure 2).
    pub(crate) fn on_append(&mut self, append: Append) {
        let Append { from, prev, last, entries, commit, round } = append;
        // A prev below our commit index matches, though the entry may be compacted away: what is committed is in
        // every later leader's log. The log must not be cut there.
        if prev.index >= self.commit && !self.log.holds(prev) {
            let conflict = self.conflict(prev);
            self.ack(from, round, self.outbox.hard_write(), Err(conflict));
            return;
        }
        if !self.append_new(from, entries) {
            return;
        }
        if self.planted(Planted::AppendCutsTail) && last.index.max(self.commit) < self.log.last().index {
            self.truncate(last.index.max(self.commit).next());
        }
        // Only what this append vouches for: entries of ours beyond it may not be the leader's.
        self.commit_to(commit.min(last.index));
        // The acknowledgement counts as a durable copy, so it waits for the disk; a heartbeat finds all durable.
        let write = self.outbox.write_of(last.index).max(self.outbox.hard_write());
        self.ack(from, round, write, Ok(last.index));
    }

    /// Appends what the log does not hold, after removing what contradicts it; entries that are there already, also
    /// more of them, stay. Returns whether the log can be trusted.
    fn append_new(&mut self, from: NodeId, entries: Vec<Entry>) -> bool {
        for entry in entries {
            let id = entry.id;
            match self.log.term_of(id.index) {
                Some(term) if term == id.term => continue,
                _ if id.index < self.log.start().index => continue,
                Some(term) if id.index <= self.commit => {
                    let ours = LogId::new(term, id.index);
                    self.fatal = Some(Fatal::CommittedConflict { leader: from, ours, theirs: id });
                    return false;
                }
                Some(_) => self.truncate(id.index),
                None => {}
            }
            self.append(entry);
        }
        true
    }

    fn truncate(&mut self, from: LogIndex) {
        assert!(from > self.commit, "{from} is committed: the commit index is {}", self.commit);
        self.log.truncate(from);
        self.memberships.truncate(from);
        self.outbox.write_truncation(from);
    }

    /// Appends an entry; a config entry is in force at once.
    pub(crate) fn append(&mut self, entry: Entry) {
        let id = self.log.push(entry.id.term, entry.body.payload_bytes());
        assert_eq!(id, entry.id, "entries are appended without a gap");
        if let Body::Config(membership) = &entry.body {
            self.memberships.append(id.index, membership.clone());
        }
        self.outbox.write_entry(entry);
    }

    /// Where the leader should try next. Never below the commit index: up to there the logs are equal.
    fn conflict(&self, prev: LogId) -> Conflict {
        let below = LogId::new(prev.term, prev.index.prev());
        let index = self.log.floor(below).max(self.commit);
        let hint = self.log.id_of(index).unwrap_or_else(|| self.commit_id());
        Conflict { prev: prev.index, hint }
    }

    fn ack(&mut self, to: NodeId, round: Round, write: WriteId, result: Result<LogIndex, Conflict>) {
        let message = self.message(to, MessageKind::AppendAck { round, result, clock: self.now });
        self.outbox.send_after(write, message);
    }
}
