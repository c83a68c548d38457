//! `cargo xtask ci`: the whole verification, in the order in which a mistake is cheapest to find.

use std::path::Path;
use std::time::Instant;

use anyhow::bail;

use crate::command::{self, Step, UPDATE_GOLDENFILES};
use crate::tidy;

/// Steps before `tidy`: seconds each.
const QUICK: &[Step] = &[
    Step::new("lock file", "cargo", &["metadata", "--locked", "--format-version", "1"]).quiet(),
    Step::new("format", "cargo", &["fmt", "--all", "--check"]),
];

/// Steps after `tidy`. All in the release profile, so that one set of build products serves lints, tests and the
/// static binaries. The tests are README's own command, doctests included.
const SLOW: &[Step] = &[
    Step::new(
        "clippy",
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--release", "--locked", "--", "-D", "warnings"],
    ),
    Step::new("doc", "cargo", &["doc", "--workspace", "--no-deps", "--release", "--locked"])
        .with_environment(&[("RUSTDOCFLAGS", "-D warnings")]),
    Step::new("test", "cargo", &["test", "--workspace", "--release"]),
];

/// What the simulator must not find. No package is named, here and below: a choice of packages is a choice of features, and
/// would build the crates below them once more.
const SIMULATION: Step = Step::new(
    "simulation",
    "cargo",
    &["run", "--release", "--locked", "--bin", "kv-sim", "--", "run", "--seeds", "1000"],
);

/// One seed with all its events, to be run twice.
const REPLAY: &[&str] =
    &["run", "--release", "--locked", "--quiet", "--bin", "kv-sim", "--", "run", "--seed", "7", "--events"];

/// What the simulator must find. The bugs are planted by a feature, so they are a build of their own; the last, because its
/// programs take the place of the others.
const PLANTED: Step = Step::new(
    "planted bugs",
    "cargo",
    &[
        "test",
        "--release",
        "--locked",
        "--workspace",
        "--features",
        "kv-raft/planted,kv-state/planted,kv-sim/planted",
        "--test",
        "planted",
    ],
);

/// Run where `cargo-deny` is installed. Its advisory check needs a database from the internet and is left to it.
const DENY: Step = Step::new("deny", "cargo", &["deny", "check", "bans", "licenses", "sources"]);

/// Runs every step, and proves at the end that none of them edited a file.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    if std::env::var_os(UPDATE_GOLDENFILES).is_some() {
        bail!("{UPDATE_GOLDENFILES} is set: ci compares golden files and never writes them");
    }
    let begin = Instant::now();
    let before = working_copy(root)?;
    for step in QUICK {
        step.run(root)?;
    }
    tidy::run(root)?;
    for step in SLOW {
        step.run(root)?;
    }
    SIMULATION.run(root)?;
    replay(root)?;
    PLANTED.run(root)?;
    if is_installed("cargo-deny") {
        DENY.run(root)?;
    } else {
        eprintln!("==> {}: skipped, cargo-deny is not installed", DENY.title());
    }
    let after = working_copy(root)?;
    if before != after {
        bail!("a step edited the working copy; `git status` before:\n{before}\nafter:\n{after}");
    }
    eprintln!("ci: all green after {}", command::seconds(begin.elapsed()));
    Ok(())
}

/// The same seed gives the same bytes.
fn replay(root: &Path) -> anyhow::Result<()> {
    eprintln!("==> replay: cargo {}", REPLAY.join(" "));
    let first = command::capture(root, "cargo", REPLAY)?;
    let second = command::capture(root, "cargo", REPLAY)?;
    if first.is_empty() || first != second {
        bail!("one seed gave {} bytes, then {} others", first.len(), second.len());
    }
    eprintln!("<== replay: {} equal bytes", first.len());
    Ok(())
}

/// The working copy as git sees it: which files differ, and what each tracked difference is.
fn working_copy(root: &Path) -> anyhow::Result<String> {
    let names = command::git(root, &["status", "--porcelain"])?;
    let contents = command::git(root, &["diff", "HEAD"])?;
    Ok(names + &contents)
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_step_is_the_command_of_the_readme() {
        let test = SLOW.iter().find(|step| step.title() == "test").unwrap().command_line();
        let readme = include_str!("../../README.md");
        assert!(readme.lines().any(|line| line == test), "README.md has no line `{test}`");
    }

    #[test]
    fn a_missing_program_is_not_installed() {
        assert!(is_installed("git"));
        assert!(!is_installed("no-such-program-of-quorate"));
    }
}
