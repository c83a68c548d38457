//! `docs/cli.md` names every verb and every flag that `--help` does.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test file")]

use std::path::Path;
use std::process::Command;

fn help(verbs: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kvctl")).args(verbs).arg("--help").output().unwrap();
    assert!(output.status.success(), "{verbs:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md");
    std::fs::read_to_string(path).unwrap()
}

/// The section of the page under the heading that begins so.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let start = page.find(heading).unwrap_or_else(|| panic!("docs/cli.md has no heading `{heading}`"));
    let rest = page.get(start + heading.len()..).unwrap();
    rest.get(..rest.find("\n### ").unwrap_or(rest.len())).unwrap()
}

fn verbs(help: &str) -> Vec<String> {
    let list = help.split("Commands:\n").nth(1).unwrap_or_default();
    let list = list.split("\n\n").next().unwrap_or_default();
    let verbs = list.lines().filter_map(|line| line.split_whitespace().next());
    verbs.filter(|verb| *verb != "help").map(str::to_owned).collect()
}

fn flags(help: &str) -> Vec<String> {
    let flags = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let at =
            if line.starts_with("--") { 0 } else { line.find(", --").filter(|_| line.starts_with('-'))? + 2 };
        let name = line.get(at..)?;
        Some(name.split([' ', '=']).next()?.to_owned())
    });
    flags.collect()
}

#[test]
fn the_page_names_every_verb_and_flag() {
    let page = page();
    let top = help(&[]);
    let global = flags(&top);
    assert!(global.contains(&"--endpoints".to_owned()) && global.contains(&"--output".to_owned()));
    for flag in &global {
        assert!(section(&page, "### Everywhere").contains(flag.as_str()), "{flag} is not under `Everywhere`");
    }
    let mut named = 0;
    for verb in verbs(&top) {
        let section = section(&page, &format!("### `{verb}"));
        let mut texts = vec![help(&[&verb])];
        texts.extend(verbs(&texts.concat()).iter().map(|under| {
            assert!(section.contains(under.as_str()), "{verb} {under}");
            help(&[&verb, under])
        }));
        for flag in texts.iter().flat_map(|text| flags(text)).filter(|flag| !global.contains(flag)) {
            assert!(section.contains(&flag), "`{verb} {flag}` is not in docs/cli.md");
            named += 1;
        }
    }
    assert!(named >= 10, "only {named} flags of verbs were found: has the form of --help changed?");
}

#[test]
fn the_page_names_no_flag_that_does_not_exist() {
    let page = page();
    let kvctl = page.split("\n## ").find(|part| part.starts_with("kvctl")).unwrap();
    let top = help(&[]);
    let mut known = flags(&top);
    for verb in verbs(&top) {
        let text = help(&[&verb]);
        known.extend(flags(&text));
        for under in verbs(&text) {
            known.extend(flags(&help(&[&verb, &under])));
        }
    }
    for word in kvctl.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        if word.starts_with("--") && !word.ends_with('-') {
            assert!(known.contains(&word.to_owned()), "docs/cli.md names {word}, which does not exist");
        }
    }
}
