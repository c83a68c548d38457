//! Frames of an effect file: its header, and records one after the other.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use kv_types::{LogIndex, ShardId};

use crate::disk::DiskFile;
use crate::encoding::len_u32;
use crate::notes::Generation;
use crate::store_error::StoreError;

/// Length of a file's header.
pub(super) const HEADER_BYTES: u64 = 32;

/// Length of what precedes a record's body: its length and its checksum.
const FRAME_HEAD_BYTES: usize = 8;

/// No record is longer; a longer length is damage.
const RECORD_BYTES_MAX: usize = 64 << 20;

/// Bytes asked of the disk at a time.
const READ_BYTES: usize = 256 << 10;

const MAGIC: &[u8; 8] = b"QRTEFF01";

/// The header of the file that begins at `first`.
pub(super) fn header(shard: ShardId, generation: Generation, first: LogIndex) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&generation.get().to_le_bytes());
    out.extend_from_slice(&first.get().to_le_bytes());
    out.extend_from_slice(&shard.get().to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out
}

/// Whether these bytes are the header of some effect file.
pub(super) fn is_header(found: &[u8]) -> bool {
    found.split_last_chunk::<4>().is_some_and(|(before, crc)| {
        found.starts_with(MAGIC) && crc32c::crc32c(before) == u32::from_le_bytes(*crc)
    })
}

/// Adds a record to `out`; `encode` writes its body.
pub(super) fn put_frame(out: &mut Vec<u8>, encode: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; FRAME_HEAD_BYTES]);
    encode(out);
    let body = out.get(start + FRAME_HEAD_BYTES..).unwrap_or_default();
    assert!(body.len() <= RECORD_BYTES_MAX, "an effect record of {} bytes", body.len());
    let len = len_u32(body.len()).to_le_bytes();
    let crc = checksum(len, body).to_le_bytes();
    for (slot, byte) in out.iter_mut().skip(start).zip(len.into_iter().chain(crc)) {
        *slot = byte;
    }
}

fn checksum(len: [u8; 4], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&len), body)
}

/// What stands at a place of a file.
#[derive(Debug)]
pub(super) enum Frame {
    /// A record.
    Record {
        /// Where it begins.
        at: u64,
        /// Its body.
        body: Bytes,
    },
    /// Nothing more.
    End,
    /// Bytes that are no record.
    Bad {
        /// Where they begin.
        at: u64,
    },
}

/// Reads records of one file in order.
#[derive(Debug)]
pub(super) struct Frames {
    file: Arc<dyn DiskFile>,
    /// Where the records end.
    end: u64,
    /// Where the next record begins.
    at: u64,
    /// What was read from `at` on.
    ahead: BytesMut,
}

impl Frames {
    /// Records between two offsets.
    pub(super) fn new(file: Arc<dyn DiskFile>, at: u64, end: u64) -> Self {
        Self { file, end, at, ahead: BytesMut::new() }
    }

    /// The next record.
    pub(super) fn next(&mut self) -> Result<Frame, StoreError> {
        let at = self.at;
        if at >= self.end {
            return Ok(Frame::End);
        }
        if !self.fill(FRAME_HEAD_BYTES)? {
            return Ok(Frame::Bad { at });
        }
        let mut head = self.ahead.get(..FRAME_HEAD_BYTES).unwrap_or_default();
        let len = head.get_u32_le();
        let crc = head.get_u32_le();
        let body_bytes = len as usize;
        if body_bytes == 0 || body_bytes > RECORD_BYTES_MAX || !self.fill(FRAME_HEAD_BYTES + body_bytes)? {
            return Ok(Frame::Bad { at });
        }
        let mut frame = self.ahead.split_to(FRAME_HEAD_BYTES + body_bytes).freeze();
        frame.advance(FRAME_HEAD_BYTES);
        if checksum(len.to_le_bytes(), &frame) != crc {
            return Ok(Frame::Bad { at });
        }
        self.at = at + (FRAME_HEAD_BYTES + body_bytes) as u64;
        Ok(Frame::Record { at, body: frame })
    }

    /// Reads ahead until `needed` bytes are there; whether the file has as many.
    fn fill(&mut self, needed: usize) -> Result<bool, StoreError> {
        while self.ahead.len() < needed {
            let from = self.at + self.ahead.len() as u64;
            let room = usize::try_from(self.end.saturating_sub(from)).unwrap_or(usize::MAX);
            let mut block = vec![0; room.min(READ_BYTES.max(needed - self.ahead.len()))];
            let count = if block.is_empty() { 0 } else { self.file.read_at(from, &mut block)? };
            if count == 0 {
                return Ok(false);
            }
            self.ahead.extend_from_slice(block.get(..count).unwrap_or_default());
        }
        Ok(true)
    }
}
