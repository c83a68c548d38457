//! How far the WAL is known to be durable: the file `wal/durable`.
//!
//! The last group of a WAL cannot be told from one that was torn, nor a segment that has vanished from one that never
//! was, by what stands in the segments. So this file says which segment was begun last and which group was durable when
//! nothing more came. It holds two notes that take turns, each in a block of its own: whichever a power cut tears, the other one is
//! sound. A note is written over an older one in place, so that its sync has nothing to record but the bytes, and needs
//! no room on a full disk.
//!
//! A note: magic (4 bytes), version (2), two zero bytes, segment (8), group (8), CRC32C of all before (4), seeded by the
//! incarnation and the segment; numbers are little-endian.

use std::io;
use std::path::Path;
use std::sync::Arc;

use kv_types::Incarnation;

use super::bytes_reader::{Malformed, Reader};
use super::create::ignore_missing;
use super::error::{Corruption, WalError, io_error};
use super::layout::{Seed, SegmentNo, WAL_DIR};
use crate::disk::{Disk, DiskFile};

const FILE: &str = "wal/durable";

/// Where a new file is written before it takes its name.
const TMP: &str = "wal/durable.tmp";

const MAGIC: [u8; 4] = *b"QWDN";
const VERSION: u16 = 1;
const NOTE_BYTES: usize = 28;
const SLOTS: u64 = 2;

/// A block for each.
const SLOT_BYTES: usize = 4096;

/// What is durable at least.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DurableNote {
    /// This segment was begun.
    pub segment: SegmentNo,
    /// This group stands in it, or before its manifest.
    pub group: u64,
}

impl DurableNote {
    fn encode(self, incarnation: Incarnation) -> [u8; SLOT_BYTES] {
        let mut out = Vec::with_capacity(SLOT_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0, 0]);
        out.extend_from_slice(&u64::from(self.segment.get()).to_le_bytes());
        out.extend_from_slice(&self.group.to_le_bytes());
        let crc = Seed::new(incarnation, self.segment).crc(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(SLOT_BYTES, 0);
        out.try_into().expect("it has just got this length")
    }

    fn decode(bytes: &[u8], incarnation: Incarnation) -> Result<Self, Malformed> {
        let covered = bytes.get(..NOTE_BYTES - 4).ok_or(Malformed)?;
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != MAGIC || reader.u16()? != VERSION || reader.u16()? != 0 {
            return Err(Malformed);
        }
        let segment = SegmentNo::new(u32::try_from(reader.u64()?).map_err(|_| Malformed)?);
        let group = reader.u64()?;
        if Seed::new(incarnation, segment).crc(covered) != reader.u32()? {
            return Err(Malformed);
        }
        Ok(Self { segment, group })
    }
}

/// The newest note, and where it stands.
pub(super) struct Found {
    pub(super) note: DurableNote,
    file: Arc<dyn DiskFile>,
    slot: u64,
}

/// `None` if there is no such file: older releases wrote none.
///
/// # Errors
/// [`WalError::Corrupt`] if no note is sound; or of the operating system.
pub(super) fn read(disk: &dyn Disk, incarnation: Incarnation) -> Result<Option<Found>, WalError> {
    let file = match disk.open(Path::new(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("open", FILE)(error)),
    };
    let mut newest: Option<(DurableNote, u64)> = None;
    for slot in 0..SLOTS {
        let mut bytes = [0; NOTE_BYTES];
        let count = file.read_at(offset(slot), &mut bytes).map_err(io_error("read", FILE))?;
        if let Ok(note) = DurableNote::decode(bytes.get(..count).unwrap_or_default(), incarnation)
            && newest.is_none_or(|(newest, _)| note.group > newest.group)
        {
            newest = Some((note, slot));
        }
    }
    match newest {
        Some((note, slot)) => Ok(Some(Found { note, file, slot })),
        None => Err(Corruption::new(SegmentNo::ZERO, 0, "the file wal/durable holds no sound note").into()),
    }
}

fn offset(slot: u64) -> u64 {
    slot * SLOT_BYTES as u64
}

/// The file, open for writing.
#[derive(Debug)]
pub(super) struct DurableFile {
    file: Arc<dyn DiskFile>,
    incarnation: Incarnation,
    /// Where the newest note stands.
    slot: u64,
}

impl DurableFile {
    /// Opens the file; makes one that says nothing if there is none.
    pub(super) fn open(disk: &dyn Disk, incarnation: Incarnation) -> Result<Self, WalError> {
        match read(disk, incarnation)? {
            Some(Found { file, slot, .. }) => Ok(Self { file, incarnation, slot }),
            None => Self::create(disk, incarnation),
        }
    }

    fn create(disk: &dyn Disk, incarnation: Incarnation) -> Result<Self, WalError> {
        let tmp = Path::new(TMP);
        disk.remove(tmp).or_else(ignore_missing).map_err(io_error("remove", TMP))?;
        let file = disk.create(tmp).map_err(io_error("create", TMP))?;
        let note = DurableNote::default().encode(incarnation);
        for slot in 0..SLOTS {
            file.write_at(offset(slot), &note).map_err(io_error("write", TMP))?;
        }
        file.sync().map_err(io_error("sync", TMP))?;
        disk.rename(tmp, Path::new(FILE)).map_err(io_error("rename", TMP))?;
        disk.sync_dir(Path::new(WAL_DIR)).map_err(io_error("sync", WAL_DIR))?;
        Ok(Self { file, incarnation, slot: 0 })
    }

    /// Writes a note over the older of the two; durable on return.
    pub(super) fn write(&mut self, note: DurableNote) -> Result<(), WalError> {
        let slot = (self.slot + 1) % SLOTS;
        let bytes = note.encode(self.incarnation);
        self.file.write_at(offset(slot), &bytes).map_err(io_error("write", FILE))?;
        self.file.sync().map_err(io_error("sync", FILE))?;
        self.slot = slot;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::faulty::{DirLoss, VirtualDisk};

    const INCARNATION: Incarnation = Incarnation::new(7);

    fn note(group: u64) -> DurableNote {
        DurableNote { segment: SegmentNo::new(3), group }
    }

    fn found(disk: &VirtualDisk) -> Option<DurableNote> {
        read(disk, INCARNATION).unwrap().map(|found| found.note)
    }

    fn three_notes(disk: &VirtualDisk) -> Result<u64, WalError> {
        let mut file = DurableFile::open(disk, INCARNATION)?;
        for group in 1..=3 {
            if let Err(WalError::Io { .. }) = file.write(note(group)) {
                return Ok(group - 1);
            }
        }
        Ok(3)
    }

    #[test]
    fn a_power_cut_costs_no_note_but_the_one_being_written() {
        let whole = VirtualDisk::new();
        whole.create_dir_all(Path::new(WAL_DIR)).unwrap();
        whole.sync_dir(Path::new("")).unwrap();
        let before = whole.copy();
        assert_eq!(three_notes(&whole).unwrap(), 3);
        for cut in 0..=whole.calls() {
            let disk = before.copy();
            disk.power_off_after(cut);
            let written = three_notes(&disk);
            for image in disk.legal_images(DirLoss::Any, 1000) {
                let found = found(&image).map(|note| note.group);
                match &written {
                    Ok(written) => {
                        assert!(found == Some(*written) || found == Some(written + 1), "{found:?}")
                    }
                    Err(_) => assert!(found.is_none_or(|group| group == 0), "{found:?}"),
                }
            }
        }
    }

    #[test]
    fn a_note_that_rots_leaves_the_one_before_and_two_are_damage() {
        let disk = VirtualDisk::new();
        disk.create_dir_all(Path::new(WAL_DIR)).unwrap();
        assert_eq!(found(&disk), None);
        three_notes(&disk).unwrap();
        assert_eq!(found(&disk), Some(note(3)));
        for byte in 0..NOTE_BYTES as u64 {
            let bad = disk.copy();
            // The third note stands in the second block.
            assert!(bad.flip(Path::new(FILE), offset(1) + byte, 1));
            assert_eq!(found(&bad), Some(note(2)), "byte {byte}");
            assert!(bad.flip(Path::new(FILE), byte, 1));
            assert!(matches!(read(&bad, INCARNATION), Err(WalError::Corrupt(_))), "byte {byte}");
        }
    }
}
