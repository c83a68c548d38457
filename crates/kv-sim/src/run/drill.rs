//! A drill is played: its steps fire on virtual time, and its rules judge every message between nodes, as the proxy between
//! processes has them judged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use kv_fault::{
    Action, Condition, Deed as StepDeed, Drill, Fired, Firing, Held, Link, Roles, Rule, RuleName, Rules,
    Step, Trigger, Verb, WireAction,
};
use kv_types::{Nanos, NodeId, ShardId, TxnId};

use super::{Happening, Run};
use crate::cluster::Cluster;
use crate::report::Exercise;

mod carry;
mod expects;
mod inspect;
mod process;

use carry::{Cargo, Waiting};
use expects::Watch;
use process::Broken;

/// How often conditions are looked at, and what waits for something else than its time.
const LOOK: Duration = Duration::from_millis(10);

/// How long a step waits for somebody to have the role that it names.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the cluster may take to elect leaders before the drill begins.
const WARM_UP: Duration = Duration::from_secs(60);

/// How often nodes merge what they hold in memory, where the drill gives them less memory than usual; and how long after that
/// they drop what they keep of their logs.
const MERGE: Duration = Duration::from_secs(1);
const COMPACT: Duration = Duration::from_millis(200);

/// What is to be done at a time.
#[derive(Debug)]
pub(super) enum Deed {
    /// A step fires; until this time it is tried again if nobody has a role.
    Fire(Firing, Nanos),
    /// Conditions are looked at.
    Look,
    /// Nodes merge.
    Merge,
    /// A message leaves the plane of messages for what is below.
    Leave(Link, u64, Cargo),
    /// A message has let others pass for long enough.
    Overtaken(u64),
}

/// A rule below messages that is in force.
#[derive(Debug)]
struct Wired {
    rule: Rule,
    since: Duration,
}

/// How often a rule was met, or a process.
#[derive(Clone, Copy, Debug, Default)]
struct Met {
    matched: u64,
    acted: u64,
}

/// A drill that is played.
#[derive(Debug)]
pub(super) struct Playing {
    drill: Drill,
    rules: Rules,
    /// What the seed of the run changes about those of the drill.
    mixed: u64,
    begin: Nanos,
    /// Who led what when it began.
    led: BTreeMap<ShardId, NodeId>,
    /// Steps that wait for a condition.
    conditions: BTreeSet<usize>,
    /// Nodes that are down or stand still by a step.
    broken: Vec<Broken>,
    wires: Vec<Wired>,
    waiting: Waiting,
    /// What rules have met that are no longer in force or below messages, and processes, by what [`Exercise::what`] says.
    met: BTreeMap<String, Met>,
    /// What is seen of it.
    watch: Watch,
    is_over: bool,
}

impl Playing {
    fn new(drill: Drill, seed: u64, now: Nanos) -> Self {
        // By SplitMix64's odd number: neighbours differ in many bits, and a run's seed of 0 leaves the drill's own.
        let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let conditions = drill.steps.iter().enumerate();
        let conditions = conditions.filter(|(_, step)| matches!(step.trigger, Trigger::When(_)));
        Self {
            rules: Rules::new(drill.seed ^ mixed),
            mixed,
            begin: now,
            led: BTreeMap::new(),
            conditions: conditions.map(|(number, _)| number).collect(),
            broken: Vec::new(),
            wires: Vec::new(),
            waiting: Waiting::default(),
            met: BTreeMap::new(),
            watch: Watch::default(),
            is_over: false,
            drill,
        }
    }

    /// The time since the drill began.
    fn clock(&self, now: Nanos) -> Duration {
        now.since(self.begin)
    }

    fn meet(&mut self, what: String, times: u64) {
        let met = self.met.entry(what).or_default();
        met.matched += times;
        met.acted += times;
    }

    /// Messages that a rule has matched, in force or not.
    fn matched(&self, name: &RuleName) -> u64 {
        let ended = self.met.get(&of_rule(name)).map_or(0, |met| met.matched);
        let in_force = self.rules.table().into_iter().filter(|entry| entry.ended.is_none());
        ended + in_force.filter(|entry| entry.rule.name == *name).map(|entry| entry.matched()).sum::<u64>()
    }
}

fn of_rule(name: &RuleName) -> String {
    format!("rule {name}")
}

/// What a step is put to use for, as reports name it.
fn exercise(step: &Step) -> Option<String> {
    match &step.deed {
        StepDeed::Process(process) => Some(format!("process {process}")),
        StepDeed::Partition { .. } | StepDeed::Rule(_) => step.rule_name().map(of_rule),
        StepDeed::Heal { .. } => None,
    }
}

/// The cluster as it stands.
struct Standing<'a>(&'a Cluster);

impl Roles for Standing<'_> {
    fn nodes(&self) -> BTreeSet<NodeId> {
        self.0.settings.nodes().collect()
    }

    /// One that stands still leads, until another leads in a newer epoch.
    fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
        self.0.leader(shard)
    }

    fn manager_of(&self, txn: Option<TxnId>) -> Option<NodeId> {
        let manages = |node: &NodeId| {
            let life = self.0.of(*node).life.as_ref();
            life.is_some_and(|life| life.parties.drives().any(|driven| txn.is_none_or(|txn| txn == driven)))
        };
        self.0.settings.nodes().find(manages)
    }
}

impl Run {
    /// Plays a drill from when all shards are led, and mends everything at its end.
    pub(super) fn play_drill(&mut self, drill: Drill) {
        let latest = self.cluster.now.after(WARM_UP);
        self.try_until(latest, |run| {
            let mut shards = run.cluster.settings.shards();
            shards.all(|shard| run.cluster.leader(shard).is_some())
        });
        let begin = self.cluster.now;
        let mut playing = Playing::new(drill, self.cluster.settings.seed, begin);
        playing.led = self.leaders();
        for firing in playing.drill.firings() {
            let at = begin.after(firing.at);
            self.at(at, Happening::Drill(Deed::Fire(firing, at.after(PATIENCE))));
        }
        self.after(LOOK, Happening::Drill(Deed::Look));
        if playing.drill.cluster.memtable_mb < kv_fault::Cluster::DEFAULT.memtable_mb {
            self.after(MERGE, Happening::Drill(Deed::Merge));
        }
        self.drill = Some(playing);
        self.run_until(begin.after(self.plan.run), |_| false);
        self.end_drill();
    }

    pub(super) fn drill(&mut self, deed: Deed) {
        match deed {
            Deed::Fire(firing, latest) => self.fire(firing, latest),
            Deed::Look => self.look(),
            Deed::Merge => self.merge(),
            Deed::Leave(link, bytes, cargo) => self.leave(link, bytes, cargo),
            Deed::Overtaken(number) => self.overtaken(number),
        }
    }

    /// Whether rules judge messages now.
    pub(super) fn is_drilled(&self) -> bool {
        self.drill.as_ref().is_some_and(|playing| !playing.is_over)
    }

    /// Everything is healed, started and goes on.
    fn end_drill(&mut self) {
        if let Some(playing) = self.drill.as_mut() {
            playing.watch.ended(self.cluster.now);
            if !playing.broken.is_empty() {
                playing.watch.mended(self.cluster.now, &BTreeSet::new());
            }
        }
        self.heal_rules(None, true);
        self.mend_all();
        if let Some(playing) = self.drill.as_mut() {
            playing.is_over = true;
        }
        self.let_all_pass();
        if let Some(counting) = self.counting.as_mut() {
            counting.suffice();
        }
        self.settle();
    }

    fn look(&mut self) {
        if !self.is_drilled() {
            return;
        }
        self.after(LOOK, Happening::Drill(Deed::Look));
        // A pulse may be over that held bytes back.
        self.let_stalled_pass();
        let leaders = self.leaders();
        if let Some(playing) = self.drill.as_mut() {
            playing.watch.led(self.cluster.now, &leaders, &playing.led);
        }
        let Some(playing) = self.drill.as_ref() else { return };
        let met: Vec<usize> =
            playing.conditions.iter().copied().filter(|step| self.is_met(playing, *step)).collect();
        let seed = playing.drill.seed;
        for step in met {
            if let Some(playing) = self.drill.as_mut() {
                playing.conditions.remove(&step);
            }
            let latest = self.cluster.now.after(PATIENCE);
            self.fire(Firing { at: Duration::ZERO, step, seed }, latest);
        }
    }

    fn merge(&mut self) {
        if !self.is_drilled() {
            return;
        }
        self.after(MERGE, Happening::Drill(Deed::Merge));
        let nodes: Vec<NodeId> = self.cluster.settings.nodes().collect();
        for node in nodes {
            for shard in self.cluster.settings.shards() {
                if self.awake(node).is_none() {
                    self.cluster.begin_merge(node, shard);
                    self.after(COMPACT, Happening::Compact(node, shard));
                }
            }
        }
    }

    fn is_met(&self, playing: &Playing, step: usize) -> bool {
        let Some(Trigger::When(condition)) = playing.drill.steps.get(step).map(|step| &step.trigger) else {
            return false;
        };
        match condition {
            Condition::Matched { rule, count } => playing.matched(rule) >= *count,
            Condition::LeaderChanged(shard) => {
                let leader = self.cluster.leader(*shard);
                leader.is_some() && leader.as_ref() != playing.led.get(shard)
            }
            Condition::TermAbove { shard, term } => {
                let terms = self.cluster.settings.nodes();
                let mut terms = terms.filter_map(|node| self.cluster.replica(node, *shard));
                terms.any(|replica| replica.leadership().0.get() > *term)
            }
        }
    }

    /// A step fires. If nobody has a role that it names, it waits a little for somebody who has.
    fn fire(&mut self, firing: Firing, latest: Nanos) {
        let Some(playing) = self.drill.as_ref().filter(|playing| !playing.is_over) else { return };
        let Some(step) = playing.drill.steps.get(firing.step).cloned() else { return };
        // A role that is mended is that of the node which had it when it was broken.
        let mends = |verb| matches!(verb, Verb::Resume | Verb::Restart);
        let fired = match &step.deed {
            StepDeed::Process(process) if mends(process.verb) => Ok(Fired::default()),
            StepDeed::Process(_) | StepDeed::Partition { .. } | StepDeed::Rule(_) | StepDeed::Heal { .. } => {
                step.rules(&Standing(&self.cluster), firing.seed ^ playing.mixed)
            }
        };
        match fired {
            Ok(fired) => {
                self.note_step(&step, &format!("{fired:?}"));
                self.carry_out(&step, fired);
            }
            Err(_) if self.cluster.now < latest => {
                self.after(LOOK, Happening::Drill(Deed::Fire(firing, latest)));
            }
            Err(cause) => self.note_step(&step, &cause.to_string()),
        }
    }

    fn note_step(&mut self, step: &Step, what: &str) {
        if self.cluster.settings.has_log {
            let now = self.cluster.now.get();
            let _ = writeln!(self.cluster.log, "{now} drill step {} {:?}: {what}", step.number, step.deed);
        }
    }

    fn carry_out(&mut self, step: &Step, fired: Fired) {
        match &step.deed {
            StepDeed::Partition { .. } | StepDeed::Rule(_) => {
                self.load_rules(&fired.rules);
                if let Some(playing) = self.drill.as_mut() {
                    playing.watch.cut(self.cluster.now, &fired);
                }
            }
            StepDeed::Process(process) => {
                let done = self.do_to_process(*process, fired.node);
                if let (Some(playing), Some(what)) = (self.drill.as_mut(), exercise(step)) {
                    playing.meet(what, done);
                }
            }
            StepDeed::Heal { held, only } => self.heal_rules(only.as_ref(), *held == Held::Late),
        }
    }

    fn load_rules(&mut self, rules: &[Rule]) {
        self.watch_broken();
        for rule in rules {
            // It may be in force, if its step fires again.
            self.heal_rules(Some(&rule.name), true);
            let Some(playing) = self.drill.as_mut() else { return };
            let since = playing.clock(self.cluster.now);
            playing
                .rules
                .load(since, vec![rule.clone()])
                .expect("a drill was read: its rules are sound, of different names, and no more than steps");
            let Action::Wire(action) = rule.action else { continue };
            if action == WireAction::Reset {
                self.reset(rule);
            } else {
                playing.wires.push(Wired { rule: rule.clone(), since });
            }
        }
    }

    /// Takes rules out of force; what they held arrives, or is lost.
    fn heal_rules(&mut self, only: Option<&RuleName>, late: bool) {
        let Some(playing) = self.drill.as_mut() else { return };
        let now = playing.clock(self.cluster.now);
        for entry in playing.rules.table() {
            let is_healed = only.is_none_or(|only| *only == entry.rule.name);
            if entry.ended.is_none() && is_healed {
                let met = playing.met.entry(of_rule(&entry.rule.name)).or_default();
                met.matched += entry.matched();
                met.acted += entry.acted();
            }
        }
        let healed: BTreeSet<RuleName> =
            playing.rules.heal(now, only).into_iter().map(|rule| rule.name).collect();
        playing.wires.retain(|wired| !healed.contains(&wired.rule.name));
        if !healed.is_empty() {
            self.watch_mended(&healed);
        }
        self.release(&healed, late);
    }

    /// What the drill was put to use for, in its order.
    pub(crate) fn exercises(&self) -> Vec<Exercise> {
        let Some(playing) = self.drill.as_ref() else { return Vec::new() };
        let mut exercises: Vec<Exercise> = Vec::new();
        for what in playing.drill.steps.iter().filter_map(exercise) {
            if exercises.iter().all(|exercise| exercise.what != what) {
                let Met { matched, acted } = playing.met.get(&what).copied().unwrap_or_default();
                exercises.push(Exercise { what, matched, acted });
            }
        }
        exercises
    }
}
