//! Where the bytes of a segment stand: groups, records and entries, and the checksums that tie them to their place.
//!
//! All numbers are little endian. A segment is a sequence of groups, each at a multiple of [`BLOCK_BYTES`]; after the
//! last there are zeros, or whatever the file held when it was an older segment. A group is a header and its records; the first group of a segment holds one record, the
//! manifest. A checksum covers what it names and starts from a seed made of incarnation and segment number, so bytes
//! of another node, of another segment or of an earlier life of the disk never validate.
//!
//! | group header | | record header | | entry | |
//! |---|---|---|---|---|---|
//! | magic | 4 | body length | 4 | length of what follows the checksum | 4 |
//! | version | 2 | CRC32C of the body | 4 | CRC32C of length and what follows | 4 |
//! | 1 if the file was a segment before | 2 | shard | 4 | term, index | 16 |
//! | incarnation | 8 | kind | 1 | stamp: counter, node | 16 |
//! | segment | 8 | reserved | 3 | body tag | 1 |
//! | offset of the group | 8 | sequence number of the shard | 8 | payload | |
//! | group number | 8 | CRC32C of the above | 4 | | |
//! | newest group known durable | 8 | | | | |
//! | length of the records | 4 | | | | |
//! | number of records | 4 | | | | |
//! | CRC32C of the above | 4 | | | | |

use std::cmp::Ordering;
use std::fmt;
use std::path::PathBuf;

use kv_types::{Incarnation, ShardId};

use super::bytes_reader::{Malformed, Reader};

/// Groups begin at multiples of this: a group never shares a block, hence no sector, with an older one.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// The directory of the segments.
pub(super) const WAL_DIR: &str = "wal";

/// Format of what is written. Format 1 had no promise in the hard state; format 2 was that of a data directory with longer
/// records of effects, and of entries with a longer envelope; in format 3 each part of a transaction was ended by its own entry.
pub(super) const VERSION: u16 = 4;

const MAGIC: [u8; 4] = *b"QWAL";
pub(super) const GROUP_HEADER_BYTES: usize = 60;
pub(super) const RECORD_HEADER_BYTES: usize = 28;

/// A segment's number: from 1, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct SegmentNo(u32);

impl SegmentNo {
    /// Before the first segment.
    pub const ZERO: Self = Self(0);

    /// Wraps a raw number.
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The number after this one.
    ///
    /// # Panics
    /// At `u32::MAX`: at 64 MiB a segment no disk lives to see it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("2^32 segments are never written"))
    }

    /// Where the segment lies in the data directory.
    pub fn path(self) -> PathBuf {
        PathBuf::from(format!("{WAL_DIR}/{:010}.seg", self.0))
    }

    /// The segment a file name stands for.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        let raw = name.strip_suffix(".seg")?.parse().ok()?;
        (raw > 0).then_some(Self(raw))
    }
}

impl fmt::Display for SegmentNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "segment {}", self.0)
    }
}

/// Where the checksums of a segment start.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Seed(u32);

impl Seed {
    pub(super) fn new(incarnation: Incarnation, segment: SegmentNo) -> Self {
        let first = crc32c::crc32c(&incarnation.get().to_le_bytes());
        Self(crc32c::crc32c_append(first, &segment.get().to_le_bytes()))
    }

    pub(super) fn crc(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }

    pub(super) fn crc_of_two(self, first: &[u8], second: &[u8]) -> u32 {
        crc32c::crc32c_append(self.crc(first), second)
    }
}

/// The header of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GroupHeader {
    /// Whether the file was an older segment before: what stands behind the last group are bytes of then.
    pub(super) reused: bool,
    pub(super) incarnation: Incarnation,
    pub(super) segment: SegmentNo,
    pub(super) offset: u64,
    pub(super) group: u64,
    pub(super) synced: u64,
    pub(super) body_bytes: u32,
    pub(super) records: u32,
}

/// What stands where a group header may stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeaderAt {
    /// Zeros: nothing was written here.
    Blank,
    /// A sound header of this place.
    Sound(GroupHeader),
    /// A sound header of the same place in an older segment: the file is used again, and nothing was written here since.
    Old,
    /// A sound header written under another incarnation.
    Foreign(Incarnation),
    /// A sound header of a format this release does not read.
    Version(u16),
    /// Anything else.
    Bad,
}

impl GroupHeader {
    /// Bytes the group takes with its padding.
    pub(super) fn padded_bytes(&self) -> u64 {
        padded(GROUP_HEADER_BYTES as u64 + u64::from(self.body_bytes))
    }

    pub(super) fn encode(&self) -> [u8; GROUP_HEADER_BYTES] {
        let mut out = Vec::with_capacity(GROUP_HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&u16::from(self.reused).to_le_bytes());
        let place =
            [self.incarnation.get(), u64::from(self.segment.get()), self.offset, self.group, self.synced];
        for number in place {
            out.extend_from_slice(&number.to_le_bytes());
        }
        out.extend_from_slice(&self.body_bytes.to_le_bytes());
        out.extend_from_slice(&self.records.to_le_bytes());
        let crc = Seed::new(self.incarnation, self.segment).crc(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.try_into().expect("the fields above have the header's length")
    }

    /// Reads what stands at `offset` of `segment`.
    pub(super) fn at(bytes: &[u8], incarnation: Incarnation, segment: SegmentNo, offset: u64) -> HeaderAt {
        let Some(bytes) = bytes.get(..GROUP_HEADER_BYTES) else { return HeaderAt::Bad };
        if bytes.iter().all(|byte| *byte == 0) {
            return HeaderAt::Blank;
        }
        let Ok((version, crc, header)) = Self::decode(bytes) else { return HeaderAt::Bad };
        let covered = bytes.get(..GROUP_HEADER_BYTES - 4).unwrap_or_default();
        if Seed::new(header.incarnation, header.segment).crc(covered) != crc {
            return HeaderAt::Bad;
        }
        if version != VERSION {
            return HeaderAt::Version(version);
        }
        if header.incarnation != incarnation {
            return HeaderAt::Foreign(header.incarnation);
        }
        match header.segment.cmp(&segment) {
            Ordering::Equal if header.offset == offset => HeaderAt::Sound(header),
            Ordering::Less if header.offset == offset => HeaderAt::Old,
            // A sound header in the wrong place was misdirected by the disk.
            Ordering::Less | Ordering::Equal | Ordering::Greater => HeaderAt::Bad,
        }
    }

    fn decode(bytes: &[u8]) -> Result<(u16, u32, Self), Malformed> {
        let mut reader = Reader::new(bytes);
        if reader.array::<4>()? != MAGIC {
            return Err(Malformed);
        }
        let version = reader.u16()?;
        let reused = match reader.u16()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed),
        };
        let incarnation = Incarnation::new(reader.u64()?);
        let segment = SegmentNo(u32::try_from(reader.u64()?).map_err(|_| Malformed)?);
        let (offset, group, synced) = (reader.u64()?, reader.u64()?, reader.u64()?);
        let (body_bytes, records) = (reader.u32()?, reader.u32()?);
        let crc = reader.u32()?;
        Ok((version, crc, Self { reused, incarnation, segment, offset, group, synced, body_bytes, records }))
    }
}

/// The header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordHeader {
    pub(super) body_bytes: u32,
    pub(super) body_crc: u32,
    pub(super) shard: ShardId,
    pub(super) kind: u8,
    pub(super) seq: u64,
}

impl RecordHeader {
    pub(super) fn encode(&self, seed: Seed) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = Vec::with_capacity(RECORD_HEADER_BYTES);
        out.extend_from_slice(&self.body_bytes.to_le_bytes());
        out.extend_from_slice(&self.body_crc.to_le_bytes());
        out.extend_from_slice(&self.shard.get().to_le_bytes());
        out.extend_from_slice(&[self.kind, 0, 0, 0]);
        out.extend_from_slice(&self.seq.to_le_bytes());
        let crc = seed.crc(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out.try_into().expect("the fields above have the header's length")
    }

    pub(super) fn decode(bytes: &[u8], seed: Seed) -> Result<Self, Malformed> {
        let bytes = bytes.get(..RECORD_HEADER_BYTES).ok_or(Malformed)?;
        let mut reader = Reader::new(bytes);
        let (body_bytes, body_crc) = (reader.u32()?, reader.u32()?);
        let shard = ShardId::new(reader.u32()?);
        let [kind, _, _, _] = reader.array()?;
        let seq = reader.u64()?;
        let covered = bytes.get(..RECORD_HEADER_BYTES - 4).ok_or(Malformed)?;
        if seed.crc(covered) != reader.u32()? {
            return Err(Malformed);
        }
        Ok(Self { body_bytes, body_crc, shard, kind, seq })
    }
}

/// `bytes` and the padding up to the next block.
pub(super) fn padded(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES) * BLOCK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> GroupHeader {
        GroupHeader {
            reused: true,
            incarnation: Incarnation::new(7),
            segment: SegmentNo(3),
            offset: 8192,
            group: 9,
            synced: 8,
            body_bytes: 5000,
            records: 2,
        }
    }

    fn read(bytes: &[u8]) -> HeaderAt {
        GroupHeader::at(bytes, Incarnation::new(7), SegmentNo(3), 8192)
    }

    #[test]
    fn group_headers_round_trip_and_know_their_place() {
        let bytes = header().encode();
        assert_eq!(read(&bytes), HeaderAt::Sound(header()));
        assert_eq!(header().padded_bytes(), 8192);
        assert_eq!(GroupHeader::at(&bytes, Incarnation::new(7), SegmentNo(3), 4096), HeaderAt::Bad);
        assert_eq!(GroupHeader::at(&bytes, Incarnation::new(7), SegmentNo(2), 8192), HeaderAt::Bad);
        assert_eq!(GroupHeader::at(&bytes, Incarnation::new(7), SegmentNo(4), 8192), HeaderAt::Old);
        assert_eq!(GroupHeader::at(&bytes, Incarnation::new(7), SegmentNo(4), 4096), HeaderAt::Bad);
        let foreign = GroupHeader::at(&bytes, Incarnation::new(8), SegmentNo(3), 8192);
        assert_eq!(foreign, HeaderAt::Foreign(Incarnation::new(7)));
        assert_eq!(read(&[0; 64]), HeaderAt::Blank);
    }

    #[test]
    fn every_flip_and_cut_of_a_header_is_seen() {
        let bytes = header().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bad), HeaderAt::Bad, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(read(&bytes[..len]), HeaderAt::Bad, "length {len}");
        }
        let seed = Seed::new(Incarnation::new(7), SegmentNo(3));
        let record = RecordHeader { body_bytes: 1, body_crc: 2, shard: ShardId::new(3), kind: 4, seq: 5 };
        let bytes = record.encode(seed);
        assert_eq!(RecordHeader::decode(&bytes, seed), Ok(record));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(RecordHeader::decode(&bad, seed).is_err(), "bit {bit}");
        }
    }
}
