//! The order that the servers claim, believed only if it holds.
//!
//! A shard gives every operation the revision it was executed at. Sorted by it, the operations are one candidate for an
//! order; whether it explains every result and keeps to real time is seen in one pass. If it does, the history is
//! linearisable, whoever made the revisions up. If it does not, nothing follows: the revisions may be wrong, not the
//! results.

use crate::model::Model;
use crate::search::Timed;

/// The order by revision, if it explains everything.
pub(crate) fn order_by_revision<M: Model>(
    model: &M,
    ops: &[Timed<M::Op>],
    revisions: &[Option<u64>],
) -> Option<Vec<usize>> {
    let mut order = Vec::with_capacity(ops.len());
    for (number, (timed, revision)) in ops.iter().zip(revisions).enumerate() {
        match (timed.ret, revision) {
            // A read at a revision sees what was written at it.
            (_, Some(revision)) => {
                order.push((*revision, !model.nature(&timed.op).changes(), timed.call, number));
            }
            // An open operation may never have taken effect.
            (None, None) => {}
            (Some(_), None) => return None,
        }
    }
    order.sort_unstable();
    let order: Vec<_> = order.into_iter().map(|(_, _, _, number)| number).collect();
    explains(model, ops, &order).then_some(order)
}

/// Whether the order places every operation that returned, none twice, gives every result and keeps to real time.
pub(crate) fn explains<M: Model>(model: &M, ops: &[Timed<M::Op>], order: &[usize]) -> bool {
    let mut placed = vec![false; ops.len()];
    let mut state = model.initial();
    let mut last_call = 0;
    for number in order {
        let (Some(timed), Some(placed)) = (ops.get(*number), placed.get_mut(*number)) else { return false };
        // Something before it in the order was called after it had returned.
        if *placed || timed.ret.is_some_and(|ret| ret < last_call) {
            return false;
        }
        let Some(after) = model.step(&state, &timed.op) else { return false };
        *placed = true;
        state = after;
        last_call = last_call.max(timed.call);
    }
    ops.iter().zip(placed).all(|(timed, placed)| placed || timed.ret.is_none())
}
