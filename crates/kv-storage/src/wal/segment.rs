//! Reads a segment group by group.

use std::sync::Arc;

use bytes::Bytes;
use kv_types::Incarnation;

use super::codec::{self, KIND_MANIFEST, Manifest};
use super::error::{WalError, io_error};
use super::layout::{BLOCK_BYTES, GROUP_HEADER_BYTES, GroupHeader, HeaderAt, RECORD_HEADER_BYTES};
use super::layout::{RecordHeader, Seed, SegmentNo};
use crate::disk::{Disk, DiskFile};

/// A segment open for reading.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) no: SegmentNo,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) bytes: u64,
    pub(super) incarnation: Incarnation,
    /// Whether its manifest says that the file was another segment before.
    pub(super) reused: bool,
}

/// A record whose checksums hold.
#[derive(Debug, Clone)]
pub(super) struct RawRecord {
    pub(super) header: RecordHeader,
    /// Where the body begins, from the start of the group.
    pub(super) body_at: usize,
    pub(super) body: Bytes,
}

/// What stands at a block of a segment.
#[derive(Debug)]
pub(super) enum GroupAt {
    /// Every checksum holds.
    Sound(GroupHeader, Vec<RawRecord>),
    /// Nothing was written here: zeros, bytes of the segment that the file was before, or the end of the file.
    Blank,
    /// Not, or no longer, a group. The records whose headers are legible, and whether each body is sound; `all` if
    /// those are all the records there were.
    Bad { legible: Vec<(RecordHeader, bool)>, all: bool },
}

impl Segment {
    pub(super) fn open(disk: &dyn Disk, no: SegmentNo, incarnation: Incarnation) -> Result<Self, WalError> {
        let path = no.path();
        let file = disk.open(&path).map_err(io_error("open", path.display()))?;
        let bytes = file.len().map_err(io_error("measure", path.display()))?;
        Ok(Self { no, file, bytes, incarnation, reused: false })
    }

    fn read(&self, offset: u64, bytes: u64) -> Result<Bytes, WalError> {
        let bytes = bytes.min(self.bytes.saturating_sub(offset));
        let mut buffer = vec![0; usize::try_from(bytes).expect("a segment fits memory")];
        let count = self.file.read_at(offset, &mut buffer).map_err(io_error("read", self.no))?;
        buffer.truncate(count);
        Ok(buffer.into())
    }

    fn header(&self, bytes: &[u8], offset: u64) -> Result<HeaderAt, WalError> {
        match GroupHeader::at(bytes, self.incarnation, self.no, offset) {
            HeaderAt::Foreign(found) => {
                Err(WalError::WrongIncarnation { segment: self.no, found, expected: self.incarnation })
            }
            HeaderAt::Version(found) => Err(WalError::Version { segment: self.no, found }),
            header => Ok(header),
        }
    }

    /// What stands at `offset`.
    ///
    /// # Errors
    /// Of the operating system, and for a sound header of another incarnation or format.
    pub(super) fn group(&self, offset: u64) -> Result<GroupAt, WalError> {
        if offset >= self.bytes {
            return Ok(GroupAt::Blank);
        }
        let mut group = self.read(offset, BLOCK_BYTES)?;
        let header = match self.header(&group, offset)? {
            HeaderAt::Sound(header) => header,
            HeaderAt::Old => return Ok(GroupAt::Blank),
            HeaderAt::Blank if group.iter().all(|byte| *byte == 0) => return Ok(GroupAt::Blank),
            // The middle of an old group, or a header that rots or was torn: nothing tells which.
            HeaderAt::Blank | HeaderAt::Bad if self.reused => return Ok(GroupAt::Blank),
            HeaderAt::Blank | HeaderAt::Bad | HeaderAt::Foreign(_) | HeaderAt::Version(_) => {
                return Ok(GroupAt::Bad { legible: Vec::new(), all: false });
            }
        };
        let whole = GROUP_HEADER_BYTES as u64 + u64::from(header.body_bytes);
        if whole > BLOCK_BYTES {
            group = self.read(offset, whole)?;
        }
        Ok(self.records(header, &group))
    }

    fn records(&self, header: GroupHeader, group: &Bytes) -> GroupAt {
        let seed = Seed::new(self.incarnation, self.no);
        let end = GROUP_HEADER_BYTES + usize::try_from(header.body_bytes).expect("a segment fits memory");
        let mut at = GROUP_HEADER_BYTES;
        let (mut records, mut legible) = (Vec::new(), Vec::new());
        for _ in 0..header.records {
            let head = group.get(at..).map(|rest| RecordHeader::decode(rest, seed));
            let Some(Ok(head)) = head else { return GroupAt::Bad { legible, all: false } };
            let body_at = at + RECORD_HEADER_BYTES;
            at = body_at.saturating_add(usize::try_from(head.body_bytes).unwrap_or(usize::MAX));
            let sound =
                at <= end && group.get(body_at..at).is_some_and(|body| seed.crc(body) == head.body_crc);
            legible.push((head, sound));
            if sound {
                records.push(RawRecord { header: head, body_at, body: group.slice(body_at..at) });
            }
        }
        if records.len() == legible.len() && at == end {
            GroupAt::Sound(header, records)
        } else {
            GroupAt::Bad { legible, all: true }
        }
    }

    /// The manifest at the segment's start with its group header; `None` if it was not wholly written. What is read later
    /// is seen in its light.
    pub(super) fn manifest(&mut self) -> Result<Option<(GroupHeader, Manifest)>, WalError> {
        let GroupAt::Sound(header, records) = self.group(0)? else { return Ok(None) };
        let [record] = records.as_slice() else { return Ok(None) };
        if record.header.kind != KIND_MANIFEST {
            return Ok(None);
        }
        self.reused = header.reused;
        Ok(codec::manifest(&record.body).ok().map(|manifest| (header, manifest)))
    }

    /// The first sound group header after `offset`. A group is written only when the one before it is durable, so
    /// such a header proves that whatever stands before it once was.
    pub(super) fn header_after(&self, offset: u64) -> Result<Option<GroupHeader>, WalError> {
        const WINDOW_BYTES: u64 = 256 * BLOCK_BYTES;
        let mut at = offset + BLOCK_BYTES;
        while at < self.bytes {
            let window = self.read(at, WINDOW_BYTES)?;
            let blocks = window.chunks(usize::try_from(BLOCK_BYTES).expect("a block is small"));
            for (no, block) in (0_u64..).zip(blocks) {
                let place = at + no * BLOCK_BYTES;
                if let HeaderAt::Sound(header) = GroupHeader::at(block, self.incarnation, self.no, place) {
                    return Ok(Some(header));
                }
            }
            at += WINDOW_BYTES;
        }
        Ok(None)
    }
}
