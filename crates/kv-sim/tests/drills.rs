//! Every drill of the catalogue, played by the simulator.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its functions too")]

use std::path::{Path, PathBuf};

use kv_fault::Drill;
use kv_sim::{NotPlayed, Scenario, run};

fn catalogue() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../drills");
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|it| it == "toml")).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<Scenario, NotPlayed> {
    Scenario::of_drill(Drill::parse(&std::fs::read_to_string(path).unwrap()).unwrap())
}

fn played(path: &Path) -> Scenario {
    read(path).unwrap()
}

fn written(steps: &str) -> Drill {
    let head = "name = \"test\"\nabout = \"A.\"\nrunbook = \"B.\"\ncluster = { nodes = 3, shards = 1 }\n";
    Drill::parse(&format!("{head}workload = {{ duration = \"3s\" }}\n{steps}")).unwrap()
}

#[test]
fn every_drill_of_the_catalogue_passes_and_all_of_it_is_met() {
    let (mut count, mut refused) = (0, 0);
    for path in catalogue() {
        let Ok(scenario) = read(&path) else {
            refused += 1;
            continue;
        };
        count += 1;
        let reports = [1, 2].map(|seed| run(seed, &scenario, false));
        for report in &reports {
            assert_eq!(report.failure, None, "{}: {report}", path.display());
            assert_eq!(report.unmet().next(), None, "{}: {report}", path.display());
            assert!(report.expectations.iter().all(|it| it.met.is_some()), "{}: {report}", path.display());
            assert!(report.tally.applied > 0, "{}: {report}", path.display());
        }
        let [first, second] = reports;
        assert!(!first.exercises.is_empty(), "{}", path.display());
        for (one, other) in first.exercises.iter().zip(&second.exercises) {
            assert!(one.matched + other.matched > 0, "{}: {} is not met", path.display(), one.what);
        }
    }
    assert!(count >= 30 && refused == 1, "{count} drills are played, {refused} are not");
}

#[test]
fn a_seed_of_a_drill_gives_the_same_bytes() {
    for path in catalogue().iter().filter(|path| path.ends_with("lossy-network.toml")) {
        let scenario = played(path);
        let first = run(3, &scenario, true);
        assert!(first.events.lines().any(|line| line.contains("drill step 2")), "steps are events");
        assert_eq!(first, run(3, &scenario, true));
        assert_ne!(first.exercises, run(4, &scenario, false).exercises, "another seed tosses other coins");
    }
}

#[test]
fn a_drill_refused_is_refused() {
    let drill = written(
        "[[step]]\nat = \"1s\"\nrule = { name = \"cut\", links = [\"clients->n1\"], reset = true }\n\
         [[step]]\nat = \"2s\"\nheal = \"discard\"\n",
    );
    assert_eq!(Scenario::of_drill(drill), Err(NotPlayed::Clients { number: 1 }));
}

#[test]
fn what_is_expected_in_vain_is_told() {
    let drill = written(
        "[[step]]\nat = \"1s\"\npartition = \"isolate leader-of(1)\"\n[[step]]\nat = \"2s\"\nheal = \"late\"\n\
         [[expect]]\nleader-change-within = \"100ms\"\n[[expect]]\nleader-change-within = \"1E\"\n\
         [[expect]]\nmajority-available-within = \"1ms\"\n",
    );
    let report = run(1, &Scenario::of_drill(drill).unwrap(), false);
    assert_eq!(report.failure, None, "{report}");
    let met: Vec<_> = report.expectations.iter().map(|it| it.met).collect();
    assert_eq!(met, [false, true, false].map(Some), "{report}");
    let unmet: Vec<_> = report.unmet().map(|it| it.what.as_str()).collect();
    assert_eq!(unmet, ["leader-change-within 100ms", "majority-available-within 1ms"]);
    assert!(report.to_string().contains(" UNMET leader-change-within 100ms ("), "{report}");
}

#[test]
fn what_meets_nothing_is_told() {
    let drill = written(
        "[[step]]\nat = \"1s\"\nrule = { name = \"never\", kinds = [\"prepare\"], drop = true }\n\
         [[step]]\nat = \"1s\"\nrule = { name = \"ends\", links = [\"*->*\"], half-close = true }\n\
         [[step]]\nat = \"1s\"\nrule = { name = \"slow\", links = [\"*->n1\"], latency = \"5ms\" }\n\
         [[step]]\nat = \"2s\"\nheal = \"discard\"\n",
    );
    let report = run(1, &Scenario::of_drill(drill).unwrap(), false);
    assert_eq!(report.failure, None, "{report}");
    let met: Vec<_> = report.exercises.iter().map(|it| (it.what.as_str(), it.matched > 0)).collect();
    assert_eq!(met, [("rule never", false), ("rule ends", false), ("rule slow", true)]);
}

/// A step that waits for what rules and leaders come to, and one that asks who manages a transaction.
#[test]
fn steps_wait_for_conditions() {
    let drill = written(
        "[[step]]\nat = \"500ms\"\nname = \"away\"\npartition = \"isolate leader-of(1)\"\n\
         [[step]]\nwhen = \"matched away >= 5\"\nprocess = \"pause follower-of(1)\"\n\
         [[step]]\nat = \"1500ms\"\nprocess = \"resume all\"\n\
         [[step]]\nwhen = \"leader-changed 1\"\nheal = \"discard\"\n",
    );
    let scenario = Scenario::of_drill(drill).unwrap();
    for seed in 1..=3 {
        let report = run(seed, &scenario, true);
        assert_eq!(report.failure, None, "{report}");
        assert!(report.exercises.iter().all(|exercise| exercise.matched > 0), "{:?}", report.exercises);
        assert!(report.events.lines().any(|line| line.contains("drill step 4")), "the leader changed");
    }
}
