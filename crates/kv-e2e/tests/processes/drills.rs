//! Drills, played by `kvctl` on processes of its own.

use std::path::Path;

use anyhow::{Context as _, ensure};
use kv_drill::record::Record;
use kv_e2e::{Turn, kvctl};
use serde_json::Value;

const HEAD: &str = "about = \"x\"\nrunbook = \"x\"\n\
                    [cluster]\nnodes = 3\nshards = 2\n\
                    [workload]\nclients = 4\nkeys = 4\n";

/// Writes a drill and plays it; none of its processes may be left.
fn play(dir: &Path, name: &str, rest: &str, flags: &[&str]) -> anyhow::Result<kvctl::Ended> {
    // A name of its own, by which its processes are known.
    let name = format!("{name}-{}", std::process::id());
    let file = dir.join(format!("{name}.toml"));
    std::fs::write(&file, format!("name = \"{name}\"\n{HEAD}{rest}"))?;
    let (file, report) = (text(&file)?, dir.join("report"));
    let mut args = vec!["drill", "run", file, "--report", text(&report)?];
    args.extend(flags);
    let ended = kvctl::kvctl("127.0.0.1:1", &args)?;
    nobody_left(&format!("--cluster=drill-{name} "))?;
    Ok(ended)
}

fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().context("the path is no text")
}

fn record(dir: &Path) -> anyhow::Result<Record> {
    Ok(serde_json::from_slice(&std::fs::read(dir.join("report/report.json"))?)?)
}

/// No process whose command line holds this is left.
fn nobody_left(what: &str) -> anyhow::Result<()> {
    for process in std::fs::read_dir("/proc")? {
        let line = std::fs::read(process?.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        ensure!(!line.contains(what), "{line} still runs");
    }
    Ok(())
}

#[test]
fn a_leader_that_is_cut_off_is_borne() -> anyhow::Result<()> {
    let _turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let rest = "duration = \"8s\"\n\
                [[step]]\nat = \"1s\"\npartition = \"isolate leader-of(1)\"\n\
                [[step]]\nat = \"5s\"\nheal = \"discard\"\n\
                [[expect]]\nminority-refuses-within = \"2E\"\n\
                [[expect]]\nmajority-available-within = \"4E\"\n";
    let ended = play(dir.path(), "cut", rest, &["-o", "json"])?;
    ensure!(ended.code == Some(0), "{ended:#?}");
    let said: Value = serde_json::from_str(&ended.stdout)?;
    ensure!(said.get("verdict").and_then(Value::as_str) == Some("VALID"), "{said}");
    let record = record(dir.path())?;
    ensure!(record.verdict == "VALID" && record.converged == Some(true), "{:?}", record.reasons);
    ensure!(record.replicas.len() == 9, "two shards and the meta group on three nodes");
    let chosen = record.steps.first().and_then(|step| step.chosen.get("leader-of(1)"));
    ensure!(chosen.is_some(), "whom the role meant is recorded: {:?}", record.steps);
    let fault = record.faults.first().context("a fault")?;
    ensure!(fault.matched > 0 && fault.concurrent > 0 && !fault.links.is_empty(), "{fault:?}");
    ensure!(record.operations.iter().any(|operation| operation.minority), "the minority was asked");
    ensure!(record.leadership.iter().any(|change| change.at_ms > 0.0), "another leader was seen");
    ensure!(record.times.new_leader_ms.is_some() && record.times.recovery_ms.is_some());
    // What was recorded can be checked again by itself.
    let history = dir.path().join("report/history.jsonl");
    let args = ["drill", "check", text(&history)?, "--model", "cas-register"];
    let checked = kvctl::kvctl("127.0.0.1:1", &args)?;
    ensure!(checked.code == Some(0), "{checked:#?}");
    Ok(())
}

#[test]
fn a_killed_leader_comes_back() -> anyhow::Result<()> {
    let _turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let rest = "kind = \"counter\"\nduration = \"6s\"\n\
                [[step]]\nat = \"1s\"\nprocess = \"kill leader-of(1)\"\n\
                [[step]]\nwhen = \"leader-changed 1\"\nprocess = \"restart leader-of(1)\"\n\
                [[expect]]\nleader-change-within = \"4E\"\n";
    let ended = play(dir.path(), "kill", rest, &[])?;
    ensure!(ended.code == Some(0) && ended.stdout.starts_with("VALID\n"), "{ended:#?}");
    let record = record(dir.path())?;
    let fault = record.faults.first().context("a fault")?;
    ensure!(fault.plane == "process" && fault.until_ms > fault.from_ms, "{fault:?}");
    Ok(())
}

#[test]
fn a_fault_that_meets_nothing_is_told() -> anyhow::Result<()> {
    let _turn = Turn::take()?;
    let dir = tempfile::tempdir()?;
    let rest = "duration = \"2s\"\n\
                [[step]]\nat = \"500ms\"\n\
                rule = { name = \"late-terms\", kinds = [\"append\"], terms = \"100000..\", drop = true }\n\
                [[step]]\nat = \"1500ms\"\nheal = \"discard\"\n";
    let ended = play(dir.path(), "nothing", rest, &[])?;
    ensure!(ended.code == Some(12), "{ended:#?}");
    let wanted = "NOT EXERCISED\nbecause rule late-terms matched no message\n";
    ensure!(ended.stdout.starts_with(wanted), "{ended:#?}");
    Ok(())
}

#[test]
fn a_file_that_makes_no_sense_starts_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    for (rest, place) in [
        ("[[step]]\nat = \"1s\"\npartition = \"isloate n1\"\n", "line 12, column 13: "),
        ("[[step]]\nat = \"1s\"\npartition = \"isolate n1\"\n", "no later step heals"),
        ("[[step]]\nat = \"1s\"\nprocess = \"kill n4\"\n", "line 12, column 11: "),
        ("duration = 5\n", "line 10, column 12: "),
    ] {
        let ended = play(dir.path(), "bad", rest, &[])?;
        ensure!(ended.code == Some(2), "{rest}: {ended:#?}");
        ensure!(ended.stderr.contains(place), "{rest}: {ended:#?}");
        ensure!(!dir.path().join("report").exists(), "nothing was begun");
    }
    Ok(())
}

#[test]
fn processes_of_others_are_left_alone() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let rest =
        "[[step]]\nat = \"1s\"\nprocess = \"kill n1\"\n[[step]]\nat = \"2s\"\nprocess = \"restart n1\"\n";
    let flags = ["--cluster", "127.0.0.1:1", "--chaos", "127.0.0.1:2"];
    let ended = play(dir.path(), "foreign", rest, &flags)?;
    ensure!(ended.code == Some(1), "{ended:#?}");
    ensure!(ended.stderr.contains("line 10: a process step needs processes"), "{ended:#?}");
    Ok(())
}
