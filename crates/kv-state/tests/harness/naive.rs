//! What the gate should answer, by a map of all ids that forgets nothing but what the rules say is forgotten.

use std::collections::BTreeMap;

use kv_state::gate::{RecordedResult, Refusal};
use kv_state::sessions::SessionBatch;
use kv_state::{Answer, Command};
use kv_types::{ClusterTime, Request, RequestId, SessionId, SessionRequest};

/// Minutes of the rules, in milliseconds.
const RETENTION_MS: u64 = 15 * 60_000;
const AHEAD_MS: u64 = 5 * 60_000;
const WINDOW: u64 = 256;

#[derive(Clone, Default)]
pub struct Naive {
    time: u64,
    horizon: ClusterTime,
    floors: BTreeMap<SessionId, u64>,
    /// What was asked for, and what it came to; no content and no result for what was settled.
    known: BTreeMap<RequestId, Option<(Command, RecordedResult)>>,
}

/// What an answer has to be like.
#[derive(Debug)]
enum Expected {
    Known,
    Refusal(Refusal),
    Carried,
}

impl Naive {
    /// Every entry counts.
    pub fn advance(&mut self, stamp: ClusterTime) {
        self.time = self.time.max(stamp.ms());
    }

    pub fn collect(&mut self, sessions: &SessionBatch, until: ClusterTime) {
        self.horizon = self.horizon.max(until);
        for dead in sessions.iter() {
            self.floors.remove(&dead);
            self.known.retain(|id, _| !matches!(id, RequestId::Session { session, .. } if *session == dead));
        }
    }

    pub fn check(&mut self, request: &Request, command: &Command, answer: &Answer) -> Result<(), String> {
        let id = request.id();
        let settles = *command == Command::Settle;
        let old = matches!(request, Request::Timed(id) if id.time().ms() + RETENTION_MS <= self.time);
        let expected = match self.known.get(&id) {
            // Collected at leisure: until then it is known.
            Some(_) if old && matches!(answer, Answer::Refused(Refusal::TooOld { .. })) => {
                self.known.remove(&id);
                return Ok(());
            }
            // Forgotten when its place is taken or the session trimmed: until then it is known.
            Some(_) if self.is_passed(request) && is_late(answer) => {
                self.known.remove(&id);
                return Ok(());
            }
            Some(None) if !settles => Expected::Refusal(Refusal::Settled),
            Some(Some((content, _))) if !settles && content != command => {
                Expected::Refusal(Refusal::Mismatch)
            }
            Some(_) => Expected::Known,
            None => match request {
                Request::Session(request) => self.enter(request),
                Request::Timed(_) if old => Expected::Refusal(Refusal::TooOld { time: ms(self.time) }),
                Request::Timed(id) if id.time().ms() > self.time + AHEAD_MS => {
                    Expected::Refusal(Refusal::TooEarly { time: ms(self.time) })
                }
                Request::Timed(_) => Expected::Carried,
            },
        };
        let fits = match (&expected, answer) {
            (Expected::Refusal(refusal), Answer::Refused(answer)) => refusal == answer,
            (Expected::Known, Answer::Replayed(known)) => {
                self.known[&id].as_ref().is_some_and(|(_, result)| *result == known.result)
            }
            (Expected::Known, Answer::Settled) => self.known[&id].is_none(),
            (Expected::Carried, answer) => {
                let result = RecordedResult::of(answer);
                self.known.insert(id, result.map(|result| (command.clone(), result)));
                result.is_some() != settles && (!settles || *answer == Answer::Settled)
            }
            (Expected::Refusal(_) | Expected::Known, _) => false,
        };
        if fits { Ok(()) } else { Err(format!("{id} should be {expected:?} and is {answer:?}")) }
    }

    fn is_passed(&self, request: &Request) -> bool {
        let Request::Session(request) = request else { return false };
        let floor = self.floors.get(&request.session).copied().unwrap_or(0).max(request.first_incomplete);
        request.seq < floor
    }

    fn enter(&mut self, request: &SessionRequest) -> Expected {
        let SessionRequest { session, seq, first_incomplete, lease_until } = *request;
        let horizon = self.horizon;
        if lease_until <= horizon {
            return Expected::Refusal(Refusal::SessionExpired { horizon });
        }
        let floor = self.floors.get(&session).copied().unwrap_or(0).max(first_incomplete);
        if seq < floor {
            return Expected::Refusal(Refusal::Stale { floor });
        }
        if seq >= floor + WINDOW {
            return Expected::Refusal(Refusal::WindowOverflow { floor });
        }
        self.floors.insert(session, floor);
        Expected::Carried
    }
}

/// Whether an answer says that what is asked about is past.
fn is_late(answer: &Answer) -> bool {
    matches!(answer, Answer::Refused(Refusal::Stale { .. } | Refusal::SessionExpired { .. }))
}

fn ms(ms: u64) -> ClusterTime {
    ClusterTime::from_ms(ms).unwrap()
}
