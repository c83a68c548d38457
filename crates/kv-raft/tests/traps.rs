//! `docs/raft-traps.md` names the test that would catch each mistake: all of them exist, and none of the fifty is missing.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// All Rust sources below a folder, as one text.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
    text
}

fn rows() -> Vec<String> {
    let page = fs::read_to_string(root().join("docs/raft-traps.md")).unwrap();
    let is_row = |line: &&str| line.starts_with("| ") && !line.starts_with("| #");
    page.lines().filter(is_row).map(str::to_owned).collect()
}

#[test]
fn all_fifty_are_there_and_each_names_what_catches_it() {
    let mut numbers = BTreeSet::new();
    for row in rows() {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, number, .., last, _] = cells[..] else { panic!("{row}") };
        assert!(last.contains('`'), "{number} names nothing");
        assert!(numbers.insert(number.parse::<u32>().unwrap()), "{number} twice");
    }
    assert_eq!(numbers, (1..=50).collect());
}

#[test]
fn what_it_names_exists() {
    let scripts = root().join("crates/kv-raft/testscripts");
    let mut seen = 0;
    for row in rows() {
        for name in row.split('`').skip(1).step_by(2) {
            if name.ends_with(".script") {
                assert!(scripts.join(name).exists(), "there is no {name}");
                seen += 1;
            } else if let Some((krate, test)) = name.split_once("::") {
                let text = sources(&root().join("crates").join(krate));
                let planted = format!("    {test}: ");
                let found = text.contains(&format!("fn {test}(")) || text.contains(&planted);
                assert!(found, "there is no test {name}");
                seen += 1;
            }
        }
    }
    assert!(seen > 100, "only {seen} names were read");
}
