//! Transactions once more, written plainly: what a shard holds of them, and what it answers. There is no table of locks:
//! whoever is prepared has locked what his part names.

use std::collections::BTreeMap;

use kv_state::Answer;
use kv_state::Command;
use kv_state::gate::{Recorded, RecordedResult, Refusal};
use kv_state::txn::{Part, TxnAnswer, TxnCommand, Write};
use kv_types::limits::TXN_READERS_MAX;
use kv_types::{Fingerprint, Key, Lamport, LogIndex, RowKey, SessionRequest, TxnId};

use super::Model;

/// A part that waits for the decision.
#[derive(Debug)]
struct Held {
    fingerprint: Fingerprint,
    part: Part,
}

/// What a shard holds of transactions beside the gate's records.
#[derive(Debug, Default)]
pub(super) struct Txns {
    prepared: BTreeMap<TxnId, Held>,
    /// Records that nobody has forgotten, with the entry that wrote each.
    open: BTreeMap<TxnId, (Fingerprint, Recorded)>,
}

/// The content that a step is about, if it passes the gate.
pub(super) fn content_of(command: &TxnCommand) -> Option<Fingerprint> {
    match command {
        TxnCommand::Prepare { fingerprint, .. }
        | TxnCommand::Commit { fingerprint, .. }
        | TxnCommand::Abort { fingerprint } => Some(*fingerprint),
        TxnCommand::Fence { .. } | TxnCommand::Resolve { .. } | TxnCommand::Forget { .. } => None,
    }
}

fn only_read(part: &Part) -> impl Iterator<Item = &Key> {
    let writes = |key: &Key| part.writes().iter().any(|write| write.key == *key);
    part.reads().iter().map(|read| &read.key).filter(move |key| !writes(key))
}

impl Txns {
    /// What is known of a request before it passes the gate.
    pub(super) fn known(&self, request: &SessionRequest, command: &Command) -> Option<Answer> {
        let txn = request.txn();
        let (content, prepares) = match command {
            Command::Txn(command) => (content_of(command), matches!(command, TxnCommand::Prepare { .. })),
            Command::Settle => (None, false),
            _ => return None,
        };
        let is_other = |of: Fingerprint| content.is_some_and(|content| content != of);
        if let Some(held) = self.prepared.get(&txn) {
            return Some(match prepares {
                _ if is_other(held.fingerprint) => Answer::Refused(Refusal::Mismatch),
                true => Answer::Txn(TxnAnswer::Prepared),
                false => Answer::Refused(Refusal::Locked { owner: txn }),
            });
        }
        let (fingerprint, recorded) = self.open.get(&txn)?;
        Some(match is_other(*fingerprint) {
            true => Answer::Refused(Refusal::Mismatch),
            false => Answer::Replayed(*recorded),
        })
    }

    fn writer_of(&self, key: &Key) -> Option<TxnId> {
        let mut all = self.prepared.iter();
        all.find(|(_, held)| held.part.writes().iter().any(|write| write.key == *key)).map(|(txn, _)| *txn)
    }

    fn readers_of(&self, key: &Key) -> Vec<TxnId> {
        let reads = |held: &Held| only_read(&held.part).any(|read| read == key);
        self.prepared.iter().filter(|(_, held)| reads(held)).map(|(txn, _)| *txn).collect()
    }

    fn scanner_of(&self, key: &Key) -> Option<TxnId> {
        let scans = |held: &Held| held.part.scans().iter().any(|scan| scan.range.contains(key.as_ref()));
        self.prepared.iter().find(|(_, held)| scans(held)).map(|(txn, _)| *txn)
    }

    /// Who keeps a key from being written.
    pub(super) fn blocks(&self, key: &Key) -> Option<Refusal> {
        let owner = self.writer_of(key);
        let owner = owner.or_else(|| self.readers_of(key).first().copied()).or_else(|| self.scanner_of(key));
        owner.map(|owner| Refusal::Locked { owner })
    }

    /// Who keeps a part from being validated.
    fn blocks_part(&self, part: &Part) -> Option<Refusal> {
        let locked = |owner| Refusal::Locked { owner };
        for key in only_read(part) {
            let readers = self.readers_of(key);
            let full = readers.first().copied().filter(|_| readers.len() >= TXN_READERS_MAX);
            if let Some(owner) = self.writer_of(key).or(full) {
                return Some(locked(owner));
            }
        }
        for scan in part.scans() {
            let all = self.prepared.iter().flat_map(|(txn, held)| {
                held.part.writes().iter().map(move |write| (write.key.clone(), *txn))
            });
            let inside = all.filter(|(key, _)| scan.range.contains(key.as_ref()));
            if let Some((_, owner)) = inside.min() {
                return Some(locked(owner));
            }
        }
        part.writes().iter().find_map(|write| self.blocks(&write.key))
    }
}

impl Model {
    /// What a step of a client's transaction comes to that has passed the gate.
    pub(super) fn txn_of_client(
        &mut self,
        (index, stamp): (LogIndex, Lamport),
        txn: TxnId,
        command: &TxnCommand,
    ) -> Answer {
        match command {
            TxnCommand::Prepare { fingerprint, part, .. } => {
                if let Some(refusal) = self.txns.blocks_part(part) {
                    return Answer::Refused(refusal);
                }
                if let Some(answer) = self.conflict(index, part) {
                    return Answer::Txn(answer);
                }
                self.txns.prepared.insert(txn, Held { fingerprint: *fingerprint, part: part.clone() });
                Answer::Txn(TxnAnswer::Prepared)
            }
            TxnCommand::Commit { fingerprint, part, participants } => {
                if let Some(refusal) = self.txns.blocks_part(part) {
                    return Answer::Refused(refusal);
                }
                if let Some(TxnAnswer::Conflict { key, .. }) = self.conflict(index, part) {
                    return Answer::Txn(TxnAnswer::Aborted { conflict: Some(key) });
                }
                self.carry_out((index, stamp), part.writes());
                if !participants.is_empty() {
                    let result = RecordedResult::TxnCommitted;
                    let recorded = Recorded { revision: index.revision(), stamp, result };
                    self.txns.open.insert(txn, (*fingerprint, recorded));
                }
                Answer::Txn(TxnAnswer::Committed)
            }
            TxnCommand::Abort { .. } => Answer::Txn(TxnAnswer::Aborted { conflict: None }),
            TxnCommand::Fence { .. } | TxnCommand::Resolve { .. } | TxnCommand::Forget { .. } => {
                self.txn_internal((index, stamp), command)
            }
        }
    }

    /// What a step comes to that passes no gate.
    pub(super) fn txn_internal(
        &mut self,
        (index, stamp): (LogIndex, Lamport),
        command: &TxnCommand,
    ) -> Answer {
        Answer::Txn(match command {
            // No id is used for two contents here.
            TxnCommand::Fence { txn, first_incomplete, .. } => {
                let open = self.txns.open.contains_key(txn).then_some(true);
                match open.or_else(|| self.gate.decided(*txn)) {
                    Some(committed) => TxnAnswer::Decided { committed },
                    None => {
                        self.gate.fence(*txn, *first_incomplete);
                        TxnAnswer::Absent
                    }
                }
            }
            TxnCommand::Resolve { endings } => {
                for (txn, ending) in endings {
                    if let Some(held) = self.txns.prepared.remove(txn)
                        && ending.committed
                    {
                        self.carry_out((index, stamp), held.part.writes());
                        self.gate.note_committed(*txn, held.fingerprint, (index, stamp));
                    }
                }
                TxnAnswer::Resolved
            }
            TxnCommand::Forget { txns } => {
                self.txns.open.retain(|txn, _| !txns.contains(txn));
                TxnAnswer::Forgotten
            }
            TxnCommand::Prepare { .. } | TxnCommand::Commit { .. } | TxnCommand::Abort { .. } => {
                unreachable!("the codec refuses it without a request")
            }
        })
    }

    fn conflict(&self, index: LogIndex, part: &Part) -> Option<TxnAnswer> {
        for read in part.reads() {
            let found = self.row(&RowKey::user(&read.key), index).map(|row| row.head.modified);
            if found != read.seen {
                return Some(TxnAnswer::Conflict { key: read.key.as_ref().to_vec().into(), found });
            }
        }
        for scan in part.scans() {
            let inside = self.keys.keys().filter(|key| scan.range.contains(&key.key()));
            let rows = inside.filter_map(|key| Some((key.key(), self.row(key, index)?.head.modified)));
            let rows: Vec<_> = rows.collect();
            let digest = Fingerprint::of_scan(rows.iter().map(|(key, revision)| (&key[..], *revision)));
            if digest != scan.digest {
                return Some(TxnAnswer::Conflict { key: scan.range.start().clone(), found: None });
            }
        }
        None
    }

    fn carry_out(&mut self, (index, stamp): (LogIndex, Lamport), writes: &[Write]) {
        for write in writes {
            let key = RowKey::user(&write.key);
            match &write.value {
                Some(value) => self.write(key, index, stamp, value.bytes()),
                None => {
                    self.remove(key, index);
                }
            }
        }
    }
}
