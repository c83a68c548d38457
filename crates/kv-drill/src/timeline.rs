//! Plays the steps of a drill.

mod faults;
mod mend;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_client::Client;
use kv_fault::{
    Condition, Deed, Drill, Fired, Firing, Held, Process, ResolveError, RuleName, Target, Trigger, Verb, Who,
};
use kv_types::NodeId;

use crate::book::Clock;
use crate::error::RunError;
use crate::local::Local;
use crate::record::{Fault, StepFired};
use crate::watch::Watch;
use crate::{Chaos, ChaosError, ClusterRoles};

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(10);

/// How long a step waits for a role that is nobody's at its time: a shard whose leader was just lost gets another.
const ROLE_MAX: Duration = Duration::from_secs(3);

/// What a timeline works on.
pub(crate) struct Stage<'a> {
    /// The drill.
    pub(crate) drill: &'a Drill,
    /// The proxy.
    pub(crate) chaos: &'a Chaos,
    /// The processes, if they are ours.
    pub(crate) local: Option<&'a mut Local>,
    /// A client that asks what is in doubt.
    pub(crate) client: &'a Client,
    /// Who leads what.
    pub(crate) watch: &'a Watch,
    /// The time.
    pub(crate) clock: &'a Clock,
}

/// What was played so far.
#[derive(Debug, Default)]
pub(crate) struct Timeline {
    /// Firings still to come, the last first.
    to_come: Vec<Firing>,
    /// Firings whose time has come, and for how long they wait.
    late: Vec<(Firing, Duration)>,
    /// Steps that wait for something.
    waiting: Vec<usize>,
    /// Who led what in the beginning.
    led: BTreeMap<u32, Option<u64>>,
    in_force: Vec<InForce>,
    broken: Vec<Broken>,
    /// What fired.
    pub(crate) steps: Vec<StepFired>,
    /// What was in force.
    pub(crate) faults: Vec<Fault>,
    /// When something was mended for the last time.
    pub(crate) mended_ms: Option<f64>,
}

/// A rule that is in force.
#[derive(Debug)]
struct InForce {
    name: RuleName,
    /// Which of the faults.
    fault: usize,
    /// Whether the proxy counts what it does.
    is_counted: bool,
    /// Who is cut off from the majority by it.
    cut_off: BTreeSet<NodeId>,
}

/// A process that something was done to.
#[derive(Debug)]
struct Broken {
    verb: Verb,
    /// Whom the drill meant.
    who: Who,
    node: NodeId,
    fault: usize,
}

/// Why a step did not fire.
enum NotFired {
    /// It may a little later.
    Yet(ResolveError),
    /// It cannot.
    Ever(String),
    /// Nothing can.
    Run(RunError),
}

impl From<RunError> for NotFired {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Chaos(ChaosError::Refused(why)) => Self::Ever(why),
            error => Self::Run(error),
        }
    }
}

impl From<ChaosError> for NotFired {
    fn from(error: ChaosError) -> Self {
        RunError::from(error).into()
    }
}

impl Timeline {
    /// The beginning.
    pub(crate) fn new(stage: &Stage<'_>) -> Self {
        let mut to_come = stage.drill.firings();
        to_come.reverse();
        let is_waiting =
            |(at, step): (usize, &kv_fault::Step)| matches!(step.trigger, Trigger::When(_)).then_some(at);
        let waiting = stage.drill.steps.iter().enumerate().filter_map(is_waiting).collect();
        let led = stage.watch.led().into_iter().map(|(shard, (_, leader))| (shard, leader)).collect();
        Self { to_come, waiting, led, ..Self::default() }
    }

    /// Plays until this time; says now and then how it stands.
    pub(crate) async fn play(
        &mut self,
        stage: &mut Stage<'_>,
        until: Duration,
        told: &mut dyn FnMut(&str),
    ) -> Result<(), RunError> {
        let mut next_word = stage.clock.elapsed();
        while stage.clock.elapsed() < until {
            self.tick(stage).await?;
            if stage.clock.elapsed() >= next_word {
                told(&self.in_force_text());
                next_word += Duration::from_secs(1);
            }
            tokio::time::sleep(TICK).await;
        }
        // What happens at the very end.
        self.tick(stage).await
    }

    async fn tick(&mut self, stage: &mut Stage<'_>) -> Result<(), RunError> {
        let now = stage.clock.elapsed();
        while let Some(firing) = self.to_come.pop_if(|firing| firing.at <= now) {
            self.late.push((firing, now + ROLE_MAX));
        }
        let counts = self.counts_if_needed(stage).await?;
        for step in std::mem::take(&mut self.waiting) {
            if self.is_so(stage, step, &counts) {
                let firing = Firing { at: now, step, seed: stage.drill.seed };
                self.late.push((firing, now + ROLE_MAX));
            } else {
                self.waiting.push(step);
            }
        }
        for (firing, patience) in std::mem::take(&mut self.late) {
            match self.fire(stage, &firing).await {
                Ok(()) => {}
                Err(NotFired::Yet(_)) if stage.clock.elapsed() < patience => {
                    self.late.push((firing, patience));
                }
                Err(NotFired::Yet(why)) => self.not_fired(stage, firing.step, why.to_string()),
                Err(NotFired::Ever(why)) => self.not_fired(stage, firing.step, why),
                Err(NotFired::Run(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the rules have matched so far, if a step waits for that.
    async fn counts_if_needed(&self, stage: &Stage<'_>) -> Result<BTreeMap<String, u64>, RunError> {
        let needs = |step: &usize| {
            let step = stage.drill.steps.get(*step);
            step.is_some_and(|step| matches!(step.trigger, Trigger::When(Condition::Matched { .. })))
        };
        if !self.waiting.iter().any(needs) {
            return Ok(BTreeMap::new());
        }
        let mut counts = BTreeMap::new();
        for rule in stage.chaos.rules().await?.rules {
            // One of the same name that is out of force is of an earlier firing, or run: the last one counts.
            let matched = rule.counts.iter().map(|count| count.matched).sum();
            counts.insert(rule.name, matched);
        }
        Ok(counts)
    }

    fn is_so(&self, stage: &Stage<'_>, step: usize, counts: &BTreeMap<String, u64>) -> bool {
        let Some(Trigger::When(condition)) = stage.drill.steps.get(step).map(|step| &step.trigger) else {
            return false;
        };
        match condition {
            Condition::Matched { rule, count } => {
                let is_ours = self.faults.iter().any(|fault| fault.name == rule.as_str());
                is_ours && counts.get(rule.as_str()).is_some_and(|matched| matched >= count)
            }
            Condition::LeaderChanged(shard) => {
                let now = stage.watch.led().get(&shard.get()).and_then(|(_, leader)| *leader);
                let then = self.led.get(&shard.get()).copied().flatten();
                now.is_some() && now != then
            }
            Condition::TermAbove { shard, term } => {
                stage.watch.led().get(&shard.get()).is_some_and(|(epoch, _)| epoch > term)
            }
        }
    }

    async fn fire(&mut self, stage: &mut Stage<'_>, firing: &Firing) -> Result<(), NotFired> {
        let Some(step) = stage.drill.steps.get(firing.step) else { return Ok(()) };
        let fired = match &step.deed {
            // Who is mended was chosen when it was broken.
            Deed::Process(Process { verb: Verb::Resume | Verb::Restart, .. }) => Fired::default(),
            Deed::Partition { .. } | Deed::Rule(_) | Deed::Process(_) | Deed::Heal { .. } => {
                let roles = roles(stage, &step.deed).await;
                step.rules(&roles, firing.seed).map_err(NotFired::Yet)?
            }
        };
        let at_ms = stage.clock.ms();
        match &step.deed {
            Deed::Partition { .. } | Deed::Rule(_) => self.load(stage, &fired).await?,
            Deed::Heal { held, only } => {
                let late = *held == Held::Late;
                self.heal(stage, only.as_ref(), late).await?;
            }
            Deed::Process(process) => self.process(stage, *process, fired.node).await?,
        }
        let sides = fired.sides.iter().map(|side| side.iter().map(|node| node.get()).collect());
        self.steps.push(StepFired {
            number: u32::try_from(step.number).unwrap_or(u32::MAX),
            text: text_of(step),
            planned_ms: planned(step, firing),
            at_ms: Some(at_ms),
            chosen: fired.chosen.iter().map(|(role, node)| (role.clone(), node.get())).collect(),
            sides: sides.collect(),
            error: String::new(),
        });
        Ok(())
    }

    fn not_fired(&mut self, stage: &Stage<'_>, step: usize, error: String) {
        let Some(step) = stage.drill.steps.get(step) else { return };
        let number = u32::try_from(step.number).unwrap_or(u32::MAX);
        self.steps.push(StepFired { number, text: text_of(step), error, ..StepFired::default() });
    }

    /// Notes the steps that never fired.
    pub(crate) fn close(&mut self, stage: &Stage<'_>) {
        let left: Vec<_> = self.to_come.drain(..).map(|firing| firing.step).collect();
        let late: Vec<_> = self.late.drain(..).map(|(firing, _)| firing.step).collect();
        for step in late {
            self.not_fired(stage, step, "its role was nobody's until the end".to_owned());
        }
        for step in std::mem::take(&mut self.waiting) {
            self.not_fired(stage, step, "what it waits for did not happen".to_owned());
        }
        for step in left {
            self.not_fired(stage, step, "the drill ended before".to_owned());
        }
    }

    /// What is in force, in words.
    fn in_force_text(&self) -> String {
        let rules = self.in_force.iter().map(|rule| rule.name.to_string());
        let broken = self.broken.iter().map(|broken| format!("{} {}", broken.verb.name(), broken.node));
        let all: Vec<_> = rules.chain(broken).collect();
        if all.is_empty() { "nothing".to_owned() } else { all.join(", ") }
    }
}

/// The roles that a deed may need.
async fn roles(stage: &Stage<'_>, deed: &Deed) -> ClusterRoles {
    let mut roles = stage.watch.roles();
    if mentions_manager(deed) {
        roles.add_txns(stage.client).await;
    }
    roles
}

fn mentions_manager(deed: &Deed) -> bool {
    let text = match deed {
        Deed::Partition { partition, .. } => partition.to_string(),
        Deed::Rule(draft) => draft.routes.iter().map(ToString::to_string).collect(),
        Deed::Process(process) => process.to_string(),
        Deed::Heal { .. } => return false,
    };
    text.contains("manager-of")
}

/// When a firing was due, if its step does not wait for something to happen.
fn planned(step: &kv_fault::Step, firing: &Firing) -> Option<f64> {
    match step.trigger {
        Trigger::At(_) | Trigger::Every { .. } => Some(firing.at.as_secs_f64() * 1000.0),
        Trigger::When(_) => None,
    }
}

/// A step in one line.
fn text_of(step: &kv_fault::Step) -> String {
    let when = match &step.trigger {
        Trigger::At(at) => format!("at {at:?}"),
        Trigger::Every { interval, from, until } => {
            format!("every {interval:?} from {from:?} until {until:?}")
        }
        Trigger::When(condition) => format!("when {condition}"),
    };
    let what = match &step.deed {
        Deed::Partition { partition, clients: true, .. } => format!("partition {partition}, with clients"),
        Deed::Partition { partition, .. } => format!("partition {partition}"),
        Deed::Rule(draft) => {
            let routes: Vec<_> = draft.routes.iter().map(ToString::to_string).collect();
            let on = if routes.is_empty() { String::new() } else { format!(" on {}", routes.join(", ")) };
            format!("rule {}: {}{on}", draft.rule.name, draft.rule.action)
        }
        Deed::Process(process) => process.to_string(),
        Deed::Heal { held, only: Some(name) } => format!("heal {name}, what it held {held}"),
        Deed::Heal { held, only: None } => format!("heal all, what was held {held}"),
    };
    format!("{when}: {what}")
}

/// Whether a target is meant by a step that mends.
fn is_target(target: Target, broken: &Broken) -> bool {
    match target {
        Target::All => true,
        Target::Who(who) => who == broken.who || who == Who::Node(broken.node),
    }
}
