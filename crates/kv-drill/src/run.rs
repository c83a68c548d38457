//! One run, from the start of the first process to the end of the last.

mod finish;
mod staff;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kv_fault::Drill;
use tokio::signal::unix::{SignalKind, signal};

use crate::book::Seen;
use crate::checking::{Finding, Word, check_probes, check_workload};
use crate::error::RunError;
use crate::judge::{Evidence, judge};
use crate::record::{Checked, FORMAT, Played, Record};
use crate::site::{Site, Where};
use crate::timeline::{Stage, Timeline};
use crate::utc;

use staff::Staff;

/// How long clients go on when something had to be mended at the end.
const AFTERWARDS: Duration = Duration::from_secs(3);

/// The name of the history of the workload beside the report.
const HISTORY: &str = "history.jsonl";

/// The name of the history of the probes.
const PROBES: &str = "probes.jsonl";

/// How a drill is to be played.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where.
    pub place: Where,
    /// The folder for the record and the histories; made if needed.
    pub report: PathBuf,
    /// The command that plays it again.
    pub repro: String,
    /// The version of the programs.
    pub version: String,
}

/// Plays a drill, and writes `report.json`, `report.html` and the histories.
///
/// `told` is told once a second how it stands.
///
/// # Errors
/// [`RunError`] if there is no verdict; what was started is stopped all the same.
pub async fn run(
    drill: &Drill,
    options: &Options,
    told: &mut (dyn FnMut(&str) + Send),
) -> Result<Record, RunError> {
    let report = &options.report;
    let unwritable = || format!("cannot write {}", report.display());
    std::fs::create_dir_all(report).map_err(RunError::system(unwritable()))?;
    told("starting the cluster");
    let mut site = tokio::select! {
        site = Site::open(drill, &options.place) => site?,
        interrupted = interrupted() => return Err(interrupted),
    };
    let played = tokio::select! {
        played = play(drill, &mut site, options, told) => played,
        interrupted = interrupted() => Err(interrupted),
    };
    let is_valid = played.as_ref().is_ok_and(|(record, _)| record.verdict == "VALID");
    // The logs of nodes explain what went wrong.
    let closed = site.close((!is_valid).then_some(report)).await;
    match played {
        Ok((record, histories)) => {
            let kept = keep(report, &record, &histories);
            found(record, kept.and(closed), told)
        }
        Err(error) => Err(with_close(error, closed)),
    }
}

/// What was found outweighs what went wrong after it: only that is told, then.
fn found(
    record: Record,
    after: Result<(), RunError>,
    told: &mut (dyn FnMut(&str) + Send),
) -> Result<Record, RunError> {
    match after {
        Err(error) if record.verdict == "VIOLATION" => told(&error.to_string()),
        after => after?,
    }
    Ok(record)
}

/// An interruption says that all is mended: then it must be so.
fn with_close(error: RunError, closed: Result<(), RunError>) -> RunError {
    match (error, closed) {
        (RunError::Interrupted, Err(left)) => RunError::Left(Box::new(left)),
        (error, _) => error,
    }
}

fn keep(report: &Path, record: &Record, histories: &Histories) -> Result<(), RunError> {
    for (name, text) in [(HISTORY, &histories.workload), (PROBES, &histories.probes)] {
        write(&report.join(name), text)?;
    }
    let json = serde_json::to_string(record).map_err(|error| RunError::Unfit(error.to_string()))?;
    write(&report.join("report.json"), &json)?;
    write(&report.join("report.html"), &crate::report::html(record))
}

fn write(path: &Path, text: &str) -> Result<(), RunError> {
    std::fs::write(path, text).map_err(RunError::system(format!("cannot write {}", path.display())))
}

/// Waits for a signal that wants this process to end.
async fn interrupted() -> RunError {
    let listen = |kind| signal(kind).map_err(RunError::system("cannot listen for signals"));
    let signals = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()].map(listen);
    match signals {
        [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] => {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            RunError::Interrupted
        }
        [first, second, third] => {
            first.err().or(second.err()).or(third.err()).unwrap_or(RunError::Interrupted)
        }
    }
}

/// The histories as text.
#[derive(Debug, Default)]
struct Histories {
    workload: String,
    probes: String,
}

async fn play(
    drill: &Drill,
    site: &mut Site,
    options: &Options,
    told: &mut (dyn FnMut(&str) + Send),
) -> Result<(Record, Histories), RunError> {
    let begun = utc::now();
    let mut staff = Staff::hire(drill, site).await?;
    let Site { local, chaos, .. } = site;
    let (clock, watch, admin) = (staff.clock.clone(), staff.watch.clone(), staff.admin.clone());
    let mut stage =
        Stage { drill, chaos, local: local.as_mut(), client: &admin, watch: &watch, clock: &clock };
    let mut timeline = Timeline::new(&stage);
    staff.begin();
    let (book, name) = (staff.book.clone(), drill.name.clone());
    let duration = drill.workload.duration;
    let mut progress = |in_force: &str| {
        let (ok, failed, unknown) = book.counts();
        let (at, of) = (clock.ms() / 1000.0, duration.as_secs_f64());
        told(&format!(
            "{name}: {at:.0} of {of:.0} s, {ok} ok, {failed} failed, {unknown} unknown; in force: {in_force}"
        ));
    };
    timeline.play(&mut stage, duration, &mut progress).await?;
    timeline.close(&stage);
    if timeline.mend_all(&mut stage).await? {
        timeline.play(&mut stage, clock.elapsed() + AFTERWARDS, &mut progress).await?;
    }
    clock.stop();
    let ended_ms = clock.ms();
    progress("nothing; waiting for the cluster to settle");
    let (mut wrongs, left) = finish::processes(stage.local.as_deref_mut()).await?;
    wrongs.extend(staff.end().await?);
    let (replicas, converged) = finish::converge(&watch, &left).await;
    let mut record = Record { format: FORMAT, replicas, converged, ..Record::default() };
    record.drill = described(drill, options, begun, (staff.election_timeout, ended_ms));
    (record.steps, record.faults) = (timeline.steps, timeline.faults);
    record.leadership = watch.changes();
    told(&format!("{name}: checking"));
    let histories = conclude(drill, &staff, (&wrongs, timeline.mended_ms, ended_ms), &mut record)?;
    Ok((record, histories))
}

/// Checks, judges, and takes what was done into the record.
fn conclude(
    drill: &Drill,
    staff: &Staff,
    (wrongs, mended_ms, ended_ms): (&[String], Option<f64>, f64),
    record: &mut Record,
) -> Result<Histories, RunError> {
    let began = Instant::now();
    let mut seen = Vec::new();
    let mut findings = Vec::new();
    let mut histories = Histories::default();
    {
        let mut pages = staff.book.pages();
        written(&mut pages.broken)?;
        findings.push(check_workload(drill.workload.kind, &pages.events, staff.accounts())?);
        histories.workload = std::mem::take(&mut pages.lines);
        seen.extend(pages.seen.drain(..).map(|seen| Seen { of_workload: true, ..seen }));
    }
    {
        let mut pages = staff.probes.pages();
        written(&mut pages.broken)?;
        // What no probe has looked at is a workload like any other, and the workload is checked already.
        if pages.seen.iter().any(|seen| seen.probe) {
            findings.push(check_probes(&pages.events)?);
        }
        histories.probes = std::mem::take(&mut pages.lines);
        seen.append(&mut pages.seen);
    }
    seen.sort_by(|a, b| a.operation.call_ms.total_cmp(&b.operation.call_ms));
    record.check = checked(&findings, &seen, began.elapsed());
    judge(&Evidence { drill, seen: &seen, findings: &findings, wrongs, mended_ms, ended_ms }, record);
    record.operations = seen.into_iter().map(|seen| seen.operation).collect();
    Ok(histories)
}

/// A history that could not be written down is no evidence.
fn written(broken: &mut Option<kv_check::HistoryError>) -> Result<(), RunError> {
    broken.take().map_or(Ok(()), |error| Err(error.into()))
}

fn checked(findings: &[Finding], seen: &[Seen], took: Duration) -> Checked {
    let ended = |word: &str| {
        let those = seen.iter().filter(|seen| seen.operation.outcome == word);
        u64::try_from(those.count()).unwrap_or(u64::MAX)
    };
    let models: Vec<_> = findings.iter().map(|finding| finding.model.as_str()).collect();
    let contradictions = findings.iter().filter_map(|finding| match &finding.word {
        Word::Violation(text) => Some(text.as_str()),
        Word::Valid | Word::Unknown(_) | Word::NotExercised(_) => None,
    });
    Checked {
        model: models.join("; probes: "),
        operations: u64::try_from(seen.len()).unwrap_or(u64::MAX),
        ok: ended("ok"),
        failed: ended("failed"),
        unknown: ended("unknown"),
        took_ms: took.as_secs_f64() * 1000.0,
        counterexample: contradictions.collect::<Vec<_>>().join("\n\n"),
        history: HISTORY.to_owned(),
    }
}

fn described(
    drill: &Drill,
    options: &Options,
    begun: String,
    (election_timeout, ended_ms): (Duration, f64),
) -> Played {
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    Played {
        name: drill.name.clone(),
        about: drill.about.clone(),
        runbook: drill.runbook.clone(),
        seed: drill.seed,
        repro: options.repro.clone(),
        version: options.version.clone(),
        begun,
        nodes: u64::from(drill.cluster.nodes),
        shards: drill.cluster.shards,
        workload: drill.workload.kind.name().to_owned(),
        clients: small(drill.workload.clients),
        keys: small(drill.workload.keys),
        duration_ms: ended_ms,
        election_ms: election_timeout.as_secs_f64() * 1000.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Operation;

    #[test]
    fn a_violation_is_told_whatever_goes_wrong_after_it() {
        let after = || Err(RunError::Cluster("it does not end".to_owned()));
        let record = |verdict: &str| Record { verdict: verdict.to_owned(), ..Record::default() };
        let mut told = Vec::new();
        let mut tell = |line: &str| told.push(line.to_owned());
        assert!(found(record("VIOLATION"), after(), &mut tell).is_ok());
        assert!(found(record("VALID"), after(), &mut tell).is_err());
        assert!(found(record("VALID"), Ok(()), &mut tell).is_ok());
        assert_eq!(told, ["it does not end"]);
        assert!(matches!(with_close(RunError::Interrupted, after()), RunError::Left(_)));
        assert!(matches!(with_close(RunError::Interrupted, Ok(())), RunError::Interrupted));
    }

    #[test]
    fn outcomes_are_counted_over_all_histories() {
        let seen = |outcome: &str| Seen {
            operation: Operation { outcome: outcome.to_owned(), ..Operation::default() },
            shards: Vec::new(),
            probe: false,
            answered: true,
            of_workload: true,
        };
        let findings = [
            Finding { model: "a".to_owned(), word: Word::Valid },
            Finding { model: "b".to_owned(), word: Word::Violation("x".to_owned()) },
        ];
        let checked = checked(&findings, &[seen("ok"), seen("ok"), seen("unknown")], Duration::ZERO);
        assert_eq!((checked.operations, checked.ok, checked.failed, checked.unknown), (3, 2, 0, 1));
        assert_eq!((checked.model.as_str(), checked.counterexample.as_str()), ("a; probes: b", "x"));
    }
}
