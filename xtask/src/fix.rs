//! `cargo xtask fix`: what a machine can mend. It edits; `ci` does not.

use std::path::Path;

use crate::command::Step;

const STEPS: &[Step] = &[
    Step::new(
        "clippy --fix",
        "cargo",
        &["clippy", "--workspace", "--all-targets", "--release", "--fix", "--allow-dirty", "--allow-staged"],
    ),
    Step::new("format", "cargo", &["fmt", "--all"]),
];

/// Applies clippy's machine-applicable suggestions, then formats, since the former may leave long lines.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    STEPS.iter().try_for_each(|step| step.run(root))
}
