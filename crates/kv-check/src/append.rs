//! The checker of transactions over several keys: strict serialisability of appends to lists.
//!
//! # The problem
//!
//! The store promises that transactions took effect one after the other, each wholly at an instant between its call and
//! its return. To look for such an order is hard if reads show only the last value written. Lists are kinder: a read
//! shows every append before it in order, and so says of every other transaction whether it was before or after.
//!
//! # How it works
//!
//! 1. Each transaction must make sense by itself: what it reads of a key is what others left there, the same each time,
//!    and behind it what it has appended itself.
//! 2. All reads of a key must be beginnings of the longest. This gives the key's list, as far as it is known. Each element
//!    must be of a transaction that did not fail, those of one transaction must stand in their order, and nobody else may
//!    read only some of them.
//! 3. From the lists follows who was before whom. *ww*: one appended, and the other behind it. *wr*: one appended what the
//!    other read. *rw*: one did not read what the other appended. What stands in no read was appended behind all that
//!    does. *Real time*: one returned before the other was called.
//! 4. If these lead in a circle, there is no order. Circles are found as strongly connected components and told by a
//!    short one, named by the edges in it.
//!
//! # Why it finds everything, and nothing that is not
//!
//! Each edge holds in every order that explains the history, so a circle excludes all of them. If there is no circle, put
//! the transactions into any order that the edges allow. A key's listed elements are then appended in the order of the
//! list, because of ww, and the elements of one transaction stand together there, for otherwise there would be a circle of
//! ww. Whoever reads the first *n* of them comes behind the writer of the *n*th, because of wr, and before that of the next,
//! because of rw. If it reads all of them it is before all whose elements are not listed, because of rw again; these come
//! behind the listed ones, because of ww, and how they are ordered nobody sees. So every read shows what it says. Open
//! transactions of which nothing was read are left out: they may never have happened.
//!
//! Deciding takes time in proportion to the length of the reads, the number of edges, and a logarithm: there is no budget,
//! and no verdict but a certain one.
//!
//! # What it does not do
//!
//! It judges no weaker promise, such as snapshot isolation: the names of the anomalies say which ones are broken. It takes
//! every transaction that committed at its word, and learns nothing from reads of those that did not. If a key's reads
//! contradict each other, no order is taken from that key, so that further circles through it are not told. Of
//! transactions that are all in circles with each other by the same kinds of edges, one circle is told. Lost updates are told if both transactions
//! read; one that appended blindly between a read and an append is a [G-single](AnomalyKind::GSingle).

mod access;
mod anomaly;
mod components;
mod cycle;
mod graph;
mod order;
mod tell;

pub use anomaly::{ANOMALIES_MAX, Anomalies, Anomaly, AnomalyKind};

use crate::transaction::{Ending, MicroOperation, TransactionHistory};
use anomaly::Findings;
use graph::Graph;
use order::Order;

/// The name of what is checked.
pub(crate) const NAME: &str = "list-append";

/// What is to be said of a history of transactions. It is always known: see the module `append`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransactionVerdict {
    /// There is an order that explains every read and keeps to real time.
    Valid,
    /// There is none.
    Violation(Box<Anomalies>),
    /// There is nothing to explain: no transaction with a read committed, or none with an append.
    NotExercised {
        /// `read` or `write`.
        missing: &'static str,
    },
}

impl TransactionVerdict {
    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::Violation(_) => "VIOLATION",
            Self::NotExercised { .. } => "NOT EXERCISED",
        }
    }
}

/// What was checked, and the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionReport {
    /// The verdict.
    pub verdict: TransactionVerdict,
    /// How many transactions committed.
    pub committed: usize,
    /// How many failed for certain.
    pub failed: usize,
    /// How many are open.
    pub open: usize,
    /// How many keys there are.
    pub keys: usize,
}

/// Checks that a history of transactions is strictly serialisable.
///
/// ```
/// use kv_check::{MicroOperation, Transaction, TransactionHistory, check_transactions};
///
/// let write = Transaction::open(0, [MicroOperation::append("x", 1)], 1).committed(2);
/// let read = Transaction::open(1, [MicroOperation::read_as("x", [])], 3).committed(4);
/// let history = TransactionHistory::from_transactions(vec![write, read])?;
/// assert_eq!(check_transactions(&history).verdict.word(), "VIOLATION");
/// # Ok::<(), kv_check::HistoryError>(())
/// ```
#[must_use]
pub fn check_transactions(history: &TransactionHistory) -> TransactionReport {
    let mut findings = Findings::new(history);
    let keys = access::keys(history, &mut findings);
    let orders: Vec<_> = keys.into_iter().map(|key| Order::new(key, &mut findings)).collect();
    let lost: Vec<_> = orders.iter().flat_map(|order| order.lost.iter().copied()).collect();
    let graph = Graph::new(history, &orders);
    for cycle in cycle::cycles(&graph, &lost) {
        let members: Vec<_> = cycle.iter().map(|step| step.from).collect();
        findings.add(cycle::kind(&cycle), members, || tell::sentences(&cycle, history, &orders));
    }
    let verdict = match (findings.finish(), missing(history, &graph::that_count(history, &orders))) {
        (Some(anomalies), _) => TransactionVerdict::Violation(Box::new(anomalies)),
        (None, Some(missing)) => TransactionVerdict::NotExercised { missing },
        (None, None) => TransactionVerdict::Valid,
    };
    TransactionReport {
        verdict,
        committed: history.count(Ending::Committed),
        failed: history.count(Ending::Failed),
        open: history.count(Ending::Open),
        keys: orders.len(),
    }
}

/// What no transaction did that took effect, and would have to be done for the verdict to mean anything.
fn missing(history: &TransactionHistory, counts: &[bool]) -> Option<&'static str> {
    let operations = || {
        let all = history.transactions().iter().zip(counts).filter(|(_, counts)| **counts);
        all.flat_map(|(transaction, _)| &transaction.operations)
    };
    let is_read =
        |operation: &MicroOperation| matches!(operation, MicroOperation::Read { list: Some(_), .. });
    let is_append = |operation: &MicroOperation| matches!(operation, MicroOperation::Append { .. });
    match (operations().any(is_read), operations().any(is_append)) {
        (false, _) => Some("read"),
        (true, false) => Some("write"),
        (true, true) => None,
    }
}
