//! File and folder names that say nothing about what is inside.

use super::Problem;
use super::tree::{Tree, extension_of, stem_of};

/// Banned as the name of a Rust file or of a folder on the way to one.
const BANNED: &[&str] = &["util", "utils", "helper", "helpers", "common", "misc"];

/// Rust files whose path holds a banned name, and `mod.rs`.
pub(crate) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, _) in tree.with_extension("rs") {
        problems.extend(banned_part(path).map(|part| {
            Problem::of_file(path, format!("`{part}` says nothing: name the file for what it holds"))
        }));
        if path.ends_with("/mod.rs") {
            problems.push(Problem::of_file(path, "write `foo.rs` beside `foo/`, not `foo/mod.rs`"));
        }
    }
    problems
}

fn banned_part(path: &str) -> Option<&str> {
    path.split('/')
        .map(|part| if extension_of(part).is_some() { stem_of(part) } else { part })
        .find(|part| BANNED.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str) -> usize {
        check(&Tree::from([(path, "")])).len()
    }

    #[test]
    fn names_that_say_nothing_are_found_as_file_and_as_folder() {
        assert_eq!(count("crates/a/src/utils.rs"), 1);
        assert_eq!(count("crates/a/tests/common/x.rs"), 1);
        assert_eq!(count("crates/a/src/log/mod.rs"), 1);
    }

    #[test]
    fn names_that_only_contain_one_pass() {
        assert_eq!(count("crates/a/src/commonality.rs"), 0);
        assert_eq!(count("crates/a/src/log.rs"), 0);
    }
}
