//! Strict serialisability: there is an order of all transactions, true to real time, that explains everything they read. Of
//! lists, `kv-check` looks for it; of what has a sum or a rule, whoever committed a read of all of it has seen it kept.

use kv_check::{Transaction, TransactionHistory, TransactionVerdict, check_transactions};

use crate::violation::{Holds, Violation};

/// The invariant's name.
pub(crate) const NAME: &str = "strict-serialisability";

/// Whether the transactions of all clients have such an order.
pub(crate) fn holds(transactions: Vec<Transaction>) -> Holds {
    let failed = |detail: String| Violation::new(NAME, detail);
    let history =
        TransactionHistory::from_transactions(transactions).map_err(|cause| failed(cause.to_string()))?;
    match check_transactions(&history).verdict {
        TransactionVerdict::Violation(anomalies) => Err(failed(anomalies.to_string())),
        TransactionVerdict::Valid | TransactionVerdict::NotExercised { .. } => Ok(()),
    }
}
