//! Reads a step.

use std::time::Duration;

use super::cluster::Cluster;
use super::error::{Flaw, place};
use super::rule_text;
use super::step::{Condition, Deed, Process, Step, Target, Trigger};
use super::swizzle;
use super::table::{self, Reader, Value};
use crate::RuleName;
use crate::limits::EVERY_MIN;

const FIELDS: [&str; 13] = [
    "at",
    "every",
    "from",
    "until",
    "when",
    "partition",
    "rule",
    "process",
    "heal",
    "swizzle",
    "clients",
    "only",
    "name",
];

/// A step, and where what is checked later stands.
pub(super) struct Placed {
    pub(super) step: Step,
    /// Where its trigger stands.
    pub(super) trigger_at: usize,
    /// Where its deed stands.
    pub(super) deed_at: usize,
    /// Where the name of a rule stands.
    pub(super) name_at: usize,
}

/// What steps are read against.
pub(super) struct Setting<'a> {
    pub(super) text: &'a str,
    pub(super) cluster: &'a Cluster,
    pub(super) duration: Duration,
    pub(super) seed: u64,
}

/// A step of the file: one, or all that a swizzle stands for.
pub(super) fn read(number: usize, value: &Value<'_>, setting: &Setting<'_>) -> Result<Vec<Placed>, Flaw> {
    let reader = Reader::of(value, "a step", &FIELDS)?;
    let (when, trigger_value) = reader.one_of(&["at", "every", "when"])?;
    let (what, deed_value) = reader.one_of(&["partition", "rule", "process", "heal", "swizzle"])?;
    reader.only_beside("from", when == "every", "`every`")?;
    reader.only_beside("until", when == "every", "`every`")?;
    reader.only_beside("clients", what == "partition", "`partition`")?;
    reader.only_beside("name", what == "partition", "`partition`")?;
    reader.only_beside("only", what == "heal", "`heal`")?;
    let trigger = match when {
        "at" => Trigger::At(moment(trigger_value, setting)?),
        "every" => every(&reader, trigger_value, setting)?,
        _ => Trigger::When(condition(trigger_value, setting.cluster)?),
    };
    let (trigger_at, deed_at) = (trigger_value.span().start, deed_value.span().start);
    if what == "swizzle" {
        let steps = swizzle::read(number, deed_value, &trigger, setting)?;
        let placed = |step| Placed { step, trigger_at, deed_at, name_at: deed_at };
        return Ok(steps.into_iter().map(placed).collect());
    }
    let (deed, name_at) = deed(what, deed_value, number, &reader, setting.cluster)?;
    let line = place(setting.text, reader.at()).0;
    Ok(vec![Placed { step: Step { number, line, trigger, deed }, trigger_at, deed_at, name_at }])
}

fn deed(
    what: &str,
    value: &Value<'_>,
    number: usize,
    reader: &Reader<'_, '_>,
    cluster: &Cluster,
) -> Result<(Deed, usize), Flaw> {
    let at = value.span().start;
    match what {
        "partition" => {
            let partition = table::parsed(value)?;
            cluster.check_partition(&partition).map_err(|sentence| Flaw::new(at, sentence))?;
            let clients = reader.read("clients", table::boolean)?.unwrap_or(false);
            let (name, name_at) = match reader.get("name") {
                Some(name) => (table::parsed(name)?, name.span().start),
                None => (numbered("partition", number), at),
            };
            Ok((Deed::Partition { name, partition, clients }, name_at))
        }
        "rule" => {
            let named = rule_text::read(value, cluster)?;
            Ok((Deed::Rule(named.draft), named.name_at))
        }
        "process" => {
            let process: Process = table::parsed(value)?;
            if let Target::Who(who) = process.target {
                cluster.check_who(who).map_err(|sentence| Flaw::new(at, sentence))?;
            }
            Ok((Deed::Process(process), at))
        }
        _ => {
            let held = table::parsed(value)?;
            let only = reader.read("only", table::parsed)?;
            let only_at = reader.get("only").map_or(at, |only| only.span().start);
            Ok((Deed::Heal { held, only }, only_at))
        }
    }
}

/// The name of a rule that was given none.
pub(super) fn numbered(word: &str, number: usize) -> RuleName {
    format!("{word}-{number}").parse().expect("a short word and a number make a name")
}

fn moment(value: &Value<'_>, setting: &Setting<'_>) -> Result<Duration, Flaw> {
    let at = table::duration(value, Duration::ZERO..=Duration::MAX)?;
    if at > setting.duration {
        let duration = crate::quantity::ShowDuration(setting.duration);
        let sentence = format!("this is after the end of the workload, which lasts {duration}");
        return Err(Flaw::new(value.span().start, sentence));
    }
    Ok(at)
}

fn every(reader: &Reader<'_, '_>, value: &Value<'_>, setting: &Setting<'_>) -> Result<Trigger, Flaw> {
    let interval = moment(value, setting)?;
    if interval < EVERY_MIN {
        return Err(Flaw::new(value.span().start, "an interval of at least 10ms is expected"));
    }
    let from = reader.read("from", |value| moment(value, setting))?.unwrap_or(interval);
    let until = reader.read("until", |value| moment(value, setting))?.unwrap_or(setting.duration);
    if from >= until {
        return Err(Flaw::new(value.span().start, "it ends before it fires for the first time"));
    }
    Ok(Trigger::Every { interval, from, until })
}

fn condition(value: &Value<'_>, cluster: &Cluster) -> Result<Condition, Flaw> {
    let condition = table::parsed(value)?;
    match &condition {
        Condition::LeaderChanged(shard) | Condition::TermAbove { shard, .. } => {
            cluster.check_shard(*shard).map_err(|sentence| Flaw::new(value.span().start, sentence))?;
        }
        // Which rules there are is known when all steps are read.
        Condition::Matched { .. } => {}
    }
    Ok(condition)
}
