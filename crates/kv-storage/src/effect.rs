//! One record of the effect log: what applying an entry did.

use bytes::Bytes;
use kv_types::{Lamport, LogId, Membership, Revision, Row, RowChange, StateHash};

use crate::encoding::{
    Malformed, Reader, len_u32, put_head, put_lamport, put_log_id, put_membership, put_sized,
};

const FORMAT: u8 = 1;
const HAS_MEMBERSHIP: u8 = 1;

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
        put_log_id(out, self.id);
        put_lamport(out, self.stamp);
        out.extend_from_slice(&self.hash.get().to_le_bytes());
        out.push(if self.membership.is_some() { HAS_MEMBERSHIP } else { 0 });
        if let Some(membership) = &self.membership {
            put_membership(out, membership);
        }
        out.extend_from_slice(&len_u32(self.changes.len()).to_le_bytes());
        for change in &self.changes {
            put_change(out, change);
        }
    }

    /// Reads what [`AppliedEntry::encode`] wrote.
    pub(crate) fn decode(body: Bytes) -> Result<Self, Malformed> {
        let mut reader = Reader::new(body, "effect record");
        if reader.u8()? != FORMAT {
            return Err(reader.malformed());
        }
        let id = reader.log_id()?;
        let stamp = reader.lamport()?;
        let hash = reader.state_hash()?;
        let membership = match reader.u8()? {
            0 => None,
            HAS_MEMBERSHIP => Some(reader.membership()?),
            _ => return Err(reader.malformed()),
        };
        let count = reader.u32()?;
        let changes = (0..count).map(|_| change(&mut reader)).collect::<Result<_, _>>()?;
        reader.end()?;
        Ok(Self { id, stamp, membership, changes, hash })
    }
}

fn put_change(out: &mut Vec<u8>, change: &RowChange) {
    put_sized(out, change.key.encoded());
    match change.previous {
        None => out.push(0),
        Some(previous) => {
            out.push(1);
            out.extend_from_slice(&previous.get().to_le_bytes());
        }
    }
    match &change.row {
        None => out.push(0),
        Some(row) => {
            out.push(1);
            put_head(out, &row.head);
            put_sized(out, &row.value);
        }
    }
}

/// Keys and values are copied: a row must not keep the block alive that it was read with.
fn change(reader: &mut Reader) -> Result<RowChange, Malformed> {
    let shared = reader.row_key()?;
    let key = kv_types::RowKey::new(shared.space(), &shared.key());
    let previous = match reader.u8()? {
        0 => None,
        1 => Some(Revision::new(reader.u64()?)),
        _ => return Err(reader.malformed()),
    };
    let row = match reader.u8()? {
        0 => None,
        1 => Some(Row { head: reader.head()?, value: Bytes::copy_from_slice(&reader.sized()?) }),
        _ => return Err(reader.malformed()),
    };
    if row.as_ref().is_some_and(|row| !row.is_sound()) {
        return Err(reader.malformed());
    }
    Ok(RowChange { key, row, previous })
}

#[cfg(test)]
mod tests {
    use kv_types::{LogIndex, NodeId, RowKey, Space, Term};

    use super::*;

    #[test]
    fn records_round_trip_and_every_truncation_is_refused() {
        let row = Row::new(Revision::new(1), Revision::new(4), 2, Lamport::ZERO, &Bytes::from_static(b"v"));
        let entry = AppliedEntry {
            id: LogId::new(Term::new(2), LogIndex::new(4)),
            stamp: Lamport { counter: 9, node: NodeId::new(3) },
            membership: Some(Membership::of_voters([NodeId::new(1)])),
            changes: vec![
                RowChange {
                    key: RowKey::new(Space::User, b"a"),
                    row: Some(row),
                    previous: Some(Revision::new(1)),
                },
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
