//! The whole page of a small record. `UPDATE_GOLDENFILES=1` rewrites it; read the difference before you accept it.

use std::path::Path;

use kv_drill::record::{
    Counts, Expectation, FORMAT, Fault, Leadership, Operation, Record, Replica, StepFired,
};

fn small() -> Record {
    let mut record =
        Record { format: FORMAT, verdict: "VALID".into(), converged: Some(true), ..Default::default() };
    record.drill.name = "isolate <leader>".into();
    record.drill.about = "The majority goes on & the minority refuses.".into();
    record.drill.runbook = "docs/operations.md".into();
    record.drill.repro = "kvctl drill run 'isolate' --seed 7".into();
    record.drill.version = "0.1.0".into();
    record.drill.begun = "2026-01-31T12:00:00Z".into();
    record.drill.workload = "register".into();
    (record.drill.seed, record.drill.nodes, record.drill.shards) = (7, 3, 1);
    (record.drill.clients, record.drill.keys) = (2, 1);
    (record.drill.duration_ms, record.drill.election_ms) = (1000.0, 200.0);
    record.check.model = "linearizable register".into();
    (record.check.operations, record.check.ok, record.check.unknown) = (3, 2, 1);
    record.check.took_ms = 0.4;
    record.steps.push(StepFired {
        number: 1,
        text: "partition isolate leader-of(1)".into(),
        planned_ms: Some(300.0),
        at_ms: Some(301.0),
        chosen: [("leader-of(1)".to_owned(), 1)].into(),
        sides: vec![vec![2, 3], vec![1]],
        error: String::new(),
    });
    let counts = Counts { matched: 12, acted: 11 };
    record.faults.push(Fault {
        name: "isolate".into(),
        text: "drop n1->*".into(),
        plane: "message".into(),
        from_ms: 301.0,
        until_ms: 700.0,
        matched: 12,
        acted: 11,
        links: [("n1->n2".to_owned(), counts)].into(),
        concurrent: 2,
    });
    let op = |minority, call_ms, return_ms, outcome: &str| Operation {
        client: 1,
        write: true,
        minority,
        call_ms,
        return_ms,
        outcome: outcome.into(),
    };
    record.operations = vec![
        op(false, 10.0, Some(12.5), "ok"),
        op(true, 350.0, None, "unknown"),
        op(false, 620.0, Some(640.0), "ok"),
    ];
    let led = |at_ms, epoch, leader| Leadership { shard: 1, at_ms, epoch, leader };
    record.leadership = vec![led(0.0, 1, Some(1)), led(400.0, 1, None), led(600.0, 2, Some(2))];
    record.expectations.push(Expectation {
        text: "majority within 3 E".into(),
        met: Some(true),
        measured: "319 ms".into(),
    });
    record.times.new_leader_ms = Some(299.0);
    record.replicas =
        [1, 2, 3].map(|node| Replica { shard: 1, node, applied: 9, state_hash: "5eed".into() }).into();
    record
}

#[test]
fn a_small_record_is_this_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/report.html");
    let page = kv_drill::report::html(&small());
    if std::env::var_os("UPDATE_GOLDENFILES").is_some() {
        std::fs::write(&path, &page).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap();
    for (number, (is, should)) in (1..).zip(page.lines().zip(golden.lines())) {
        assert_eq!(is, should, "line {number}");
    }
    assert_eq!(page.len(), golden.len());
}

/// Every text of a value, and every name that is not a field's, replaced.
fn poison(value: &mut serde_json::Value, evil: &str) {
    match value {
        serde_json::Value::String(text) => evil.clone_into(text),
        serde_json::Value::Array(all) => all.iter_mut().for_each(|value| poison(value, evil)),
        serde_json::Value::Object(fields) => {
            for name in ["leader-of(1)", "n1->n2"] {
                if let Some(value) = fields.remove(name) {
                    fields.insert(evil.to_owned(), value);
                }
            }
            fields.values_mut().for_each(|value| poison(value, evil));
        }
        _ => {}
    }
}

#[test]
fn no_text_of_a_record_becomes_markup() {
    for evil in ["<x-evil>", "\"><x-evil>", "'><x-evil>", "--><x-evil><!--", "</style><x-evil>"] {
        let mut value = serde_json::to_value(small()).unwrap();
        poison(&mut value, evil);
        let page = kv_drill::report::html(&serde_json::from_value(value).unwrap());
        assert!(!page.contains("<x-evil"), "{evil}");
        assert!(page.matches("&lt;x-evil&gt;").count() > 20);
        assert!(!page.contains("=\"\">") && !page.contains("http://") && !page.contains("https://"));
    }
}

#[test]
fn numbers_that_make_no_sense_make_a_page_all_the_same() {
    for odd in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, f64::MIN, -1.0, 1e-300, 1e18] {
        let mut record = small();
        record.drill.duration_ms = odd;
        record.check.took_ms = odd;
        record.times.recovery_ms = Some(odd);
        for op in &mut record.operations {
            op.return_ms = Some(odd);
        }
        record.operations[0].call_ms = odd;
        record.faults[0].until_ms = odd;
        record.steps[0].at_ms = Some(odd);
        record.leadership[1].at_ms = odd;
        (record.drill.nodes, record.drill.shards) = (u64::MAX, u32::MAX);
        let page = kv_drill::report::html(&record);
        assert!(page.len() < 200_000);
        for bad in ["NaN", "inf\"", "inf%"] {
            assert!(!page.contains(bad), "{odd}: {bad}");
        }
    }
}

#[test]
fn fifty_thousand_operations_make_a_small_page() {
    let mut record = small();
    record.drill.duration_ms = 60_000.0;
    record.operations = (0..50_000_u32)
        .map(|i| {
            let call_ms = f64::from(i) * 1.2;
            let return_ms = Some(call_ms + f64::from(i % 97));
            let outcome = ["ok", "ok", "failed", "unknown"][i as usize % 4].to_owned();
            Operation { client: i % 24, write: i % 2 == 0, minority: i % 5 == 0, call_ms, return_ms, outcome }
        })
        .collect();
    let page = kv_drill::report::html(&record);
    assert!(page.len() < 300_000, "{}", page.len());
}
