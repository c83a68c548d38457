//! The seam below our code: everything that touches the data directory goes through [`Disk`].
//!
//! Paths are relative to the root of the data directory. A real disk ([`RealDisk`]) and a virtual one that crashes on
//! demand stand behind the same trait, so WAL, effect log, checkpoint and recovery run unchanged in the simulator.
//!
//! # Caller's duties
//! - What was written is durable only after [`DiskFile::sync`]; what was created, renamed or removed only after
//!   [`Disk::sync_dir`] of its directory.
//! - A failed sync is final: the node stops, because the kernel may have marked dirty pages clean (ATC'20, *Can
//!   applications recover from fsync failures?*).

pub mod faulty;
mod read_only;
mod real;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use read_only::ReadOnlyDisk;
pub use real::RealDisk;

/// Whether an error means only that there is no room: what was refused may be tried again once there is.
pub fn is_no_room(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A file open for reading and writing at any offset.
pub trait DiskFile: Send + Sync + Debug {
    /// Writes all bytes at `offset`; the file grows as needed.
    ///
    /// # Errors
    /// Of the operating system; part of the bytes may have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads up to `buffer.len()` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// Of the operating system.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Makes all written bytes durable (fdatasync).
    ///
    /// # Errors
    /// Of the operating system; final, never to be tried again.
    fn sync(&self) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// Of the operating system.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// Of the operating system.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Cuts the file, or lengthens it with zeros.
    ///
    /// # Errors
    /// Of the operating system.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Lengthens the file to so many bytes with zeros, and takes the room for them, without writing any; false if that is not
    /// possible here.
    ///
    /// # Errors
    /// `StorageFull`, or of the operating system.
    fn reserve(&self, bytes: u64) -> io::Result<bool>;
}

/// A data directory.
pub trait Disk: Send + Sync + Debug {
    /// Creates a file that must not exist yet.
    ///
    /// # Errors
    /// `AlreadyExists`, or of the operating system.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens a file that exists.
    ///
    /// # Errors
    /// `NotFound`, or of the operating system.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;

    /// Whether a file or directory exists.
    ///
    /// # Errors
    /// Of the operating system.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Names in a directory, sorted; none if there is no such directory.
    ///
    /// # Errors
    /// Of the operating system.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Creates a directory and its parents; nothing happens if it exists.
    ///
    /// # Errors
    /// Of the operating system.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Renames a file, replacing what had the new name.
    ///
    /// # Errors
    /// Of the operating system.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, or of the operating system.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes a directory and all in it; nothing happens if there is none.
    ///
    /// # Errors
    /// Of the operating system.
    fn remove_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in a directory durable.
    ///
    /// # Errors
    /// Of the operating system; final, never to be tried again.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Bytes a plain user may still write.
    ///
    /// # Errors
    /// Of the operating system.
    fn free_bytes(&self) -> io::Result<u64>;
}
