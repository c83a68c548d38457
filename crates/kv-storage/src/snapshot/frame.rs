//! Chunks and items of a snapshot stream.

use bytes::{Buf, Bytes, BytesMut};
use kv_types::limits::SNAPSHOT_CHUNK_BYTES;

use crate::encoding::{Malformed, Reader, len_u32, put_base_note};
use crate::notes::BaseNote;

const FORMAT: u8 = 1;
const CHUNK_HEAD_BYTES: usize = 5;
const CRC_BYTES: usize = 4;
const ITEM_HEAD_BYTES: usize = 5;

/// Item bytes in one chunk.
pub(super) const PAYLOAD_BYTES: usize = SNAPSHOT_CHUNK_BYTES - CHUNK_HEAD_BYTES - CRC_BYTES;

/// No item is longer: an effect record is the longest.
const ITEM_BYTES_MAX: usize = 64 << 20;

/// What an item is. Tags are never used again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tag {
    /// The note the base was at when the stream began.
    Header = 1,
    /// A row of the engine, as stored.
    Row = 2,
    /// A record of the effect log.
    Effect = 3,
    /// What the whole must be.
    Trailer = 4,
}

/// What a whole stream amounts to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Trailer {
    /// The state after the last effect; its generation is the sender's.
    pub(super) note: BaseNote,
    /// Rows of the engine in the stream.
    pub(super) rows: u64,
    /// Effects in the stream.
    pub(super) effects: u64,
}

impl Trailer {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_base_note(&mut out, &self.note);
        out.extend_from_slice(&self.rows.to_le_bytes());
        out.extend_from_slice(&self.effects.to_le_bytes());
        out
    }

    pub(super) fn decode(body: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, "snapshot trailer");
        let trailer = Self { note: reader.base_note()?, rows: reader.u64()?, effects: reader.u64()? };
        reader.end()?;
        Ok(trailer)
    }
}

/// Adds an item to the bytes of a stream.
pub(super) fn put_item(out: &mut BytesMut, tag: Tag, parts: &[&[u8]]) {
    let len = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(&[tag as u8]);
    out.extend_from_slice(&len_u32(len).to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// Takes the first item off the bytes of a stream, if all of it is there.
pub(super) fn take_item(stream: &mut BytesMut) -> Result<Option<(Tag, Bytes)>, Malformed> {
    let Some(mut head) = stream.get(..ITEM_HEAD_BYTES) else { return Ok(None) };
    let tag = match head.get_u8() {
        1 => Tag::Header,
        2 => Tag::Row,
        3 => Tag::Effect,
        4 => Tag::Trailer,
        _ => return Err(Malformed { what: "snapshot item tag" }),
    };
    let len = head.get_u32_le() as usize;
    if len > ITEM_BYTES_MAX {
        return Err(Malformed { what: "snapshot item length" });
    }
    if stream.len() < ITEM_HEAD_BYTES + len {
        return Ok(None);
    }
    stream.advance(ITEM_HEAD_BYTES);
    Ok(Some((tag, stream.split_to(len).freeze())))
}

/// Wraps a part of the stream as chunk `number`.
pub(super) fn chunk(number: u32, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(payload.len() + CHUNK_HEAD_BYTES + CRC_BYTES);
    out.extend_from_slice(&[FORMAT]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(payload);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// The part of the stream in chunk `number`.
pub(super) fn payload(number: u32, chunk: &Bytes) -> Result<Bytes, Malformed> {
    let bad = Malformed { what: "snapshot chunk" };
    if chunk.len() > SNAPSHOT_CHUNK_BYTES {
        return Err(bad);
    }
    let sealed = chunk.len().checked_sub(CRC_BYTES).ok_or(bad)?;
    let crc = crc32c::crc32c(&chunk.slice(..sealed));
    if chunk.slice(sealed..) != crc.to_le_bytes()[..] {
        return Err(Malformed { what: "checksum of a snapshot chunk" });
    }
    let mut reader = Reader::new(chunk.slice(..sealed), "snapshot chunk");
    if reader.u8()? != FORMAT {
        return Err(reader.malformed());
    }
    if reader.u32()? != number {
        return Err(Malformed { what: "number of a snapshot chunk" });
    }
    Ok(reader.rest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_refused_out_of_turn_or_with_any_bit_flipped() {
        let whole = chunk(3, b"payload");
        assert_eq!(payload(3, &whole).unwrap(), "payload");
        assert!(payload(4, &whole).is_err());
        for bit in 0..whole.len() * 8 {
            let mut bad = whole.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(payload(3, &Bytes::from(bad)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn an_item_waits_for_all_its_bytes() {
        let mut whole = BytesMut::new();
        put_item(&mut whole, Tag::Row, &[b"a", b"bc"]);
        for cut in 0..whole.len() {
            assert_eq!(take_item(&mut BytesMut::from(&whole[..cut])).unwrap(), None, "cut at {cut}");
        }
        assert_eq!(take_item(&mut whole).unwrap(), Some((Tag::Row, Bytes::from_static(b"abc"))));
        assert!(whole.is_empty());
        assert!(take_item(&mut BytesMut::from(&[9, 0, 0, 0, 0][..])).is_err());
    }
}
