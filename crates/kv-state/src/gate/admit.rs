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

/// A floor that passes at most so many numbers looks each of their records up; beyond it, one scan finds them. Records
/// that are due are nearly always in memory, where a look-up is far cheaper than the beginning of a scan.
const LOOK_UPS_MAX: u64 = 8;

impl<R: Rows> Step<'_, R> {
    /// Carries out a command with a request id: effect and record in this step, or what is known of it already.
    pub(crate) fn once(
        &mut self,
        request: &Request,
        fingerprint: Fingerprint,
        command: Command,
    ) -> Stepped<Answer, R> {
        let settles = command == Command::Settle;
        let key = system_key::record(request.id());
        let known = self.get(&key)?;
        if let Some(row) = &known
            && !self.planted(Planted::DoneNotChecked)
            && !self.overlooks(Some(&row.head))
        {
            let record = Record::decode(&row.value).map_err(|cause| self.unreadable(cause))?;
            return Ok(answer_of(row, record, if settles { None } else { Some(fingerprint) }));
        }
        let refusal = match request {
            Request::Session(request) => self.enter_session(request, settles)?,
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
        self.write(key, known.map(|row| row.head), &record.encode());
        Ok(answer)
    }

    /// Whether a request of a session may be carried out; if so, the floor has risen to what it says.
    fn enter_session(&mut self, request: &SessionRequest, settles: bool) -> Stepped<Option<Refusal>, R> {
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
            Some(ahead) if ahead >= SESSION_WINDOW && !settles => {
                return Ok(Some(Refusal::WindowOverflow { floor }));
            }
            None | Some(_) => {}
        }
        if floor > before {
            self.forget_records(request, before, floor)?;
            self.write(key, row.map(|row| row.head), &encode_floor(floor));
        }
        Ok(None)
    }

    /// Removes the records of a session that its floor passes. A request is at most a window above the floor, so all
    /// that there are lie in one window, but for those that were settled from afar.
    fn forget_records(&mut self, request: &SessionRequest, before: u64, floor: u64) -> Stepped<(), R> {
        let due = if floor - before <= LOOK_UPS_MAX {
            let mut due = Vec::new();
            for seq in before..floor {
                let key = system_key::record(Request::Session(SessionRequest { seq, ..*request }).id());
                if let Some(head) = self.head(&key)? {
                    due.push((key, head));
                }
            }
            due
        } else {
            let passed = system_key::records(request.session, before, floor);
            self.heads_in(kv_types::Space::System, &passed, window())?
        };
        for (key, head) in due {
            self.remove(key, head);
        }
        Ok(())
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

fn window() -> usize {
    usize::try_from(SESSION_WINDOW).expect("a window is small")
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
