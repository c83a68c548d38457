//! The verdict on a run, from what was recorded of it.

mod expects;
mod times;

use std::collections::BTreeMap;

use kv_fault::Drill;

use crate::book::{OPERATIONS_MAX, Seen};
use crate::checking::{Finding, Word};
use crate::record::{Fault, Record};

pub(crate) use times::times;

/// What a verdict is made from.
pub(crate) struct Evidence<'a> {
    /// What was to be played.
    pub(crate) drill: &'a Drill,
    /// What clients did.
    pub(crate) seen: &'a [Seen],
    /// What the checkers say: of the workload, and of the probes if they had anything to do.
    pub(crate) findings: &'a [Finding],
    /// What is wrong with the cluster itself, in sentences: nodes that died, writes that fail when all is mended.
    pub(crate) wrongs: &'a [String],
    /// When something was mended for the last time.
    pub(crate) mended_ms: Option<f64>,
    /// When clients ended.
    pub(crate) ended_ms: f64,
}

/// Fills in what became of the expectations, and the verdict with its reasons.
pub(crate) fn judge(evidence: &Evidence<'_>, record: &mut Record) {
    for fault in &mut record.faults {
        fault.concurrent = concurrent(fault, evidence.seen);
    }
    record.times = times(evidence, record);
    let judged: Vec<_> =
        evidence.drill.expects.iter().map(|it| expects::judge(it, evidence, record)).collect();
    record.expectations = judged;
    let violations = violations(evidence, record);
    let idle = not_exercised(evidence, record);
    let unknown = unknown(evidence, record);
    let (word, reasons) = match (violations.is_empty(), idle.is_empty(), unknown.is_empty()) {
        (false, _, _) => ("VIOLATION", violations),
        (true, false, _) => ("NOT EXERCISED", idle),
        (true, true, false) => ("UNKNOWN", unknown),
        (true, true, true) => ("VALID", Vec::new()),
    };
    word.clone_into(&mut record.verdict);
    record.reasons = reasons;
}

/// How many operations of the workload's clients were under way while a fault was in force: probes always are.
fn concurrent(fault: &Fault, seen: &[Seen]) -> u64 {
    let is_during = |seen: &&Seen| {
        let operation = &seen.operation;
        seen.of_workload
            && operation.call_ms < fault.until_ms
            && operation.return_ms.is_none_or(|ret| ret > fault.from_ms)
    };
    u64::try_from(seen.iter().filter(is_during).count()).unwrap_or(u64::MAX)
}

fn violations(evidence: &Evidence<'_>, record: &Record) -> Vec<String> {
    let mut reasons = Vec::new();
    for finding in evidence.findings {
        if matches!(finding.word, Word::Violation(_)) {
            reasons.push(format!("what clients saw contradicts the model {}", finding.model));
        }
    }
    for (expectation, expect) in record.expectations.iter().zip(&evidence.drill.expects) {
        if expectation.met == Some(false) && !expect.is_of_exercise() {
            reasons.push(format!("expected {}: {}", expectation.text, expectation.measured));
        }
    }
    reasons.extend(evidence.wrongs.iter().cloned());
    if record.converged == Some(false) {
        reasons.push("replicas of a shard have different states at the same log index".to_owned());
    }
    reasons
}

fn not_exercised(evidence: &Evidence<'_>, record: &Record) -> Vec<String> {
    let mut reasons = Vec::new();
    for step in record.steps.iter().filter(|step| step.at_ms.is_none()) {
        reasons.push(format!("step {} ({}) did not fire: {}", step.number, step.text, step.error));
    }
    reasons.extend(by_name(&record.faults).into_iter().filter_map(|(name, fault)| idle(name, fault)));
    for (expectation, expect) in record.expectations.iter().zip(&evidence.drill.expects) {
        if expectation.met == Some(false) && expect.is_of_exercise() {
            reasons.push(format!("expected {}: {}", expectation.text, expectation.measured));
        }
    }
    for finding in evidence.findings {
        if let Word::NotExercised(missing) = &finding.word {
            reasons.push(format!("no {missing} succeeded for the model {}", finding.model));
        }
    }
    reasons
}

/// Of the firings of one step, which have one name, the one that did most: a short one may well miss everything, but what
/// one did while nobody worked, and another did not while somebody did, is nothing.
fn by_name(faults: &[Fault]) -> BTreeMap<&str, &Fault> {
    let did = |fault: &Fault| {
        let acted = fault.plane == "process" || fault.acted > 0;
        (acted && fault.concurrent > 0, fault.acted, fault.matched, fault.concurrent)
    };
    let mut all: BTreeMap<&str, &Fault> = BTreeMap::new();
    for fault in faults {
        let most = all.entry(&fault.name).or_insert(fault);
        if did(fault) > did(most) {
            *most = fault;
        }
    }
    all
}

/// Why a fault shows nothing, if that is so.
fn idle(name: &str, fault: &Fault) -> Option<String> {
    match fault.plane.as_str() {
        "message" if fault.matched == 0 => Some(format!("rule {name} matched no message")),
        "message" if fault.acted == 0 => {
            Some(format!("rule {name} changed nothing about the {} messages that it matched", fault.matched))
        }
        "wire" if fault.matched == 0 => Some(format!("rule {name} found no connection to do it to")),
        _ if fault.concurrent == 0 => Some(format!("no operation was under way during {name}")),
        _ => None,
    }
}

fn unknown(evidence: &Evidence<'_>, record: &Record) -> Vec<String> {
    let mut reasons = Vec::new();
    for finding in evidence.findings {
        if let Word::Unknown(why) = &finding.word {
            reasons.push(format!("the checker of {} gave up: {why}", finding.model));
        }
    }
    for expectation in record.expectations.iter().filter(|expectation| expectation.met.is_none()) {
        reasons.push(format!("nobody can say whether {}: {}", expectation.text, expectation.measured));
    }
    if evidence.seen.iter().filter(|seen| seen.of_workload).count() >= OPERATIONS_MAX {
        reasons.push(format!(
            "the clients rested after {OPERATIONS_MAX} operations: fewer, or slower ones, are needed"
        ));
    }
    if record.converged.is_none() {
        reasons
            .push("nobody can say whether the replicas agree: they did not come to one log index".to_owned());
    }
    reasons
}

#[cfg(test)]
mod tests;
