//! What a run came to.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::planted::Planted;
use crate::run::Run;
use crate::scenario::Scenario;
use crate::violation::Violation;

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// An invariant does not hold.
    Violation(Violation),
    /// The process would have ended: an assertion inside a replica, or in the simulator itself.
    Panic(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Violation(violation) => violation.fmt(f),
            Self::Panic(message) => write!(f, "panic: {message}"),
        }
    }
}

/// What has happened in a run, or in several: a run in which nothing happens proves nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Turns of replicas.
    pub turns: usize,
    /// Troubles.
    pub troubles: usize,
    /// Entries applied, each once.
    pub applied: usize,
    /// Elections won.
    pub elections: usize,
    /// Writes of clients that were answered.
    pub acknowledged: usize,
    /// Reads of clients that were answered.
    pub reads: usize,
    /// Reads that a lease served.
    pub lease_reads: usize,
    /// Config entries appended, on any replica.
    pub configs: usize,
    /// Snapshots received whole.
    pub snapshots: usize,
    /// Checkpoints completed.
    pub checkpoints: usize,
    /// Bases rewritten.
    pub regenerations: usize,
    /// Histories that the checker could not decide within its budget.
    pub undecided: usize,
    /// Groups of the WAL that had no room, if disks are full at times.
    pub put_off: usize,
    /// What counting clients did, if there are any.
    pub counting: CountingTally,
    /// What came of transactions, if there are any.
    pub transactions: TransactionsTally,
}

/// What came of transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransactionsTally {
    /// Transactions that their clients were told to be committed.
    pub committed: usize,
    /// Those that they were told to be aborted.
    pub aborted: usize,
    /// Requests of which their clients will never know.
    pub unknown: usize,
    /// Writes of one key beside them.
    pub written: usize,
    /// Comparisons that failed.
    pub mismatched: usize,
    /// Reads of one key.
    pub reads: usize,
    /// Attempts of clients.
    pub attempts: usize,
    /// Attempts of clients that were refused.
    pub refused: usize,
    /// Times that a participant said yes.
    pub prepared: usize,
    /// Parts that were ended by an entry that ended others, too.
    pub together: usize,
    /// Fences that met no record.
    pub fenced: usize,
    /// Records that a keeper has taken up.
    pub finished: usize,
    /// Parts that a keeper has taken up.
    pub unblocked: usize,
    /// Deliveries of what clients had asked for long before.
    pub late: usize,
    /// Sessions that were opened.
    pub opened: usize,
}

impl TransactionsTally {
    fn plus(self, other: Self) -> Self {
        Self {
            committed: self.committed + other.committed,
            aborted: self.aborted + other.aborted,
            unknown: self.unknown + other.unknown,
            written: self.written + other.written,
            mismatched: self.mismatched + other.mismatched,
            reads: self.reads + other.reads,
            attempts: self.attempts + other.attempts,
            refused: self.refused + other.refused,
            prepared: self.prepared + other.prepared,
            together: self.together + other.together,
            fenced: self.fenced + other.fenced,
            finished: self.finished + other.finished,
            unblocked: self.unblocked + other.unblocked,
            late: self.late + other.late,
            opened: self.opened + other.opened,
        }
    }
}

impl fmt::Display for TransactionsTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "committed={} aborted={} unknown={} written={} mismatched={} gets={} attempts={} refused={} \
             prepared={} together={} fenced={} finished={} unblocked={} late={} sessions={}",
            self.committed,
            self.aborted,
            self.unknown,
            self.written,
            self.mismatched,
            self.reads,
            self.attempts,
            self.refused,
            self.prepared,
            self.together,
            self.fenced,
            self.finished,
            self.unblocked,
            self.late,
            self.opened
        )
    }
}

/// What counting clients did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CountingTally {
    /// Requests that were acknowledged: increments.
    pub acknowledged: usize,
    /// Requests that were not applied, for certain.
    pub not_applied: usize,
    /// Requests whose session ended before their client knew more.
    pub unknown: usize,
    /// Attempts of clients.
    pub attempts: usize,
    /// Deliveries of what was sent long before.
    pub late: usize,
    /// Answers from records.
    pub replayed: usize,
    /// Attempts that were refused.
    pub refused: usize,
    /// Sessions that were opened.
    pub opened: usize,
    /// Sessions that shards were told to forget, counted at each shard.
    pub collected: usize,
}

impl CountingTally {
    fn plus(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            not_applied: self.not_applied + other.not_applied,
            unknown: self.unknown + other.unknown,
            attempts: self.attempts + other.attempts,
            late: self.late + other.late,
            replayed: self.replayed + other.replayed,
            refused: self.refused + other.refused,
            opened: self.opened + other.opened,
            collected: self.collected + other.collected,
        }
    }
}

impl fmt::Display for CountingTally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "increments={} not_applied={} unknown={} attempts={} late={} replayed={} refused={} sessions={} \
             collected={}",
            self.acknowledged,
            self.not_applied,
            self.unknown,
            self.attempts,
            self.late,
            self.replayed,
            self.refused,
            self.opened,
            self.collected
        )
    }
}

impl Tally {
    /// Both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            turns: self.turns + other.turns,
            troubles: self.troubles + other.troubles,
            applied: self.applied + other.applied,
            elections: self.elections + other.elections,
            acknowledged: self.acknowledged + other.acknowledged,
            reads: self.reads + other.reads,
            lease_reads: self.lease_reads + other.lease_reads,
            configs: self.configs + other.configs,
            snapshots: self.snapshots + other.snapshots,
            checkpoints: self.checkpoints + other.checkpoints,
            regenerations: self.regenerations + other.regenerations,
            undecided: self.undecided + other.undecided,
            put_off: self.put_off + other.put_off,
            counting: self.counting.plus(other.counting),
            transactions: self.transactions.plus(other.transactions),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "turns={} troubles={} applied={} elections={} acknowledged={} reads={} lease_reads={} configs={} \
             snapshots={} checkpoints={} regenerations={} undecided={}",
            self.turns,
            self.troubles,
            self.applied,
            self.elections,
            self.acknowledged,
            self.reads,
            self.lease_reads,
            self.configs,
            self.snapshots,
            self.checkpoints,
            self.regenerations,
            self.undecided
        )?;
        if self.put_off > 0 {
            write!(f, " put_off={}", self.put_off)?;
        }
        if self.counting != CountingTally::default() {
            write!(f, " {}", self.counting)?;
        }
        match self.transactions == TransactionsTally::default() {
            true => Ok(()),
            false => write!(f, " {}", self.transactions),
        }
    }
}

/// How far a rule of a drill, or a step that does something to a process, was put to use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exercise {
    /// `rule NAME`, or `process` and what is done.
    pub what: String,
    /// Messages that the rule matched; times that it was done to a process.
    pub matched: u64,
    /// Messages to which the rule made a difference; times that it was done to a process.
    pub acted: u64,
}

/// What became of something that a drill expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What was expected.
    pub what: String,
    /// Whether it asks for faults that were met, and not for a cluster that bears them.
    pub is_of_exercise: bool,
    /// Whether it was met; absent if nobody can say.
    pub met: Option<bool>,
    /// How long it took, where it is about that and it happened.
    pub took: Option<Duration>,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.took {
            Some(took) => write!(f, "{} ({} ms)", self.what, took.as_millis()),
            None => f.write_str(&self.what),
        }
    }
}

/// What one seed came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
    /// True time that passed in it.
    pub simulated: Duration,
    /// What happened.
    pub tally: Tally,
    /// Everything that happened, as a number: the same seed gives the same.
    pub trace: u64,
    /// Every event, one a line, if that was asked for.
    pub events: String,
    /// What the drill was put to use for, in its order, if one was played.
    pub exercises: Vec<Exercise>,
    /// What became of what the drill expects, in its order, if one was played.
    pub expectations: Vec<Expected>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.simulated.as_millis();
        write!(f, "seed={} trace={:016x} simulated_ms={ms} {}", self.seed, self.trace, self.tally)?;
        match &self.failure {
            None if self.unmet().next().is_none() => f.write_str(" ok"),
            None => {
                let unmet: Vec<String> = self.unmet().map(ToString::to_string).collect();
                write!(f, " UNMET {}", unmet.join(", "))
            }
            Some(failure) => write!(f, " FAILED {failure}"),
        }
    }
}

impl Report {
    /// What was expected of the cluster, and not met.
    pub fn unmet(&self) -> impl Iterator<Item = &Expected> {
        self.expectations.iter().filter(|expected| !expected.is_of_exercise && expected.met == Some(false))
    }
}

/// Runs a seed.
pub fn run(seed: u64, scenario: &Scenario, has_events: bool) -> Report {
    play(seed, scenario, has_events, None)
}

/// Runs a seed with a bug.
#[cfg(feature = "planted")]
pub fn run_planted(seed: u64, scenario: &Scenario, bug: Planted) -> Report {
    play(seed, scenario, false, Some(bug))
}

fn play(seed: u64, scenario: &Scenario, has_events: bool, bug: Option<Planted>) -> Report {
    let played = catch_unwind(AssertUnwindSafe(|| {
        let mut plan = scenario.plan(seed);
        plan.settings.has_log = has_events;
        plan.settings.plant(bug);
        let mut run = Run::new(plan);
        run.play();
        run.report(seed)
    }));
    played.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().cloned();
        let text = text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Report {
            seed,
            failure: Some(Failure::Panic(text.unwrap_or_else(|| "without a message".to_owned()))),
            simulated: Duration::ZERO,
            tally: Tally::default(),
            trace: 0,
            events: String::new(),
            exercises: Vec::new(),
            expectations: Vec::new(),
        }
    })
}

impl Run {
    fn report(&mut self, seed: u64) -> Report {
        let counts = self.cluster.counts;
        let (acknowledged, reads, undecided) = self.heard();
        Report {
            seed,
            failure: self.cluster.violation.clone().map(Failure::Violation),
            simulated: Duration::from_nanos(self.cluster.now.get()),
            tally: Tally {
                turns: counts.turns,
                troubles: self.troubles,
                applied: self.cluster.oracle.applied_len(),
                elections: counts.elections,
                acknowledged,
                reads,
                lease_reads: counts.lease_reads,
                configs: counts.configs,
                snapshots: counts.snapshots_offered,
                checkpoints: counts.checkpoints,
                regenerations: counts.regenerations,
                undecided,
                put_off: self.cluster.nodes.values().map(|node| node.put_off).sum(),
                counting: self.counted(),
                transactions: self.transacted(),
            },
            trace: self.cluster.trace(),
            events: std::mem::take(&mut self.cluster.log),
            exercises: self.exercises(),
            expectations: self.expectations(),
        }
    }
}
