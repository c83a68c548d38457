//! Dependency edges: every crate names only what the layer table allows.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;

use super::Problem;
use super::layers::{FENCES, Layer, Uses, layer_of};
use crate::command;

/// One crate of the workspace with what its manifest names.
#[derive(Debug, Deserialize)]
pub(crate) struct Member {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

/// One line of a manifest's dependency tables.
#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// Absent for a normal dependency.
    kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Normal,
    Build,
    Dev,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Member>,
}

/// The members of the workspace as cargo sees them.
pub(crate) fn read(root: &Path) -> anyhow::Result<Vec<Member>> {
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--locked"];
    let json = command::capture(root, "cargo", &arguments)?;
    let metadata: Metadata = serde_json::from_str(&json).context("`cargo metadata` changed its format")?;
    Ok(metadata.packages)
}

/// Every edge against the layer table, every outside crate against its fence, every folder against its crate's name.
pub(crate) fn check(members: &[Member]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for member in members {
        let manifest = member.manifest();
        if member.folder() != Some(member.name.as_str()) {
            problems.push(Problem::of_file(
                &manifest,
                format!("folder and crate `{}` differ in name", member.name),
            ));
        }
        let Some(layer) = layer_of(&member.name) else {
            problems.push(Problem::of_file(
                &manifest,
                "no row in xtask/src/tidy/layers.rs: a new crate needs an ADR",
            ));
            continue;
        };
        let complaints = member.dependencies.iter().filter_map(|dependency| complaint(layer, dependency));
        problems.extend(complaints.map(|text| Problem::of_file(&manifest, text)));
    }
    problems
}

/// What is wrong with one edge, if anything.
fn complaint(from: &Layer, dependency: &Dependency) -> Option<String> {
    let name = dependency.name.as_str();
    match layer_of(name) {
        Some(_) if from.name == name => None,
        Some(to) if is_allowed(from, to, dependency.kind.unwrap_or(Kind::Normal)) => None,
        Some(to) => Some(format!(
            "`{}` (layer {}) must not name `{name}` (layer {})",
            from.name, from.depth, to.depth
        )),
        None => {
            let fence = FENCES.iter().find(|fence| fence.covers(name) && !fence.only.contains(&from.name))?;
            Some(format!("`{}` must not name `{name}`: {}", from.name, fence.reason))
        }
    }
}

/// Tests may use neighbours of the same layer too; nothing ever points up.
fn is_allowed(from: &Layer, to: &Layer, kind: Kind) -> bool {
    match (kind, &from.uses) {
        (Kind::Dev, _) => to.depth <= from.depth,
        (Kind::Normal | Kind::Build, Uses::AnyBelow) => to.depth < from.depth,
        (Kind::Normal | Kind::Build, Uses::Only(uses)) => uses.contains(&to.name),
    }
}

impl Member {
    /// The manifest from the workspace root: `xtask/Cargo.toml`, `crates/kv-raft/Cargo.toml`.
    fn manifest(&self) -> String {
        let inside = if self.name == "xtask" { "" } else { "crates/" };
        format!("{inside}{}/Cargo.toml", self.folder().unwrap_or(&self.name))
    }

    fn folder(&self) -> Option<&str> {
        Path::new(&self.manifest_path).parent()?.file_name()?.to_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, dependencies: &[(&str, Option<Kind>)]) -> Member {
        Member {
            name: name.to_owned(),
            manifest_path: format!("/somewhere/crates/{name}/Cargo.toml"),
            dependencies: dependencies
                .iter()
                .map(|&(name, kind)| Dependency { name: name.to_owned(), kind })
                .collect(),
        }
    }

    fn complaints(members: &[Member]) -> Vec<String> {
        check(members).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn edges_of_the_table_pass() {
        let members = [
            member("kv-types", &[("bytes", None)]),
            member("kv-shard", &[("kv-raft", None), ("kv-types", None)]),
        ];
        assert_eq!(complaints(&members), Vec::<String>::new());
    }

    #[test]
    fn an_edge_upwards_is_named() {
        assert_eq!(
            complaints(&[member("kv-raft", &[("kv-shard", None)])]),
            ["crates/kv-raft/Cargo.toml: `kv-raft` (layer 1) must not name `kv-shard` (layer 2)"]
        );
    }

    #[test]
    fn an_edge_down_that_is_not_in_the_table_is_refused() {
        assert_eq!(complaints(&[member("kv-client", &[("kv-raft", None)])]).len(), 1);
    }

    #[test]
    fn tests_may_use_neighbours_but_nothing_above() {
        assert!(complaints(&[member("kv-shard", &[("kv-client", Some(Kind::Dev))])]).is_empty());
        assert_eq!(complaints(&[member("kv-shard", &[("kv-node", Some(Kind::Dev))])]).len(), 1);
    }

    #[test]
    fn outside_crates_stay_behind_their_fence() {
        assert!(complaints(&[member("kv-storage", &[("sled", None)])]).is_empty());
        assert_eq!(
            complaints(&[member("kv-shard", &[("sled", None)])]),
            [
                "crates/kv-shard/Cargo.toml: `kv-shard` must not name `sled`: only kv-storage touches the data directory"
            ]
        );
        assert_eq!(complaints(&[member("kv-raft", &[("tokio", Some(Kind::Dev))])]).len(), 1);
    }

    #[test]
    fn a_crate_without_a_row_does_not_pass() {
        assert_eq!(complaints(&[member("kv-novel", &[])]).len(), 1);
    }

    #[test]
    fn folder_and_crate_share_their_name() {
        let mut moved = member("kv-raft", &[]);
        moved.manifest_path = "/somewhere/crates/raft/Cargo.toml".to_owned();
        assert_eq!(
            complaints(&[moved]),
            ["crates/raft/Cargo.toml: folder and crate `kv-raft` differ in name"]
        );
    }

    #[test]
    fn cargo_tells_the_kinds_apart() {
        let json = r#"{"packages": [{"name": "a", "manifest_path": "/a/Cargo.toml", "dependencies": [
            {"name": "x", "kind": null}, {"name": "y", "kind": "dev"}, {"name": "z", "kind": "build"}]}]}"#;
        let metadata: Metadata = serde_json::from_str(json).unwrap();
        let kinds: Vec<_> =
            metadata.packages[0].dependencies.iter().map(|dependency| dependency.kind).collect();
        assert_eq!(kinds, [None, Some(Kind::Dev), Some(Kind::Build)]);
    }
}
