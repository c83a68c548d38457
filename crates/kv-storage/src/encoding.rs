//! Bytes on disk and in snapshot streams: little-endian, lengths checked before they are believed.

use std::collections::BTreeSet;

use bytes::{Buf, Bytes};
use kv_types::{
    Lamport, LogId, LogIndex, Membership, NodeId, Revision, RowHead, RowKey, SnapshotMeta, StateHash, Term,
};

use crate::notes::{BaseNote, Generation};

/// Bytes that are not what their reader expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}")]
pub(crate) struct Malformed {
    /// What was being read.
    pub(crate) what: &'static str,
}

/// Length of an encoded [`RowHead`].
pub(crate) const HEAD_BYTES: usize = 52;

/// Reads fields off the front of some bytes; what is taken out of [`Bytes`] shares their memory.
#[derive(Debug)]
pub(crate) struct Reader<B = Bytes> {
    rest: B,
    what: &'static str,
}

impl Reader {
    /// A number in as few bytes as it needs.
    pub(crate) fn varint(&mut self) -> Result<u64, Malformed> {
        let (number, rest) = unsigned_varint::decode::u64(&self.rest).map_err(|_| self.malformed())?;
        let taken = self.rest.len() - rest.len();
        self.rest.advance(taken);
        Ok(number)
    }

    /// A length in as few bytes as it needs, then that many bytes.
    pub(crate) fn short(&mut self) -> Result<Bytes, Malformed> {
        let len = self.varint()?;
        self.bytes(usize::try_from(len).map_err(|_| self.malformed())?)
    }
}

impl<B: Buf> Reader<B> {
    pub(crate) fn new(bytes: B, what: &'static str) -> Self {
        Self { rest: bytes, what }
    }

    pub(crate) fn malformed(&self) -> Malformed {
        Malformed { what: self.what }
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<Bytes, Malformed> {
        if len > self.rest.remaining() { Err(self.malformed()) } else { Ok(self.rest.copy_to_bytes(len)) }
    }

    /// Numbers are copied out: to split them off would cost more than to read them.
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        self.rest.try_copy_to_slice(&mut array).map_err(|_| self.malformed())?;
        Ok(array)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length, then that many bytes.
    pub(crate) fn sized(&mut self) -> Result<Bytes, Malformed> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).map_err(|_| self.malformed())?)
    }

    pub(crate) fn row_key(&mut self) -> Result<RowKey, Malformed> {
        let bytes = self.sized()?;
        RowKey::decode(bytes).ok_or_else(|| self.malformed())
    }

    pub(crate) fn lamport(&mut self) -> Result<Lamport, Malformed> {
        Ok(Lamport { counter: self.u64()?, node: NodeId::new(self.u64()?) })
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, Malformed> {
        Ok(LogId::new(Term::new(self.u64()?), LogIndex::new(self.u64()?)))
    }

    pub(crate) fn state_hash(&mut self) -> Result<StateHash, Malformed> {
        self.array().map(|bytes| StateHash::new(u128::from_le_bytes(bytes)))
    }

    pub(crate) fn head(&mut self) -> Result<RowHead, Malformed> {
        Ok(RowHead {
            created: Revision::new(self.u64()?),
            modified: Revision::new(self.u64()?),
            version: self.u64()?,
            stamp: self.lamport()?,
            value_bytes: self.u32()?,
            value_hash: self.u64()?,
        })
    }

    fn nodes(&mut self) -> Result<BTreeSet<NodeId>, Malformed> {
        let count = self.u32()?;
        (0..count).map(|_| self.u64().map(NodeId::new)).collect()
    }

    pub(crate) fn membership(&mut self) -> Result<Membership, Malformed> {
        let membership =
            Membership { voters: self.nodes()?, outgoing: self.nodes()?, learners: self.nodes()? };
        membership.check().map_err(|_| self.malformed())?;
        Ok(membership)
    }

    pub(crate) fn base_note(&mut self) -> Result<BaseNote, Malformed> {
        Ok(BaseNote {
            generation: Generation::new(self.u64()?),
            meta: SnapshotMeta { last: self.log_id()?, membership: self.membership()? },
            stamp: self.lamport()?,
            hash: self.state_hash()?,
        })
    }

    /// How many bytes are not read yet.
    pub(crate) fn left(&self) -> usize {
        self.rest.remaining()
    }

    /// The bytes not read yet.
    pub(crate) fn rest(mut self) -> Bytes {
        self.rest.copy_to_bytes(self.rest.remaining())
    }

    /// Succeeds if nothing is left.
    pub(crate) fn end(self) -> Result<(), Malformed> {
        if self.rest.has_remaining() { Err(self.malformed()) } else { Ok(()) }
    }
}

/// A length as the four bytes every format here gives it.
///
/// # Panics
/// At 4 GiB, which no limit allows.
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("rows, entries and chunks are far below 4 GiB")
}

/// A number in as few bytes as it needs.
pub(crate) fn put_varint(out: &mut Vec<u8>, number: u64) {
    match u8::try_from(number) {
        // Most are.
        Ok(short @ 0..0x80) => out.push(short),
        _ => {
            let mut buffer = unsigned_varint::encode::u64_buffer();
            let len = unsigned_varint::encode::u64(number, &mut buffer).len();
            // To copy all of it and cut is cheaper than to copy as many bytes as it happens to have.
            let end = out.len() + len;
            out.extend_from_slice(&buffer);
            out.truncate(end);
        }
    }
}

/// Bytes, and before them their number in as few bytes as it needs.
pub(crate) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, u64::from(len_u32(bytes.len())));
    out.extend_from_slice(bytes);
}

pub(crate) fn put_lamport(out: &mut Vec<u8>, stamp: Lamport) {
    out.extend_from_slice(&stamp.counter.to_le_bytes());
    out.extend_from_slice(&stamp.node.get().to_le_bytes());
}

pub(crate) fn put_log_id(out: &mut Vec<u8>, id: LogId) {
    out.extend_from_slice(&id.term.get().to_le_bytes());
    out.extend_from_slice(&id.index.get().to_le_bytes());
}

pub(crate) fn put_head(out: &mut Vec<u8>, head: &RowHead) {
    for number in [head.created.get(), head.modified.get(), head.version] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    put_lamport(out, head.stamp);
    out.extend_from_slice(&head.value_bytes.to_le_bytes());
    out.extend_from_slice(&head.value_hash.to_le_bytes());
}

pub(crate) fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    for nodes in [&membership.voters, &membership.outgoing, &membership.learners] {
        out.extend_from_slice(&len_u32(nodes.len()).to_le_bytes());
        for node in nodes {
            out.extend_from_slice(&node.get().to_le_bytes());
        }
    }
}

pub(crate) fn put_base_note(out: &mut Vec<u8>, note: &BaseNote) {
    out.extend_from_slice(&note.generation.get().to_le_bytes());
    put_log_id(out, note.meta.last);
    put_membership(out, &note.meta.membership);
    put_lamport(out, note.stamp);
    out.extend_from_slice(&note.hash.get().to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_round_trip_and_every_truncation_is_refused() {
        let note = BaseNote {
            generation: Generation::new(3),
            meta: SnapshotMeta {
                last: LogId::new(Term::new(2), LogIndex::new(9)),
                membership: Membership::of_voters([NodeId::new(1), NodeId::new(2)]),
            },
            stamp: Lamport { counter: 7, node: NodeId::new(1) },
            hash: StateHash::new(99),
        };
        let mut bytes = Vec::new();
        put_base_note(&mut bytes, &note);
        let mut reader = Reader::new(Bytes::from(bytes.clone()), "note");
        assert_eq!(reader.base_note().unwrap(), note);
        reader.end().unwrap();
        for cut in 0..bytes.len() {
            let short = Bytes::copy_from_slice(&bytes[..cut]);
            assert!(Reader::new(short, "note").base_note().is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_head_has_its_length() {
        let mut bytes = Vec::new();
        put_head(&mut bytes, &RowHead::default());
        assert_eq!(bytes.len(), HEAD_BYTES);
    }
}
