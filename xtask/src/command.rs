//! Runs one external command as a named, timed step.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// The variable that makes golden tests rewrite their files instead of comparing.
pub(crate) const UPDATE_GOLDENFILES: &str = "UPDATE_GOLDENFILES";

/// One command with the name it goes by in the log.
pub(crate) struct Step {
    title: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    quiet: bool,
}

impl Step {
    /// A step that inherits the environment.
    pub(crate) const fn new(
        title: &'static str,
        program: &'static str,
        arguments: &'static [&'static str],
    ) -> Self {
        Self { title, program, arguments, environment: &[], quiet: false }
    }

    /// The same step with these variables set.
    pub(crate) const fn with_environment(self, environment: &'static [(&'static str, &'static str)]) -> Self {
        Self { environment, ..self }
    }

    /// The same step with its standard output thrown away; only its success is of interest.
    pub(crate) const fn quiet(self) -> Self {
        Self { quiet: true, ..self }
    }

    /// The name of the step.
    pub(crate) const fn title(&self) -> &'static str {
        self.title
    }

    /// The command as one would type it.
    pub(crate) fn command_line(&self) -> String {
        let mut words: Vec<String> =
            self.environment.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        words.push(self.program.to_owned());
        words.extend(self.arguments.iter().map(|&argument| argument.to_owned()));
        words.join(" ")
    }

    /// Runs the command in `root` with its output on ours; an exit code other than 0 is an error.
    pub(crate) fn run(&self, root: &Path) -> anyhow::Result<()> {
        eprintln!("==> {}: {}", self.title, self.command_line());
        let begin = Instant::now();
        let status = Command::new(self.resolve(root))
            .args(self.arguments)
            .envs(self.environment.iter().copied())
            .env_remove(UPDATE_GOLDENFILES)
            .current_dir(root)
            .stdin(Stdio::null())
            .stdout(if self.quiet { Stdio::null() } else { Stdio::inherit() })
            .status()
            .with_context(|| format!("cannot start `{}`", self.command_line()))?;
        let took = seconds(begin.elapsed());
        if !status.success() {
            bail!("{} failed after {took} ({status}): {}", self.title, self.command_line());
        }
        eprintln!("<== {}: {took}", self.title);
        Ok(())
    }

    /// A program named by a path is a script of ours, relative to the root and not to the caller's folder.
    fn resolve(&self, root: &Path) -> std::path::PathBuf {
        if self.program.contains('/') { root.join(self.program) } else { self.program.into() }
    }
}

/// What `git` answers in `root`, as text.
pub(crate) fn git(root: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    capture(root, "git", arguments)
}

/// The standard output of a command that must succeed.
pub(crate) fn capture(root: &Path, program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{program}`"))?;
    if !output.status.success() {
        bail!("`{program} {}` failed ({})", arguments.join(" "), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{program}` printed something that is not UTF-8"))
}

/// A duration the way a log reader wants it: tenths of a second.
pub(crate) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_shows_the_environment() {
        let step = Step::new("doc", "cargo", &["doc"]).with_environment(&[("RUSTDOCFLAGS", "-D warnings")]);
        assert_eq!(step.command_line(), "RUSTDOCFLAGS=\"-D warnings\" cargo doc");
    }

    #[test]
    fn a_failing_command_is_an_error_and_names_the_step() {
        let error = Step::new("refuse", "false", &[]).run(Path::new("/")).unwrap_err();
        assert!(error.to_string().starts_with("refuse failed"), "{error}");
    }

    #[test]
    fn golden_files_are_never_rewritten_by_a_step() {
        let step = Step::new("env", "sh", &["-c", "test -z \"${UPDATE_GOLDENFILES+set}\""])
            .with_environment(&[(UPDATE_GOLDENFILES, "1")]);
        step.run(Path::new("/")).unwrap();
    }
}
