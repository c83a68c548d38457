//! The verdict on a whole history: its objects one by one, the hard ones in turns.

use std::collections::BTreeMap;

use crate::budget::{Budget, Exhausted, Purse};
use crate::counterexample::Counterexample;
use crate::datum::Datum;
use crate::error::HistoryError;
use crate::history::{History, Operation};
use crate::linearise::advance;
use crate::model::{CasRegister, Counter, Kv, KvAppend, Lock, Model, ModelKind, Register, Set};
use crate::search::{Progress, Search, Timed};
use crate::shrink::shrink;
use crate::witness::order_by_revision;

/// What is to be said of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is an order that explains every result.
    Valid,
    /// There is none.
    Violation(Box<Counterexample>),
    /// It is not known.
    Unknown {
        /// Why the search ended.
        reason: Exhausted,
        /// On how many objects there is no verdict.
        undecided: usize,
    },
    /// There is nothing to explain: nothing that succeeded was a read, or nothing was a write.
    NotExercised {
        /// `read` or `write`.
        missing: &'static str,
    },
}

impl Verdict {
    /// The word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Valid => "VALID",
            Self::Violation(_) => "VIOLATION",
            Self::Unknown { .. } => "UNKNOWN",
            Self::NotExercised { .. } => "NOT EXERCISED",
        }
    }
}

/// What was checked, and the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// The model's name.
    pub model: &'static str,
    /// How many operations there are, without those that failed for certain.
    pub operations: usize,
    /// How many of them are open.
    pub open: usize,
    /// How many more failed for certain.
    pub failed: usize,
    /// How many objects there are.
    pub keys: usize,
    /// How many of them the order by revision explains.
    pub witnessed: usize,
    /// How many steps all searches took.
    pub steps: u64,
}

/// Checks a history against a model.
///
/// # Errors
///
/// If an operation does not belong to the model.
pub fn check(history: &History, model: ModelKind, budget: &Budget<'_>) -> Result<Report, HistoryError> {
    match model {
        ModelKind::Register => check_against::<Register>(history, budget),
        ModelKind::CasRegister => check_against::<CasRegister>(history, budget),
        ModelKind::Kv => check_against::<Kv>(history, budget),
        ModelKind::KvAppend => check_against::<KvAppend>(history, budget),
        ModelKind::Set => check_against::<Set>(history, budget),
        ModelKind::Lock => check_against::<Lock>(history, budget),
        ModelKind::Counter => check_against::<Counter>(history, budget),
    }
}

/// Checks a history against a model of the caller's. Every key gets a model of its own.
///
/// # Errors
///
/// If an operation does not belong to the model.
pub fn check_against<M: Model + Default>(
    history: &History,
    budget: &Budget<'_>,
) -> Result<Report, HistoryError> {
    let parts = partition::<M>(history)?;
    let mut checking = Checking {
        parts: &parts,
        purse: Purse::new(budget),
        witnessed: 0,
        has_observed: false,
        has_changed: false,
    };
    let verdict = checking.verdict();
    Ok(Report {
        verdict,
        model: M::NAME,
        operations: history.operations().len(),
        open: history.operations().iter().filter(|operation| operation.ret.is_none()).count(),
        failed: history.failed(),
        keys: parts.len(),
        witnessed: checking.witnessed,
        steps: checking.purse.spent(),
    })
}

/// One object. Objects do not depend on each other, so a history is good if that of each object is (locality: Herlihy
/// and Wing, 1990).
struct Part<'a, M: Model> {
    key: &'a Datum,
    model: M,
    ops: Vec<Timed<M::Op>>,
    source: Vec<&'a Operation>,
}

/// Parts the history by its keys, and translates it.
fn partition<M: Model + Default>(history: &History) -> Result<Vec<Part<'_, M>>, HistoryError> {
    let mut numbers: BTreeMap<&Datum, usize> = BTreeMap::new();
    let mut parts: Vec<Part<'_, M>> = Vec::new();
    for operation in history.operations() {
        let number = *numbers.entry(&operation.key).or_insert_with(|| {
            let (model, ops, source) = (M::default(), Vec::new(), Vec::new());
            parts.push(Part { key: &operation.key, model, ops, source });
            parts.len() - 1
        });
        let Some(part) = parts.get_mut(number) else { continue };
        let op = part.model.parse(operation)?;
        // An open observation tells nothing and changes nothing.
        if operation.ret.is_some() || part.model.nature(&op).changes() {
            part.ops.push(Timed { op, call: operation.call, ret: operation.ret });
            part.source.push(operation);
        }
    }
    Ok(parts)
}

/// How many steps each object gets in the first round, and how many times more in each round after.
///
/// One hard object does not keep the others waiting, among which may be one that is plainly impossible.
const FIRST_ROUND: u64 = 20_000;
const ROUND_GROWTH: u64 = 8;

/// How many steps may be spent on making a counterexample small. It is a comfort, and shall not take long.
const SHRINK_STEPS: u64 = 1_000_000;

struct Checking<'a, M: Model> {
    parts: &'a [Part<'a, M>],
    purse: Purse<'a>,
    witnessed: usize,
    /// Whether some operation in the orders found told something about the state.
    has_observed: bool,
    /// Whether some operation in the orders found changed the state.
    has_changed: bool,
}

impl<'a, M: Model> Checking<'a, M> {
    fn verdict(&mut self) -> Verdict {
        // Operations beyond the witness are searched, hard objects again and again.
        let mut waiting = Vec::new();
        for part in self.parts {
            match witness(part) {
                Some(order) => {
                    self.witnessed += 1;
                    self.note(part, &order);
                }
                None => waiting.push((part, None)),
            }
        }
        let mut given_up = 0;
        let mut steps = FIRST_ROUND;
        while !waiting.is_empty() {
            match self.round(&mut waiting, steps, &mut given_up) {
                Ok(None) => {}
                Ok(Some(verdict)) => return verdict,
                Err(reason) => return Verdict::Unknown { reason, undecided: waiting.len() + given_up },
            }
            steps = steps.saturating_mul(ROUND_GROWTH);
        }
        match (given_up, self.has_observed, self.has_changed) {
            (0, true, true) => Verdict::Valid,
            (0, false, _) => Verdict::NotExercised { missing: "read" },
            (0, true, false) => Verdict::NotExercised { missing: "write" },
            (undecided, ..) => Verdict::Unknown { reason: Exhausted::Configurations, undecided },
        }
    }

    /// Takes every waiting search on by so many steps; those that found an order wait no more.
    fn round(
        &mut self,
        waiting: &mut Vec<(&'a Part<'a, M>, Option<Search<'a, M>>)>,
        steps: u64,
        given_up: &mut usize,
    ) -> Result<Option<Verdict>, Exhausted> {
        let size = |search: &Option<Search<'_, M>>| search.as_ref().map_or(0, Search::configurations);
        let mut remembered: usize = waiting.iter().map(|(_, search)| size(search)).sum();
        let mut at = 0;
        while let Some((part, slot)) = waiting.get_mut(at) {
            let part = *part;
            remembered -= size(slot);
            let search = slot.get_or_insert_with(|| Search::new(&part.model, &part.ops));
            match advance(search, &mut self.purse, steps, remembered) {
                Ok(Progress::Paused) => {
                    remembered += search.configurations();
                    at += 1;
                }
                Ok(Progress::Found) => {
                    let order = search.order();
                    waiting.remove(at);
                    self.note(part, &order);
                }
                Ok(Progress::Exhausted) => {
                    let longest = search.longest().to_vec();
                    waiting.clear();
                    return Ok(Some(self.violation(part, longest)));
                }
                // Another object may still turn out to be impossible.
                Err(Exhausted::Configurations) => {
                    waiting.remove(at);
                    *given_up += 1;
                }
                Err(exhausted) => return Err(exhausted),
            }
        }
        Ok(None)
    }

    fn violation(&mut self, part: &Part<'_, M>, longest: Vec<usize>) -> Verdict {
        let core = shrink(&part.model, &part.ops, longest, &mut self.purse.part(SHRINK_STEPS));
        let key = part.key.clone();
        Verdict::Violation(Box::new(Counterexample::new(&part.model, &part.ops, &part.source, key, &core)))
    }

    fn note(&mut self, part: &Part<'_, M>, order: &[usize]) {
        let natures =
            || order.iter().filter_map(|at| part.ops.get(*at)).map(|timed| part.model.nature(&timed.op));
        self.has_observed = self.has_observed || natures().any(|nature| nature.observes());
        self.has_changed = self.has_changed || natures().any(|nature| nature.changes());
    }
}

/// The order by revision, if the operations have some and it explains them.
fn witness<M: Model>(part: &Part<'_, M>) -> Option<Vec<usize>> {
    let revisions: Vec<_> = part.source.iter().map(|operation| operation.revision).collect();
    revisions.iter().any(Option::is_some).then(|| order_by_revision(&part.model, &part.ops, &revisions))?
}
