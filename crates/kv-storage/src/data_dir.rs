//! The data directory: one process at a time, and a small file that says whose it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

use crate::disk::{Disk, RealDisk, is_no_room};
use crate::small_file::SmallFile;

const LOCK_FILE: &str = "LOCK";

const IDENTITY: SmallFile = SmallFile {
    name: "identity",
    tmp: "identity.tmp",
    magic: *b"QRID",
    version: 1,
    content_max: IDENTITY_BYTES_MAX,
};

/// Longest content of the identity file.
pub const IDENTITY_BYTES_MAX: usize = 64 << 10;

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The operating system says no.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the data directory {path} is in use by another process: stop that process, \
         or give this one another data directory"
    )]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not what was written.
    #[error("the file {file} of the data directory is damaged: {what}")]
    Damaged {
        /// Which one.
        file: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file was written by a later release.
    #[error("the file {file} has format {found}; this release reads format {known}")]
    Version {
        /// Which one.
        file: &'static str,
        /// The format found.
        found: u16,
        /// The format this release reads.
        known: u16,
    },
    /// The caller's content is too long.
    #[error("a content of {bytes} bytes is too long for the file {file}; the limit is {limit}")]
    TooLong {
        /// Of which file.
        file: &'static str,
        /// Its length.
        bytes: usize,
        /// The most it may have.
        limit: usize,
    },
}

impl DataDirError {
    /// Whether there was only no room: it may be tried again once there is.
    pub fn is_no_room(&self) -> bool {
        match self {
            Self::Io { source, .. } => is_no_room(source),
            Self::Locked { .. } | Self::Damaged { .. } | Self::Version { .. } | Self::TooLong { .. } => false,
        }
    }
}

/// A data directory this process owns until the value is dropped.
#[derive(Debug)]
pub struct DataDir {
    disk: Arc<RealDisk>,
    /// Holds the lock; the kernel lets go of it when the process ends, however it ends.
    _lock: File,
}

impl DataDir {
    /// Creates the directory if needed and locks it.
    ///
    /// # Errors
    /// [`DataDirError::Locked`] if another process has it, or of the operating system.
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        let disk = RealDisk::new(root).map_err(io_error("create", root))?;
        let path = root.join(LOCK_FILE);
        let lock = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(io_error("open", &path))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { disk: Arc::new(disk), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(DataDirError::Locked { path: root.to_path_buf() }),
            Err(errno) => Err(io_error("lock", &path)(errno.into())),
        }
    }

    /// The files of the directory.
    pub fn disk(&self) -> Arc<RealDisk> {
        Arc::clone(&self.disk)
    }

    /// What [`DataDir::write_identity`] wrote last; `None` if it never did.
    ///
    /// # Errors
    /// [`DataDirError`] if the file is damaged, of a later format or unreadable.
    pub fn read_identity(&self) -> Result<Option<Bytes>, DataDirError> {
        read_identity(self.disk.as_ref())
    }

    /// Replaces the identity, wholly or not at all; durable on return.
    ///
    /// # Errors
    /// [`DataDirError`] if it is too long or the operating system says no.
    pub fn write_identity(&self, content: &[u8]) -> Result<(), DataDirError> {
        write_identity(self.disk.as_ref(), content)
    }
}

pub(crate) fn io_error<'a>(
    doing: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { doing, path: path.to_path_buf(), source }
}

/// [`DataDir::read_identity`] on any disk.
///
/// # Errors
/// As there.
pub fn read_identity(disk: &dyn Disk) -> Result<Option<Bytes>, DataDirError> {
    IDENTITY.read(disk)
}

/// [`DataDir::write_identity`] on any disk.
///
/// # Errors
/// As there.
pub fn write_identity(disk: &dyn Disk, content: &[u8]) -> Result<(), DataDirError> {
    IDENTITY.write(disk, content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::{DirLoss, VirtualDisk};

    #[test]
    fn a_second_owner_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("data");
        let first = DataDir::open(&root).unwrap();
        let error = DataDir::open(&root).unwrap_err();
        assert!(error.to_string().contains(&root.display().to_string()), "{error}");
        first.write_identity(b"node 1").unwrap();
        drop(first);
        assert_eq!(DataDir::open(&root).unwrap().read_identity().unwrap().unwrap(), "node 1");
    }

    #[test]
    fn a_crash_leaves_the_old_or_the_new_identity() {
        let disk = VirtualDisk::new();
        assert_eq!(read_identity(&disk).unwrap(), None);
        write_identity(&disk, b"old").unwrap();
        let whole = disk.calls();
        for cut in 0..=whole {
            let run = disk.copy();
            run.power_off_after(cut);
            let acked = write_identity(&run, b"new").is_ok();
            for image in run.legal_images(DirLoss::Any, 1000) {
                let found = read_identity(&image).unwrap().unwrap();
                assert!(found == "new" || (!acked && found == "old"), "cut {cut}: {found:?}");
                write_identity(&image, b"next").unwrap();
            }
        }
    }
}
