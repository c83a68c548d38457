//! What the steps of a drill owe each other.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::Flaw;
use super::expect::{Expect, PlacedExpect};
use super::step::{Condition, Deed, Process, Target, Trigger, Verb};
use super::step_text::Placed;
use crate::{Action, RuleName};

/// Checks steps against those before and behind them, and expectations against steps.
pub(super) fn check(steps: &[Placed], expects: &[PlacedExpect]) -> Result<(), Flaw> {
    check_order(steps)?;
    // Whether each rule is about messages, by its name.
    let mut loaded: BTreeMap<&RuleName, bool> = BTreeMap::new();
    for (nth, placed) in steps.iter().enumerate() {
        if let Trigger::When(Condition::Matched { rule, .. }) = &placed.step.trigger {
            check_matched(rule, &loaded, placed.trigger_at)?;
        }
        match &placed.step.deed {
            Deed::Partition { name, .. } => load(name, true, &mut loaded, placed)?,
            Deed::Rule(draft) => {
                let is_of_messages = !matches!(draft.rule.action, Action::Wire(_));
                load(&draft.rule.name, is_of_messages, &mut loaded, placed)?;
            }
            Deed::Process(process) => check_process(*process, steps.iter().take(nth), placed)?,
            Deed::Heal { only: Some(name), .. } if !loaded.contains_key(name) => {
                return Err(unknown(name, placed.name_at));
            }
            Deed::Heal { .. } if loaded.is_empty() => {
                return Err(Flaw::new(placed.deed_at, "nothing is in force yet that could be healed"));
            }
            Deed::Heal { .. } => {}
        }
        check_mended(placed, steps.iter().skip(nth + 1))?;
    }
    check_expects(expects, &loaded, steps)
}

fn load<'a>(
    name: &'a RuleName,
    is_of_messages: bool,
    loaded: &mut BTreeMap<&'a RuleName, bool>,
    placed: &Placed,
) -> Result<(), Flaw> {
    match loaded.insert(name, is_of_messages) {
        None => Ok(()),
        Some(_) => Err(Flaw::new(placed.name_at, format!("an earlier step loads a rule `{name}` already"))),
    }
}

fn unknown(name: &RuleName, at: usize) -> Flaw {
    Flaw::new(at, format!("no earlier step loads a rule `{name}`"))
}

/// Only rules about messages match any.
fn check_matched(name: &RuleName, loaded: &BTreeMap<&RuleName, bool>, at: usize) -> Result<(), Flaw> {
    match loaded.get(name) {
        Some(true) => Ok(()),
        Some(false) => Err(Flaw::new(at, format!("rule `{name}` works below messages, so it matches none"))),
        None => Err(unknown(name, at)),
    }
}

/// Steps with a time stand in the order of time, so that *earlier* means the same in the file and in the drill.
fn check_order(steps: &[Placed]) -> Result<(), Flaw> {
    let mut last = (0, Duration::ZERO);
    for placed in steps {
        let Trigger::At(at) = placed.step.trigger else { continue };
        // What a swizzle stands for is in order by itself, and lasts while other steps fire.
        if placed.step.number == last.0 {
            continue;
        }
        if at < last.1 {
            return Err(Flaw::new(placed.trigger_at, "an earlier step has a later time"));
        }
        last = (placed.step.number, at);
    }
    Ok(())
}

/// Who is resumed was paused, and who is restarted was killed or wiped.
fn check_process<'a>(
    process: Process,
    mut earlier: impl Iterator<Item = &'a Placed>,
    placed: &Placed,
) -> Result<(), Flaw> {
    let broken = match process.verb {
        Verb::Resume => "paused",
        Verb::Restart => "killed, wiped or damaged",
        Verb::Kill | Verb::Pause | Verb::Wipe | Verb::Damage => return Ok(()),
    };
    if earlier.any(|other| matches!(other.step.deed, Deed::Process(other) if mends(process, other))) {
        return Ok(());
    }
    let sentence = match process.target {
        Target::Who(who) => format!("`{who}` is not {broken} by an earlier step"),
        Target::All => format!("nobody is {broken} by an earlier step"),
    };
    Err(Flaw::new(placed.deed_at, sentence))
}

/// Whether one deed takes back another.
fn mends(mender: Process, broken: Process) -> bool {
    let is_target = mender.target == Target::All || mender.target == broken.target;
    broken.verb.mended_by() == Some(mender.verb) && is_target
}

/// What a step breaks, a later one mends.
fn check_mended<'a>(placed: &Placed, mut later: impl Iterator<Item = &'a Placed>) -> Result<(), Flaw> {
    let heals = |deed: &Deed, name: &RuleName| match deed {
        Deed::Heal { only, .. } => only.as_ref().is_none_or(|only| only == name),
        Deed::Partition { .. } | Deed::Rule(_) | Deed::Process(_) => false,
    };
    let in_time = |other: &Placed| {
        let (broken, mended) = (placed.step.trigger.last(), other.step.trigger.last());
        // A step that waits for something counts: whoever plays the drill mends all at its end in any case.
        broken.zip(mended).is_none_or(|(broken, mended)| mended >= broken)
    };
    let (is_mended, sentence) = match &placed.step.deed {
        Deed::Heal { .. } => return Ok(()),
        Deed::Partition { name, .. } => {
            (later.any(|other| heals(&other.step.deed, name) && in_time(other)), no_heal(name))
        }
        Deed::Rule(draft) => {
            let name = &draft.rule.name;
            (later.any(|other| heals(&other.step.deed, name) && in_time(other)), no_heal(name))
        }
        Deed::Process(process) => {
            let Some(mender) = process.verb.mended_by() else { return Ok(()) };
            let is_mended = later.any(|other| {
                matches!(other.step.deed, Deed::Process(other) if mends(other, *process)) && in_time(other)
            });
            (is_mended, format!("no later step takes `{process}` back: it needs a {}", mender.name()))
        }
    };
    if is_mended { Ok(()) } else { Err(Flaw::new(placed.deed_at, sentence)) }
}

fn no_heal(name: &RuleName) -> String {
    format!("no later step heals `{name}`: a drill mends what it breaks")
}

fn check_expects(
    expects: &[PlacedExpect],
    loaded: &BTreeMap<&RuleName, bool>,
    steps: &[Placed],
) -> Result<(), Flaw> {
    let is_led_on = expects.iter().any(|placed| placed.expect == Expect::NoLeaderChange);
    for PlacedExpect { expect, at } in expects {
        match expect {
            Expect::MatchedAtLeast { rule, .. } => check_matched(rule, loaded, *at)?,
            Expect::AvailableAfterHealWithin(_) if steps.is_empty() => {
                return Err(Flaw::new(*at, "nothing is broken, so nothing is healed"));
            }
            Expect::MinorityRefusesWithin(_) if !has_partition(steps) => {
                return Err(Flaw::new(*at, "no step makes a partition, so there is no minority"));
            }
            Expect::LeaderChangeWithin(_) if is_led_on => {
                return Err(Flaw::new(*at, "another expectation is that no leader changes"));
            }
            Expect::AvailableAfterHealWithin(_)
            | Expect::MinorityRefusesWithin(_)
            | Expect::MajorityAvailableWithin(_)
            | Expect::LeaderChangeWithin(_)
            | Expect::NoLeaderChange => {}
        }
    }
    Ok(())
}

fn has_partition(steps: &[Placed]) -> bool {
    steps.iter().any(|placed| matches!(placed.step.deed, Deed::Partition { .. }))
}
