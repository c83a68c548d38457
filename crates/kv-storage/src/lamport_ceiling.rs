//! How far the node's Lamport clock may go without writing: the file `lamport` of the data directory.
//!
//! A clock that began at the log's last stamp would forget what it only told others, and could tell it again after a
//! restart for something later. So it never passes the number in this file, and begins there after a restart.
//!
//! The file holds the number twice, each copy in a block of its own, in the format of small files. Raising it overwrites one
//! after the other in place, which needs no room: a node whose disk is full goes on hearing the others, and their clocks
//! go on. The copy that is damaged, or lower, is overwritten first. So whatever a power cut tears, the other copy holds all
//! that was told.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::data_dir::{DataDirError, io_error};
use crate::disk::{Disk, DiskFile};
use crate::small_file::{HEADER_BYTES, SmallFile};

const FILE: SmallFile =
    SmallFile { name: "lamport", tmp: "lamport.tmp", magic: *b"QRLC", version: 2, content_max: 8 };

/// What older releases wrote: one copy, and no more bytes.
const OLDER: SmallFile = SmallFile { version: 1, ..FILE };

const COPIES: usize = 2;
const COPY_BYTES: usize = HEADER_BYTES + 8;

/// A block for each.
const BLOCK_BYTES: usize = 4096;

/// The ceiling, as it is on the disk.
///
/// # Invariants
/// - it never falls;
/// - [`CeilingFile::durable`] is never above what a restart would find.
#[derive(Debug)]
pub struct CeilingFile {
    disk: Arc<dyn Disk>,
    durable: AtomicU64,
    /// `None` if the file has the older format: the next raise replaces it. One writer at a time.
    copies: Mutex<Option<Copies>>,
}

/// The file, open for writing.
#[derive(Debug)]
struct Copies {
    file: Arc<dyn DiskFile>,
    /// The copy to overwrite next: the other one holds all that was told.
    next: usize,
}

/// What stands in the file.
struct Found {
    number: u64,
    copies: Option<Copies>,
}

impl CeilingFile {
    /// Creates it in a new data directory, at zero; leaves one that is there as it is. Called before the identity is
    /// written, so that a directory with an identity always has a ceiling.
    ///
    /// # Errors
    /// Of the operating system, or if the file is damaged.
    pub fn create(disk: &dyn Disk) -> Result<(), DataDirError> {
        match read(disk)? {
            Some(_) => Ok(()),
            None => replace(disk, 0).map(drop),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] if it is damaged or missing; or of the operating system.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, DataDirError> {
        let Found { number, copies } = read(disk.as_ref())?.ok_or_else(|| FILE.damaged("it is missing"))?;
        if let Some(Copies { file, .. }) = &copies {
            // A process that was killed may have written what was not durable yet.
            file.sync().map_err(io_error("sync", Path::new(FILE.name)))?;
        }
        Ok(Self { disk, durable: AtomicU64::new(number), copies: Mutex::new(copies) })
    }

    /// What a restart would find, or less.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Raises it to at least `to`; durable on return. Waits for the disk.
    ///
    /// # Errors
    /// Of the operating system; it may be raised all the same then, but not for this process.
    pub fn raise(&self, to: u64) -> Result<(), DataDirError> {
        let mut copies = self.copies.lock().unwrap_or_else(PoisonError::into_inner);
        if to <= self.durable() {
            return Ok(());
        }
        match &mut *copies {
            Some(copies) => copies.overwrite(to)?,
            None => *copies = Some(replace(self.disk.as_ref(), to)?),
        }
        self.durable.store(to, Ordering::Release);
        Ok(())
    }
}

impl Copies {
    /// Overwrites both. One is durable before the other one is touched.
    fn overwrite(&mut self, number: u64) -> Result<(), DataDirError> {
        let path = Path::new(FILE.name);
        for _ in 0..COPIES {
            write(&self.file, self.next, number).map_err(io_error("write", path))?;
            self.file.sync().map_err(io_error("sync", path))?;
            self.next = (self.next + 1) % COPIES;
        }
        Ok(())
    }
}

/// `None` if there is no such file.
fn read(disk: &dyn Disk) -> Result<Option<Found>, DataDirError> {
    let path = Path::new(FILE.name);
    let file = match disk.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", path)(error)),
    };
    if file.len().map_err(io_error("measure", path))? <= COPY_BYTES as u64 {
        let older = number(&OLDER, &copy(&file, 0)?)?;
        return Ok(Some(Found { number: older, copies: None }));
    }
    let copy = |nth| copy(&file, nth).and_then(|copy| number(&FILE, &copy));
    let (number, next) = match (copy(0), copy(1)) {
        (Err(later @ DataDirError::Version { .. }), _) | (_, Err(later @ DataDirError::Version { .. })) => {
            return Err(later);
        }
        (Ok(first), Ok(second)) => (first.max(second), usize::from(first > second)),
        (Ok(first), Err(_)) => (first, 1),
        (Err(_), Ok(second)) => (second, 0),
        (Err(damaged), Err(_)) => return Err(damaged),
    };
    Ok(Some(Found { number, copies: Some(Copies { file, next }) }))
}

fn copy(file: &Arc<dyn DiskFile>, nth: usize) -> Result<Bytes, DataDirError> {
    let mut bytes = vec![0; COPY_BYTES];
    let count = file
        .read_at((nth * BLOCK_BYTES) as u64, &mut bytes)
        .map_err(io_error("read", Path::new(FILE.name)))?;
    bytes.truncate(count);
    Ok(bytes.into())
}

fn number(format: &SmallFile, copy: &Bytes) -> Result<u64, DataDirError> {
    let content = format.decode(copy)?;
    let content: &[u8; 8] =
        content.as_ref().try_into().map_err(|_| format.damaged("it does not hold one number"))?;
    Ok(u64::from_le_bytes(*content))
}

/// Puts a new file in the place of what is there, wholly or not at all; durable on return.
fn replace(disk: &dyn Disk, number: u64) -> Result<Copies, DataDirError> {
    let file = FILE.replace(disk, |file| {
        file.write_at(0, &vec![0; COPIES * BLOCK_BYTES])?;
        (0..COPIES).try_for_each(|nth| write(file, nth, number))
    })?;
    Ok(Copies { file, next: 0 })
}

fn write(file: &Arc<dyn DiskFile>, nth: usize, number: u64) -> io::Result<()> {
    file.write_at((nth * BLOCK_BYTES) as u64, &FILE.encode(&number.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::{DirLoss, FaultKind, VirtualDisk};

    fn open(disk: &VirtualDisk) -> Result<CeilingFile, DataDirError> {
        CeilingFile::open(Arc::new(disk.clone()))
    }

    #[test]
    fn a_ceiling_that_is_missing_is_damage() {
        let disk = VirtualDisk::new();
        let error = open(&disk).unwrap_err().to_string();
        assert_eq!(error, "the file lamport of the data directory is damaged: it is missing");
        CeilingFile::create(&disk).unwrap();
        open(&disk).unwrap().raise(7).unwrap();
        CeilingFile::create(&disk).unwrap();
        assert_eq!(open(&disk).unwrap().durable(), 7);
    }

    #[test]
    fn a_crash_never_lowers_what_was_durable() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        open(&disk).unwrap().raise(100).unwrap();
        let whole = {
            let run = disk.copy();
            let before = run.calls();
            open(&run).unwrap().raise(200).unwrap();
            run.calls() - before
        };
        let mut outcomes = [0, 0];
        for cut in 0..=whole {
            let run = disk.copy();
            let file = open(&run).unwrap();
            run.power_off_after(cut);
            let raised = file.raise(200).is_ok();
            assert_eq!(file.durable(), if raised { 200 } else { 100 }, "cut {cut}");
            for image in run.legal_images(DirLoss::Any, 1000) {
                let found = open(&image).unwrap().durable();
                assert!(found == 200 || (!raised && found == 100), "cut {cut}: {found}");
                outcomes[usize::from(found == 200)] += 1;
            }
        }
        assert!(outcomes.iter().all(|count| *count > 0), "{outcomes:?}");
    }

    #[test]
    fn one_damaged_copy_costs_nothing_and_two_are_damage() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        open(&disk).unwrap().raise(77).unwrap();
        for byte in 0..COPY_BYTES as u64 {
            for (nth, other) in [(0, 1), (1, 0)] {
                let bad = disk.copy();
                assert!(bad.flip(Path::new(FILE.name), nth * BLOCK_BYTES as u64 + byte, 5));
                let file = open(&bad).unwrap();
                assert_eq!(file.durable(), 77, "byte {byte} of {nth}");
                file.raise(78).unwrap();
                assert_eq!(open(&bad).unwrap().durable(), 78);
                for nth in [nth, other] {
                    assert!(bad.flip(Path::new(FILE.name), nth * BLOCK_BYTES as u64 + byte, 5));
                }
                assert!(open(&bad).is_err(), "byte {byte}");
            }
        }
    }

    /// The power goes, or a sector does, in one raise after the other: what an open has found is never lost, although the
    /// copy being written is damaged each time.
    #[test]
    fn cut_after_cut_nothing_that_was_found_is_lost() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        open(&disk).unwrap().raise(1).unwrap();
        for first in 0..=4 {
            for second in 0..=4 {
                let mut now = disk.copy();
                let mut found = 1;
                for (to, cut) in [(2, first), (3, second)] {
                    let file = open(&now).unwrap();
                    let next = file.copies.lock().unwrap().as_ref().unwrap().next;
                    now.power_off_after(cut);
                    let raised = file.raise(to).is_ok();
                    // The first two calls are those of one copy, the others those of the other one.
                    let torn = (next + usize::from(cut >= 2)) % COPIES;
                    now = now.crash(DirLoss::Any, &mut |_| 0);
                    if !raised {
                        assert!(now.flip(Path::new(FILE.name), (torn * BLOCK_BYTES) as u64 + 17, 1));
                    }
                    let again = open(&now).unwrap().durable();
                    let least = if raised { to } else { found };
                    assert!(again >= least, "{first} {second}: {again} after {least}");
                    found = again;
                }
            }
        }
    }

    #[test]
    fn what_an_open_finds_is_durable() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        // A process is killed before its sync.
        let bytes = FILE.encode(&9_u64.to_le_bytes());
        disk.open(Path::new(FILE.name)).unwrap().write_at(0, &bytes).unwrap();
        assert_eq!(open(&disk).unwrap().durable(), 9);
        for image in disk.legal_images(DirLoss::Any, 1000) {
            assert_eq!(open(&image).unwrap().durable(), 9);
        }
    }

    #[test]
    fn a_copy_that_cannot_be_read_costs_nothing() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        open(&disk).unwrap().raise(5).unwrap();
        for nth in 1..=2 {
            disk.fail_nth(FaultKind::Read, nth, io::ErrorKind::Other);
            assert_eq!(open(&disk).unwrap().durable(), 5);
        }
    }

    #[test]
    fn a_full_disk_does_not_keep_it_from_rising() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        disk.set_capacity(0);
        let file = open(&disk).unwrap();
        for to in [1 << 20, 1 << 40] {
            file.raise(to).unwrap();
            assert_eq!(open(&disk).unwrap().durable(), to);
        }
    }

    #[test]
    fn one_of_an_older_release_is_read_and_replaced_when_it_rises() {
        let disk = VirtualDisk::new();
        OLDER.write(&disk, &5_u64.to_le_bytes()).unwrap();
        CeilingFile::create(&disk).unwrap();
        let calls = disk.calls();
        let file = open(&disk).unwrap();
        assert_eq!((file.durable(), disk.calls()), (5, calls), "to look changes nothing");
        disk.set_capacity(0);
        assert!(file.raise(6).unwrap_err().is_no_room());
        assert_eq!(open(&disk).unwrap().durable(), 5);
        disk.set_capacity(1 << 20);
        file.raise(6).unwrap();
        disk.set_capacity(0);
        file.raise(7).unwrap();
        assert_eq!(open(&disk).unwrap().durable(), 7);
        let later = SmallFile { version: 3, ..FILE };
        disk.open(Path::new(FILE.name)).unwrap().write_at(0, &later.encode(&[0; 8])).unwrap();
        assert!(matches!(open(&disk), Err(DataDirError::Version { found: 3, known: 2, .. })));
    }

    #[test]
    fn a_smaller_number_changes_nothing() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        let file = open(&disk).unwrap();
        file.raise(9).unwrap();
        let calls = disk.calls();
        file.raise(8).unwrap();
        assert_eq!((file.durable(), disk.calls()), (9, calls));
    }
}
