//! A request at the gate; the order of the rules is in [`crate::gate`].

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::limits::{REQUEST_AHEAD_MAX, SESSION_WINDOW};
use kv_types::{Fingerprint, Request, Row, SessionRequest, TimedId};

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
        let (key, seq) = (system_key::record(request.id()), seq_of(request));
        let place = self.get(&key)?;
        if let Some(row) = &place
            && !self.planted(Planted::DoneNotChecked)
            && !self.overlooks(Some(&row.head))
        {
            let (of, record) = Record::decode(&row.value).map_err(|cause| self.unreadable(cause))?;
            if of == seq {
                return Ok(answer_of(row, record, if settles { None } else { Some(fingerprint) }));
            }
        }
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
        self.write(key, place.map(|row| row.head), &record.encode(seq));
        Ok(answer)
    }

    /// Whether a request of a session may be carried out; if so, the floor has risen to what it says.
    fn enter_session(&mut self, request: &SessionRequest) -> Stepped<Option<Refusal>, R> {
        let horizon = self.gate()?.horizon;
        if request.lease_until <= horizon && !self.planted(Planted::GateNotAtApply) {
            return Ok(Some(Refusal::SessionExpired { horizon }));
        }
        let key = system_key::floor(request.session);
        let row = self.get(&key)?;
        let before = row.as_ref().map_or(Ok(0), |row| decode_floor(&row.value));
        let before = before.map_err(|cause| self.unreadable(cause))?;
        let floor = before.max(request.first_incomplete);
        let head = row.as_ref().map(|row| &row.head);
        let is_blind = self.planted(Planted::FloorForgotten) || self.overlooks(head);
        match request.seq.checked_sub(floor) {
            None if !is_blind => return Ok(Some(Refusal::Stale { floor })),
            Some(ahead) if ahead >= SESSION_WINDOW => {
                return Ok(Some(Refusal::WindowOverflow { floor }));
            }
            None | Some(_) => {}
        }
        if floor > before {
            self.write(key, row.map(|row| row.head), &encode_floor(floor));
        }
        Ok(None)
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

fn encode_floor(floor: u64) -> Bytes {
    let mut out = BytesMut::with_capacity(9);
    out.put_u8(ROW_VERSION);
    out.put_u64_le(floor);
    out.freeze()
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
            let bytes = encode_floor(floor);
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
