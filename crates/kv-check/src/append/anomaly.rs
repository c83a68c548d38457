//! What can be wrong with a history of transactions, and how it is told.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Value, json};

use crate::transaction::{MicroOperation, Transaction, TransactionHistory};

/// What is wrong, by the names of Adya (1999) and of Elle. Those further up are worse: fewer promises are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AnomalyKind {
    /// A transaction contradicts itself.
    Internal,
    /// An element stands twice in a read.
    DuplicateElements,
    /// A read shows an element that nobody appended.
    GarbageRead,
    /// A read shows an element of a transaction that failed.
    G1a,
    /// A read shows some of what another transaction appended to a key, and not what it appended after.
    G1b,
    /// Two reads of a key are not beginnings of one list.
    IncompatibleOrder,
    /// What a transaction appended to a key stands in another order, or not from its first element on.
    TornAppends,
    /// A cycle of transactions that appended one behind the other.
    G0,
    /// A cycle of appends and of reads of what was appended.
    G1c,
    /// Two transactions read the same list and both appended to it.
    LostUpdate,
    /// A cycle with one read that does not show what was appended.
    GSingle,
    /// A cycle with several such reads.
    G2,
    /// [`AnomalyKind::G0`] with an order of real time in it.
    G0Realtime,
    /// [`AnomalyKind::G1c`] with an order of real time in it.
    G1cRealtime,
    /// [`AnomalyKind::GSingle`] with an order of real time in it: a stale read.
    GSingleRealtime,
    /// [`AnomalyKind::G2`] with an order of real time in it.
    G2Realtime,
}

impl AnomalyKind {
    /// All of them, the worst first.
    pub const ALL: [Self; 16] = [
        Self::Internal,
        Self::DuplicateElements,
        Self::GarbageRead,
        Self::G1a,
        Self::G1b,
        Self::IncompatibleOrder,
        Self::TornAppends,
        Self::G0,
        Self::G1c,
        Self::LostUpdate,
        Self::GSingle,
        Self::G2,
        Self::G0Realtime,
        Self::G1cRealtime,
        Self::GSingleRealtime,
        Self::G2Realtime,
    ];

    /// The name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::DuplicateElements => "duplicate-elements",
            Self::GarbageRead => "garbage-read",
            Self::G1a => "G1a",
            Self::G1b => "G1b",
            Self::IncompatibleOrder => "incompatible-order",
            Self::TornAppends => "torn-appends",
            Self::G0 => "G0",
            Self::G1c => "G1c",
            Self::LostUpdate => "lost-update",
            Self::GSingle => "G-single",
            Self::G2 => "G2",
            Self::G0Realtime => "G0-realtime",
            Self::G1cRealtime => "G1c-realtime",
            Self::GSingleRealtime => "G-single-realtime",
            Self::G2Realtime => "G2-realtime",
        }
    }

    /// What it is, in a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Internal => "a transaction contradicts itself",
            Self::DuplicateElements => "an element stands twice in a list",
            Self::GarbageRead => "a list shows what nobody appended",
            Self::G1a => "aborted read: a list shows what a failed transaction appended",
            Self::G1b => "intermediate read: a list shows part of what a transaction appended",
            Self::IncompatibleOrder => "two lists of one key are not beginnings of the same",
            Self::TornAppends => "what a transaction appended does not stand together in its order",
            Self::G0 => "dirty write: appends of transactions stand one behind the other in a circle",
            Self::G1c => "circular information flow: transactions go before each other in a circle",
            Self::LostUpdate => "two transactions appended to the same list, both unaware of the other",
            Self::GSingle => {
                "read skew: transactions go before each other in a circle, and one read is to blame"
            }
            Self::G2 => {
                "write skew or its like: transactions go before each other in a circle, and several reads are to blame"
            }
            Self::G0Realtime => "appends stand in another order than real time",
            Self::G1cRealtime => "a read shows what had not been called yet",
            Self::GSingleRealtime => "stale read: the order of the transactions is not that of real time",
            Self::G2Realtime => "several reads together show an order that is not that of real time",
        }
    }
}

impl fmt::Display for AnomalyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// What.
    pub kind: AnomalyKind,
    /// The transactions it shows in, each with its number: the place of its call among all, from 1. In a cycle each goes
    /// before the next, and the last before the first.
    pub transactions: Vec<(usize, Transaction)>,
    /// Why, in sentences that name the transactions by their numbers.
    pub reasons: Vec<String>,
}

/// All that is wrong with a history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Anomalies {
    /// The worst first; of each kind at most [`ANOMALIES_MAX`].
    pub found: Vec<Anomaly>,
    /// How many of each kind were met with. Of transactions that are all in circles with each other, one circle counts.
    pub counts: BTreeMap<AnomalyKind, usize>,
}

/// How many anomalies of a kind are told; the others are counted.
pub const ANOMALIES_MAX: usize = 4;

impl Anomalies {
    /// The kinds, the worst first.
    pub fn kinds(&self) -> impl Iterator<Item = AnomalyKind> {
        self.counts.keys().copied()
    }

    /// As json.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let counts: serde_json::Map<_, _> =
            self.counts.iter().map(|(kind, count)| (kind.name().to_owned(), (*count).into())).collect();
        json!({ "counts": counts, "found": self.found.iter().map(Anomaly::to_json).collect::<Vec<_>>() })
    }
}

impl Anomaly {
    /// As json.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let line = |line: u32| (line > 0).then_some(line);
        let transactions = self.transactions.iter().map(|(number, transaction)| {
            let operations = transaction.operations.iter().map(MicroOperation::to_datum);
            json!({
                "number": number,
                "process": transaction.process.to_json(),
                "value": operations.map(|operation| operation.to_json()).collect::<Vec<_>>(),
                "ending": transaction.ending.word(),
                "call": transaction.call,
                "return": transaction.ret,
                "call_line": line(transaction.called_at.line),
                "return_line": line(transaction.returned_at.line),
            })
        });
        json!({
            "kind": self.kind.name(),
            "transactions": transactions.collect::<Vec<_>>(),
            "reasons": self.reasons,
        })
    }
}

/// Several lines for people.
impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.kind.meaning())?;
        for (number, transaction) in &self.transactions {
            write!(f, "\n  T{number}: {transaction}")?;
        }
        for reason in &self.reasons {
            write!(f, "\n  {reason}")?;
        }
        Ok(())
    }
}

/// Several lines for people.
impl fmt::Display for Anomalies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts: Vec<_> = self.counts.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(f, "found: {}", counts.join(", "))?;
        for anomaly in &self.found {
            write!(f, "\n{anomaly}")?;
        }
        Ok(())
    }
}

/// Anomalies as they are found.
pub(super) struct Findings<'a> {
    history: &'a TransactionHistory,
    anomalies: Anomalies,
}

impl<'a> Findings<'a> {
    pub(super) fn new(history: &'a TransactionHistory) -> Self {
        Self { history, anomalies: Anomalies::default() }
    }

    /// Notes an anomaly; the reasons are only asked for if it will be told.
    pub(super) fn add(
        &mut self,
        kind: AnomalyKind,
        transactions: impl IntoIterator<Item = usize>,
        reasons: impl FnOnce() -> Vec<String>,
    ) {
        let count = self.anomalies.counts.entry(kind).or_default();
        *count += 1;
        if *count > ANOMALIES_MAX {
            return;
        }
        let all = self.history.transactions();
        let named = transactions.into_iter().filter_map(|at| Some((at + 1, all.get(at)?.clone())));
        self.anomalies.found.push(Anomaly { kind, transactions: named.collect(), reasons: reasons() });
    }

    /// All of them, the worst first; none if there are none.
    pub(super) fn finish(self) -> Option<Anomalies> {
        let Self { mut anomalies, .. } = self;
        anomalies.found.sort_by_key(|anomaly| anomaly.kind);
        (!anomalies.found.is_empty()).then_some(anomalies)
    }
}
