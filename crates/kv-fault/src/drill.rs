//! Drills: faults on a timeline, a workload, and what is expected.

use std::time::Duration;

use toml::de::DeTable;

use crate::RuleName;
use crate::coin;
use crate::limits::{DRILL_BYTES_MAX, EXPECTS_MAX, STEPS_MAX};

mod check;
mod cluster;
mod draft;
mod error;
mod expect;
mod fire;
mod rule_text;
mod step;
mod step_text;
mod swizzle;
mod table;
mod workload;

pub use cluster::Cluster;
pub use draft::{Draft, Place, Route};
pub use error::DrillError;
pub use expect::{Expect, Within};
pub use fire::Fired;
pub use step::{Condition, Deed, Held, Process, Step, Target, Trigger, Verb};
pub use workload::{Workload, WorkloadKind};

use error::Flaw;
use step_text::{Placed, Setting};
use table::{Reader, Value};

/// Faults on a timeline, a workload, and what is expected.
///
/// ```
/// let text = r#"
/// name = "isolate-leader"
/// about = "The leader is cut off; the others elect another and go on."
/// runbook = "Look for a switch that is down; nothing needs to be done to the cluster."
///
/// [[step]]
/// at = "3s"
/// partition = "isolate leader-of(1)"
///
/// [[step]]
/// at = "8s"
/// heal = "discard"
///
/// [[expect]]
/// majority-available-within = "3E"
/// "#;
/// let drill = kv_fault::Drill::parse(text)?;
/// assert_eq!(drill.firings().len(), 2);
///
/// let error = kv_fault::Drill::parse(&text.replace("isolate", "isloate")).unwrap_err();
/// assert_eq!((error.line, error.column), (8, 13));
/// # Ok::<(), kv_fault::DrillError>(())
/// ```
///
/// # Invariants
/// Checked where it is read: all that a step names exists in the cluster or is loaded by an earlier step, no two rules have
/// one name, no time is after the end of the workload, and what a step breaks, a later one mends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drill {
    /// Its name.
    pub name: String,
    /// What breaks and what must hold.
    pub about: String,
    /// What an operator does when it happens for real.
    pub runbook: String,
    /// What all chance comes from.
    pub seed: u64,
    /// The cluster it needs.
    pub cluster: Cluster,
    /// What clients do meanwhile.
    pub workload: Workload,
    /// What happens, in the order of the file. A swizzle stands there as the steps that it comes to.
    pub steps: Vec<Step>,
    /// What is expected.
    pub expects: Vec<Expect>,
}

/// One moment of the timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Firing {
    /// When.
    pub at: Duration,
    /// Which of [`Drill::steps`], from 0.
    pub step: usize,
    /// The seed for [`Step::rules`].
    pub seed: u64,
}

const TOO_LONG: &str = "the text is too long: the limit is 64 KiB";

const FIELDS: [&str; 8] = ["name", "about", "runbook", "seed", "cluster", "workload", "step", "expect"];

impl Drill {
    /// Reads and checks a drill.
    ///
    /// # Errors
    /// [`DrillError`] for the first thing that is wrong.
    pub fn parse(text: &str) -> Result<Self, DrillError> {
        read(text, None).map_err(|flaw| flaw.in_text(text))
    }

    /// The same with another seed than the one in the text, as if the text said so.
    ///
    /// # Errors
    /// As [`Drill::parse`].
    pub fn parse_with_seed(text: &str, seed: u64) -> Result<Self, DrillError> {
        read(text, Some(seed)).map_err(|flaw| flaw.in_text(text))
    }

    /// All firings whose time is known, in the order of time, then of the file. Steps with [`Trigger::When`] are not among
    /// them: they fire once, with [`Drill::seed`].
    pub fn firings(&self) -> Vec<Firing> {
        let mut firings = Vec::new();
        for (step, Step { trigger, .. }) in self.steps.iter().enumerate() {
            match trigger {
                Trigger::At(at) => firings.push(Firing { at: *at, step, seed: self.seed }),
                Trigger::Every { interval, from, .. } => {
                    let last = trigger.last().unwrap_or(*from);
                    let mut at = *from;
                    for nth in 0.. {
                        if at > last || interval.is_zero() {
                            break;
                        }
                        firings.push(Firing { at, step, seed: coin::hash(&[self.seed, nth]) });
                        at = at.saturating_add(*interval);
                    }
                }
                Trigger::When(_) => {}
            }
        }
        firings.sort_by_key(|firing| (firing.at, firing.step));
        firings
    }
}

fn read(text: &str, other_seed: Option<u64>) -> Result<Drill, Flaw> {
    if text.len() > DRILL_BYTES_MAX {
        return Err(Flaw::new(0, TOO_LONG));
    }
    let root = DeTable::parse(text).map_err(|error| syntax(&error))?;
    let reader = Reader::new(root.get_ref(), 0, "a drill", &FIELDS)?;
    let name: RuleName = table::parsed(reader.need("name")?)?;
    let about = table::sentence(reader.need("about")?)?;
    let runbook = table::sentence(reader.need("runbook")?)?;
    let seed = reader.read("seed", |value| table::integer(value, 0..=u64::MAX))?.unwrap_or(1);
    let seed = other_seed.unwrap_or(seed);
    let cluster = reader.read("cluster", Cluster::read)?.unwrap_or(Cluster::DEFAULT);
    let workload = reader.read("workload", Workload::read)?.unwrap_or(Workload::DEFAULT);
    let setting = Setting { text, cluster: &cluster, duration: workload.duration, seed };
    let steps = reader.read("step", |steps| read_steps(steps, &setting))?.unwrap_or_default();
    let expects = reader.read("expect", read_expects)?.unwrap_or_default();
    check::check(&steps, &expects)?;
    let steps = steps.into_iter().map(|placed| placed.step).collect();
    let expects = expects.into_iter().map(|placed| placed.expect).collect();
    Ok(Drill { name: name.as_str().to_owned(), about, runbook, seed, cluster, workload, steps, expects })
}

/// What the reader of toml says, in one line.
fn syntax(error: &toml::de::Error) -> Flaw {
    let lines: Vec<_> = error.message().lines().map(str::trim).collect();
    Flaw::new(error.span().map_or(0, |span| span.start), format!("not toml: {}", lines.join(", ")))
}

fn read_steps(value: &Value<'_>, setting: &Setting<'_>) -> Result<Vec<Placed>, Flaw> {
    let mut steps = Vec::new();
    for (number, value) in (1..).zip(table::list(value)?) {
        steps.append(&mut step_text::read(number, value, setting)?);
        if steps.len() > STEPS_MAX {
            let sentence = format!("there are too many steps; the limit is {STEPS_MAX}");
            return Err(Flaw::new(value.span().start, sentence));
        }
    }
    Ok(steps)
}

fn read_expects(value: &Value<'_>) -> Result<Vec<expect::PlacedExpect>, Flaw> {
    let list = table::list(value)?;
    if let Some(value) = list.get(EXPECTS_MAX) {
        let sentence = format!("there are too many expectations; the limit is {EXPECTS_MAX}");
        return Err(Flaw::new(value.span().start, sentence));
    }
    list.iter().map(expect::read).collect()
}
