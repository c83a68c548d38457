//! Drill files: what there are, and a beginning for a new one.

use std::fs;
use std::path::{Path, PathBuf};

use kv_fault::{Drill, DrillError, RuleName};

/// A drill of a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its file.
    pub path: PathBuf,
    /// The drill, or what is wrong with the file.
    pub drill: Result<Drill, DrillError>,
}

/// Why there is no list, or no template.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The folder or a file in it cannot be read.
    #[error("{path}: {cause}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// That is no name for a drill.
    #[error("{0}")]
    Name(String),
}

/// The files `*.toml` of a folder, by name.
///
/// # Errors
/// [`CatalogueError::Unreadable`]
pub fn list(folder: &Path) -> Result<Vec<Entry>, CatalogueError> {
    let unreadable = |path: &Path, cause| CatalogueError::Unreadable { path: path.to_owned(), cause };
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(|cause| unreadable(folder, cause))? {
        let path = entry.map_err(|cause| unreadable(folder, cause))?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            paths.push(path);
        }
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).map_err(|cause| unreadable(&path, cause))?;
        Ok(Entry { path, drill: Drill::parse(&text) })
    };
    paths.into_iter().map(read).collect()
}

/// A drill to begin with, which says in comments what else there is.
///
/// # Errors
/// [`CatalogueError::Name`] if that is no name.
pub fn template(name: &str) -> Result<String, CatalogueError> {
    let name: RuleName =
        name.parse().map_err(|error: kv_fault::ParseError| CatalogueError::Name(error.to_string()))?;
    Ok(include_str!("template.toml").replace("NAME", name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_is_a_drill() {
        let drill = Drill::parse(&template("my-drill").unwrap()).unwrap();
        assert_eq!(drill.name, "my-drill");
        assert!(!drill.steps.is_empty() && !drill.expects.is_empty());
        assert!(template("My Drill").is_err());
    }
}
