//! What the gate notes of a transaction for a party that sends no request: outcomes and fences at the place of its number.

use kv_types::{Fingerprint, SessionId, TxnId};

use super::recall::{Floor, Place};
use super::record::{Record, RecordedResult};
use crate::apply::Rows;
use crate::step::{Step, Stepped};
use crate::system_key;

impl<R: Rows> Step<'_, R> {
    /// The session's client waits for nothing below `first_incomplete`; the floor after that.
    pub(crate) fn raise_floor(&mut self, session: SessionId, first_incomplete: u64) -> Stepped<u64, R> {
        let Floor { value, head } = self.floor(session)?;
        if first_incomplete > value {
            self.set_floor(session, first_incomplete, head);
        }
        Ok(value.max(first_incomplete))
    }

    /// From now on the transaction is not committed here.
    pub(crate) fn note_fence(&mut self, txn: TxnId) -> Stepped<(), R> {
        self.note(txn, &Record::Fenced)
    }

    /// The transaction is committed, and a prepare of it comes too late; unless it is too late anyway.
    pub(crate) fn note_committed(&mut self, txn: TxnId, fingerprint: Fingerprint) -> Stepped<(), R> {
        if txn.seq < self.floor(txn.session)?.value {
            return Ok(());
        }
        self.note(txn, &Record::Decided { fingerprint, result: RecordedResult::TxnCommitted })
    }

    fn note(&mut self, txn: TxnId, record: &Record) -> Stepped<(), R> {
        let key = system_key::record(txn.request());
        let old = match self.carried.recall.place(txn.session, txn.seq) {
            // This entry has ended another transaction of this place. A floor would have kept one of them out, so there is none any
            // more: the session is dead, and whoever asks for either is refused. What an entry notes of one session, it notes
            // without another between, so that it is remembered.
            Some(place) if place.head.modified == self.index.revision() => return Ok(()),
            Some(place) => Some(place.head),
            None => self.head(&key)?,
        };
        let head = self.write_own(key, old, &record.encode(txn.seq));
        self.carried.recall.set_place(txn.session, Place { seq: txn.seq, head });
        Ok(())
    }
}
