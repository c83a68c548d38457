//! Runs the program as each script says and compares exit code, standard output and standard error.

#![allow(clippy::unwrap_used, reason = "a test file")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use goldenscript::Argument;
use test_each_file::test_each_path;

test_each_path! { in "crates/kv-bench/testscripts" as scripts => run }

fn run(path: &Path) {
    goldenscript::run(&mut Kvbench, path).unwrap();
}

struct Kvbench;

impl goldenscript::Runner for Kvbench {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        assert_eq!(command.name, "kvbench");
        let args = command.args.iter().map(|arg| match arg {
            Argument::Positional(value) => value.clone(),
            Argument::KeyValue(key, value) => format!("{key}={value}"),
            other => other.to_string(),
        });
        let output = Command::new(env!("CARGO_BIN_EXE_kvbench"))
            .args(args)
            .env_remove("KVCTL_ENDPOINTS")
            .env("NO_COLOR", "1")
            .env("COLUMNS", "100")
            .output()?;
        let mut text = format!("exit={}\n", output.status.code().unwrap());
        for (name, bytes) in [("out", output.stdout), ("err", output.stderr)] {
            for line in String::from_utf8(bytes)?.lines() {
                writeln!(text, "{name}: {line}")?;
            }
        }
        Ok(text)
    }
}

#[test]
fn the_page_names_every_flag() {
    let output = Command::new(env!("CARGO_BIN_EXE_kvbench")).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let page =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cli.md")).unwrap();
    let page = page.split("\n## kvbench").nth(1).unwrap();
    let flags: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    assert!(flags.len() >= 12, "has the form of --help changed?");
    for flag in flags {
        let flag = flag.trim_end_matches([',', '.', ';']);
        assert!(page.contains(flag), "docs/cli.md does not name {flag} of kvbench");
    }
}
