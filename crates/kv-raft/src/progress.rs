//! What a leader knows of one peer's log, and how much it has under way to it.

use std::collections::VecDeque;
use std::time::Duration;

use kv_types::{LogIndex, Nanos};

use crate::rates::RateWatch;

/// How a leader sends entries to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProgressState {
    /// It does not know where the two logs part: one append at a time, at a guess.
    Probe,
    /// It does: appends follow each other without waiting (Raft thesis 10.2.1).
    Replicate,
    /// The log no longer holds what the peer needs: a snapshot is on its way.
    Snapshot,
}

/// An append on its way.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    last: LogIndex,
    bytes: u64,
    round: u64,
}

/// What a leader knows of one peer.
///
/// # Invariants
/// Asserted by [`Progress::check`]:
/// - `matched < next`;
/// - appends in flight exist only in [`ProgressState::Replicate`], end at ascending indexes above `matched` and below
///   `next`, and their bytes sum up to `bytes`.
#[derive(Debug)]
pub(crate) struct Progress {
    /// The peer's durable log equals the leader's up to here.
    pub(crate) matched: LogIndex,
    /// The first entry to send next.
    pub(crate) next: LogIndex,
    pub(crate) state: ProgressState,
    /// The round of the probe that waits for its answer.
    probe_round: Option<u64>,
    in_flight: VecDeque<InFlight>,
    bytes: u64,
    /// The newest round the peer has echoed.
    pub(crate) acked_round: u64,
    /// When the peer last answered in this term; before its first answer, when the leader first knew of it.
    pub(crate) last_contact: Nanos,
    /// Whether it has answered in this term.
    pub(crate) answered: bool,
    /// No snapshot is begun before this.
    pub(crate) snapshot_not_before: Nanos,
    /// The newest commit index it was told.
    pub(crate) commit_sent: LogIndex,
    /// The newest index that readers of the peer wait for.
    pub(crate) commit_awaited: LogIndex,
    /// Watches the rate of its clock.
    pub(crate) rate: RateWatch,
    /// The round in which an empty append last asked what became of those in flight.
    nudged: u64,
}

impl Progress {
    /// A peer of which nothing is known: its log is guessed to equal the leader's, which ends before `next`.
    pub(crate) fn new(next: LogIndex, now: Nanos) -> Self {
        Self {
            matched: LogIndex::ZERO,
            next,
            state: ProgressState::Probe,
            probe_round: None,
            in_flight: VecDeque::new(),
            bytes: 0,
            acked_round: 0,
            last_contact: now,
            answered: false,
            snapshot_not_before: now,
            commit_sent: LogIndex::ZERO,
            commit_awaited: LogIndex::ZERO,
            rate: RateWatch::default(),
            nudged: 0,
        }
    }

    /// Whether the peer has answered in this term, and within the last `span`.
    pub(crate) fn is_live(&self, now: Nanos, span: Duration) -> bool {
        self.answered && now < self.last_contact.after(span)
    }

    pub(crate) fn in_flight_len(&self) -> usize {
        self.in_flight.len()
    }

    /// Whether an append may be sent now. `last` is the end of the leader's log.
    pub(crate) fn may_send(&self, last: LogIndex, appends_max: usize, bytes_max: u64) -> bool {
        match self.state {
            // An empty probe is worth sending while the guess is unconfirmed.
            ProgressState::Probe => {
                self.probe_round.is_none() && (self.next <= last || self.matched.next() < self.next)
            }
            ProgressState::Replicate => {
                self.next <= last && self.in_flight.len() < appends_max && self.bytes < bytes_max
            }
            ProgressState::Snapshot => false,
        }
    }

    /// An append of the entries up to `last` was sent in `round`.
    pub(crate) fn sent(&mut self, last: LogIndex, bytes: u64, round: u64) {
        match self.state {
            ProgressState::Probe => self.probe_round = Some(round),
            ProgressState::Replicate => {
                self.in_flight.push_back(InFlight { last, bytes, round });
                self.bytes = self.bytes.saturating_add(bytes);
                self.next = last.next();
            }
            ProgressState::Snapshot => {}
        }
    }

    /// Guesses anew, at `next`.
    pub(crate) fn probe(&mut self, next: LogIndex) {
        self.enter(ProgressState::Probe);
        self.next = next.max(self.matched.next());
    }

    /// Sends without waiting, from what is known to match.
    pub(crate) fn replicate(&mut self) {
        self.enter(ProgressState::Replicate);
        self.next = self.matched.next();
    }

    /// Waits for a snapshot to arrive.
    pub(crate) fn await_snapshot(&mut self) {
        self.enter(ProgressState::Snapshot);
    }

    fn enter(&mut self, state: ProgressState) {
        self.state = state;
        self.probe_round = None;
        self.in_flight.clear();
        self.bytes = 0;
    }

    /// The peer's log matches up to `index`. Returns whether that is news.
    pub(crate) fn on_match(&mut self, index: LogIndex) -> bool {
        let news = index > self.matched;
        self.matched = self.matched.max(index);
        match self.state {
            ProgressState::Replicate => {
                while let Some(done) = self.in_flight.pop_front_if(|append| append.last <= index) {
                    self.bytes = self.bytes.saturating_sub(done.bytes);
                }
                self.next = self.next.max(self.matched.next());
            }
            ProgressState::Probe if news || index.next() == self.next => self.replicate(),
            // A snapshot under way proved superfluous only if the peer now matches beyond what it needs; the caller
            // knows, it sees the log.
            ProgressState::Probe | ProgressState::Snapshot => {
                self.next = self.next.max(self.matched.next());
            }
        }
        news
    }

    /// The peer's log differs at `prev`; `next` is the next guess. A rejection of an older append changes nothing.
    pub(crate) fn on_conflict(&mut self, prev: LogIndex, next: LogIndex) {
        let current = match self.state {
            ProgressState::Probe => prev.next() == self.next,
            ProgressState::Replicate => prev > self.matched && prev < self.next,
            ProgressState::Snapshot => false,
        };
        if current {
            self.probe(next.min(prev));
        }
    }

    /// The peer has echoed `round`, which the leader began after all earlier appends had been sent: what they asked
    /// and is still unanswered may be lost.
    pub(crate) fn on_round(&mut self, round: u64) {
        self.acked_round = self.acked_round.max(round);
        if self.state == ProgressState::Probe && self.probe_round.is_some_and(|sent| sent < round) {
            self.probe_round = None;
        }
    }

    /// Whether to ask, by an empty append at the end of what is in flight, what became of it: its oldest append is
    /// older than the newest heartbeat, which the peer has answered. At most once a heartbeat.
    pub(crate) fn wants_nudge(&mut self, heartbeat_round: u64) -> bool {
        let stale = self.in_flight.front().is_some_and(|append| append.round < heartbeat_round);
        let due = stale && self.acked_round >= heartbeat_round && self.nudged < heartbeat_round;
        if due {
            self.nudged = heartbeat_round;
        }
        due
    }

    /// Asserts the invariants.
    pub(crate) fn check(&self) {
        assert!(self.matched < self.next, "matched {} is below next {}", self.matched, self.next);
        let replicates = self.state == ProgressState::Replicate;
        assert!(replicates || self.in_flight.is_empty(), "nothing is in flight in {:?}", self.state);
        let mut end = self.matched;
        let mut bytes = 0_u64;
        for append in &self.in_flight {
            assert!(append.last > end, "appends in flight ascend: {} after {end}", append.last);
            end = append.last;
            bytes = bytes.saturating_add(append.bytes);
        }
        assert!(end < self.next, "{end} is in flight, next is {}", self.next);
        assert_eq!(bytes, self.bytes, "bytes in flight");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i(raw: u64) -> LogIndex {
        LogIndex::new(raw)
    }

    fn replicating() -> Progress {
        let mut progress = Progress::new(i(5), Nanos::new(0));
        progress.on_match(i(4));
        assert_eq!(progress.state, ProgressState::Replicate);
        progress
    }

    #[test]
    fn a_probe_waits_for_its_answer() {
        let mut progress = Progress::new(i(5), Nanos::new(0));
        assert!(progress.may_send(i(5), 9, 9));
        progress.sent(i(5), 1, 3);
        assert!(!progress.may_send(i(5), 9, 9));
        progress.on_round(3);
        assert!(!progress.may_send(i(5), 9, 9), "the answer to its own round may be under way");
        progress.on_round(4);
        assert!(progress.may_send(i(5), 9, 9));
        progress.check();
    }

    #[test]
    fn flow_control_counts_messages_and_bytes() {
        let mut progress = replicating();
        progress.sent(i(5), 10, 1);
        assert!(progress.may_send(i(9), 2, 11) && !progress.may_send(i(9), 1, 11));
        assert!(!progress.may_send(i(9), 2, 10));
        progress.sent(i(7), 10, 1);
        progress.check();
        progress.on_match(i(6));
        assert_eq!((progress.in_flight_len(), progress.bytes), (1, 10));
        progress.on_match(i(7));
        assert_eq!((progress.in_flight_len(), progress.bytes), (0, 0));
        progress.check();
    }

    #[test]
    fn stale_rejections_change_nothing() {
        let mut progress = replicating();
        progress.sent(i(9), 10, 1);
        progress.on_conflict(i(4), i(2));
        progress.on_conflict(i(30), i(2));
        assert_eq!((progress.state, progress.next), (ProgressState::Replicate, i(10)));
        progress.on_conflict(i(9), i(2));
        assert_eq!((progress.state, progress.next), (ProgressState::Probe, i(5)));
        progress.probe(i(8));
        progress.on_conflict(i(6), i(5));
        assert_eq!(progress.next, i(8));
        progress.on_conflict(i(7), i(6));
        assert_eq!(progress.next, i(6));
        progress.check();
    }
}
