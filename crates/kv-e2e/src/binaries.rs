//! The programs under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, bail, ensure};

/// The path of the program `name` (`kvnode`, `kvchaos` or `kvctl`), built if needed.
///
/// # Errors
/// If it is not in `QUORATE_BIN_DIR`, or cannot be built.
pub fn path_of(name: &str) -> anyhow::Result<PathBuf> {
    static DIR: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let dir = DIR.get_or_init(|| find().map_err(|cause| format!("{cause:#}")));
    let dir = dir.as_ref().map_err(|cause| anyhow::anyhow!("{cause}"))?;
    let path = dir.join(name);
    ensure!(path.is_file(), "there is no {}", path.display());
    Ok(path)
}

fn find() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("QUORATE_BIN_DIR") {
        return Ok(dir.into());
    }
    let test = std::env::current_exe()?;
    let place = Place::of(&test)?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        // The whole workspace, although three are enough: a choice of packages is a choice of features, and would build
        // the crates below them once more.
        .args(["build", "--quiet", "--workspace", "--bins"])
        .args(["--profile", &place.profile])
        .args(place.triple.iter().flat_map(|triple| ["--target", triple]))
        .arg("--target-dir")
        .arg(&place.target_dir)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the programs cannot be built: {status}");
    Ok(place.bin_dir)
}

/// Where the running test was built, so that the programs are built in the same way and not a second time.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    target_dir: PathBuf,
    triple: Option<String>,
    profile: String,
    bin_dir: PathBuf,
}

impl Place {
    /// From `TARGET/[TRIPLE/]PROFILE/deps/TEST`.
    fn of(test: &Path) -> anyhow::Result<Self> {
        let bin_dir = test.parent().and_then(Path::parent).context("the test stands in no target folder")?;
        let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let Some(folder) = name(bin_dir) else { bail!("{} has no name", bin_dir.display()) };
        // The profile `dev` is the only one whose folder has another name.
        let profile = if folder == "debug" { "dev".to_owned() } else { folder };
        let above = bin_dir.parent().context("the profile's folder stands in no other")?;
        // Triples look like `x86_64-unknown-linux-musl`.
        let triple = name(above).filter(|name| name.matches('-').count() >= 2 && name.contains("-linux"));
        let target_dir = if triple.is_some() { above.parent().context("no target folder")? } else { above };
        Ok(Self { target_dir: target_dir.to_owned(), triple, profile, bin_dir: bin_dir.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_test_says_how_it_was_built() {
        let plain = Place::of(Path::new("/t/debug/deps/x-1")).unwrap();
        assert_eq!((plain.profile.as_str(), plain.triple), ("dev", None));
        assert_eq!(plain.target_dir, Path::new("/t"));
        let cross = Place::of(Path::new("/t/x86_64-unknown-linux-musl/release/deps/x-1")).unwrap();
        assert_eq!(cross.profile, "release");
        assert_eq!(cross.triple.as_deref(), Some("x86_64-unknown-linux-musl"));
        assert_eq!(cross.target_dir, Path::new("/t"));
        assert_eq!(cross.bin_dir, Path::new("/t/x86_64-unknown-linux-musl/release"));
    }
}
