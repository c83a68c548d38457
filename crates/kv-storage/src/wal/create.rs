//! New files: segments of zeros, and the ballast.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use kv_types::Incarnation;
use kv_types::limits::{DISK_FREE_WRITES_MIN, WAL_BYTES_MAX, WAL_SEGMENT_BYTES};

use super::error::{WalError, io_error};
use super::layout::{SegmentNo, WAL_DIR};
use crate::disk::{Disk, DiskFile, is_no_room};

/// Zeros are written in pieces of this size.
const ZERO_BYTES: u64 = 1 << 20;

/// Zeros between two syncs.
const SYNC_BYTES: u64 = 4 << 20;

const BALLAST_FILE: &str = "ballast";

/// Sizes of a WAL.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Length of a new segment; a multiple of 4 KiB, below 4 GiB.
    pub segment_bytes: u64,
    /// Length of all segments above which [`crate::wal::Wal::release`] asks for checkpoints and compactions.
    pub budget_bytes: u64,
    /// What the last segment keeps for records without entries when the disk is full.
    pub reserve_bytes: u64,
    /// Length of all segments and spare files up to which a released file is kept as a spare.
    pub total_bytes_max: u64,
    /// Entries that pin the oldest segment are copied forward up to this length.
    pub copy_bytes_max: u64,
    /// Length of the file an operator may delete when the disk is full; 0 for none.
    pub ballast_bytes: u64,
    /// The life of this data directory; seeds every checksum.
    pub incarnation: Incarnation,
    /// Whether this WAL was ever opened before: then files without one sound segment are a WAL that was lost, not a new
    /// one.
    pub must_exist: bool,
}

impl WalOptions {
    /// The sizes of a real node.
    pub fn new(incarnation: Incarnation) -> Self {
        Self {
            segment_bytes: WAL_SEGMENT_BYTES,
            budget_bytes: WAL_BYTES_MAX,
            reserve_bytes: 1 << 20,
            total_bytes_max: WAL_BYTES_MAX,
            copy_bytes_max: 1 << 20,
            ballast_bytes: 64 << 20,
            incarnation,
            must_exist: false,
        }
    }
}

/// A segment that groups may be appended to.
#[derive(Debug)]
pub(super) struct OpenSegment {
    pub(super) no: SegmentNo,
    /// Whether the file was another segment before.
    pub(super) reused: bool,
    pub(super) file: Arc<dyn DiskFile>,
}

/// The next segment, to be made on another thread so that no write waits for its zeros. [`Wal::prepare_next`] takes
/// the result, and waits for it if it must.
///
/// Its zeros go to the same disk as the commits of the segment in use, so they are written with pauses. Once somebody waits
/// for them, the rest stays unwritten where the disk has reserved it: commits then take a little longer, which is better than
/// none at all for as long as the zeros take.
///
/// [`Wal::prepare_next`]: crate::wal::Wal::prepare_next
#[derive(Debug)]
pub struct NextSegment {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) no: SegmentNo,
    pub(super) bytes: u64,
    pub(super) hurry: Hurry,
    pub(super) made: SyncSender<Result<OpenSegment, WalError>>,
}

/// Whether somebody waits for a segment.
#[derive(Clone, Debug, Default)]
pub struct Hurry(Arc<AtomicBool>);

impl Hurry {
    /// Ends the pauses, and the zeros if they can be spared.
    pub fn up(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl NextSegment {
    /// The way to have it sooner.
    pub fn hurry(&self) -> Hurry {
        self.hurry.clone()
    }

    /// Makes it, with a `pause` after each mebibyte as long as nobody waits; errors reach the WAL.
    pub fn make(self, pause: impl Fn()) {
        let go_on = || {
            let is_awaited = self.hurry.is_up();
            if !is_awaited {
                pause();
            }
            !is_awaited
        };
        // A WAL that is gone wants no segment.
        let _ = self.made.send(create(self.disk.as_ref(), self.no, self.bytes, &go_on));
    }
}

/// Creates a segment, written with zeros: a later fdatasync then has no file size or extent to record.
pub(super) fn create_segment(disk: &dyn Disk, no: SegmentNo, bytes: u64) -> Result<OpenSegment, WalError> {
    create(disk, no, bytes, &|| true)
}

fn create(
    disk: &dyn Disk,
    no: SegmentNo,
    bytes: u64,
    go_on: &dyn Fn() -> bool,
) -> Result<OpenSegment, WalError> {
    // Asked first, because a refusal after most of the zeros is dear and comes again with every write.
    if disk.free_bytes().map_err(io_error("measure the disk of", WAL_DIR))? < bytes {
        return Err(WalError::Full);
    }
    let path = no.path();
    let created = write_zeros(disk, &path, bytes, go_on);
    match created {
        Ok(file) => Ok(OpenSegment { no, reused: false, file }),
        Err(WalError::Io { source, .. }) if is_no_room(&source) => {
            // The file is of no use, and nothing depends on whether it goes now or at the next start.
            disk.remove(&path).or_else(ignore_missing).map_err(io_error("remove", path.display()))?;
            Err(WalError::Full)
        }
        Err(error) => Err(error),
    }
}

pub(super) fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Creates a file of zeros that survives a power cut. They are written as long as they shall go on, or have to: what is
/// reserved is zeros as well.
fn write_zeros(
    disk: &dyn Disk,
    path: &Path,
    bytes: u64,
    go_on: &dyn Fn() -> bool,
) -> Result<Arc<dyn DiskFile>, WalError> {
    let file = disk.create(path).map_err(io_error("create", path.display()))?;
    let is_reserved = file.reserve(bytes).map_err(io_error("reserve", path.display()))?;
    let piece = bytes.min(ZERO_BYTES);
    let zeros = vec![0; usize::try_from(piece).expect("a piece of zeros is small")];
    let mut at = 0;
    while at < bytes {
        let part = usize::try_from(piece.min(bytes - at)).expect("a piece of zeros is small");
        let zeros = zeros.get(..part).unwrap_or_default();
        file.write_at(at, zeros).map_err(io_error("write", path.display()))?;
        at += piece;
        // One sync of everything would hold back the commits of the segment in use.
        if at.is_multiple_of(SYNC_BYTES) {
            file.sync().map_err(io_error("sync", path.display()))?;
        }
        if !go_on() && is_reserved {
            break;
        }
    }
    file.sync().map_err(io_error("sync", path.display()))?;
    let dir = path.parent().unwrap_or_else(|| Path::new(""));
    disk.sync_dir(dir).map_err(io_error("sync the directory of", path.display()))?;
    Ok(file)
}

/// Puts the ballast back when there is room to spare: it is what an operator deletes first on a full disk.
pub(super) fn keep_ballast(disk: &dyn Disk, bytes: u64) -> Result<(), WalError> {
    let path = Path::new(BALLAST_FILE);
    let there = disk.exists(path).map_err(io_error("look for", BALLAST_FILE))?;
    let free = disk.free_bytes().map_err(io_error("measure the disk of", BALLAST_FILE))?;
    if bytes > 0 && !there && free >= bytes + DISK_FREE_WRITES_MIN {
        write_zeros(disk, path, bytes, &|| true)?;
    }
    Ok(())
}

/// Deletes the ballast file, so that a full disk has room to start; false if there was none.
///
/// # Errors
/// Of the operating system.
pub fn free_ballast(disk: &dyn Disk) -> io::Result<bool> {
    match disk.remove(Path::new(BALLAST_FILE)) {
        Ok(()) => disk.sync_dir(Path::new("")).map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::mpsc::sync_channel;

    use super::*;
    use crate::disk::{RealDisk, faulty::VirtualDisk};

    /// Makes a segment of eight pieces that somebody begins to wait for at the given pause; how often it paused.
    fn make(disk: Arc<dyn Disk>, awaited_at: u32) -> u32 {
        let (made, result) = sync_channel(1);
        let (no, bytes, hurry) = (SegmentNo::new(1), 8 * ZERO_BYTES, Hurry::default());
        disk.create_dir_all(Path::new(WAL_DIR)).unwrap();
        let next = NextSegment { disk, no, bytes, hurry: hurry.clone(), made };
        let pauses = Cell::new(0);
        next.make(|| {
            pauses.set(pauses.get() + 1);
            if pauses.get() == awaited_at {
                hurry.up();
            }
        });
        let segment = result.recv().unwrap().unwrap();
        let mut content = vec![1; usize::try_from(bytes).unwrap() + 1];
        assert_eq!(segment.file.read_at(0, &mut content).unwrap() as u64, bytes);
        assert_eq!(content.iter().filter(|byte| **byte != 0).count(), 1, "what was read is zeros");
        pauses.get()
    }

    #[test]
    fn a_segment_that_is_waited_for_has_its_length_and_is_zeros() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(make(Arc::new(VirtualDisk::new()), 9), 8);
        assert_eq!(make(Arc::new(VirtualDisk::new()), 3), 3);
        assert_eq!(make(Arc::new(RealDisk::new(dir.path()).unwrap()), 3), 3);
    }
}
