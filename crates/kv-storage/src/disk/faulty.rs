//! A data directory in memory that fails and crashes on demand.
//!
//! Every file keeps what is durable and, in order, what was written since its last sync; every directory does the same
//! with its names. A crash keeps, loses or tears each of those operations, as a [`Chooser`] says. Nothing here depends
//! on time, addresses or hashing, so the same choices give the same image.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Disk, DiskFile};

mod image;
mod tree;

pub use image::{Chooser, LegalImages};
use tree::Tree;

/// The unit in which a write is torn: a disk writes a sector whole or not at all.
pub const SECTOR_BYTES: usize = 512;

/// How a crash treats the unsynced operations of one directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DirLoss {
    /// A prefix of them survives, as on a file system with an ordered journal.
    #[default]
    Prefix,
    /// Any of them survives, as POSIX allows.
    Any,
}

/// Which calls an injected fault counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FaultKind {
    /// [`DiskFile::sync`] and [`Disk::sync_dir`].
    Sync,
    /// [`DiskFile::write_at`] and [`DiskFile::set_len`].
    Write,
    /// [`Disk::create`].
    Create,
    /// [`DiskFile::read_at`].
    Read,
}

/// What goes wrong, and when.
#[derive(Debug, Clone, Default)]
struct Faults {
    /// Calls left until the fault, and the fault.
    armed: BTreeMap<FaultKind, (u64, io::ErrorKind)>,
    /// Changing calls left until the power goes.
    power: Option<u64>,
    /// Changing calls made so far.
    calls: u64,
}

impl Faults {
    /// Counts a changing call; an error if the power is off or this call was chosen to fail.
    fn strike(&mut self, kind: Option<FaultKind>) -> io::Result<()> {
        if let Some(left) = &mut self.power {
            if *left == 0 {
                return Err(io::Error::other("the power is off"));
            }
            *left -= 1;
        }
        self.calls += 1;
        kind.map_or(Ok(()), |kind| self.fault(kind))
    }

    /// An error if this call was chosen to fail.
    fn fault(&mut self, kind: FaultKind) -> io::Result<()> {
        let Some((left, error)) = self.armed.get_mut(&kind) else { return Ok(()) };
        if *left > 1 {
            *left -= 1;
            return Ok(());
        }
        let error = *error;
        self.armed.remove(&kind);
        Err(io::Error::new(error, "injected fault"))
    }
}

#[derive(Debug, Clone)]
struct State {
    tree: Tree,
    faults: Faults,
    capacity: u64,
}

/// A data directory in memory. Clones are handles of the same directory; [`VirtualDisk::crash`] makes another.
#[derive(Debug, Clone)]
pub struct VirtualDisk {
    state: Arc<Mutex<State>>,
}

impl Default for VirtualDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtualDisk {
    /// An empty data directory of 1 TiB.
    pub fn new() -> Self {
        Self::of_tree(Tree::default(), 1 << 40)
    }

    fn of_tree(tree: Tree, capacity: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State { tree, faults: Faults::default(), capacity })) }
    }

    /// A panicking holder leaves the tree between two operations, never inside one, so poison says nothing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Limits the bytes of all files; growth beyond it fails with `StorageFull`.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }

    /// Limits the bytes of all files so that so many more may be written.
    pub fn leave_free(&self, bytes: u64) {
        let mut state = self.lock();
        state.capacity = state.tree.used_bytes().saturating_add(bytes);
    }

    /// Makes the `nth` call of this kind from now (the next is 1) fail with `error`. A failed write leaves half of its
    /// sectors; a failed sync makes nothing durable, nor does any later sync for the operations it covered.
    pub fn fail_nth(&self, kind: FaultKind, nth: u64, error: io::ErrorKind) {
        self.lock().faults.armed.insert(kind, (nth, error));
    }

    /// Lets `calls` more changing calls happen; all later ones fail and change nothing.
    pub fn power_off_after(&self, calls: u64) {
        self.lock().faults.power = Some(calls);
    }

    /// Ends what [`VirtualDisk::power_off_after`] began, with nothing lost: the process was killed, the machine ran on.
    pub fn power_on(&self) {
        self.lock().faults.power = None;
    }

    /// Changing calls made so far; a workload is cut at each of them in turn.
    pub fn calls(&self) -> u64 {
        self.lock().faults.calls
    }

    /// Flips one bit of a file, as a decaying disk does; `false` if there is no such byte.
    pub fn flip(&self, path: &Path, offset: u64, bit: u8) -> bool {
        let mut state = self.lock();
        let Ok(inode) = state.tree.file(path) else { return false };
        state.tree.flip(inode, offset, bit)
    }

    /// A directory with the same content, all of it durable, and no faults.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.lock();
        Self::of_tree(state.tree.settled(), state.capacity)
    }

    /// What a crash at this moment leaves, with each unsynced operation kept, lost or torn as `chooser` says. The
    /// result is durable and has no faults.
    #[must_use]
    pub fn crash(&self, loss: DirLoss, chooser: &mut dyn Chooser) -> Self {
        let state = self.lock();
        Self::of_tree(image::crash(&state.tree, loss, chooser), state.capacity)
    }

    /// Every image a crash at this moment may leave, `limit` at most.
    pub fn legal_images(&self, loss: DirLoss, limit: usize) -> LegalImages {
        let state = self.lock();
        LegalImages::new(state.tree.clone(), state.capacity, loss, limit)
    }
}

impl Disk for VirtualDisk {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.lock();
        state.faults.strike(Some(FaultKind::Create))?;
        let inode = state.tree.create(path)?;
        Ok(Arc::new(VirtualFile { disk: self.clone(), inode }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.lock().tree.file(path)?;
        Ok(Arc::new(VirtualFile { disk: self.clone(), inode }))
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.lock().tree.exists(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        Ok(self.lock().tree.list(dir))
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.faults.strike(None)?;
        state.tree.create_dir_all(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.faults.strike(None)?;
        state.tree.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.faults.strike(None)?;
        state.tree.remove(path)
    }

    fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.faults.strike(None)?;
        state.tree.remove_dir_all(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.lock();
        if state.faults.power == Some(0) {
            return state.faults.strike(None);
        }
        let struck = state.faults.strike(Some(FaultKind::Sync));
        state.tree.sync_dir(dir, struck.is_ok())?;
        struck
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.lock();
        Ok(state.capacity.saturating_sub(state.tree.used_bytes()))
    }
}

#[derive(Debug)]
struct VirtualFile {
    disk: VirtualDisk,
    inode: u64,
}

impl DiskFile for VirtualFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.faults.power == Some(0) {
            return state.faults.strike(None);
        }
        let grown = (offset + bytes.len() as u64).saturating_sub(state.tree.len(self.inode));
        if grown > state.capacity.saturating_sub(state.tree.used_bytes()) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the virtual disk is full"));
        }
        let struck = state.faults.strike(Some(FaultKind::Write));
        let half = bytes.len() / 2 / SECTOR_BYTES * SECTOR_BYTES;
        let taken = if struck.is_ok() { bytes } else { bytes.get(..half).unwrap_or_default() };
        state.tree.write(self.inode, offset, taken);
        struck
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.disk.lock();
        state.faults.fault(FaultKind::Read)?;
        Ok(state.tree.read(self.inode, offset, buffer))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        if state.faults.power == Some(0) {
            return state.faults.strike(None);
        }
        let struck = state.faults.strike(Some(FaultKind::Sync));
        state.tree.sync(self.inode, struck.is_ok());
        struck
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.lock().tree.len(self.inode))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.faults.strike(Some(FaultKind::Write))?;
        let grown = bytes.saturating_sub(state.tree.len(self.inode));
        if grown > state.capacity.saturating_sub(state.tree.used_bytes()) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the virtual disk is full"));
        }
        state.tree.set_len(self.inode, bytes);
        Ok(())
    }

    fn reserve(&self, bytes: u64) -> io::Result<bool> {
        self.set_len(bytes).map(|()| true)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn read(disk: &VirtualDisk, path: &str) -> Option<Vec<u8>> {
        let file = disk.open(Path::new(path)).ok()?;
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        assert_eq!(file.read_at(0, &mut bytes).unwrap(), bytes.len());
        Some(bytes)
    }

    /// A durable file `a` of 1,024 ones.
    fn with_file() -> (VirtualDisk, Arc<dyn DiskFile>) {
        let disk = VirtualDisk::new();
        let file = disk.create(Path::new("a")).unwrap();
        file.write_at(0, &[1; 1024]).unwrap();
        file.sync().unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        (disk, file)
    }

    fn images(disk: &VirtualDisk, loss: DirLoss, path: &str) -> BTreeSet<Option<Vec<u8>>> {
        disk.legal_images(loss, 10_000).map(|image| read(&image, path)).collect()
    }

    #[test]
    fn what_is_synced_stays_and_the_rest_is_torn_by_sectors() {
        let (disk, file) = with_file();
        assert_eq!(images(&disk, DirLoss::Any, "a"), BTreeSet::from([Some(vec![1; 1024])]));
        file.write_at(0, &[2; 1024]).unwrap();
        let halves = |a, b| Some([vec![a; 512], vec![b; 512]].concat());
        let all = BTreeSet::from([halves(1, 1), halves(1, 2), halves(2, 1), halves(2, 2)]);
        assert_eq!(images(&disk, DirLoss::Any, "a"), all);
        assert_eq!(read(&disk, "a"), halves(2, 2), "readers see what was written");
        file.sync().unwrap();
        assert_eq!(images(&disk, DirLoss::Any, "a"), BTreeSet::from([halves(2, 2)]));
    }

    #[test]
    fn a_later_write_survives_an_earlier_one() {
        let (disk, file) = with_file();
        file.write_at(0, &[2; 512]).unwrap();
        file.write_at(512, &[3; 512]).unwrap();
        file.set_len(512).unwrap();
        let seen = images(&disk, DirLoss::Any, "a");
        assert!(seen.contains(&Some([vec![1; 512], vec![3; 512]].concat())));
        assert!(seen.contains(&Some(vec![2; 512])), "{}", seen.len());
        assert_eq!(
            seen.len(),
            6,
            "two writes of a sector each, cut or not: cut images differ in the first only"
        );
    }

    #[test]
    fn names_are_lost_in_order_or_in_any() {
        let (disk, _) = with_file();
        disk.rename(Path::new("a"), Path::new("b")).unwrap();
        disk.create(Path::new("c")).unwrap();
        let names = |loss| -> BTreeSet<String> {
            disk.legal_images(loss, 100).map(|image| image.list(Path::new("")).unwrap().join(" ")).collect()
        };
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(names(DirLoss::Prefix), set(&["a", "b", "b c"]));
        assert_eq!(names(DirLoss::Any), set(&["a", "b", "b c", "a c"]));
        disk.sync_dir(Path::new("")).unwrap();
        assert_eq!(names(DirLoss::Any), set(&["b c"]));
    }

    #[test]
    fn a_directory_lost_takes_its_files_along() {
        let disk = VirtualDisk::new();
        disk.create_dir_all(Path::new("x/y")).unwrap();
        disk.create(Path::new("x/y/f")).unwrap();
        disk.sync_dir(Path::new("x/y")).unwrap();
        disk.sync_dir(Path::new("x")).unwrap();
        let found: BTreeSet<bool> = disk
            .legal_images(DirLoss::Any, 10)
            .map(|image| image.exists(Path::new("x/y/f")).unwrap())
            .collect();
        assert_eq!(found, BTreeSet::from([false, true]), "the root was never synced");
        disk.remove_dir_all(Path::new("x")).unwrap();
        assert!(disk.list(Path::new("x")).unwrap().is_empty() && !disk.exists(Path::new("x")).unwrap());
    }

    #[test]
    fn what_a_failed_sync_covered_is_never_durable() {
        let (disk, file) = with_file();
        file.write_at(0, &[2; 512]).unwrap();
        disk.fail_nth(FaultKind::Sync, 1, io::ErrorKind::Other);
        assert!(file.sync().is_err());
        file.write_at(512, &[3; 512]).unwrap();
        file.sync().unwrap();
        let halves = |a, b| Some([vec![a; 512], vec![b; 512]].concat());
        assert_eq!(images(&disk, DirLoss::Any, "a"), BTreeSet::from([halves(1, 3), halves(2, 3)]));
    }

    #[test]
    fn faults_strike_when_they_are_told_to() {
        let (disk, file) = with_file();
        disk.fail_nth(FaultKind::Write, 2, io::ErrorKind::Other);
        file.write_at(0, &[2; 1024]).unwrap();
        assert!(file.write_at(0, &[3; 1024]).is_err());
        assert_eq!(read(&disk, "a"), Some([vec![3; 512], vec![2; 512]].concat()), "half was written");
        disk.fail_nth(FaultKind::Create, 1, io::ErrorKind::StorageFull);
        assert!(disk.create(Path::new("b")).is_err());
        disk.set_capacity(1500);
        assert_eq!(disk.free_bytes().unwrap(), 476);
        assert_eq!(file.write_at(1000, &[0; 501]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(1000, &[0; 500]).unwrap();
        disk.power_off_after(1);
        file.write_at(0, &[9; 1]).unwrap();
        assert!(file.sync().is_err() && disk.remove(Path::new("a")).is_err());
        assert!(disk.sync_dir(Path::new("")).is_err());
        disk.power_on();
        file.sync().unwrap();
        assert_eq!(disk.legal_images(DirLoss::Any, 100).count(), 1, "a call without power spoils nothing");
    }

    #[test]
    fn the_same_choices_give_the_same_image() {
        let (disk, file) = with_file();
        file.write_at(100, &[7; 9000]).unwrap();
        disk.create(Path::new("b")).unwrap();
        let crash = |seed: usize| {
            let mut state = seed;
            let image = disk.crash(DirLoss::Any, &mut |outcomes: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) % outcomes
            });
            (read(&image, "a"), image.list(Path::new("")).unwrap())
        };
        assert_eq!(crash(1), crash(1));
        assert!((2..40).any(|seed| crash(seed) != crash(1)));
    }
}
