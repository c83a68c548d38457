//! Files of a data directory: how much they take, and damage to them.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

/// Bytes that the files below `dir` take on the disk.
///
/// # Errors
/// Of the operating system; a file that vanishes meanwhile counts as nothing.
pub fn taken_bytes(dir: &Path) -> anyhow::Result<u64> {
    let sizes = files(dir)?.into_iter().filter_map(|path| std::fs::metadata(path).ok());
    Ok(sizes.map(|file| file.blocks() * 512).sum())
}

/// All files below `dir`, sorted by path.
///
/// # Errors
/// Of the operating system.
pub fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
            let entry = entry?;
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => dirs.push(entry.path()),
                Ok(_) => found.push(entry.path()),
                // It is gone already.
                Err(_) => {}
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Copies a directory and all below it; the copy must not exist.
///
/// # Errors
/// Of the operating system.
pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let copy = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            self::copy(&entry.path(), &copy)?;
        } else {
            std::fs::copy(entry.path(), &copy)?;
        }
    }
    Ok(())
}

/// Flips all bits of the byte at `offset`.
///
/// # Errors
/// If the file has no such byte, or of the operating system.
pub fn flip(path: &Path, offset: u64) -> anyhow::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    let file = file.with_context(|| format!("cannot open {}", path.display()))?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).with_context(|| format!("{} at {offset}", path.display()))?;
    file.write_all_at(&byte.map(|byte| !byte), offset)?;
    Ok(())
}

/// Everywhere that `wanted` stands in the file: a file that is only appended to has it in several places, of which one
/// counts.
///
/// # Errors
/// If it stands nowhere, or of the operating system.
pub fn offsets_of(path: &Path, wanted: &[u8]) -> anyhow::Result<Vec<u64>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let windows = (0..).zip(bytes.windows(wanted.len()));
    let found: Vec<u64> = windows.filter(|(_, window)| *window == wanted).map(|(at, _)| at).collect();
    ensure!(!found.is_empty(), "{} does not hold what was written", path.display());
    Ok(found)
}
