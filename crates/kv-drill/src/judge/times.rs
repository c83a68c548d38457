//! How long things took.

use std::collections::BTreeMap;

use super::Evidence;
use crate::book::Seen;
use crate::record::{Record, Times};

/// How long things took.
pub(crate) fn times(evidence: &Evidence<'_>, record: &Record) -> Times {
    let Some(first) = first_fault(record) else { return Times::default() };
    let errors = evidence.seen.iter().filter(|seen| !seen.probe && seen.operation.outcome != "ok");
    let errors = errors.filter_map(|seen| seen.operation.return_ms).filter(|ret| *ret >= first);
    let new = new_leaders(record, first).map(|(at, _)| at);
    let writes = evidence.seen.iter().filter(|seen| is_good_write(seen) && seen.operation.call_ms >= first);
    Times {
        first_error_ms: smallest(errors).map(|at| at - first),
        new_leader_ms: smallest(new).map(|at| at - first),
        first_success_ms: smallest(writes.filter_map(|seen| seen.operation.return_ms)).map(|at| at - first),
        recovery_ms: evidence.mended_ms.and_then(|mended| recovery(evidence, mended)),
    }
}

/// When the first fault came into force.
pub(super) fn first_fault(record: &Record) -> Option<f64> {
    smallest(record.faults.iter().map(|fault| fault.from_ms))
}

/// When which shard got another leader than it had at a time.
pub(super) fn new_leaders(record: &Record, since: f64) -> impl Iterator<Item = (f64, u32)> + '_ {
    let mut led: BTreeMap<u32, u64> = BTreeMap::new();
    for change in record.leadership.iter().filter(|change| change.at_ms <= since) {
        led.extend(change.leader.map(|leader| (change.shard, leader)));
    }
    record.leadership.iter().filter(move |change| change.at_ms > since).filter_map(move |change| {
        let before = led.get(&change.shard)?;
        (change.leader? != *before).then_some((change.at_ms, change.shard))
    })
}

/// From the last mending until each client has written something again.
fn recovery(evidence: &Evidence<'_>, mended: f64) -> Option<f64> {
    let mut first: BTreeMap<u32, Option<f64>> = BTreeMap::new();
    for seen in evidence.seen.iter().filter(|seen| !seen.probe && seen.operation.write) {
        let entry = first.entry(seen.operation.client).or_default();
        if entry.is_none() && is_good_write(seen) && seen.operation.call_ms >= mended {
            *entry = seen.operation.return_ms;
        }
    }
    let all: Option<Vec<f64>> = first.into_values().collect();
    all?.into_iter().reduce(f64::max).map(|last| last - mended)
}

/// A write that went wherever the leader is, and succeeded.
pub(super) fn is_good_write(seen: &Seen) -> bool {
    !seen.probe && seen.operation.write && seen.operation.outcome == "ok"
}

pub(super) fn smallest(times: impl Iterator<Item = f64>) -> Option<f64> {
    times.reduce(f64::min)
}
