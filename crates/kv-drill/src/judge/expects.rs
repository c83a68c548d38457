//! What became of what was expected.

use std::collections::{BTreeMap, BTreeSet};

use kv_fault::{Expect, Within};

use super::Evidence;
use super::times::{first_fault, is_good_write, new_leaders, smallest};
use crate::book::Seen;
use crate::record::{Expectation, Record, StepFired};

/// Whether it was met, if that can be said, and what was measured.
type Judged = (Option<bool>, String);

/// What became of one.
pub(super) fn judge(expect: &Expect, evidence: &Evidence<'_>, record: &Record) -> Expectation {
    let ms = |within: &Within| {
        let election = std::time::Duration::from_secs_f64(record.drill.election_ms / 1000.0);
        within.duration(election).as_secs_f64() * 1000.0
    };
    let (met, measured) = match expect {
        Expect::MinorityRefusesWithin(within) => {
            all(cuts(record).into_iter().map(|cut| refuses(&cut, ms(within), evidence)))
        }
        Expect::MajorityAvailableWithin(within) => majority(ms(within), evidence, record),
        Expect::AvailableAfterHealWithin(within) => match evidence.mended_ms {
            Some(mended) => available(evidence, mended, ms(within), f64::INFINITY),
            None => (None, "nothing was mended".to_owned()),
        },
        Expect::LeaderChangeWithin(within) => leader_change(ms(within), record),
        Expect::NoLeaderChange => no_leader_change(record),
        Expect::MatchedAtLeast { rule, count } => {
            let of_rule = record.faults.iter().filter(|fault| fault.name == rule.as_str());
            let matched: u64 = of_rule.map(|fault| fault.matched).sum();
            (Some(matched >= *count), format!("{matched} messages"))
        }
    };
    Expectation { text: expect.to_string(), met, measured }
}

/// A partition while it was there.
struct Cut {
    from: f64,
    until: f64,
    /// Whether more than half of the nodes reach each other.
    has_majority: bool,
}

fn cuts(record: &Record) -> Vec<Cut> {
    let partitions = record.steps.iter().filter(|step| !step.sides.is_empty());
    let cut = |step: &StepFired| {
        let from = step.at_ms?;
        // The fault of the step is the first that came into force at its time or after it.
        let later = record.faults.iter().filter(|fault| fault.from_ms >= from && fault.plane == "message");
        let fault = later.reduce(|a, b| if b.from_ms < a.from_ms { b } else { a })?;
        let nodes: BTreeSet<u64> = step.sides.iter().flatten().copied().collect();
        let has_majority = step.sides.first().is_some_and(|side| side.len() * 2 > nodes.len());
        Some(Cut { from: fault.from_ms, until: fault.until_ms, has_majority })
    };
    partitions.filter_map(cut).collect()
}

/// One judgement of several: unmet if one is, not known if one is not known.
fn all(each: impl Iterator<Item = Judged>) -> Judged {
    let mut all: Option<Judged> = None;
    for next in each {
        let is_worse = |before: &Judged| match (before.0, next.0) {
            (Some(false), _) => false,
            (_, Some(false)) | (Some(true), None) => true,
            (None | Some(true), _) => false,
        };
        if all.as_ref().is_none_or(is_worse) {
            all = Some(next);
        }
    }
    all.unwrap_or_else(|| (None, "there was none of it".to_owned()))
}

/// Nodes that are cut off accept no write any more. One that nobody reached has refused nothing.
fn refuses(cut: &Cut, within: f64, evidence: &Evidence<'_>) -> Judged {
    let from = cut.from + within;
    let is_asked = |seen: &&Seen| {
        let operation = &seen.operation;
        operation.minority
            && operation.write
            && operation.call_ms >= cut.from
            && operation.call_ms < cut.until
    };
    let (mut refused, mut last) = (0, None);
    for seen in evidence.seen.iter().filter(is_asked) {
        let returned = seen.operation.return_ms.unwrap_or(f64::INFINITY);
        if seen.operation.outcome == "ok" && returned <= cut.until {
            last = Some(last.map_or(returned, |last: f64| last.max(returned)));
        }
        let is_refused = seen.answered && seen.operation.outcome != "ok";
        if is_refused && (from..=cut.until).contains(&returned) {
            refused += 1;
        }
    }
    match last.map(|last| last - cut.from) {
        Some(last) if last > within => {
            (Some(false), format!("a write was accepted {last:.0} ms after the cut"))
        }
        _ if refused == 0 => {
            (None, format!("no write was refused there {within:.0} ms after the cut or later"))
        }
        Some(last) => {
            (Some(true), format!("the last was accepted after {last:.0} ms, then {refused} were refused"))
        }
        None => (Some(true), format!("none was accepted; {refused} were refused after {within:.0} ms")),
    }
}

/// Those that are not cut off go on: after each partition, or after the first fault if there is none.
fn majority(within: f64, evidence: &Evidence<'_>, record: &Record) -> Judged {
    let cuts = cuts(record);
    if cuts.is_empty() {
        return match first_fault(record) {
            Some(first) => available(evidence, first, within, f64::INFINITY),
            None => (None, "nothing was broken".to_owned()),
        };
    }
    all(cuts.into_iter().map(|cut| match cut.has_majority {
        true => available(evidence, cut.from, within, cut.until),
        false => (None, "no side is a majority".to_owned()),
    }))
}

/// Every shard takes the workload's writes again that were called at `from` or later: those of probes may pass where these do
/// not. What was seen after `until` says nothing.
fn available(evidence: &Evidence<'_>, from: f64, within: f64, until: f64) -> Judged {
    let mut first: BTreeMap<u32, Option<f64>> = BTreeMap::new();
    for seen in evidence.seen.iter().filter(|seen| seen.of_workload && seen.operation.write) {
        let operation = &seen.operation;
        for shard in &seen.shards {
            let entry = first.entry(*shard).or_default();
            let returned = operation.return_ms.filter(|ret| *ret <= until);
            if is_good_write(seen) && operation.call_ms >= from && returned.is_some() {
                *entry = smallest(entry.iter().copied().chain(returned));
            }
        }
    }
    let end = until.min(evidence.ended_ms);
    let silent: Vec<_> =
        first.iter().filter(|(_, at)| at.is_none()).map(|(shard, _)| format!("s{shard}")).collect();
    let slowest = first.values().flatten().map(|at| at - from).reduce(f64::max);
    match slowest {
        _ if first.is_empty() => (None, "there were no writes".to_owned()),
        _ if !silent.is_empty() && end - from < within => (
            None,
            format!("it was watched for {:.0} ms only; no write yet on {}", end - from, silent.join(", ")),
        ),
        _ if !silent.is_empty() => {
            (Some(false), format!("no write succeeded within {:.0} ms on {}", end - from, silent.join(", ")))
        }
        Some(slowest) => (Some(slowest <= within), format!("the slowest shard took {slowest:.0} ms")),
        None => (None, "there were no writes".to_owned()),
    }
}

fn leader_change(within: f64, record: &Record) -> Judged {
    let Some(first) = first_fault(record) else { return (None, "nothing was broken".to_owned()) };
    let change = new_leaders(record, first).reduce(|a, b| if b.0 < a.0 { b } else { a });
    match change.map(|(at, shard)| (at - first, shard)) {
        Some((after, shard)) => {
            (Some(after <= within), format!("s{shard} had another leader after {after:.0} ms"))
        }
        None => (Some(false), "nobody else led".to_owned()),
    }
}

fn no_leader_change(record: &Record) -> Judged {
    match new_leaders(record, 0.0).next() {
        Some((at, shard)) => (Some(false), format!("s{shard} had another leader at {at:.0} ms")),
        None => (Some(true), "nobody else led".to_owned()),
    }
}
