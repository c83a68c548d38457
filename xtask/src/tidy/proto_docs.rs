//! The wire and its document: whatever `proto/` defines, `docs/api.md` mentions.

use std::collections::BTreeSet;

use super::Problem;
use super::tree::Tree;

/// The page a user of the wire reads.
const PAGE: &str = "docs/api.md";

/// What opens a definition that a user of the wire meets by name.
const KEYWORDS: &[&str] = &["message ", "rpc ", "service ", "enum "];

/// Names defined in `proto/` that the page leaves out. Without a page there is nothing to drift from.
pub(crate) fn check(tree: &Tree) -> Vec<Problem> {
    let Some(page) = tree.get(PAGE) else { return Vec::new() };
    let mentioned = words(page);
    let mut problems = Vec::new();
    for (path, text) in tree.with_extension("proto") {
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(name) = defined(line).filter(|name| !mentioned.contains(name)) {
                problems.push(Problem::of_line(path, number, format!("`{name}` is not in {PAGE}")));
            }
        }
    }
    problems
}

/// The name a line of a proto file defines.
fn defined(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = KEYWORDS.iter().find_map(|keyword| line.strip_prefix(keyword))?;
    rest.trim_start().split(|c| !is_word(c)).next().filter(|name| !name.is_empty())
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c| !is_word(c)).collect()
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTO: &str =
        "// message Old\nmessage Put {\n  message Inner {}\n}\nservice Kv {\n  rpc Get(A) returns (B);\n}\n";

    fn complaints(page: &str) -> Vec<String> {
        let tree = Tree::from([("proto/kv.proto", PROTO), (PAGE, page)]);
        check(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_page_that_mentions_all_passes() {
        assert!(complaints("`Put`, Put.Inner and Kv.Get").is_empty());
    }

    #[test]
    fn a_name_left_out_is_found_and_a_longer_word_does_not_hide_it() {
        assert_eq!(complaints("Putty, Inner, Kv, Get"), ["proto/kv.proto:2: `Put` is not in docs/api.md"]);
    }

    #[test]
    fn without_a_page_nothing_drifts() {
        assert!(check(&Tree::from([("proto/kv.proto", PROTO)])).is_empty());
    }
}
