//! `cargo xtask tidy`: the rules of the house that no compiler knows, as checks.
//!
//! Each check is a pure function from the files (or the crate graph) to [`Problem`]s and lives in a file of its own with
//! its tests. All of them run every time, so that one run tells everything.

pub(crate) mod edges;
pub(crate) mod layers;
pub(crate) mod length;
pub(crate) mod markdown;
pub(crate) mod names;
pub(crate) mod proto_docs;
pub(crate) mod scripts;
pub(crate) mod tree;
pub(crate) mod words;

use std::fmt;
use std::path::Path;
use std::time::Instant;

use anyhow::bail;

use crate::command;
use tree::Tree;

/// One broken rule at one place, with what to do about it.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Problem {
    path: String,
    line: Option<usize>,
    text: String,
}

impl Problem {
    /// A problem of a file as a whole.
    pub(crate) fn of_file(path: &str, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: None, text: text.into() }
    }

    /// A problem of one line, counted from 1.
    pub(crate) fn of_line(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line: Some(line), text: text.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.text),
            None => write!(f, "{}: {}", self.path, self.text),
        }
    }
}

/// Checks of the files; the crate graph comes from cargo and is checked beside them.
const CHECKS: &[fn(&Tree) -> Vec<Problem>] =
    &[length::check, markdown::check, names::check, proto_docs::check, scripts::check, words::check];

/// Runs every check and fails if any found something.
pub(crate) fn run(root: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let tree = Tree::read(root)?;
    let mut problems: Vec<Problem> = CHECKS.iter().flat_map(|check| check(&tree)).collect();
    problems.extend(edges::check(&edges::read(root)?));
    problems.sort();
    for problem in &problems {
        eprintln!("{problem}");
    }
    if !problems.is_empty() {
        bail!("tidy: problems: {}, in {} files read", problems.len(), tree.len());
    }
    eprintln!("<== tidy: {} files, {}", tree.len(), command::seconds(begin.elapsed()));
    Ok(())
}
