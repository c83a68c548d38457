//! Circles in sentences.

use super::cycle::Step;
use super::graph::{Kind, Why};
use super::order::Order;
use crate::transaction::{MicroOperation, Named, Shown, TransactionHistory};

/// Why each transaction of a circle was before the next.
pub(super) fn sentences(cycle: &[Step], history: &TransactionHistory, orders: &[Order<'_>]) -> Vec<String> {
    let told = cycle.iter().map(|step| {
        let (from, to) = (step.from + 1, step.to + 1);
        let because = because(step, history, orders)?;
        Some(format!("T{from} was before T{to} because {because}"))
    });
    told.flatten().collect()
}

fn because(step: &Step, history: &TransactionHistory, orders: &[Order<'_>]) -> Option<String> {
    let (from, to) = (step.from + 1, step.to + 1);
    let (key, element, before) = match step.why {
        Why::Nothing => return Some(format!("T{from} returned before T{to} was called")),
        Why::Listed { key, at } => {
            let order = orders.get(key)?;
            let before = at.checked_sub(1).and_then(|at| order.list.get(at));
            (order, *order.list.get(at)?, before)
        }
        Why::Unlisted { key, element } => {
            let order = orders.get(key)?;
            (order, element, order.list.last())
        }
    };
    let name = Named(key.key.name);
    let is_listed = matches!(step.why, Why::Listed { .. });
    match (step.kind, before) {
        (Kind::Ww, Some(before)) if is_listed => {
            Some(format!("T{to} appended {element} to {name} behind T{from}'s {before}"))
        }
        (Kind::Ww, Some(before)) => Some(format!(
            "T{to}'s append of {element} to {name} stands in no read, but T{from}'s of {before} does"
        )),
        (Kind::Wr, _) => Some(format!("T{to} read T{from}'s append of {element} to {name}")),
        (Kind::Rw, _) => {
            let list = read_by(step.from, key, history)?;
            Some(format!("T{from} read {name} as {}, without T{to}'s append of {element}", Shown(list)))
        }
        (Kind::Ww | Kind::Realtime | Kind::Rest, _) => None,
    }
}

/// What a transaction read of a key.
fn read_by<'a>(txn: usize, order: &Order<'_>, history: &'a TransactionHistory) -> Option<&'a [i64]> {
    history.transactions().get(txn)?.operations.iter().find_map(|operation| match operation {
        MicroOperation::Read { key, list: Some(list) } if key == order.key.name => Some(list.as_ref()),
        MicroOperation::Read { .. } | MicroOperation::Append { .. } => None,
    })
}
