//! Runs the program as each script says and compares exit code, standard output and standard error.

#![allow(clippy::unwrap_used, reason = "a test file")]

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use goldenscript::Argument;
use test_each_file::test_each_path;

test_each_path! { in "crates/kvctl/testscripts" as scripts => run }

fn run(path: &Path) {
    goldenscript::run(&mut Kvctl, path).unwrap();
}

struct Kvctl;

impl goldenscript::Runner for Kvctl {
    type Command = goldenscript::Command;

    fn run(
        &mut self,
        command: &goldenscript::Command,
        _: &goldenscript::Context,
    ) -> Result<String, Box<dyn Error>> {
        assert_eq!(command.name, "kvctl");
        let args = command.args.iter().map(|arg| match arg {
            Argument::Positional(value) => value.clone(),
            Argument::KeyValue(key, value) => format!("{key}={value}"),
            other => other.to_string(),
        });
        let output = Command::new(env!("CARGO_BIN_EXE_kvctl"))
            .args(args)
            .env_remove("KVCTL_ENDPOINTS")
            .env_remove("KVCTL_CLUSTER")
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
