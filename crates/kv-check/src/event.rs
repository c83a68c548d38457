//! One line of a history: an operation begins or ends.

use std::fmt;

use serde_json::{Map, Value};

use crate::datum::Datum;

/// What an event says of its operation. The words are Jepsen's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It begins.
    Invoke,
    /// It ended and took effect.
    Ok,
    /// It ended and did not take effect, for certain.
    Fail,
    /// It ended and may have taken effect, or may still.
    Info,
}

impl EventKind {
    /// The word in a history.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Info => "info",
        }
    }

    pub(crate) fn of(word: &str) -> Option<Self> {
        [Self::Invoke, Self::Ok, Self::Fail, Self::Info].into_iter().find(|kind| kind.word() == word)
    }
}

/// What an operation does: the field `f`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Function {
    /// `read`, `get`: the value; the return carries it.
    Read,
    /// `write`, `put`: sets the value.
    Write,
    /// `cas`: `[expected new]`.
    Cas,
    /// `append`: adds text at the end.
    Append,
    /// `delete`, `del`: the key is absent afterwards.
    Delete,
    /// `add`: an element to a set, or a number to a counter.
    Add,
    /// `incr`: adds a number to a counter; the return carries the sum, if known.
    Incr,
    /// `acquire`: takes a lock.
    Acquire,
    /// `release`: gives it back.
    Release,
    /// `txn`: a transaction over several keys, for [`check_transactions`](crate::check_transactions) only.
    Txn,
}

/// Every function with its names; the first one is written.
const FUNCTIONS: &[(Function, &[&str])] = &[
    (Function::Read, &["read", "get"]),
    (Function::Write, &["write", "put"]),
    (Function::Cas, &["cas"]),
    (Function::Append, &["append"]),
    (Function::Delete, &["delete", "del"]),
    (Function::Add, &["add"]),
    (Function::Incr, &["incr"]),
    (Function::Acquire, &["acquire"]),
    (Function::Release, &["release"]),
    (Function::Txn, &["txn"]),
];

impl Function {
    /// The word in a history.
    #[must_use]
    pub fn word(self) -> &'static str {
        let names = FUNCTIONS.iter().find(|(function, _)| *function == self).map(|(_, names)| *names);
        names.and_then(<[_]>::first).copied().unwrap_or_default()
    }

    pub(crate) fn of(word: &str) -> Option<Self> {
        FUNCTIONS.iter().find(|(_, names)| names.contains(&word)).map(|(function, _)| *function)
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Where an event stands in the text it was read from. All zero: in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The line, from 1.
    pub line: u32,
    /// The column of the process, in bytes from 1, as the other columns.
    pub process: u32,
    /// The column of the function.
    pub function: u32,
    /// The column of the value; of the event if it has none.
    pub value: u32,
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who does it: a process has one operation at a time.
    pub process: Datum,
    /// What is said of the operation.
    pub kind: EventKind,
    /// What the operation does.
    pub function: Function,
    /// On what; nil if the history has one object only.
    pub key: Datum,
    /// The argument of an invocation, or the result of a return.
    pub value: Datum,
    /// When, in nanoseconds since some start. For people: the order of the events is what counts.
    pub time: Option<u64>,
    /// The revision that the shard gave the operation: a hint at the order, never believed without proof.
    pub revision: Option<u64>,
    /// The fencing token of an acquired lock.
    pub token: Option<u64>,
    /// The failure is an answer: a `cas` found another value than expected. Written as `error: compare-failed`.
    pub mismatch: bool,
    /// Where it was read.
    pub place: Place,
}

impl Event {
    /// An event without the optional parts.
    #[must_use]
    pub fn new(
        process: impl Into<Datum>,
        kind: EventKind,
        function: Function,
        value: impl Into<Datum>,
    ) -> Self {
        Self {
            process: process.into(),
            kind,
            function,
            key: Datum::Nil,
            value: value.into(),
            time: None,
            revision: None,
            token: None,
            mismatch: false,
            place: Place::default(),
        }
    }

    /// As one line of json, without the newline.
    #[must_use]
    pub fn to_json_line(&self, index: u64) -> String {
        let mut fields = Map::new();
        let mut field = |name: &str, value: Value| fields.insert(name.to_owned(), value);
        field("process", self.process.to_json());
        field("type", self.kind.word().into());
        field("f", self.function.word().into());
        field("value", self.value.to_json());
        field("index", index.into());
        if !self.key.is_nil() {
            field("key", self.key.to_json());
        }
        for (name, number) in [("time", self.time), ("revision", self.revision), ("token", self.token)] {
            if let Some(number) = number {
                field(name, number.into());
            }
        }
        if self.mismatch {
            field("error", COMPARE_FAILED.into());
        }
        Value::Object(fields).to_string()
    }
}

/// What the field `error` of a failed `cas` says if the value was another than expected.
pub(crate) const COMPARE_FAILED: &str = "compare-failed";
