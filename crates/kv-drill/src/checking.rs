//! What the checkers say of the histories.

use std::time::{Duration, Instant};

use kv_check::{
    Budget, CONFIGURATIONS_MAX, Event, History, ModelKind, TransactionHistory, TransactionVerdict, Verdict,
    check, check_transactions,
};
use kv_fault::WorkloadKind;

use crate::error::RunError;
use crate::workload;

/// How long a search may take; then the verdict is not known.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a checker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The model or property.
    pub(crate) model: String,
    /// What it comes to.
    pub(crate) word: Word,
}

/// What a finding comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Word {
    /// The promise was kept.
    Valid,
    /// It was not; the contradiction, for people.
    Violation(String),
    /// The checker gave up, and why.
    Unknown(String),
    /// There was nothing to explain: what was missing.
    NotExercised(String),
}

/// Checks what clients of a workload saw.
pub(crate) fn check_workload(
    kind: WorkloadKind,
    events: &[Event],
    accounts: usize,
) -> Result<Finding, RunError> {
    match kind {
        WorkloadKind::Register => of_model(ModelKind::CasRegister, events),
        WorkloadKind::Counter => of_model(ModelKind::Counter, events),
        WorkloadKind::Set => of_model(ModelKind::Set, events),
        WorkloadKind::Lock => of_model(ModelKind::Lock, events),
        WorkloadKind::Append => {
            let report = check_transactions(&TransactionHistory::from_events(events.iter().cloned())?);
            let word = match report.verdict {
                TransactionVerdict::Valid => Word::Valid,
                TransactionVerdict::Violation(anomalies) => Word::Violation(anomalies.to_string()),
                TransactionVerdict::NotExercised { missing } => Word::NotExercised(missing.to_owned()),
            };
            Ok(Finding { model: "list-append, strictly serialisable".to_owned(), word })
        }
        WorkloadKind::Bank => Ok(of_bank(events, accounts)),
    }
}

/// Checks what probes of single nodes saw.
pub(crate) fn check_probes(events: &[Event]) -> Result<Finding, RunError> {
    of_model(ModelKind::CasRegister, events)
}

fn of_model(model: ModelKind, events: &[Event]) -> Result<Finding, RunError> {
    let history = History::from_events(events.iter().cloned())?;
    let begun = Instant::now();
    let stop = || begun.elapsed() >= DEADLINE;
    let budget = Budget { steps: u64::MAX, configurations: CONFIGURATIONS_MAX / 4, stop: &stop };
    let report = check(&history, model, &budget)?;
    let word = match report.verdict {
        Verdict::Valid => Word::Valid,
        Verdict::Violation(counterexample) => Word::Violation(counterexample.to_string()),
        Verdict::Unknown { reason, undecided } => {
            Word::Unknown(format!("{}; {undecided} of {} keys are undecided", reason.reason(), report.keys))
        }
        Verdict::NotExercised { missing } => Word::NotExercised(missing.to_owned()),
    };
    Ok(Finding { model: report.model.to_owned(), word })
}

/// Checks a history of the workload `bank`; there are as many accounts as the largest look names.
#[must_use]
pub fn check_bank(events: &[Event]) -> Word {
    let looked_at = |event: &Event| {
        let items = event.value.as_list().unwrap_or_default();
        let is_read = |item: &&kv_check::Datum| {
            let kind = item.as_list().and_then(<[_]>::first).and_then(kv_check::Datum::as_text);
            kind == Some("r")
        };
        items.iter().filter(is_read).count()
    };
    of_bank(events, events.iter().map(looked_at).max().unwrap_or_default()).word
}

fn of_bank(events: &[Event], accounts: usize) -> Finding {
    let model = "bank: the total is constant, nobody is below zero, every transfer counts once".to_owned();
    let ended = |reads: bool| {
        events.iter().any(|event| {
            event.kind == kv_check::EventKind::Ok
                && event
                    .value
                    .as_list()
                    .and_then(<[_]>::first)
                    .and_then(kv_check::Datum::as_list)
                    .is_some_and(|item| {
                        (item.first().and_then(kv_check::Datum::as_text) == Some("r")) == reads
                    })
        })
    };
    let word = match workload::bank_flaw(events, accounts) {
        Some(flaw) => Word::Violation(flaw),
        None if !ended(true) => Word::NotExercised("read".to_owned()),
        None if !ended(false) => Word::NotExercised("write".to_owned()),
        None => Word::Valid,
    };
    Finding { model, word }
}
