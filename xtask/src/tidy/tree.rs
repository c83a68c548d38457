//! The files of the working copy, read once.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;

use crate::command;

/// Every text file that is tracked or could be, by its path from the root. Files that are not UTF-8 are not text.
#[derive(Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, String>,
}

impl Tree {
    /// Reads what git tracks, and what it would if asked, so that a new file is checked before its first commit.
    pub(crate) fn read(root: &Path) -> anyhow::Result<Self> {
        let listing = command::git(root, &["ls-files", "-z", "--cached", "--others", "--exclude-standard"])?;
        let mut files = BTreeMap::new();
        for path in listing.split('\0').filter(|path| !path.is_empty()) {
            let full = root.join(path);
            // Deleted but not yet committed, or a link to somewhere else.
            if !full.is_file() {
                continue;
            }
            let bytes = std::fs::read(&full).with_context(|| format!("cannot read {path}"))?;
            if let Ok(text) = String::from_utf8(bytes) {
                files.insert(path.to_owned(), text);
            }
        }
        Ok(Self { files })
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// The text of one file.
    pub(crate) fn get(&self, path: &str) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// All files in the order of their paths.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The files whose names end in `.extension`.
    pub(crate) fn with_extension(&self, extension: &str) -> impl Iterator<Item = (&str, &str)> {
        self.iter().filter(move |(path, _)| extension_of(path) == Some(extension))
    }
}

/// What stands behind the last dot of the file name.
pub(crate) fn extension_of(path: &str) -> Option<&str> {
    Path::new(path).extension()?.to_str()
}

/// The file name without its extension.
pub(crate) fn stem_of(path: &str) -> &str {
    Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or(path)
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Tree {
    fn from(files: [(&str, &str); N]) -> Self {
        Self { files: files.map(|(path, text)| (path.to_owned(), text.to_owned())).into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_select() {
        let tree = Tree::from([("a.rs", ""), ("b.md", ""), ("rs", "")]);
        assert_eq!(tree.with_extension("rs").map(|(path, _)| path).collect::<Vec<_>>(), ["a.rs"]);
    }

    #[test]
    fn the_working_copy_is_read() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let tree = Tree::read(root).unwrap();
        assert!(tree.get("Cargo.toml").is_some());
        assert!(tree.iter().all(|(path, _)| !path.starts_with("target/")));
    }
}
