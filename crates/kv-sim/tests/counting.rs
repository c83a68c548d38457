//! Clients with sessions count, each increment once, whatever goes wrong. A sweep of many seeds:
//! `cargo run --release -p kv-sim -- run --scenario crates/kv-sim/scenarios/counting.toml --seeds 1000`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use kv_sim::{Scenario, Tally, run};

fn scenario() -> Scenario {
    Scenario::parse(include_str!("../scenarios/counting.toml")).unwrap()
}

#[test]
fn every_increment_counts_once() {
    let reports: Vec<_> = (1..=10).map(|seed| run(seed, &scenario(), false)).collect();
    for report in &reports {
        assert_eq!(report.failure, None, "{report}");
        assert!(report.tally.counting.acknowledged >= 2000, "{report}");
    }
    let tally = reports.iter().fold(Tally::default(), |sum, report| sum.plus(report.tally));
    let counting = tally.counting;
    assert!(counting.unknown * 50 < counting.acknowledged, "{tally}");
    let least = [
        ("elections", tally.elections, 50),
        ("snapshots", tally.snapshots, 8),
        ("attempts", counting.attempts, 23_000),
        ("late deliveries", counting.late, 3300),
        ("replays", counting.replayed, 1700),
        ("refusals", counting.refused, 800),
        ("sessions", counting.opened, 80),
        ("sessions collected", counting.collected, 80),
        ("requests not applied", counting.not_applied, 160),
    ];
    for (name, count, least) in least {
        assert!(count >= least, "only {count} {name}: {tally}");
    }
}

#[test]
fn the_same_seed_counts_the_same() {
    let mut scenario = scenario();
    if let Some(counting) = &mut scenario.counting {
        counting.increments = 300;
    }
    let first = run(3, &scenario, true);
    assert_eq!(first, run(3, &scenario, true));
    assert!(first.failure.is_none() && first.events.contains("Attempted"), "{first}");
}
