//! File length: at most 500 lines that are not tests, with a list of exceptions that may only shrink.

use std::collections::BTreeMap;

use super::Problem;
use super::tree::{Tree, stem_of};

/// The longest a file may be before its tests.
const LINES_MAX: usize = 500;

/// Files that were too long when the rule came: a path and a number of lines each.
const RATCHET: &str = "xtask/ratchet.txt";

/// Too long files, and exceptions that have become too generous.
pub(crate) fn check(tree: &Tree) -> Vec<Problem> {
    let (mut allowed, mut problems) = parse_ratchet(tree.get(RATCHET).unwrap_or_default());
    for (path, text) in tree.with_extension("rs").filter(|(path, _)| !is_test(path)) {
        let lines = lines_before_tests(text);
        match allowed.remove(path) {
            None if lines > LINES_MAX => {
                problems.push(Problem::of_file(
                    path,
                    format!("{lines} lines without tests, at most {LINES_MAX}"),
                ));
            }
            Some(most) if lines > most => {
                problems
                    .push(Problem::of_file(path, format!("grew to {lines} lines, {RATCHET} allows {most}")));
            }
            Some(most) if lines < most => problems.push(Problem::of_file(path, shrink(lines))),
            None | Some(_) => {}
        }
    }
    problems
        .extend(allowed.keys().map(|path| Problem::of_file(RATCHET, format!("{path} is gone: take it off"))));
    problems
}

fn shrink(lines: usize) -> String {
    if lines <= LINES_MAX {
        format!("is down to {lines} lines: take it off {RATCHET}")
    } else {
        format!("is down to {lines} lines: say so in {RATCHET}, the list only shrinks")
    }
}

/// `path lines` a line; `#` begins a comment.
fn parse_ratchet(text: &str) -> (BTreeMap<String, usize>, Vec<Problem>) {
    let mut allowed = BTreeMap::new();
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match line.split_once(' ').and_then(|(path, most)| Some((path, most.trim().parse().ok()?))) {
            Some((path, most)) => {
                allowed.insert(path.to_owned(), most);
            }
            None => problems.push(Problem::of_line(RATCHET, number, "not `path lines`")),
        }
    }
    (allowed, problems)
}

/// Whether the whole file is test code.
pub(crate) fn is_test(path: &str) -> bool {
    let folders = ["tests/", "benches/", "examples/", "fuzz/"];
    let in_folder =
        folders.iter().any(|folder| path.contains(&format!("/{folder}")) || path.starts_with(folder));
    in_folder || stem_of(path) == "tests" || stem_of(path).ends_with("_tests")
}

/// Lines outside `#[cfg(test)] mod x { .. }` blocks. Formatted code is assumed: the block ends at a brace in column 0.
fn lines_before_tests(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let mut rest = lines.as_slice();
    let mut count = 0;
    while let Some((first, after)) = rest.split_first() {
        if *first == "#[cfg(test)]" && opens_module(after) {
            rest = skip_block(after);
        } else {
            count += 1;
            rest = after;
        }
    }
    count
}

/// Whether what an attribute stands on, behind other attributes, is a module with its body here.
fn opens_module(lines: &[&str]) -> bool {
    let item = lines.iter().find(|line| !line.starts_with("#["));
    item.is_some_and(|line| line.contains("mod ") && line.ends_with('{'))
}

fn skip_block<'a, 'b>(lines: &'a [&'b str]) -> &'a [&'b str] {
    let end = lines.iter().position(|line| *line == "}").map_or(lines.len(), |index| index + 1);
    lines.get(end..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_lines(path: &str, lines: usize, ratchet: &str) -> Vec<String> {
        let text = "x\n".repeat(lines);
        check(&Tree::from([(path, text.as_str()), (RATCHET, ratchet)]))
            .iter()
            .map(ToString::to_string)
            .collect()
    }

    #[test]
    fn the_limit_itself_passes_and_one_more_does_not() {
        assert!(check_lines("a.rs", LINES_MAX, "").is_empty());
        assert_eq!(check_lines("a.rs", LINES_MAX + 1, ""), ["a.rs: 501 lines without tests, at most 500"]);
    }

    #[test]
    fn test_code_does_not_count() {
        let tests = "y\n".repeat(LINES_MAX);
        let text = format!("x\n#[cfg(test)]\nmod tests {{\n{tests}}}\nx\n");
        assert_eq!(lines_before_tests(&text), 2);
        assert!(check_lines("crates/a/tests/b.rs", LINES_MAX + 1, "").is_empty());
        assert!(check_lines("crates/a/src/b/tests.rs", LINES_MAX + 1, "").is_empty());
    }

    #[test]
    fn a_test_module_in_another_file_hides_nothing() {
        assert_eq!(lines_before_tests("#[cfg(test)]\nmod tests;\nx\n"), 3);
        assert_eq!(lines_before_tests("#[cfg(test)]\nuse x;\nx\n"), 3);
    }

    #[test]
    fn the_list_of_exceptions_only_shrinks() {
        assert!(check_lines("a.rs", 600, "# why\na.rs 600\n").is_empty());
        assert_eq!(check_lines("a.rs", 601, "a.rs 600\n").len(), 1);
        assert_eq!(check_lines("a.rs", 599, "a.rs 600\n").len(), 1);
        assert_eq!(
            check_lines("a.rs", 500, "a.rs 600\n"),
            ["a.rs: is down to 500 lines: take it off xtask/ratchet.txt"]
        );
    }

    #[test]
    fn a_stale_or_broken_exception_is_named() {
        assert_eq!(check_lines("a.rs", 1, "b.rs 600\n"), ["xtask/ratchet.txt: b.rs is gone: take it off"]);
        assert_eq!(check_lines("a.rs", 1, "b.rs\n"), ["xtask/ratchet.txt:1: not `path lines`"]);
    }
}
