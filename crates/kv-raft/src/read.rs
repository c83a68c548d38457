//! Reads by read index (Raft thesis 6.4): those a leader has to confirm, and those a follower has passed on.

use std::collections::{BTreeMap, VecDeque};

use kv_types::{LogIndex, Nanos, NodeId};

use crate::core::Core;
use crate::{MessageKind, ReadRefused, Round, Ticket};

/// Who waits for a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reader {
    /// A caller of this replica.
    Local(Ticket),
    /// A follower, with its own name for the question.
    Peer(NodeId, Round),
}

/// A read that is not confirmed.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    reader: Reader,
    /// Its own index: what was committed when it arrived, or the leader's first entry if that is later. A read never
    /// takes the index of another one that it shares a round with.
    index: LogIndex,
    /// The round that confirms it: begun after the read arrived. `None` until one is.
    round: Option<u64>,
}

/// The reads that a leader has to confirm, in order of arrival.
///
/// # Invariants
/// Rounds and indexes ascend along the queue; reads without a round stand behind those with one.
#[derive(Debug, Default)]
pub(crate) struct ReadQueue {
    waiting: VecDeque<Waiting>,
    /// Reads at the front that have a round.
    assigned: usize,
    /// The newest round that carries a read.
    newest: u64,
}

impl ReadQueue {
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn push(&mut self, reader: Reader, index: LogIndex) {
        self.waiting.push_back(Waiting { reader, index, round: None });
    }

    /// Whether a round should be begun: there are reads without one, and the newest read round is confirmed. One
    /// round at a time bounds the messages; all that arrives meanwhile shares the next.
    pub(crate) fn wants_round(&self, confirmed: u64) -> bool {
        self.assigned < self.waiting.len() && self.newest <= confirmed
    }

    /// A round was begun; it confirms every read that has none.
    pub(crate) fn assign(&mut self, round: u64) {
        if self.assigned < self.waiting.len() {
            for read in self.waiting.iter_mut().skip(self.assigned) {
                read.round = Some(round);
            }
            self.assigned = self.waiting.len();
            self.newest = round;
        }
    }

    /// The next read that is confirmed by round `confirmed` and whose index is committed.
    pub(crate) fn pop(&mut self, confirmed: u64, commit: LogIndex) -> Option<(Reader, LogIndex)> {
        let done =
            |read: &mut Waiting| read.round.is_some_and(|round| round <= confirmed) && read.index <= commit;
        let read = self.waiting.pop_front_if(done)?;
        self.assigned = self.assigned.saturating_sub(1);
        Some((read.reader, read.index))
    }

    /// Takes every reader out, to be refused.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = Reader> {
        self.assigned = 0;
        self.waiting.drain(..).map(|read| read.reader)
    }
}

/// The reads that a follower has passed on to its leader.
#[derive(Debug, Default)]
pub(crate) struct Forwards {
    /// Not sent yet.
    queued: Vec<Ticket>,
    /// Sent and unanswered, by the number of the first question that asked for them. Numbers are never used twice, so a
    /// doubled answer finds nothing.
    asked: BTreeMap<u64, Vec<Ticket>>,
    /// When unanswered questions are asked again, since questions and answers may be lost.
    ask_again: Option<Nanos>,
    /// It is time to ask again.
    overdue: bool,
}

impl Forwards {
    pub(crate) fn len(&self) -> usize {
        self.queued.len() + self.asked.values().map(Vec::len).sum::<usize>()
    }

    pub(crate) fn push(&mut self, ticket: Ticket) {
        self.queued.push(ticket);
    }

    pub(crate) fn ask_again(&self) -> Option<Nanos> {
        self.ask_again
    }

    /// Asks again when it is time. The older questions still count: an answer that takes longer than a heartbeat would
    /// otherwise always come too late.
    pub(crate) fn tick(&mut self, now: Nanos) {
        if self.ask_again.is_some_and(|at| at <= now) {
            self.ask_again = None;
            self.overdue = !self.asked.is_empty();
        }
    }

    /// Asks the leader, with one question for all that is queued or overdue.
    pub(crate) fn flush(&mut self, core: &mut Core) {
        if self.queued.is_empty() && !self.overdue {
            return;
        }
        let Some(leader) = core.leader else { return };
        let number = core.next_round();
        if !self.queued.is_empty() {
            self.asked.insert(number, std::mem::take(&mut self.queued));
        }
        self.overdue = false;
        self.ask_again.get_or_insert(core.now.after(core.config.heartbeat));
        core.read_messages += 1;
        core.send(leader, MessageKind::ReadIndex { round: core.named_round(number) });
    }

    /// The leader answered: the index serves every read that arrived before the question was sent, whichever question
    /// first asked for it.
    pub(crate) fn answer(&mut self, core: &mut Core, round: Round, result: Result<LogIndex, ReadRefused>) {
        let Some(number) = core.own_round(round) else { return };
        let later = self.asked.split_off(&number.saturating_add(1));
        for ticket in std::mem::replace(&mut self.asked, later).into_values().flatten() {
            core.outbox.answer_read(ticket, result);
        }
        if self.asked.is_empty() {
            self.ask_again = None;
            self.overdue = false;
        }
    }

    /// The leader is gone: no answer will come.
    pub(crate) fn refuse(&mut self, core: &mut Core) {
        let refused = ReadRefused::NotLeader { hint: core.leader };
        for ticket in std::mem::take(&mut self.asked).into_values().flatten() {
            core.outbox.answer_read(ticket, Err(refused));
        }
        for ticket in self.queued.drain(..) {
            core.outbox.answer_read(ticket, Err(refused));
        }
        self.ask_again = None;
        self.overdue = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i(raw: u64) -> LogIndex {
        LogIndex::new(raw)
    }

    #[test]
    fn each_read_keeps_its_own_index() {
        let mut queue = ReadQueue::default();
        queue.push(Reader::Local(Ticket::new(1)), i(5));
        queue.push(Reader::Local(Ticket::new(2)), i(7));
        queue.assign(1);
        assert_eq!(queue.pop(1, i(6)), Some((Reader::Local(Ticket::new(1)), i(5))));
        assert_eq!(queue.pop(1, i(6)), None);
        assert_eq!(queue.pop(1, i(7)), Some((Reader::Local(Ticket::new(2)), i(7))));
    }

    #[test]
    fn a_read_waits_for_a_round_begun_after_it() {
        let mut queue = ReadQueue::default();
        queue.push(Reader::Local(Ticket::new(1)), i(5));
        assert!(queue.wants_round(0));
        queue.assign(1);
        queue.push(Reader::Local(Ticket::new(2)), i(5));
        assert!(!queue.wants_round(0), "one round at a time");
        assert!(queue.pop(1, i(5)).is_some());
        assert_eq!(queue.pop(1, i(5)), None);
        assert!(queue.wants_round(1));
    }
}
