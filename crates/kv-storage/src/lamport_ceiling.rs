//! How far the node's Lamport clock may go without writing: the file `lamport` of the data directory.
//!
//! A clock that began at the log's last stamp would forget what it only told others, and could tell it again after a
//! restart for something later. So it never passes the number in this file, and begins there after a restart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::data_dir::DataDirError;
use crate::disk::Disk;
use crate::small_file::SmallFile;

const FILE: SmallFile =
    SmallFile { name: "lamport", tmp: "lamport.tmp", magic: *b"QRLC", version: 1, content_max: 8 };

/// The ceiling, as it is on the disk.
///
/// # Invariants
/// - it never falls;
/// - [`CeilingFile::durable`] is never above what a restart would find.
#[derive(Debug)]
pub struct CeilingFile {
    disk: Arc<dyn Disk>,
    durable: AtomicU64,
    /// One writer at a time: the name of the temporary file is always the same.
    writing: Mutex<()>,
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
            None => FILE.write(disk, &0_u64.to_le_bytes()),
        }
    }

    /// Opens it.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] if it is damaged or missing; or of the operating system.
    pub fn open(disk: Arc<dyn Disk>) -> Result<Self, DataDirError> {
        let found = read(disk.as_ref())?.ok_or_else(|| FILE.damaged("it is missing"))?;
        Ok(Self { disk, durable: AtomicU64::new(found), writing: Mutex::default() })
    }

    /// What a restart would find, or less.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Raises it to at least `to`; durable on return. Waits for the disk.
    ///
    /// # Errors
    /// Of the operating system; it is as it was then.
    pub fn raise(&self, to: u64) -> Result<(), DataDirError> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if to <= self.durable() {
            return Ok(());
        }
        FILE.write(self.disk.as_ref(), &to.to_le_bytes())?;
        self.durable.store(to, Ordering::Release);
        Ok(())
    }
}

fn read(disk: &dyn Disk) -> Result<Option<u64>, DataDirError> {
    let Some(content) = FILE.read(disk)? else { return Ok(None) };
    let content: &[u8; 8] =
        content.as_ref().try_into().map_err(|_| FILE.damaged("it does not hold one number"))?;
    Ok(Some(u64::from_le_bytes(*content)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::{DirLoss, VirtualDisk};

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
