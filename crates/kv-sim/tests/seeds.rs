//! What a seed means, and where the model ends.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use kv_sim::{Failure, Scenario, Tally, run};

fn scenario(text: &str) -> Scenario {
    Scenario::parse(text).expect("the scenario is sound")
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    for seed in [3, 7] {
        let first = run(seed, &Scenario::default(), true);
        let second = run(seed, &Scenario::default(), true);
        assert!(first.events.lines().count() > 1000, "seed {seed} does something");
        assert_eq!(first, second);
        assert_ne!(first.trace, run(seed + 1, &Scenario::default(), false).trace);
    }
}

#[test]
fn seeds_keep_all_promises_and_do_something() {
    let seeds = 1..=60;
    let reports: Vec<_> = seeds.clone().map(|seed| run(seed, &Scenario::default(), false)).collect();
    for report in &reports {
        assert_eq!(report.failure, None, "{report}");
        assert_eq!(report.tally.undecided, 0, "{report}");
    }
    let tally = reports.iter().fold(Tally::default(), |sum, report| sum.plus(report.tally));
    let least = [
        ("troubles", tally.troubles, 600),
        ("applied", tally.applied, 4000),
        ("elections", tally.elections, 150),
        ("acknowledged", tally.acknowledged, 4000),
        ("reads", tally.reads, 4000),
        ("lease_reads", tally.lease_reads, 2000),
        ("configs", tally.configs, 100),
        ("snapshots", tally.snapshots, 5),
        ("checkpoints", tally.checkpoints, 50),
        ("regenerations", tally.regenerations, 5),
    ];
    for (name, count, least) in least {
        assert!(count >= least, "only {count} {name} in {seeds:?}: {tally}");
    }
}

#[test]
fn a_full_disk_stops_nobody_and_loses_nothing() {
    let scenario = scenario(include_str!("../scenarios/full-disk.toml"));
    let reports: Vec<_> = (1..=40).map(|seed| run(seed, &scenario, false)).collect();
    for report in &reports {
        assert_eq!(report.failure, None, "{report}");
        assert_eq!(report.tally.undecided, 0, "{report}");
    }
    let tally = reports.iter().fold(Tally::default(), |sum, report| sum.plus(report.tally));
    for (name, count, least) in [
        ("groups put off", tally.put_off, 1000),
        ("acknowledged", tally.acknowledged, 2000),
        ("checkpoints", tally.checkpoints, 100),
        ("snapshots", tally.snapshots, 5),
    ] {
        assert!(count >= least, "only {count} {name}: {tally}");
    }
}

#[test]
fn clocks_outside_the_bound_break_a_lease_and_are_caught() {
    for (name, text) in [
        ("skew", include_str!("../scenarios/unsound/skew.toml")),
        ("freeze", include_str!("../scenarios/unsound/freeze.toml")),
    ] {
        match run(1, &scenario(text), false).failure {
            Some(Failure::Violation(violation)) => {
                assert_eq!(violation.invariant, "lease-exclusivity", "{name}: {violation}");
            }
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn reads_by_rounds_need_no_clock() {
    for text in
        [include_str!("../scenarios/unsound/skew.toml"), include_str!("../scenarios/unsound/freeze.toml")]
    {
        let scenario = Scenario { lease: Some(false), ..scenario(text) };
        for seed in 1..=20 {
            let report = run(seed, &scenario, false);
            assert_eq!(report.failure, None, "{report}");
            assert_eq!(report.tally.undecided, 0, "{report}");
            assert!(report.tally.reads > 0 && report.tally.lease_reads == 0, "{report}");
        }
    }
}

#[test]
fn a_scenario_with_an_unknown_word_is_refused() {
    assert!(Scenario::parse("voters = 3\nvoterz = 4").is_err());
    assert!(Scenario::parse("mix = { earthquake = 1 }").is_err());
}
