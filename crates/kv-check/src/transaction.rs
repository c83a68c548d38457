//! Transactions over several keys: each key holds a list, that is appended to and read.
//!
//! Lists are the most telling objects (Kingsbury and Alvaro, Elle, 2020): whoever reads one sees every change that was
//! ever made to it, in its order.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::datum::Datum;
use crate::error::{HistoryError, Problem};
use crate::event::{Event, EventKind, Function, Place};
use crate::history::{Operation, Outcome, Pairing};

/// What a transaction does to one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MicroOperation {
    /// Puts an element at the end of the key's list. No other does the same.
    Append {
        /// The key.
        key: Datum,
        /// The element.
        element: i64,
    },
    /// Reads the key's list.
    Read {
        /// The key.
        key: Datum,
        /// The list: that of an absent key is empty. None if it is not known.
        list: Option<Arc<[i64]>>,
    },
}

impl MicroOperation {
    /// An append.
    #[must_use]
    pub fn append(key: impl Into<Datum>, element: i64) -> Self {
        Self::Append { key: key.into(), element }
    }

    /// A read that has not been answered.
    #[must_use]
    pub fn read(key: impl Into<Datum>) -> Self {
        Self::Read { key: key.into(), list: None }
    }

    /// A read that was answered.
    #[must_use]
    pub fn read_as(key: impl Into<Datum>, list: impl IntoIterator<Item = i64>) -> Self {
        Self::Read { key: key.into(), list: Some(list.into_iter().collect()) }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &Datum {
        match self {
            Self::Append { key, .. } | Self::Read { key, .. } => key,
        }
    }

    /// As in a history: `["append", "x", 1]`, `["r", "x", [1, 2]]`.
    #[must_use]
    pub fn to_datum(&self) -> Datum {
        match self {
            Self::Append { key, element } => {
                Datum::list([Datum::text("append"), key.clone(), Datum::Int(*element)])
            }
            Self::Read { key, list } => {
                let list = list.as_ref().map(|list| Datum::list(list.iter().copied().map(Datum::Int)));
                Datum::list([Datum::text("r"), key.clone(), list.unwrap_or_default()])
            }
        }
    }

    /// The reverse. A list that is nil was not read yet if the transaction has not committed, and is empty if it has.
    fn of(datum: &Datum, is_committed: bool) -> Option<Self> {
        let [Datum::Text(name), key, value] = datum.as_list()? else { return None };
        match (name.trim_start_matches(':'), value) {
            ("append", Datum::Int(element)) => Some(Self::append(key.clone(), *element)),
            ("r" | "read", _) if !is_committed => Some(Self::read(key.clone())),
            ("r" | "read", Datum::Nil) => Some(Self::read_as(key.clone(), [])),
            ("r" | "read", Datum::List(items)) => {
                let list: Option<Arc<[i64]>> = items.iter().map(Datum::as_int).collect();
                Some(Self::Read { key: key.clone(), list: Some(list?) })
            }
            _ => None,
        }
    }

    /// Whether both do the same, whatever they read.
    fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Read { key, .. }, Self::Read { key: other, .. }) => key == other,
            (Self::Append { .. }, Self::Append { .. }) => self == other,
            (Self::Read { .. }, Self::Append { .. }) | (Self::Append { .. }, Self::Read { .. }) => false,
        }
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    /// It took effect between call and return, and read what it says.
    Committed,
    /// It did not take effect and never will, for certain.
    Failed,
    /// Nobody knows: it may take effect at any time after its call, or never.
    Open,
}

impl Ending {
    /// The word for it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Failed => "failed",
            Self::Open => "open",
        }
    }
}

/// One transaction of a history.
///
/// # Invariants
///
/// - `ret` is there exactly if the transaction committed.
/// - `call <= ret`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// Who did it.
    pub process: Datum,
    /// What it does, in this order.
    pub operations: Vec<MicroOperation>,
    /// How it ended.
    pub ending: Ending,
    /// When it was called: any unit, one scale for the whole history.
    pub call: u64,
    /// When it returned.
    pub ret: Option<u64>,
    /// Where the call stands in the text.
    pub called_at: Place,
    /// Where the return stands in the text.
    pub returned_at: Place,
}

impl Transaction {
    /// A transaction that was called, and of which no more is known.
    #[must_use]
    pub fn open(
        process: impl Into<Datum>,
        operations: impl IntoIterator<Item = MicroOperation>,
        call: u64,
    ) -> Self {
        Self {
            process: process.into(),
            operations: operations.into_iter().collect(),
            ending: Ending::Open,
            call,
            ret: None,
            called_at: Place::default(),
            returned_at: Place::default(),
        }
    }

    /// The same, committed.
    #[must_use]
    pub fn committed(mut self, ret: u64) -> Self {
        self.ending = Ending::Committed;
        self.ret = Some(ret);
        self
    }

    /// The same, failed for certain.
    #[must_use]
    pub fn failed(mut self) -> Self {
        self.ending = Ending::Failed;
        self.ret = None;
        self
    }
}

/// What clients of a transactional store saw: transactions, in the order of their calls.
///
/// # Invariants
///
/// - No element is appended to a key twice, whether the transactions took effect or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransactionHistory {
    transactions: Vec<Transaction>,
}

impl TransactionHistory {
    /// A history made in memory.
    ///
    /// # Errors
    ///
    /// If a transaction returned before it was called, or an element is appended twice to a key.
    pub fn from_transactions(mut transactions: Vec<Transaction>) -> Result<Self, HistoryError> {
        for transaction in &transactions {
            let (called, returned) = (transaction.call, transaction.ret.unwrap_or(transaction.call));
            if returned < called {
                let problem = Problem::ReturnBeforeCall { called, returned };
                return Err(HistoryError::at_process(transaction.returned_at, problem));
            }
        }
        transactions.sort_by_key(|transaction| transaction.call);
        refuse_duplicates(&transactions)?;
        Ok(Self { transactions })
    }

    /// A history from its events, in their order.
    ///
    /// # Errors
    ///
    /// If a transaction ends that never began, a process begins two at once, a value is no transaction, or an element is
    /// appended twice to a key.
    pub fn from_events(events: impl IntoIterator<Item = Event>) -> Result<Self, HistoryError> {
        let mut pairing = Pairing::default();
        for event in events {
            pairing.push(event)?;
        }
        Self::from_pairing(pairing)
    }

    pub(crate) fn from_pairing(pairing: Pairing) -> Result<Self, HistoryError> {
        let (operations, failed) = pairing.into_parts();
        let mut failed = failed.into_iter().peekable();
        let transactions: Result<Vec<_>, _> = operations
            .iter()
            .enumerate()
            .map(|(at, operation)| transaction(operation, failed.next_if_eq(&at).is_some()))
            .collect();
        Self::from_transactions(transactions?)
    }

    /// The transactions, in the order of their calls.
    #[must_use]
    pub fn transactions(&self) -> &[Transaction] {
        &self.transactions
    }

    /// How many transactions ended so.
    #[must_use]
    pub fn count(&self, ending: Ending) -> usize {
        self.transactions.iter().filter(|transaction| transaction.ending == ending).count()
    }
}

/// Translates an operation that is a transaction.
fn transaction(operation: &Operation, has_failed: bool) -> Result<Transaction, HistoryError> {
    if operation.function != Function::Txn || operation.outcome == Outcome::Mismatch {
        let problem = Problem::ForeignFunction { function: operation.function, model: crate::append::NAME };
        return Err(HistoryError::at_function(operation.called_at, problem));
    }
    let asked = micro_operations(&operation.input, false, operation.called_at)?;
    let (operations, ending) = match operation.result() {
        None => (asked, if has_failed { Ending::Failed } else { Ending::Open }),
        Some(result) => {
            let told = micro_operations(result, true, operation.returned_at)?;
            let is_same = asked.len() == told.len() && asked.iter().zip(&told).all(|(a, b)| a.is_like(b));
            if !is_same {
                let (process, since) = (operation.process.to_string(), operation.called_at.line);
                let problem = Problem::OtherReturn { process, field: "value", since };
                return Err(HistoryError::at_value(operation.returned_at, problem));
            }
            (told, Ending::Committed)
        }
    };
    Ok(Transaction {
        process: operation.process.clone(),
        operations,
        ending,
        call: operation.call,
        ret: operation.ret,
        called_at: operation.called_at,
        returned_at: operation.returned_at,
    })
}

fn micro_operations(
    value: &Datum,
    is_committed: bool,
    place: Place,
) -> Result<Vec<MicroOperation>, HistoryError> {
    let items = value.as_list();
    let operations =
        items.and_then(|items| items.iter().map(|item| MicroOperation::of(item, is_committed)).collect());
    operations.ok_or_else(|| {
        let expected = "a list of [\"append\" key number] and [\"r\" key list]";
        let problem = Problem::BadValue { function: Function::Txn, value: value.to_string(), expected };
        HistoryError::at_value(place, problem)
    })
}

fn refuse_duplicates(transactions: &[Transaction]) -> Result<(), HistoryError> {
    let mut seen: BTreeMap<(&Datum, i64), Place> = BTreeMap::new();
    for transaction in transactions {
        for operation in &transaction.operations {
            let MicroOperation::Append { key, element } = operation else { continue };
            if let Some(first) = seen.insert((key, *element), transaction.called_at) {
                let (key, element, since) = (key.to_string(), *element, first.line);
                let problem = Problem::AppendedTwice { key, element, since };
                return Err(HistoryError::at_value(transaction.called_at, problem));
            }
        }
    }
    Ok(())
}

impl Event {
    /// An event of a transaction, for a [`Recorder`](crate::Recorder). The invocation and the return carry the same
    /// micro-operations; those of a commit say what was read.
    #[must_use]
    pub fn transaction(process: impl Into<Datum>, kind: EventKind, operations: &[MicroOperation]) -> Self {
        let value = Datum::list(operations.iter().map(MicroOperation::to_datum));
        Self::new(process, kind, Function::Txn, value)
    }
}

/// How many elements of a list are shown to people: the last.
const SHOWN_MAX: usize = 12;

/// A list for people.
pub(crate) struct Shown<'a>(pub(crate) &'a [i64]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(list) = self;
        let left_out = list.len().saturating_sub(SHOWN_MAX);
        let shown: Vec<_> = list.iter().skip(left_out).map(ToString::to_string).collect();
        let before = if left_out > 0 { format!("{left_out} more, ") } else { String::new() };
        write!(f, "[{before}{}]", shown.join(", "))
    }
}

/// A key for people: a plain word stands without quotes.
pub(crate) struct Named<'a>(pub(crate) &'a Datum);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Datum::Text(text) if !text.is_empty() && text.chars().all(|c| c.is_ascii_graphic()) => {
                f.write_str(text)
            }
            datum => datum.fmt(f),
        }
    }
}

/// `append 1 to x`, `read y -> [2, 3]`.
impl fmt::Display for MicroOperation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Append { key, element } => write!(f, "append {element} to {}", Named(key)),
            Self::Read { key, list: Some(list) } => write!(f, "read {} -> {}", Named(key), Shown(list)),
            Self::Read { key, list: None } => write!(f, "read {}", Named(key)),
        }
    }
}

/// One line for people: `process 3: append 1 to x, read y -> [2], committed (lines 7 and 9)`.
impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}: ", self.process)?;
        for operation in &self.operations {
            write!(f, "{operation}, ")?;
        }
        f.write_str(self.ending.word())?;
        match (self.called_at.line, self.returned_at.line) {
            (0, _) => Ok(()),
            (call, 0) => write!(f, " (line {call})"),
            (call, ret) => write!(f, " (lines {call} and {ret})"),
        }
    }
}
