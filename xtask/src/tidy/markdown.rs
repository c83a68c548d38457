//! Markdown: one `# Title` a file, on its first line.

use super::Problem;
use super::tree::Tree;

/// Files without a title, with a second one, or with something before it.
pub(crate) fn check(tree: &Tree) -> Vec<Problem> {
    tree.with_extension("md").filter_map(|(path, text)| problem(path, text)).collect()
}

fn problem(path: &str, text: &str) -> Option<Problem> {
    let titles = titles(text);
    match titles.as_slice() {
        [1] => None,
        [] => Some(Problem::of_file(path, "has no `# Title`")),
        [line] => Some(Problem::of_line(path, *line, "the title is not on the first line")),
        [_, second, ..] => Some(Problem::of_line(path, *second, "a second `# Title`: one a file")),
    }
}

/// The lines of level-one headings, outside fenced code.
fn titles(text: &str) -> Vec<usize> {
    let mut in_code = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code && line.starts_with("# ") {
            found.push(number);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(text: &str) -> Vec<String> {
        check(&Tree::from([("a.md", text)])).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_title_passes_and_a_comment_in_code_is_none() {
        assert!(complaints("# A\n\n## B\n```sh\n# not a title\n```\n").is_empty());
    }

    #[test]
    fn no_title_two_titles_and_a_late_title_do_not_pass() {
        assert_eq!(complaints("## B\n"), ["a.md: has no `# Title`"]);
        assert_eq!(complaints("# A\n# B\n"), ["a.md:2: a second `# Title`: one a file"]);
        assert_eq!(complaints("\n# A\n"), ["a.md:2: the title is not on the first line"]);
    }
}
