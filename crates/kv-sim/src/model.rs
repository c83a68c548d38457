//! The state machine once more, written plainly: what the rows of users must be after each entry, and what it answers.
//! What lies in system rows is modelled by its meaning alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_state::{Answer, Command, Expect, IncrementFailure, Opened};
use kv_types::limits::COMPARE_FAILED_VALUE_BYTES_MAX;
use kv_types::{Key, Lamport, LogIndex, Request, Row, RowKey};

mod gate;
mod sessions;
mod txns;

use gate::{Gate, Memory};
use kv_state::txn::{TxnAnswer, TxnCommand};
use sessions::Sessions;
use txns::Txns;

/// What an entry left of a key.
#[derive(Debug)]
struct Version {
    index: LogIndex,
    row: Option<Row>,
}

/// All versions of all keys of one shard, and what it knows of requests and sessions after its last entry.
#[derive(Debug, Default)]
pub(crate) struct Model {
    keys: BTreeMap<RowKey, Vec<Version>>,
    gate: Gate,
    sessions: Sessions,
    txns: Txns,
}

impl Model {
    /// What the entry at `index` does, and answers.
    pub(crate) fn apply(&mut self, index: LogIndex, stamp: Lamport, entry: &Opened) -> Answer {
        match entry {
            Opened::Plain(command) => self.run(index, stamp, command),
            Opened::Timed { time, command } => {
                self.gate.advance(*time);
                self.run(index, stamp, command)
            }
            Opened::Once { time, request, fingerprint, command } => {
                self.gate.advance(*time);
                let fingerprint = match command {
                    Command::Txn(command) => txns::content_of(command).unwrap_or(*fingerprint),
                    _ => *fingerprint,
                };
                let memory = self.gate.recall(request, fingerprint, command);
                if let Memory::Answer(answer) = memory {
                    return answer;
                }
                if let Request::Session(request) = request
                    && let Some(answer) = self.txns.known(request, command)
                {
                    return answer;
                }
                if let Some(refusal) = self.gate.admit(request) {
                    return Answer::Refused(refusal);
                }
                let answer = match (command, request) {
                    (Command::Txn(_), _) if matches!(memory, Memory::Fenced) => {
                        Answer::Txn(TxnAnswer::Aborted { conflict: None })
                    }
                    (Command::Txn(command), Request::Session(request)) => {
                        self.txn_of_client((index, stamp), request.txn(), command)
                    }
                    _ => self.run(index, stamp, command),
                };
                let decides = !matches!(command, Command::Txn(TxnCommand::Prepare { .. }));
                if decides {
                    self.gate.record(request, fingerprint, (index, stamp), &answer);
                }
                answer
            }
        }
    }

    fn run(&mut self, index: LogIndex, stamp: Lamport, command: &Command) -> Answer {
        // Nobody who has transactions removes ranges.
        if let Command::Put { key, .. }
        | Command::Delete { key }
        | Command::Increment { key, .. }
        | Command::CompareAndSet { key, .. } = command
            && let Some(refusal) = self.txns.blocks(key)
        {
            return Answer::Refused(refusal);
        }
        match command {
            Command::Put { key, value } => {
                self.write(RowKey::user(key), index, stamp, value.bytes());
                Answer::Written
            }
            Command::Delete { key } => {
                let count = u64::from(self.remove(RowKey::user(key), index));
                Answer::Deleted { count, resume: None }
            }
            Command::DeleteRange { range } => {
                let inside = |key: &&RowKey| range.contains(&key.key());
                let doomed: Vec<RowKey> = self.keys.keys().filter(inside).cloned().collect();
                let count = doomed.into_iter().filter(|key| self.remove(key.clone(), index)).count();
                Answer::Deleted { count: count as u64, resume: None }
            }
            Command::Increment { key, delta } => self.increment(index, stamp, key, *delta),
            Command::Settle => Answer::Settled,
            Command::Session(command) => Answer::Session(self.sessions.apply(index, self.gate.time, command)),
            Command::GcSessions { sessions, until } => self.gate.gc_sessions(sessions, *until),
            Command::TrimSessions { sessions } => self.gate.trim_sessions(sessions),
            Command::Tick => Answer::Ticked { more: self.gate.collect_timed() },
            Command::Cluster(_) => unreachable!("no client of a run changes the cluster"),
            Command::Txn(command) => self.txn_internal((index, stamp), command),
            Command::CompareAndSet { key, expect, value } => {
                let key = RowKey::user(key);
                let found = self.row(&key, index).cloned();
                let holds = match (expect, &found) {
                    (Expect::Absent, None) => true,
                    (Expect::Value(expected), Some(row)) => expected.bytes() == &row.value,
                    (Expect::Revision(expected), Some(row)) => row.head.modified == *expected,
                    (Expect::Absent, Some(_)) | (Expect::Value(_) | Expect::Revision(_), None) => false,
                };
                if !holds {
                    // A long value is left out of the answer.
                    let short = |mut row: Row| {
                        if row.value.len() > COMPARE_FAILED_VALUE_BYTES_MAX {
                            row.value = Bytes::new();
                        }
                        row
                    };
                    return Answer::CompareFailed { found: found.map(short) };
                }
                self.write(key, index, stamp, value.bytes());
                Answer::Written
            }
        }
    }

    fn increment(&mut self, index: LogIndex, stamp: Lamport, key: &Key, delta: i64) -> Answer {
        let key = RowKey::user(key);
        let text = self.row(&key, index).map_or(Ok("0"), |row| std::str::from_utf8(&row.value));
        let number = text.ok().and_then(|text| Some((text.parse::<i64>().ok()?, text)));
        let Some((number, _)) = number.filter(|(number, text)| number.to_string() == *text) else {
            return Answer::IncrementFailed(IncrementFailure::NotANumber);
        };
        let Some(value) = number.checked_add(delta) else {
            return Answer::IncrementFailed(IncrementFailure::Overflow);
        };
        self.write(key, index, stamp, &Bytes::from(value.to_string()));
        Answer::Incremented { value }
    }

    fn write(&mut self, key: RowKey, index: LogIndex, stamp: Lamport, value: &Bytes) {
        let old = self.row(&key, index).map(|row| row.head);
        let created = old.map_or(index.revision(), |head| head.created);
        let version = old.map_or(1, |head| head.version + 1);
        let row = Row::new(created, index.revision(), version, stamp, value);
        self.keys.entry(key).or_default().push(Version { index, row: Some(row) });
    }

    fn remove(&mut self, key: RowKey, index: LogIndex) -> bool {
        let held = self.row(&key, index).is_some();
        if held {
            self.keys.entry(key).or_default().push(Version { index, row: None });
        }
        held
    }

    /// The row of a key after the entry at `index`.
    pub(crate) fn row(&self, key: &RowKey, index: LogIndex) -> Option<&Row> {
        let versions = self.keys.get(key)?;
        versions.iter().rev().find(|version| version.index <= index)?.row.as_ref()
    }

    /// All rows of users after the entry at `index`.
    pub(crate) fn rows(&self, index: LogIndex) -> BTreeMap<RowKey, Row> {
        let row = |key: &RowKey| Some((key.clone(), self.row(key, index)?.clone()));
        self.keys.keys().filter_map(row).collect()
    }
}
