use super::*;
use crate::record::{Leadership, Operation, StepFired};

const HEAD: &str = "name = \"d\"\nabout = \"x\"\nrunbook = \"x\"\n[[step]]\nat = \"1s\"\npartition = \"isolate n1\"\n\
                    [[step]]\nat = \"5s\"\nheal = \"late\"\n";

fn drill(expect: &str) -> Drill {
    Drill::parse(&format!("{HEAD}[[expect]]\n{expect}\n")).unwrap()
}

fn op(call: f64, ret: f64, outcome: &str) -> Seen {
    let operation = Operation {
        client: 1,
        write: true,
        minority: false,
        call_ms: call,
        return_ms: Some(ret),
        outcome: outcome.to_owned(),
    };
    Seen { operation, shards: vec![1], probe: false, answered: outcome == "ok", of_workload: true }
}

fn probe(call: f64, ret: f64, outcome: &str) -> Seen {
    let mut seen = op(call, ret, outcome);
    seen.operation.minority = true;
    (seen.probe, seen.answered) = (true, true);
    seen.of_workload = false;
    seen
}

fn record() -> Record {
    let mut record = Record { converged: Some(true), ..Record::default() };
    record.drill.election_ms = 1000.0;
    record.faults.push(Fault {
        name: "partition-1".to_owned(),
        plane: "message".to_owned(),
        from_ms: 1000.0,
        until_ms: 5000.0,
        matched: 9,
        acted: 9,
        ..Fault::default()
    });
    record.steps.push(StepFired {
        number: 1,
        at_ms: Some(999.0),
        sides: vec![vec![2, 3], vec![1]],
        ..StepFired::default()
    });
    record.leadership.push(Leadership { shard: 1, at_ms: 0.0, epoch: 1, leader: Some(1) });
    record.leadership.push(Leadership { shard: 1, at_ms: 1800.0, epoch: 2, leader: Some(2) });
    record
}

fn valid() -> Finding {
    Finding { model: "m".to_owned(), word: Word::Valid }
}

/// The verdict, the first reason, and whether the first expectation was met.
fn judged(
    expect: &str,
    seen: &[Seen],
    findings: &[Finding],
    change: impl FnOnce(&mut Record),
) -> (String, String, Option<bool>) {
    let drill = drill(expect);
    let mut record = record();
    change(&mut record);
    let evidence =
        Evidence { drill: &drill, seen, findings, wrongs: &[], mended_ms: Some(5000.0), ended_ms: 8000.0 };
    judge(&evidence, &mut record);
    let met = record.expectations.first().and_then(|it| it.met);
    (record.verdict, record.reasons.first().cloned().unwrap_or_default(), met)
}

const LEADS: &str = "leader-change-within = \"1s\"";

fn good() -> Vec<Seen> {
    vec![op(900.0, 1900.0, "unknown"), op(1900.0, 1950.0, "ok"), op(5100.0, 5110.0, "ok")]
}

#[test]
fn a_run_without_reasons_is_valid() {
    assert_eq!(judged(LEADS, &good(), &[valid()], |_| {}), ("VALID".into(), String::new(), Some(true)));
}

#[test]
fn a_contradiction_outweighs_everything() {
    let found = Finding { model: "m".to_owned(), word: Word::Violation("x".to_owned()) };
    let (word, why, _) = judged(LEADS, &good(), &[found], |record| record.faults[0].matched = 0);
    assert_eq!((word.as_str(), why.as_str()), ("VIOLATION", "what clients saw contradicts the model m"));
    let (word, why, _) = judged(LEADS, &good(), &[valid()], |record| record.converged = Some(false));
    assert_eq!(word, "VIOLATION", "{why}");
}

#[test]
fn a_checker_that_gave_up_leaves_it_unknown() {
    let found = Finding { model: "m".to_owned(), word: Word::Unknown("late".to_owned()) };
    assert_eq!(judged(LEADS, &good(), &[found], |_| {}).0, "UNKNOWN");
    assert_eq!(judged(LEADS, &good(), &[valid()], |record| record.converged = None).0, "UNKNOWN");
}

#[test]
fn a_fault_that_meets_nothing_shows_nothing() {
    let (word, why, _) = judged(LEADS, &good(), &[valid()], |record| record.faults[0].matched = 0);
    assert_eq!((word.as_str(), why.as_str()), ("NOT EXERCISED", "rule partition-1 matched no message"));
    let (word, why, _) = judged(LEADS, &[op(10.0, 20.0, "ok")], &[valid()], |_| {});
    assert_eq!(
        (word.as_str(), why.as_str()),
        ("NOT EXERCISED", "no operation was under way during partition-1")
    );
    // Those that see what a cluster does are always under way.
    let watched = [op(10.0, 20.0, "ok"), probe(2000.0, 2100.0, "failed")];
    let (word, why, _) = judged(LEADS, &watched, &[valid()], |_| {});
    assert!(word == "NOT EXERCISED" && why.contains("no operation was under way"), "{word}: {why}");
    let (word, why, _) = judged(LEADS, &good(), &[valid()], |record| {
        record.steps[0].at_ms = None;
        record.steps[0].error = "no".to_owned();
    });
    assert_eq!((word.as_str(), why.as_str()), ("NOT EXERCISED", "step 1 () did not fire: no"));
    let idle = Finding { model: "m".to_owned(), word: Word::NotExercised("read".to_owned()) };
    assert_eq!(judged(LEADS, &good(), &[idle], |_| {}).0, "NOT EXERCISED");
    let (word, _, met) =
        judged("matched-at-least = { rule = \"partition-1\", count = 10 }", &good(), &[valid()], |_| {});
    assert_eq!((word.as_str(), met), ("NOT EXERCISED", Some(false)));
}

#[test]
fn a_rule_that_changes_nothing_shows_nothing() {
    let (word, why, _) = judged(LEADS, &good(), &[valid()], |record| record.faults[0].acted = 0);
    assert!(word == "NOT EXERCISED" && why.contains("changed nothing about the 9 messages"), "{word}: {why}");
    // One firing acts while nobody works, another does not act while somebody does.
    let (word, why, _) = judged(LEADS, &good(), &[valid()], |record| {
        let idle = Fault { from_ms: 6000.0, until_ms: 7000.0, ..record.faults[0].clone() };
        record.faults[0].acted = 0;
        record.faults.push(idle);
    });
    assert!(word == "NOT EXERCISED" && why.contains("no operation was under way"), "{word}: {why}");
}

#[test]
fn firings_of_one_rule_count_together() {
    let (word, _, _) = judged(LEADS, &good(), &[valid()], |record| {
        let missed = Fault { matched: 0, acted: 0, ..record.faults[0].clone() };
        record.faults.push(missed);
    });
    assert_eq!(word, "VALID");
}

#[test]
fn a_leader_changes_in_time_or_not() {
    assert_eq!(judged("leader-change-within = \"500ms\"", &good(), &[valid()], |_| {}).2, Some(false));
    let none = judged(LEADS, &good(), &[valid()], |record| record.leadership.truncate(1));
    assert_eq!((none.0.as_str(), none.2), ("VIOLATION", Some(false)));
    assert_eq!(judged("no-leader-change = true", &good(), &[valid()], |_| {}).2, Some(false));
    let led_on = judged("no-leader-change = true", &good(), &[valid()], |record| {
        // The same leader in a newer epoch is no change.
        record.leadership[1].leader = Some(1);
    });
    assert_eq!(led_on.2, Some(true));
}

#[test]
fn a_minority_that_accepts_writes_is_a_violation() {
    let refuses = "minority-refuses-within = \"2s\"";
    let met = |seen: Seen| {
        let mut all = good();
        all.push(seen);
        judged(refuses, &all, &[valid()], |_| {})
    };
    // Nobody has tried.
    let untold = judged(refuses, &good(), &[valid()], |_| {});
    assert_eq!((untold.0.as_str(), untold.2), ("UNKNOWN", None));
    assert_eq!(met(probe(3500.0, 3600.0, "failed")).2, Some(true));
    assert_eq!(met(probe(3500.0, 3600.0, "unknown")).2, Some(true));
    let accepted = met(probe(3500.0, 3600.0, "ok"));
    assert_eq!((accepted.0.as_str(), accepted.2), ("VIOLATION", Some(false)));
    // Who answers nothing has refused nothing.
    let unreached = Seen { answered: false, ..probe(3500.0, 3600.0, "failed") };
    assert_eq!(met(unreached.clone()).2, None);
    // Called during the cut, and answered when it was healed: that says nothing.
    let late = [good(), vec![probe(4900.0, 5200.0, "ok")]].concat();
    assert_eq!(judged(refuses, &late, &[valid()], |_| {}).2, None);
    let refused = [late, vec![unreached, probe(3500.0, 3600.0, "failed")]].concat();
    assert_eq!(judged(refuses, &refused, &[valid()], |_| {}).2, Some(true));
}

#[test]
fn the_majority_goes_on_in_time() {
    let expect = "majority-available-within = \"1E\"";
    assert_eq!(judged(expect, &good(), &[valid()], |_| {}).2, Some(true));
    let late = [op(900.0, 1900.0, "unknown"), op(1900.0, 2500.0, "ok")];
    let late = judged(expect, &late, &[valid()], |_| {});
    assert_eq!((late.0.as_str(), late.2), ("VIOLATION", Some(false)));
    let never = [op(900.0, 1900.0, "unknown"), op(5100.0, 5110.0, "ok")];
    assert_eq!(judged(expect, &never, &[valid()], |_| {}).2, Some(false));
    // One shard of two goes on, the other does not.
    let mut other = good();
    other.push(Seen { shards: vec![2], ..op(1200.0, 2200.0, "unknown") });
    assert_eq!(judged(expect, &other, &[valid()], |_| {}).2, Some(false));
    // What the writer beside the clients gets through does not make up for what they do not.
    let mut writer = never.to_vec();
    writer.push(Seen { of_workload: false, ..op(1200.0, 1300.0, "ok") });
    assert_eq!(judged(expect, &writer, &[valid()], |_| {}).2, Some(false));
    // Without a majority nobody can say.
    let halved = judged(expect, &good(), &[valid()], |record| record.steps[0].sides = vec![vec![1], vec![2]]);
    assert_eq!(halved.2, None);
}

#[test]
fn all_go_on_when_all_is_mended() {
    let expect = "available-after-heal-within = \"1s\"";
    assert_eq!(judged(expect, &good(), &[valid()], |_| {}).2, Some(true));
    assert_eq!(judged(expect, &[op(900.0, 5000.0, "ok")], &[valid()], |_| {}).2, Some(false));
}

#[test]
fn times_count_from_the_first_fault_and_from_the_last_mending() {
    let drill = drill(LEADS);
    let record = record();
    let seen = good();
    let evidence = Evidence {
        drill: &drill,
        seen: &seen,
        findings: &[],
        wrongs: &[],
        mended_ms: Some(5000.0),
        ended_ms: 8000.0,
    };
    let times = times(&evidence, &record);
    assert_eq!(times.first_error_ms, Some(900.0));
    assert_eq!(times.new_leader_ms, Some(800.0));
    assert_eq!(times.first_success_ms, Some(950.0));
    assert_eq!(times.recovery_ms, Some(110.0));
}
