//! The gate once more, written plainly: which attempts of requests are carried out, and what the others are answered.

use std::collections::BTreeMap;

use kv_state::gate::{Recorded, RecordedResult, Refusal};
use kv_state::sessions::SessionBatch;
use kv_state::{Answer, Command};
use kv_types::limits::{
    COLLECT_RECORDS_MAX, COLLECT_SESSION_ROWS_MAX, REQUEST_AHEAD_MAX, REQUEST_RETENTION, SESSION_WINDOW,
};
use kv_types::{
    ClusterTime, Fingerprint, Lamport, LogIndex, Request, RequestId, SessionId, SessionRequest, TimedId,
    TxnId,
};

/// What is kept of a request.
#[derive(Clone, Copy, Debug)]
enum Record {
    Settled,
    /// Somebody has seen to it that the transaction is not committed.
    Fenced,
    Decided(Fingerprint, Recorded),
}

/// What is remembered of a request when an attempt of it arrives.
pub(super) enum Memory {
    /// It has an outcome.
    Answer(Answer),
    /// Its transaction is never committed.
    Fenced,
    Nothing,
}

/// What a shard remembers of requests.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) time: ClusterTime,
    horizon: ClusterTime,
    collected: TimedId,
    floors: BTreeMap<SessionId, u64>,
    records: BTreeMap<RequestId, Record>,
}

impl Gate {
    pub(super) fn advance(&mut self, time: ClusterTime) {
        self.time = self.time.max(time);
    }

    /// What is known of a request.
    pub(super) fn recall(&self, request: &Request, content: Fingerprint, command: &Command) -> Memory {
        let settles = *command == Command::Settle;
        match self.records.get(&request.id()) {
            Some(Record::Settled) if settles => Memory::Answer(Answer::Settled),
            Some(Record::Settled) => Memory::Answer(Answer::Refused(Refusal::Settled)),
            Some(Record::Decided(of, _)) if !settles && *of != content => {
                Memory::Answer(Answer::Refused(Refusal::Mismatch))
            }
            Some(Record::Decided(_, recorded)) => Memory::Answer(Answer::Replayed(*recorded)),
            Some(Record::Fenced) => Memory::Fenced,
            None => Memory::Nothing,
        }
    }

    /// Why an attempt of which nothing is known is not carried out; `None` if it is.
    pub(super) fn admit(&mut self, request: &Request) -> Option<Refusal> {
        match request {
            Request::Session(request) => self.admit_session(request),
            Request::Timed(id) => self.admit_timed(*id),
        }
    }

    /// Whether a transaction is committed, by its record.
    pub(super) fn decided(&self, txn: TxnId) -> Option<bool> {
        match self.records.get(&txn.request())? {
            Record::Decided(_, recorded) => Some(recorded.result == RecordedResult::TxnCommitted),
            Record::Settled => Some(false),
            Record::Fenced => None,
        }
    }

    /// The transaction is never committed from now on, unless it is below the floor anyway.
    pub(super) fn fence(&mut self, txn: TxnId, first_incomplete: u64) {
        let floor = self.floors.get(&txn.session).copied().unwrap_or(0);
        if first_incomplete > floor {
            self.floors.insert(txn.session, first_incomplete);
        }
        if txn.seq >= floor.max(first_incomplete) {
            self.keep(txn.request(), Record::Fenced);
        }
    }

    /// A participant has carried out its part.
    pub(super) fn note_committed(
        &mut self,
        txn: TxnId,
        content: Fingerprint,
        (index, stamp): (LogIndex, Lamport),
    ) {
        if txn.seq >= self.floors.get(&txn.session).copied().unwrap_or(0) {
            let result = RecordedResult::TxnCommitted;
            let recorded = Recorded { revision: index.revision(), stamp, result };
            self.keep(txn.request(), Record::Decided(content, recorded));
        }
    }

    fn admit_session(&mut self, request: &SessionRequest) -> Option<Refusal> {
        if request.lease_until <= self.horizon {
            return Some(Refusal::SessionExpired { horizon: self.horizon });
        }
        let before = self.floors.get(&request.session).copied().unwrap_or(0);
        let floor = before.max(request.first_incomplete);
        if request.seq < floor {
            return Some(Refusal::Stale { floor });
        }
        if request.seq - floor >= SESSION_WINDOW {
            return Some(Refusal::WindowOverflow { floor });
        }
        if floor > before {
            self.floors.insert(request.session, floor);
        }
        None
    }

    fn admit_timed(&mut self, id: TimedId) -> Option<Refusal> {
        let time = self.time;
        if id < self.first_kept() {
            return Some(Refusal::TooOld { time });
        }
        if id.time() > time.after(REQUEST_AHEAD_MAX) {
            return Some(Refusal::TooEarly { time });
        }
        self.collect_timed();
        None
    }

    /// Notes what an attempt came to that was carried out.
    pub(super) fn record(
        &mut self,
        request: &Request,
        fingerprint: Fingerprint,
        (index, stamp): (LogIndex, Lamport),
        answer: &Answer,
    ) {
        let record = match RecordedResult::of(answer) {
            Some(result) => {
                Record::Decided(fingerprint, Recorded { revision: index.revision(), stamp, result })
            }
            None if *answer == Answer::Settled => Record::Settled,
            // What was in the way is no outcome.
            None => return,
        };
        self.keep(request.id(), record);
    }

    fn keep(&mut self, id: RequestId, record: Record) {
        // Whoever had the place before is forgotten.
        if let RequestId::Session { session, seq } = id {
            let same = |id: &RequestId| matches!(id, RequestId::Session { session: of, seq: old } if *of == session && old % SESSION_WINDOW == seq % SESSION_WINDOW);
            let before = self.of_session(session).into_iter().filter(same);
            for id in before.collect::<Vec<_>>() {
                self.records.remove(&id);
            }
        }
        self.records.insert(id, record);
    }

    fn first_kept(&self) -> TimedId {
        let seconds = self.time.before(REQUEST_RETENTION).map_or(0, |edge| edge.seconds() + 1);
        TimedId::first_of(seconds).expect("a run is short")
    }

    /// Forgets the oldest records without a session; whether more are due.
    pub(super) fn collect_timed(&mut self) -> bool {
        let to = self.first_kept();
        if self.collected >= to {
            return false;
        }
        let due = self.records.range(RequestId::Timed(self.collected)..RequestId::Timed(to));
        let due: Vec<RequestId> = due.map(|(id, _)| *id).take(COLLECT_RECORDS_MAX).collect();
        for id in &due {
            self.records.remove(id);
        }
        let is_full = due.len() == COLLECT_RECORDS_MAX;
        self.collected = match due.last() {
            Some(RequestId::Timed(last)) if is_full => last.next(),
            Some(_) | None => to,
        };
        is_full
    }

    pub(super) fn gc_sessions(&mut self, sessions: &SessionBatch, until: ClusterTime) -> Answer {
        self.horizon = self.horizon.max(until);
        let (mut rows, mut left) = (0, Vec::new());
        for session in sessions.iter() {
            let doomed = self.of_session(session);
            let has_floor = self.floors.contains_key(&session);
            let room = COLLECT_SESSION_ROWS_MAX - rows;
            let due = usize::from(has_floor) + doomed.len();
            if due > room {
                left.push(session);
            }
            // The floor lies before the records.
            rows += due.min(room);
            if has_floor && room > 0 {
                self.floors.remove(&session);
            }
            for id in doomed.iter().take(room.saturating_sub(usize::from(has_floor))) {
                self.records.remove(id);
            }
        }
        Answer::SessionsCollected { rows: rows as u64, left }
    }

    pub(super) fn trim_sessions(&mut self, sessions: &SessionBatch) -> Answer {
        let (mut rows, mut left) = (0, Vec::new());
        for session in sessions.iter() {
            let kept = self.of_session(session);
            let floor = self.floors.get(&session).copied();
            let count = kept.len() + usize::from(floor.is_some());
            if rows + count > COLLECT_SESSION_ROWS_MAX {
                left.push(session);
                continue;
            }
            rows += count;
            for id in kept {
                if matches!(id, RequestId::Session { seq, .. } if seq < floor.unwrap_or(0)) {
                    self.records.remove(&id);
                }
            }
        }
        Answer::SessionsCollected { rows: rows as u64, left }
    }

    /// The requests of a session that are remembered, in the order of their places.
    fn of_session(&self, session: SessionId) -> Vec<RequestId> {
        let id = |seq| RequestId::Session { session, seq };
        let mut found: Vec<RequestId> = self.records.range(id(0)..=id(u64::MAX)).map(|(id, _)| *id).collect();
        found.sort_by_key(|id| match id {
            RequestId::Session { seq, .. } => seq % SESSION_WINDOW,
            RequestId::Timed(_) => 0,
        });
        found
    }
}
