//! A request at the gate; the order of the rules is in [`crate::gate`].

use bytes::Bytes;
use kv_types::limits::{REQUEST_AHEAD_MAX, SESSION_WINDOW};
use kv_types::{Fingerprint, Request, Row, SessionId, SessionRequest, TimedId};

use super::recall::{Floor, Place};
use super::record::{Record, RecordedResult};
use super::{ROW_VERSION, Refusal};
use crate::apply::{Answer, Rows};
use crate::codec::{DecodeError, end, take_u8, take_u64};
use crate::command::Command;
use crate::planted::Planted;
use crate::step::{Step, Stepped};
use crate::system_key;

impl<R: Rows> Step<'_, R> {
    /// Carries out a command with a request id: effect and record in this step, or what is known of it already.
    pub(crate) fn once(
        &mut self,
        request: &Request,
        fingerprint: Fingerprint,
        command: Command,
    ) -> Stepped<Answer, R> {
        let settles = command == Command::Settle;
        let seq = seq_of(request);
        let key = system_key::record(request.id());
        let place = match self.at_place(request) {
            Some(place) if place.seq != seq => Some(place.head),
            // The request itself, or not known.
            Some(_) | None => {
                let row = self.get(&key)?;
                if let Some(row) = &row
                    && !self.planted(Planted::DoneNotChecked)
                    && !self.overlooks(Some(&row.head))
                {
                    let (of, record) = Record::decode(&row.value).map_err(|cause| self.unreadable(cause))?;
                    if of == seq {
                        return Ok(answer_of(row, record, if settles { None } else { Some(fingerprint) }));
                    }
                }
                row.map(|row| row.head)
            }
        };
        let refusal = match request {
            Request::Session(request) => self.enter_session(request)?,
            Request::Timed(id) => self.enter_timed(*id)?,
        };
        if let Some(refusal) = refusal {
            return Ok(Answer::Refused(refusal));
        }
        let answer = self.run(command)?;
        // A settling is the only command of a client whose answer is not an outcome.
        let record = RecordedResult::of(&answer)
            .map_or(Record::Settled, |result| Record::Decided { fingerprint, result });
        assert!(settles == (record == Record::Settled), "{answer:?} is no outcome of a request");
        // Whoever had the place before is a window below, so the floor is above him.
        let head = self.write_own(key, place, &record.encode(seq));
        if let Request::Session(request) = request {
            self.carried.recall.set_place(request.session, Place { seq, head });
        }
        Ok(answer)
    }

    /// What is known of the place of a request's record without a look.
    fn at_place(&self, request: &Request) -> Option<Place> {
        match request {
            Request::Session(request) => self.carried.recall.place(request.session, request.seq),
            Request::Timed(_) => None,
        }
    }

    /// Whether a request of a session may be carried out; if so, the floor has risen to what it says.
    fn enter_session(&mut self, request: &SessionRequest) -> Stepped<Option<Refusal>, R> {
        let horizon = self.gate()?.horizon;
        if request.lease_until <= horizon && !self.planted(Planted::GateNotAtApply) {
            return Ok(Some(Refusal::SessionExpired { horizon }));
        }
        let Floor { value: before, head } = match self.carried.recall.floor(request.session) {
            Some(floor) => floor,
            None => self.look_up_floor(request.session)?,
        };
        let floor = before.max(request.first_incomplete);
        let is_blind = self.planted(Planted::FloorForgotten) || self.overlooks(head.as_ref());
        match request.seq.checked_sub(floor) {
            None if !is_blind => return Ok(Some(Refusal::Stale { floor })),
            Some(ahead) if ahead >= SESSION_WINDOW => {
                return Ok(Some(Refusal::WindowOverflow { floor }));
            }
            None | Some(_) => {}
        }
        if floor > before {
            let head = self.write_own(system_key::floor(request.session), head, &encode_floor(floor));
            self.carried.recall.set_floor(request.session, Floor { value: floor, head: Some(head) });
        }
        Ok(None)
    }

    fn look_up_floor(&mut self, session: SessionId) -> Stepped<Floor, R> {
        let row = self.get(&system_key::floor(session))?;
        let value = row.as_ref().map_or(Ok(0), |row| decode_floor(&row.value));
        let value = value.map_err(|cause| self.unreadable(cause))?;
        let floor = Floor { value, head: row.map(|row| row.head) };
        self.carried.recall.set_floor(session, floor);
        Ok(floor)
    }

    /// Whether a request without a session may be carried out.
    fn enter_timed(&mut self, id: TimedId) -> Stepped<Option<Refusal>, R> {
        let time = self.gate()?.time;
        if super::collect::is_too_old(id, time) {
            return Ok(Some(Refusal::TooOld { time }));
        }
        if id.time() > time.after(REQUEST_AHEAD_MAX) {
            return Ok(Some(Refusal::TooEarly { time }));
        }
        self.collect_timed()?;
        Ok(None)
    }
}

/// The number of a request in its session; 0 without one.
pub(super) fn seq_of(request: &Request) -> u64 {
    match request {
        Request::Session(request) => request.seq,
        Request::Timed(_) => 0,
    }
}

/// What a record answers an attempt with this content; a settling has none.
fn answer_of(row: &Row, record: Record, content: Option<Fingerprint>) -> Answer {
    match (record, content) {
        (Record::Settled, None) => Answer::Settled,
        (Record::Settled, Some(_)) => Answer::Refused(Refusal::Settled),
        (Record::Decided { fingerprint, .. }, Some(content)) if content != fingerprint => {
            Answer::Refused(Refusal::Mismatch)
        }
        (Record::Decided { result, .. }, None | Some(_)) => Answer::Replayed(Record::recorded(row, result)),
    }
}

fn encode_floor(floor: u64) -> [u8; 9] {
    let mut out = [ROW_VERSION; 9];
    let (_, number) = out.split_at_mut(1);
    number.copy_from_slice(&floor.to_le_bytes());
    out
}

pub(super) fn decode_floor(bytes: &Bytes) -> Result<u64, DecodeError> {
    let input = &mut bytes.clone();
    match take_u8(input)? {
        ROW_VERSION => {}
        version => return Err(DecodeError::Version(version)),
    }
    let floor = take_u64(input)?;
    end(input)?;
    Ok(floor)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn floors_round_trip_and_every_truncation_is_refused(floor in any::<u64>()) {
            let bytes = Bytes::copy_from_slice(&encode_floor(floor));
            prop_assert_eq!(decode_floor(&bytes), Ok(floor));
            for len in 0..bytes.len() {
                prop_assert!(decode_floor(&bytes.slice(..len)).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            let _ = decode_floor(&Bytes::from(bytes));
        }
    }
}
