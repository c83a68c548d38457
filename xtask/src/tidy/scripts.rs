//! Golden scripts open with a comment that says what they show and why.

use super::Problem;
use super::tree::Tree;

/// Files below a `testscripts/` folder whose first line is no `#` comment with words in it.
pub(crate) fn check(tree: &Tree) -> Vec<Problem> {
    tree.iter()
        .filter(|(path, _)| path.contains("/testscripts/"))
        .filter(|(_, text)| !says_something(text.lines().next().unwrap_or_default()))
        .map(|(path, _)| Problem::of_line(path, 1, "begin with a `#` line that says what it shows and why"))
        .collect()
}

fn says_something(line: &str) -> bool {
    line.strip_prefix('#').is_some_and(|words| !words.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Tree::from([(path, text)])).len()
    }

    #[test]
    fn a_script_says_what_it_shows() {
        assert_eq!(count("crates/a/testscripts/b/c", "# A leader that ...\nrun\n"), 0);
        assert_eq!(count("crates/a/testscripts/b/c", "run\n"), 1);
        assert_eq!(count("crates/a/testscripts/b/c", "#\nrun\n"), 1);
        assert_eq!(count("crates/a/testscripts/b/c", ""), 1);
    }

    #[test]
    fn other_files_are_left_alone() {
        assert_eq!(count("crates/a/src/c.rs", "run\n"), 0);
    }
}
