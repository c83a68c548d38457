//! Entries of transactions at apply. The order of the rules is that of the gate: known truth, then whether the request may
//! pass, then the fence, then locks and revisions, then the effect.

use bytes::Bytes;
use kv_types::limits::{SESSION_WINDOW, TXN_SCANNED_KEYS_MAX};
use kv_types::{Fingerprint, Revision, RowKey, SessionRequest, Space, TxnId};

use super::codec::{OpenRecord, PreparedPart};
use super::held::Kept;
use super::{Ending, Known, Part, TxnAnswer, TxnCommand, Write};
use crate::apply::{Answer, Rows};
use crate::codec::DecodeError;
use crate::command::Command;
use crate::gate::{Recorded, RecordedResult, Refusal};
use crate::planted::Planted;
use crate::step::{Step, Stepped};
use crate::system_key;

impl<R: Rows> Step<'_, R> {
    /// What is known of a transaction beside the gate's record, before its request has passed the gate.
    pub(crate) fn known_of_txn(
        &mut self,
        request: &SessionRequest,
        command: &Command,
    ) -> Stepped<Option<Answer>, R> {
        let txn = request.txn();
        let (fingerprint, prepares) = match command {
            Command::Txn(command) => (command.fingerprint(), matches!(command, TxnCommand::Prepare { .. })),
            Command::Settle => (None, false),
            _ => return Ok(None),
        };
        let held = self.held()?;
        if let Some(prepared) = held.parts.get(&txn) {
            let same = fingerprint.is_none_or(|fingerprint| fingerprint == prepared.content);
            return Ok(Some(match (same, prepares) {
                (false, _) => Answer::Refused(Refusal::Mismatch),
                (true, true) => Answer::Txn(TxnAnswer::Prepared),
                // It is in doubt here: only its anchor can say.
                (true, false) => Answer::Refused(Refusal::Locked { owner: txn }),
            }));
        }
        let Some(Kept { content, head }) = held.records.get(&txn) else { return Ok(None) };
        let same = fingerprint.is_none_or(|fingerprint| fingerprint == *content);
        let recorded =
            Recorded { revision: head.modified, stamp: head.stamp, result: RecordedResult::TxnCommitted };
        Ok(Some(if same { Answer::Replayed(recorded) } else { Answer::Refused(Refusal::Mismatch) }))
    }

    /// Carries out what has passed the gate, and meets no fence.
    pub(crate) fn txn_of_client(
        &mut self,
        request: &SessionRequest,
        command: TxnCommand,
    ) -> Stepped<Answer, R> {
        let txn = request.txn();
        let answer = match command {
            TxnCommand::Prepare { fingerprint, anchor, part } => {
                if let Some(refusal) = self.part_blocked(&part)? {
                    return Ok(Answer::Refused(refusal));
                }
                if let Some((key, found)) = self.conflict(&part)? {
                    return Ok(Answer::Txn(TxnAnswer::Conflict { key, found }));
                }
                if let Some(refusal) = self.lock_ranges(txn, &part)? {
                    return Ok(Answer::Refused(refusal));
                }
                self.lock_part(txn, &part)?;
                let since = self.gate()?.time;
                let first_incomplete = request.first_incomplete;
                let prepared = PreparedPart { fingerprint, anchor, first_incomplete, since, part };
                let head = self.write_whole(system_key::prepared(txn), None, prepared.encode());
                self.held()?.parts.insert(txn, Kept { content: fingerprint, head });
                TxnAnswer::Prepared
            }
            TxnCommand::Commit { fingerprint, part, participants } => {
                if let Some(refusal) = self.part_blocked(&part)? {
                    return Ok(Answer::Refused(refusal));
                }
                if let Some((key, _)) = self.conflict(&part)? {
                    return Ok(Answer::Txn(TxnAnswer::Aborted { conflict: Some(key) }));
                }
                self.carry_out(part.writes())?;
                if !participants.is_empty() && !self.planted(Planted::RecordNotKept) {
                    let record = OpenRecord { fingerprint, participants };
                    let head = self.write_whole(system_key::open_record(txn), None, record.encode());
                    self.held()?.records.insert(txn, Kept { content: fingerprint, head });
                }
                TxnAnswer::Committed
            }
            TxnCommand::Abort { .. } => TxnAnswer::Aborted { conflict: None },
            internal
            @ (TxnCommand::Fence { .. } | TxnCommand::Resolve { .. } | TxnCommand::Forget { .. }) => {
                return self.txn_internal(&internal);
            }
        };
        Ok(Answer::Txn(answer))
    }

    /// Carries out what passes no gate.
    pub(crate) fn txn_internal(&mut self, command: &TxnCommand) -> Stepped<Answer, R> {
        Ok(Answer::Txn(match command {
            TxnCommand::Fence { txn, fingerprint, first_incomplete } => {
                self.fence((*txn, *fingerprint), *first_incomplete)?
            }
            TxnCommand::Resolve { endings } => {
                for (txn, ending) in endings {
                    self.resolve(*txn, *ending)?;
                }
                TxnAnswer::Resolved
            }
            TxnCommand::Forget { txns } => {
                for txn in txns {
                    if let Some(Kept { head, .. }) = self.held()?.records.remove(txn) {
                        self.remove(system_key::open_record(*txn), head);
                    }
                }
                TxnAnswer::Forgotten
            }
            TxnCommand::Prepare { .. } | TxnCommand::Commit { .. } | TxnCommand::Abort { .. } => {
                unreachable!("no entry holds {command:?} without its request: the codec refuses it")
            }
        }))
    }

    fn fence(
        &mut self,
        (txn, fingerprint): (TxnId, Fingerprint),
        first_incomplete: u64,
    ) -> Stepped<TxnAnswer, R> {
        match self.seen(super::known(self.rows, txn, fingerprint))? {
            Known::Committed => return Ok(TxnAnswer::Decided { committed: true }),
            Known::Aborted => return Ok(TxnAnswer::Decided { committed: false }),
            Known::Absent => {}
        }
        // The request has passed the gate with this at a participant, so its client waits for nothing below, nor for anything a
        // window below the number itself: the place of that one is taken now.
        let window_ago = txn.seq.saturating_sub(SESSION_WINDOW - 1);
        let floor = self.raise_floor(txn.session, first_incomplete.max(window_ago))?;
        if txn.seq >= floor && !self.planted(Planted::FenceLeavesNothing) {
            self.note_fence(txn)?;
        }
        Ok(TxnAnswer::Absent)
    }

    fn resolve(&mut self, txn: TxnId, Ending { fingerprint, committed }: Ending) -> Stepped<(), R> {
        let of_it = self.held()?.parts.get(&txn).filter(|part| part.content == fingerprint);
        let Some(Kept { head, .. }) = of_it.copied() else { return Ok(()) };
        if self.planted(Planted::ResolveGated) && txn.seq < self.raise_floor(txn.session, 0)? {
            return Ok(());
        }
        let row = system_key::prepared(txn);
        let prepared = self.decoded(&row, |row| PreparedPart::decode(&row.value))?;
        let (prepared, _) = prepared.ok_or_else(|| self.unreadable(DecodeError::Truncated))?;
        self.unlock_part(txn, &prepared.part)?;
        if committed {
            self.carry_out(prepared.part.writes())?;
            // A prepare that comes late finds it, or is below the floor.
            if !self.planted(Planted::CommittedForgotten) {
                self.note_committed(txn, prepared.fingerprint)?;
            }
        }
        self.held()?.parts.remove(&txn);
        self.remove(row, head);
        Ok(())
    }

    /// The first key or range of a part that is not as it was read.
    fn conflict(&self, part: &Part) -> Stepped<Option<(Bytes, Option<Revision>)>, R> {
        for read in part.reads() {
            let now = self.head(&RowKey::user(&read.key))?.map(|head| head.modified);
            if now != read.seen {
                return Ok(Some((Bytes::copy_from_slice(read.key.as_ref()), now)));
            }
        }
        let mut room = TXN_SCANNED_KEYS_MAX;
        for scan in part.scans() {
            // One key more than all scans together may have returned is a difference.
            let now = self.heads_in(Space::User, &scan.range, room + 1)?;
            let keys: Vec<_> = now.iter().map(|(key, head)| (key.key(), head.modified)).collect();
            let digest = Fingerprint::of_scan(keys.iter().map(|(key, revision)| (&key[..], *revision)));
            match room.checked_sub(keys.len()) {
                Some(left) if digest == scan.digest => room = left,
                _ => return Ok(Some((scan.range.start().clone(), None))),
            }
        }
        Ok(None)
    }

    fn carry_out(&mut self, writes: &[Write]) -> Stepped<(), R> {
        for write in writes {
            let key = RowKey::user(&write.key);
            let old = self.head(&key)?;
            match (&write.value, old) {
                (Some(value), old) => self.write(key, old, value.bytes()),
                (None, Some(old)) => self.remove(key, old),
                (None, None) => {}
            }
        }
        Ok(())
    }
}
