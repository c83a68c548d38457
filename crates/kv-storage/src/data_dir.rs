//! The data directory: one process at a time, and a small file that says whose it is.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::{FlockOperation, flock};

use crate::disk::{Disk, RealDisk};

const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "identity";
const IDENTITY_TMP: &str = "identity.tmp";

/// Format of the identity file: magic, version, length, CRC32C of all before and of the content, content.
const IDENTITY_MAGIC: [u8; 4] = *b"QRID";
const IDENTITY_VERSION: u16 = 1;
const IDENTITY_HEADER_BYTES: usize = 16;

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
    /// The identity file is not what was written.
    #[error("the file {IDENTITY_FILE} of the data directory is damaged: {what}")]
    IdentityDamaged {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The identity file was written by a later release.
    #[error("the file {IDENTITY_FILE} has format {found}; this release reads format {IDENTITY_VERSION}")]
    IdentityVersion {
        /// The format found.
        found: u16,
    },
    /// The caller's content is too long.
    #[error("an identity of {bytes} bytes is too long; the limit is {IDENTITY_BYTES_MAX}")]
    IdentityTooLong {
        /// Its length.
        bytes: usize,
    },
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

fn io_error<'a>(doing: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |source| DataDirError::Io { doing, path: path.to_path_buf(), source }
}

/// [`DataDir::read_identity`] on any disk.
///
/// # Errors
/// As there.
pub fn read_identity(disk: &dyn Disk) -> Result<Option<Bytes>, DataDirError> {
    let path = Path::new(IDENTITY_FILE);
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    // One byte more than the longest file tells a longer one.
    let mut bytes = vec![0; IDENTITY_HEADER_BYTES + IDENTITY_BYTES_MAX + 1];
    let count = file.read_at(0, &mut bytes).map_err(io_error("read", path))?;
    bytes.truncate(count);
    decode_identity(&Bytes::from(bytes)).map(Some)
}

/// [`DataDir::write_identity`] on any disk.
///
/// # Errors
/// As there.
pub fn write_identity(disk: &dyn Disk, content: &[u8]) -> Result<(), DataDirError> {
    if content.len() > IDENTITY_BYTES_MAX {
        return Err(DataDirError::IdentityTooLong { bytes: content.len() });
    }
    let (tmp, path) = (Path::new(IDENTITY_TMP), Path::new(IDENTITY_FILE));
    match disk.remove(tmp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", tmp)(error)),
        Ok(()) | Err(_) => {}
    }
    let file = disk.create(tmp).map_err(io_error("create", tmp))?;
    file.write_at(0, &encode_identity(content)).map_err(io_error("write", tmp))?;
    file.sync().map_err(io_error("sync", tmp))?;
    disk.rename(tmp, path).map_err(io_error("rename", tmp))?;
    disk.sync_dir(Path::new("")).map_err(io_error("sync the directory of", path))
}

fn encode_identity(content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(IDENTITY_HEADER_BYTES + content.len());
    bytes.extend_from_slice(&IDENTITY_MAGIC);
    bytes.extend_from_slice(&IDENTITY_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&u32::try_from(content.len()).expect("the length was checked").to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), content);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(content);
    bytes
}

fn decode_identity(bytes: &Bytes) -> Result<Bytes, DataDirError> {
    let damaged = |what| DataDirError::IdentityDamaged { what };
    let header: &[u8; IDENTITY_HEADER_BYTES] =
        bytes.first_chunk().ok_or_else(|| damaged("it is shorter than its header"))?;
    let [m0, m1, m2, m3, v0, v1, _, _, l0, l1, l2, l3, c0, c1, c2, c3] = *header;
    if [m0, m1, m2, m3] != IDENTITY_MAGIC {
        return Err(damaged("it does not begin with the magic number"));
    }
    let content = bytes.slice(IDENTITY_HEADER_BYTES..);
    let before = header.get(..IDENTITY_HEADER_BYTES - 4).unwrap_or_default();
    if crc32c::crc32c_append(crc32c::crc32c(before), &content) != u32::from_le_bytes([c0, c1, c2, c3]) {
        return Err(damaged("its checksum does not match"));
    }
    // After the checksum: a flipped bit in the version is damage, not a later release.
    match u16::from_le_bytes([v0, v1]) {
        IDENTITY_VERSION => {}
        found => return Err(DataDirError::IdentityVersion { found }),
    }
    if u64::from(u32::from_le_bytes([l0, l1, l2, l3])) != content.len() as u64 {
        return Err(damaged("its length does not match"));
    }
    Ok(content)
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

    #[test]
    fn damage_is_an_error_and_never_absence() {
        let disk = VirtualDisk::new();
        write_identity(&disk, b"content").unwrap();
        for offset in 0..(IDENTITY_HEADER_BYTES + 7) as u64 {
            let bad = disk.copy();
            assert!(bad.flip(Path::new(IDENTITY_FILE), offset, 3));
            assert!(read_identity(&bad).is_err(), "offset {offset}");
        }
        let encoded = Bytes::from(encode_identity(b"content"));
        for len in 0..encoded.len() {
            assert!(decode_identity(&encoded.slice(..len)).is_err(), "length {len}");
        }
    }
}
