//! Transactions over several shards are strictly serialisable and leave nothing behind, whatever goes wrong. A sweep of many
//! seeds: `cargo run --release -p kv-sim -- run --scenario crates/kv-sim/scenarios/transactions.toml --seeds 1000`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use kv_sim::{Scenario, Tally, run};

fn scenario() -> Scenario {
    Scenario::parse(include_str!("../scenarios/transactions.toml")).unwrap()
}

#[test]
fn transactions_keep_all_promises_and_do_something() {
    let reports: Vec<_> = (1..=24).map(|seed| run(seed, &scenario(), false)).collect();
    for report in &reports {
        assert_eq!(report.failure, None, "{report}");
    }
    let tally = reports.iter().fold(Tally::default(), |sum, report| sum.plus(report.tally));
    let transactions = tally.transactions;
    let least = [
        ("elections", tally.elections, 300),
        ("snapshots", tally.snapshots, 10),
        ("members changed", tally.configs, 200),
        ("committed", transactions.committed, 500),
        ("aborted", transactions.aborted, 100),
        ("given up", transactions.unknown, 50),
        ("written beside them", transactions.written, 150),
        ("read beside them", transactions.reads, 100),
        ("prepared", transactions.prepared, 800),
        ("fenced", transactions.fenced, 15),
        ("taken up by keepers", transactions.finished, 30),
        ("unblocked", transactions.unblocked, 30),
        ("asked for again late", transactions.late, 2000),
        ("steps that came late", tally.counting.late, 5000),
        ("sessions", transactions.opened, 200),
        ("sessions collected", tally.counting.collected, 500),
    ];
    for (name, count, least) in least {
        assert!(count >= least, "only {count} {name}: {tally}");
    }
}

#[test]
fn the_same_seed_transacts_the_same() {
    let scenario = Scenario { run_ms: Some(4000), ..scenario() };
    for seed in [4, 5] {
        let first = run(seed, &scenario, true);
        assert_eq!(first, run(seed, &scenario, true));
        assert!(first.failure.is_none(), "{first}");
        assert!(first.events.contains("Stepped") && first.events.contains("Outcome"), "seed {seed}");
    }
}
