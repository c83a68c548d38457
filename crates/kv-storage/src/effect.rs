//! One record of the effect log: what applying an entry did.

use bytes::Bytes;
use kv_types::{
    Lamport, LogId, LogIndex, Membership, NodeId, Revision, Row, RowChange, RowHead, RowKey, StateHash, Term,
};

use crate::encoding::{Malformed, Reader, len_u32, put_membership, put_short, put_varint};

const FORMAT: u8 = 2;

const HAS_MEMBERSHIP: u8 = 1;

/// Of a change: there was a row, and what it replaced is told.
const REPLACES: u8 = 1;

/// Of a change: there is a row now.
const WRITES: u8 = 2;

/// Of a change that writes: its revision and stamp are those of the entry.
const OF_ENTRY: u8 = 4;

/// An entry as applied: its place, and everything it changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedEntry {
    /// The entry.
    pub id: LogId,
    /// Its stamp.
    pub stamp: Lamport,
    /// The membership, if the entry was a configuration.
    pub membership: Option<Membership>,
    /// The rows it changed, each once.
    pub changes: Vec<RowChange>,
    /// The state hash after it.
    pub hash: StateHash,
}

impl AppliedEntry {
    /// The record's body.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(FORMAT);
        put_varint(out, self.id.term.get());
        put_varint(out, self.id.index.get());
        put_stamp(out, self.stamp);
        out.extend_from_slice(&self.hash.get().to_le_bytes());
        out.push(if self.membership.is_some() { HAS_MEMBERSHIP } else { 0 });
        if let Some(membership) = &self.membership {
            put_membership(out, membership);
        }
        put_varint(out, u64::from(len_u32(self.changes.len())));
        for change in &self.changes {
            self.put_change(out, change);
        }
    }

    /// Revisions are told by their distance to the entry, which is short.
    fn put_change(&self, out: &mut Vec<u8>, change: &RowChange) {
        let revision = self.id.index.revision();
        let is_own = |row: &Row| (row.head.modified, row.head.stamp) == (revision, self.stamp);
        let mut flags = if change.previous.is_some() { REPLACES } else { 0 };
        flags |= if change.row.is_some() { WRITES } else { 0 };
        flags |= if change.row.as_ref().is_some_and(is_own) { OF_ENTRY } else { 0 };
        out.push(flags);
        put_short(out, change.key.encoded());
        if let Some(previous) = change.previous {
            put_distance(out, revision, previous);
        }
        let Some(Row { head, value }) = &change.row else { return };
        if flags & OF_ENTRY == 0 {
            put_distance(out, revision, head.modified);
            put_stamp(out, head.stamp);
        }
        put_distance(out, revision, head.created);
        put_varint(out, head.version);
        out.extend_from_slice(&head.value_hash.to_le_bytes());
        put_short(out, value);
    }

    /// Reads what [`AppliedEntry::encode`] wrote.
    pub(crate) fn decode(body: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, "effect record");
        if reader.u8()? != FORMAT {
            return Err(reader.malformed());
        }
        let id = LogId::new(Term::new(reader.varint()?), LogIndex::new(reader.varint()?));
        let stamp = stamp(&mut reader)?;
        let hash = reader.state_hash()?;
        let membership = match reader.u8()? {
            0 => None,
            HAS_MEMBERSHIP => Some(reader.membership()?),
            _ => return Err(reader.malformed()),
        };
        let count = reader.varint()?;
        let mut entry = Self { id, stamp, membership, changes: Vec::new(), hash };
        for _ in 0..count {
            let change = entry.change(&mut reader)?;
            entry.changes.push(change);
        }
        reader.end()?;
        Ok(entry)
    }

    /// Keys and values are copied: a row must not keep the block alive that it was read with.
    fn change(&self, reader: &mut Reader) -> Result<RowChange, Malformed> {
        let revision = self.id.index.revision();
        let flags = reader.u8()?;
        let is_known = flags & !(REPLACES | WRITES | OF_ENTRY) == 0;
        if !is_known || flags & (WRITES | OF_ENTRY) == OF_ENTRY {
            return Err(reader.malformed());
        }
        let shared = RowKey::decode(reader.short()?).ok_or_else(|| reader.malformed())?;
        let key = RowKey::new(shared.space(), &shared.key());
        let previous = if flags & REPLACES == 0 { None } else { Some(distance(reader, revision)?) };
        if flags & WRITES == 0 {
            return Ok(RowChange { key, row: None, previous });
        }
        let (modified, stamp) = if flags & OF_ENTRY == 0 {
            (distance(reader, revision)?, stamp(reader)?)
        } else {
            (revision, self.stamp)
        };
        let (created, version) = (distance(reader, revision)?, reader.varint()?);
        let value_hash = reader.u64()?;
        let value = Bytes::copy_from_slice(&reader.short()?);
        let head =
            RowHead { created, modified, version, stamp, value_bytes: len_u32(value.len()), value_hash };
        let row = Row { head, value };
        if row.is_sound() { Ok(RowChange { key, row: Some(row), previous }) } else { Err(reader.malformed()) }
    }
}

fn put_distance(out: &mut Vec<u8>, from: Revision, to: Revision) {
    put_varint(out, from.get().wrapping_sub(to.get()));
}

fn distance(reader: &mut Reader, from: Revision) -> Result<Revision, Malformed> {
    Ok(Revision::new(from.get().wrapping_sub(reader.varint()?)))
}

fn put_stamp(out: &mut Vec<u8>, stamp: Lamport) {
    put_varint(out, stamp.counter);
    put_varint(out, stamp.node.get());
}

fn stamp(reader: &mut Reader) -> Result<Lamport, Malformed> {
    Ok(Lamport { counter: reader.varint()?, node: NodeId::new(reader.varint()?) })
}

#[cfg(test)]
mod tests {
    use kv_types::Space;

    use super::*;

    #[test]
    fn records_round_trip_and_every_truncation_is_refused() {
        let stamp = Lamport { counter: 9, node: NodeId::new(3) };
        let row = |modified, stamp| {
            let (created, modified) = (Revision::new(1), Revision::new(modified));
            Some(Row::new(created, modified, 2, stamp, &Bytes::from_static(b"v")))
        };
        let entry = AppliedEntry {
            id: LogId::new(Term::new(2), LogIndex::new(4)),
            stamp,
            membership: Some(Membership::of_voters([NodeId::new(1)])),
            changes: vec![
                RowChange {
                    key: RowKey::new(Space::User, b"a"),
                    row: row(4, stamp),
                    previous: Some(Revision::new(1)),
                },
                // No entry writes such rows, but the format has a place for them.
                RowChange { key: RowKey::new(Space::User, b"c"), row: row(7, stamp), previous: None },
                RowChange { key: RowKey::new(Space::User, b"d"), row: row(4, Lamport::ZERO), previous: None },
                RowChange { key: RowKey::new(Space::System, b"b"), row: None, previous: None },
            ],
            hash: StateHash::new(77),
        };
        let mut body = Vec::new();
        entry.encode(&mut body);
        assert_eq!(AppliedEntry::decode(Bytes::from(body.clone())).unwrap(), entry);
        for cut in 0..body.len() {
            assert!(AppliedEntry::decode(Bytes::copy_from_slice(&body[..cut])).is_err(), "cut at {cut}");
        }
    }
}
