//! How rows lie in the engine: tags, heads, chunks and checksums.
//!
//! Four kinds of keys, told apart by their first byte: `c` chunks of long values, `n` the note, `s` and `u` rows (as
//! [`RowKey`] encodes them). Every stored value ends with a CRC32C over its key and itself, so that a row that turns
//! up in the wrong place is as damaged as one that was flipped.
//!
//! A value longer than [`CHUNK_BYTES`] is cut into chunk rows keyed (row key, revision, number), because longer rows
//! would become blob files, which sled never syncs. The revision keeps the chunks of two values apart: the new ones are
//! written beside the old, then the head is replaced, then the old ones are removed.

use bytes::{Buf, Bytes};
use kv_types::limits::CHUNK_BYTES;
use kv_types::{Revision, RowHead, RowKey};

use crate::encoding::{HEAD_BYTES, Malformed, Reader, len_u32, put_base_note, put_head};
use crate::notes::{BaseNote, Generation};

/// First byte of the keys of chunks.
pub(crate) const CHUNK_TAG: u8 = b'c';

/// The key of the note.
pub(crate) const NOTE_KEY: &[u8] = b"n";

/// Where rows begin: after chunks and note.
pub(crate) const ROWS_FROM: &[u8] = b"s";

/// Where chunks end.
pub(crate) const CHUNKS_TO: &[u8] = b"d";

const ROW_FORMAT: u8 = 1;
/// Before the second format, every generation began its own effect log.
const NOTE_FORMAT_WITHOUT_EFFECTS: u8 = 1;
const NOTE_FORMAT: u8 = 2;
const CRC_BYTES: usize = 4;

/// A row as stored: its head, and its value unless that lies in chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredRow {
    pub(crate) head: RowHead,
    pub(crate) inline: Option<Bytes>,
}

/// The base's own word on what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredNote {
    pub(crate) note: BaseNote,
    /// Rows in the base.
    pub(crate) rows: u64,
    /// The generation that began the effect log which goes on above this base: another one only if the base was
    /// rewritten since.
    pub(crate) effects: Generation,
    /// What it was when all of it had been written at once; nothing if it grew from nothing.
    pub(crate) fresh: Fresh,
}

/// What a base was when it had been written at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fresh {
    pub(crate) rows: u64,
    /// Bytes on disk.
    pub(crate) bytes: u64,
}

/// The key of one chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChunkKey {
    pub(crate) row: RowKey,
    pub(crate) revision: Revision,
    pub(crate) number: u32,
}

/// Whether a value of this length lies in chunks.
pub(crate) fn is_chunked(head: &RowHead) -> bool {
    head.value_bytes as usize > CHUNK_BYTES
}

/// How many chunk rows a row has.
pub(crate) fn chunk_count(head: &RowHead) -> u32 {
    if is_chunked(head) { len_u32((head.value_bytes as usize).div_ceil(CHUNK_BYTES)) } else { 0 }
}

impl ChunkKey {
    /// Numbers are big-endian here: keys sort as their parts do.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = chunk_prefix(&self.row);
        out.extend_from_slice(&self.revision.get().to_be_bytes());
        out.extend_from_slice(&self.number.to_be_bytes());
        out
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes, "chunk key");
        if reader.u8()? != CHUNK_TAG {
            return Err(reader.malformed());
        }
        let row = reader.row_key()?;
        let revision = Revision::new(u64::swap_bytes(reader.u64()?));
        let number = u32::swap_bytes(reader.u32()?);
        reader.end()?;
        Ok(Self { row, revision, number })
    }
}

/// What the keys of all chunks of a row begin with, and no other key.
pub(crate) fn chunk_prefix(row: &RowKey) -> Vec<u8> {
    let mut out = vec![CHUNK_TAG];
    out.extend_from_slice(&len_u32(row.encoded().len()).to_le_bytes());
    out.extend_from_slice(row.encoded());
    out
}

/// Ends a value with its checksum.
pub(crate) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &value);
    value.extend_from_slice(&crc.to_le_bytes());
    value
}

/// The value without its checksum, if that is right.
pub(crate) fn unseal<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8], Malformed> {
    let bad = Malformed { what: "checksum of a stored row" };
    let (value, stored) = sealed.split_last_chunk::<CRC_BYTES>().ok_or(bad)?;
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), value);
    if *stored == crc.to_le_bytes() { Ok(value) } else { Err(bad) }
}

/// A row as stored, checksum included.
pub(crate) fn encode_row(key: &RowKey, head: &RowHead, value: &[u8]) -> Vec<u8> {
    let inline = if is_chunked(head) { &[] } else { value };
    let mut out = Vec::with_capacity(1 + HEAD_BYTES + inline.len() + CRC_BYTES);
    out.push(ROW_FORMAT);
    put_head(&mut out, head);
    out.extend_from_slice(inline);
    seal(key.encoded(), out)
}

/// Reads what [`encode_row`] wrote.
pub(crate) fn decode_row(key: &[u8], sealed: &Bytes) -> Result<StoredRow, Malformed> {
    let value = unseal(key, sealed)?.len();
    let (head, reader) = head_of(sealed.slice(..value))?;
    let inline = (!is_chunked(&head)).then(|| reader.rest());
    Ok(StoredRow { head, inline })
}

/// Only the head of what [`encode_row`] wrote; the whole row is checked, nothing is copied.
pub(crate) fn decode_head(key: &[u8], sealed: &[u8]) -> Result<RowHead, Malformed> {
    head_of(unseal(key, sealed)?).map(|(head, _)| head)
}

fn head_of<B: Buf>(value: B) -> Result<(RowHead, Reader<B>), Malformed> {
    let mut reader = Reader::new(value, "stored row");
    if reader.u8()? != ROW_FORMAT {
        return Err(reader.malformed());
    }
    let head = reader.head()?;
    let inline = if is_chunked(&head) { 0 } else { head.value_bytes as usize };
    if reader.left() == inline { Ok((head, reader)) } else { Err(reader.malformed()) }
}

/// The note as stored.
pub(crate) fn encode_note(stored: &StoredNote) -> Vec<u8> {
    let mut out = vec![NOTE_FORMAT];
    put_base_note(&mut out, &stored.note);
    out.extend_from_slice(&stored.rows.to_le_bytes());
    out.extend_from_slice(&stored.effects.get().to_le_bytes());
    out.extend_from_slice(&stored.fresh.rows.to_le_bytes());
    out.extend_from_slice(&stored.fresh.bytes.to_le_bytes());
    seal(NOTE_KEY, out)
}

/// Reads what [`encode_note`] wrote.
pub(crate) fn decode_note(sealed: &Bytes) -> Result<StoredNote, Malformed> {
    let mut reader = Reader::new(unseal(NOTE_KEY, sealed)?, "note of the base");
    let format = reader.u8()?;
    if ![NOTE_FORMAT_WITHOUT_EFFECTS, NOTE_FORMAT].contains(&format) {
        return Err(reader.malformed());
    }
    let note = reader.base_note()?;
    let rows = reader.u64()?;
    let (effects, fresh) = match format {
        NOTE_FORMAT => (Generation::new(reader.u64()?), Fresh { rows: reader.u64()?, bytes: reader.u64()? }),
        _ => (note.generation, Fresh::default()),
    };
    reader.end()?;
    Ok(StoredNote { note, rows, effects, fresh })
}

#[cfg(test)]
mod tests {
    use kv_types::{Lamport, Row, Space};

    use super::*;

    fn row(bytes: usize) -> Row {
        let value = Bytes::from(vec![7; bytes]);
        Row::new(Revision::new(1), Revision::new(2), 3, Lamport::ZERO, &value)
    }

    #[test]
    fn rows_round_trip_and_every_flipped_bit_is_seen() {
        let key = RowKey::new(Space::User, b"key");
        let row = row(20);
        let sealed = encode_row(&key, &row.head, &row.value);
        let stored = decode_row(key.encoded(), &Bytes::from(sealed.clone())).unwrap();
        assert_eq!((stored.head, stored.inline.unwrap()), (row.head, row.value));
        assert_eq!(decode_head(key.encoded(), &sealed), Ok(row.head));
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_head(key.encoded(), &bad).is_err(), "bit {bit}");
            assert!(decode_row(key.encoded(), &Bytes::from(bad)).is_err(), "bit {bit}");
        }
        assert!(decode_row(b"ukez", &Bytes::from(sealed)).is_err(), "a row in another's place");
    }

    #[test]
    fn notes_round_trip_and_older_ones_are_read() {
        let note = BaseNote { generation: Generation::new(7), ..BaseNote::default() };
        let fresh = Fresh { rows: 8, bytes: 9 };
        let stored = StoredNote { note, rows: 5, effects: Generation::new(3), fresh };
        let sealed = Bytes::from(encode_note(&stored));
        assert_eq!(decode_note(&sealed).unwrap(), stored);
        for len in 0..sealed.len() {
            assert!(decode_note(&sealed.slice(..len)).is_err(), "cut at {len}");
        }
        let mut older = sealed.slice(..sealed.len() - CRC_BYTES - 24).to_vec();
        older[0] = NOTE_FORMAT_WITHOUT_EFFECTS;
        let older = decode_note(&Bytes::from(seal(NOTE_KEY, older))).unwrap();
        assert_eq!(older, StoredNote { effects: Generation::new(7), fresh: Fresh::default(), ..stored });
    }

    #[test]
    fn values_above_the_limit_are_chunked() {
        assert_eq!(chunk_count(&row(CHUNK_BYTES).head), 0);
        assert_eq!(chunk_count(&row(CHUNK_BYTES + 1).head), 2);
        assert_eq!(chunk_count(&row(3 * CHUNK_BYTES).head), 3);
    }

    #[test]
    fn chunk_keys_round_trip_and_sort_by_revision_and_number() {
        let row = RowKey::new(Space::User, b"key");
        let key = |revision, number| ChunkKey { row: row.clone(), revision: Revision::new(revision), number };
        let chunk = key(258, 3);
        assert_eq!(ChunkKey::decode(Bytes::from(chunk.encode())).unwrap(), chunk);
        assert!(key(1, 900).encode() < key(256, 0).encode());
        assert!(key(1, 255).encode() < key(1, 256).encode());
    }
}
