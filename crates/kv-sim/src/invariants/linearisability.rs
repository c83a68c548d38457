//! Linearisability: there is an order of all calls, true to real time, that explains every answer the clients got.

use kv_check::{Budget, History, ModelKind, Operation, Verdict, check};

use crate::violation::Violation;

/// The invariant's name.
pub(crate) const NAME: &str = "linearisability";

/// Steps of one check. A history whose order by revision explains it needs one an operation.
const STEPS: u64 = 2_000_000;

/// What the check came to, besides a violation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checked {
    /// There is such an order.
    Linearisable,
    /// The steps did not suffice to tell.
    Undecided,
}

/// Whether the calls of all clients have such an order.
pub(crate) fn holds(calls: Vec<Operation>) -> Result<Checked, Violation> {
    let failed = |detail: String| Violation::new(NAME, detail);
    let history = History::from_operations(calls).map_err(|cause| failed(cause.to_string()))?;
    let report =
        check(&history, ModelKind::Kv, &Budget::steps(STEPS)).map_err(|cause| failed(cause.to_string()))?;
    match report.verdict {
        Verdict::Violation(example) => Err(failed(format!("{example}"))),
        Verdict::Unknown { .. } => Ok(Checked::Undecided),
        Verdict::Valid | Verdict::NotExercised { .. } => Ok(Checked::Linearisable),
    }
}

#[cfg(test)]
mod tests {
    use kv_check::Function;

    use super::*;

    #[test]
    fn a_stale_read_is_refused_and_an_unknown_write_may_explain_a_value() {
        let write = |value: &str, call, ret| {
            Operation::open(1i64, Function::Write, value, call).on("k").returned(ret, "ok")
        };
        let read = |value: &str, call, ret| {
            Operation::open(2i64, Function::Read, kv_check::Datum::Nil, call).on("k").returned(ret, value)
        };
        let stale = vec![write("a", 1, 2), write("b", 3, 4), read("a", 5, 6)];
        assert_eq!(holds(stale).unwrap_err().invariant, NAME);
        let unknown = Operation::open(3i64, Function::Write, "b", 3).on("k");
        assert_eq!(holds(vec![write("a", 1, 2), unknown, read("b", 5, 6)]), Ok(Checked::Linearisable));
    }
}
