//! A request at the gate; the order of the rules is in [`crate::gate`].

use bytes::Bytes;
use kv_types::limits::{REQUEST_AHEAD_MAX, SESSION_WINDOW};
use kv_types::{Fingerprint, Request, Row, RowHead, SessionId, SessionRequest, TimedId};

use super::recall::{Floor, Place};
use super::record::{Record, RecordedResult};
use super::{ROW_VERSION, Refusal};
use crate::apply::{Answer, Rows};
use crate::codec::{DecodeError, end, take_u8, take_u64};
use crate::command::Command;
use crate::planted::Planted;
use crate::step::{Step, Stepped};
use crate::system_key;
use crate::txn::{TxnAnswer, TxnCommand};

impl<R: Rows> Step<'_, R> {
    /// Carries out a command with a request id: effect and record in this step, or what is known of it already.
    pub(crate) fn once(
        &mut self,
        request: &Request,
        fingerprint: Fingerprint,
        command: Command,
    ) -> Stepped<Answer, R> {
        let content = match &command {
            Command::Settle => None,
            Command::Txn(command) => command.fingerprint(),
            _ => Some(fingerprint),
        };
        let seq = seq_of(request);
        let key = system_key::record(request.id());
        let mut fenced = false;
        let place = match self.at_place(request) {
            Some(place) if place.seq != seq => Some(place.head),
            // The request itself, or not known.
            Some(_) | None => {
                let row = self.get(&key)?;
                if let Some(row) = &row
                    && !self.planted(Planted::DoneNotChecked)
                    && !self.overlooks(Some(&row.head))
                {
                    match Record::decode(&row.value).map_err(|cause| self.unreadable(cause))? {
                        (of, Record::Fenced) => fenced = of == seq,
                        (of, record) if of == seq => return Ok(answer_of(row, record, content)),
                        _ => {}
                    }
                }
                row.map(|row| row.head)
            }
        };
        if let Request::Session(request) = request
            && let Some(known) = self.known_of_txn(request, &command)?
        {
            return Ok(known);
        }
        let ungated = matches!(command, Command::Txn(TxnCommand::Commit { .. }))
            && self.planted(Planted::CommitNotGated);
        let refusal = match request {
            Request::Session(_) if ungated => None,
            Request::Session(request) => self.enter_session(request)?,
            Request::Timed(id) => self.enter_timed(*id)?,
        };
        if let Some(refusal) = refusal {
            return Ok(Answer::Refused(refusal));
        }
        let settles = command == Command::Settle;
        let decides = !matches!(command, Command::Txn(TxnCommand::Prepare { .. }));
        let answer = match (command, request) {
            (Command::Txn(_), _) if fenced => Answer::Txn(TxnAnswer::Aborted { conflict: None }),
            (Command::Txn(command), Request::Session(request)) => self.txn_of_client(request, command)?,
            (command, _) => self.run(command)?,
        };
        // A settling is the only command of a client whose answer is no outcome and that leaves a record all the same.
        let record = match RecordedResult::of(&answer) {
            Some(result) if decides => {
                Record::Decided { fingerprint: content.unwrap_or(fingerprint), result }
            }
            None if settles => Record::Settled,
            _ => return Ok(answer),
        };
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
        let Floor { value: before, head } = self.floor(request.session)?;
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
            self.set_floor(request.session, floor, head);
        }
        Ok(None)
    }

    pub(super) fn set_floor(&mut self, session: SessionId, value: u64, old: Option<RowHead>) {
        let head = self.write_own(system_key::floor(session), old, &encode_floor(value));
        self.carried.recall.set_floor(session, Floor { value, head: Some(head) });
    }

    pub(super) fn floor(&mut self, session: SessionId) -> Stepped<Floor, R> {
        if let Some(floor) = self.carried.recall.floor(session) {
            return Ok(floor);
        }
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
        (Record::Settled | Record::Fenced, None) => Answer::Settled,
        (Record::Settled | Record::Fenced, Some(_)) => Answer::Refused(Refusal::Settled),
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
