//! What no line may hold: leftovers, letters beyond ASCII in code, folders of somebody's machine.

use super::Problem;
use super::tree::{Tree, extension_of};

/// Leftovers of unfinished work, and what to do instead. In two parts each, or this file would find itself.
const LEFTOVERS: &[(&str, &str, &str)] = &[
    ("FIX", "ME", "finish it, or say in a comment why not"),
    ("TO", "DO", "finish it, or write an issue"),
    ("dbg", "!(", "use tracing"),
    ("todo", "!(", "finish it"),
    ("unimplemented", "!(", "finish it"),
];

/// Top folders where developers and build machines keep their copies: a path into one works nowhere else.
const PRIVATE_FOLDERS: &[&str] = &["home", "Users", "root", "work"];

/// The one letter beyond ASCII that code may hold: citations are written with it.
const SECTION_SIGN: char = '\u{a7}';

/// Every line of every file against the rules that are about it.
pub(crate) fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| !is_copied(path)) {
        for (number, line) in (1..).zip(text.lines()) {
            let complaints = [leftover(path, line), beyond_ascii(path, line), private_path(line)];
            problems
                .extend(complaints.into_iter().flatten().map(|text| Problem::of_line(path, number, text)));
        }
    }
    problems
}

/// Files whose text is not ours to choose.
fn is_copied(path: &str) -> bool {
    path == "Cargo.lock" || path == "LICENSE"
}

/// Prose may talk about leftovers; code may not hold one.
fn leftover(path: &str, line: &str) -> Option<String> {
    if extension_of(path) == Some("md") {
        return None;
    }
    let (head, tail, advice) =
        LEFTOVERS.iter().find(|(head, tail, _)| line.contains(&format!("{head}{tail}")))?;
    Some(format!("`{head}{tail}`: {advice}"))
}

fn beyond_ascii(path: &str, line: &str) -> Option<String> {
    if extension_of(path) != Some("rs") {
        return None;
    }
    let letter = line.chars().find(|letter| !letter.is_ascii() && *letter != SECTION_SIGN)?;
    Some(format!("`{}` in code: ASCII only", letter.escape_unicode()))
}

fn private_path(line: &str) -> Option<String> {
    let folder = PRIVATE_FOLDERS.iter().find(|folder| holds_top_folder(line, folder))?;
    Some(format!("a path below /{folder} is of one machine only"))
}

/// Whether `/folder/` occurs at the start of a path, not inside a longer one or a URL.
fn holds_top_folder(line: &str, folder: &str) -> bool {
    let needle = format!("/{folder}/");
    line.match_indices(&needle).any(|(at, _)| {
        let before = line.get(..at).and_then(|text| text.chars().next_back());
        !before.is_some_and(|c| c.is_ascii_alphanumeric() || "._-~*}".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(path: &str, text: &str) -> Vec<String> {
        check(&Tree::from([(path, text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn leftovers_are_found_in_code_and_not_in_prose() {
        let text = concat!("x\n// FIX", "ME later\n");
        assert_eq!(complaints("a.rs", text).len(), 1);
        assert_eq!(complaints("scripts/a", text).len(), 1);
        assert!(complaints("a.md", text).is_empty());
        assert_eq!(complaints("a.rs", concat!("db", "g!(x)")).len(), 1);
    }

    #[test]
    fn code_is_ascii() {
        assert_eq!(complaints("a.rs", "x\n// \u{2026}\n"), ["a.rs:2: `\\u{2026}` in code: ASCII only"]);
        assert!(complaints("a.md", "\u{2026}").is_empty());
        assert!(complaints("a.rs", "// Raft thesis \u{a7}6.4\n").is_empty());
    }

    #[test]
    fn a_path_of_one_machine_is_found() {
        for folder in PRIVATE_FOLDERS {
            assert_eq!(complaints("a.md", &format!("see `/{folder}/x`")).len(), 1, "{folder}");
            assert!(complaints("a.md", &format!("https://example.org/{folder}/x")).is_empty(), "{folder}");
        }
    }

    #[test]
    fn what_is_copied_is_left_alone() {
        assert!(complaints("LICENSE", concat!("FIX", "ME")).is_empty());
    }
}
