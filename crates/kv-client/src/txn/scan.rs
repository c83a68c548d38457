//! Scans within a transaction.
//!
//! A scan walks its range from piece to piece: what was scanned before is taken from there, what lies between is read, page
//! by page; a page never reaches beyond a shard. Over each piece the transaction's own writes are laid. The walk ends
//! with the range, or behind the key that fills the limit: what lies beyond that was not looked at and is not validated.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use kv_proto::request;
use kv_types::limits::TXN_SCANNED_KEYS_MAX;
use kv_types::{Key, KeyRange, Value};

use super::content::{Content, own_row};
use super::error::{LimitExceeded, TxnError};
use super::row::TxnRow;
use super::scanned::Piece;
use crate::client::Client;
use crate::error::{Error, Failure};
use crate::reply::Page;

/// What a scan found, and what it has read for that.
pub(super) struct Found {
    pub(super) rows: Vec<TxnRow>,
    pub(super) pieces: Vec<Piece>,
}

/// A scan under way.
struct Walk<'a> {
    content: &'a Content,
    limit: usize,
    found: Found,
    /// What is left; `None` at the end.
    rest: Option<KeyRange>,
}

/// Reads a range as a transaction with this content sees it.
pub(super) async fn scan(
    client: &Client,
    content: &Content,
    range: KeyRange,
    limit: Option<usize>,
) -> Result<Found, TxnError> {
    let limit = limit.unwrap_or(usize::MAX);
    let found = Found { rows: Vec::new(), pieces: Vec::new() };
    let mut walk = Walk { content, limit, found, rest: Some(range).filter(|_| limit > 0) };
    while let Some(rest) = &walk.rest {
        match content.scanned().piece_at(rest.start()).and_then(|piece| piece.within(rest)) {
            Some(piece) => drop(walk.take(piece)),
            None => {
                let gap = gap(content, rest);
                let wanted = walk.wanted(&gap);
                let page = request::Scan { range: gap.clone(), limit: Some(wanted), keys_only: false };
                let page = client.scan_page(page).await.map_err(TxnError::Failed)?;
                let read =
                    piece(page, &gap, wanted).map_err(|failure| TxnError::Failed(Error::of_read(failure)))?;
                let read = walk.take(read);
                walk.found.pieces.push(read);
                if walk.room().is_none() {
                    return Err(LimitExceeded::ScannedKeys.into());
                }
            }
        }
    }
    Ok(walk.found)
}

/// The first part of a range of which nothing was scanned; its start was not.
fn gap(content: &Content, rest: &KeyRange) -> KeyRange {
    let next = content.scanned().start_after(rest.start()).filter(|next| rest.contains(next));
    let end = next.or(rest.end()).cloned();
    KeyRange::new(rest.start().clone(), end).unwrap_or_else(|_| rest.clone())
}

impl Walk<'_> {
    /// Keys that may still be read; `None` if there were too many.
    fn room(&self) -> Option<usize> {
        let new: usize = self.found.pieces.iter().map(|piece| piece.rows.len()).sum();
        TXN_SCANNED_KEYS_MAX.checked_sub(self.content.scanned().keys() + new)
    }

    /// How many rows to ask for: what the limit leaves, as many more as the transaction has deleted, and never more than
    /// one beyond what it may read.
    fn wanted(&self, gap: &KeyRange) -> u64 {
        let deleted = self.content.writes_in(gap).filter(|(_, value)| value.is_none()).count();
        let left = self.limit.saturating_sub(self.found.rows.len()).saturating_add(deleted);
        let most = self.room().unwrap_or_default() + 1;
        left.min(most) as u64
    }

    /// Takes what comes next; returns the part of it that the limit leaves.
    fn take(&mut self, piece: Piece) -> Piece {
        let own = self.content.writes_in(&piece.range);
        let mut rows = overlaid(&piece, own);
        let left = self.limit - self.found.rows.len();
        rows.truncate(left);
        let last = rows.last().filter(|_| rows.len() == left);
        let cut = last.and_then(|last| up_to(&piece.range, &last.key));
        let piece = match cut {
            Some(cut) => {
                self.rest = None;
                piece.within(&cut).unwrap_or(piece)
            }
            None => {
                self.rest = self.rest.take().and_then(|rest| after(&rest, piece.range.end()));
                piece
            }
        };
        self.found.rows.extend(rows);
        piece
    }
}

/// The rows of a piece, with the transaction's own writes in it.
fn overlaid<'a>(piece: &'a Piece, own: impl Iterator<Item = (&'a Key, Option<&'a Value>)>) -> Vec<TxnRow> {
    let mut rows: BTreeMap<&Key, TxnRow> =
        piece.rows.iter().map(|row| (&row.key, TxnRow::from(row))).collect();
    for (key, value) in own {
        match value {
            Some(value) => rows.insert(key, own_row(key, value)),
            None => rows.remove(key),
        };
    }
    rows.into_values().collect()
}

/// The part of a range up to a key of it, this included.
fn up_to(range: &KeyRange, key: &Key) -> Option<KeyRange> {
    KeyRange::new(range.start().clone(), Some(behind(key.bytes()))).ok()
}

/// The part of a range from a place on; `None` if nothing is left.
fn after(range: &KeyRange, place: Option<&Bytes>) -> Option<KeyRange> {
    KeyRange::new(place?.clone(), range.end().cloned()).ok()
}

/// The first place behind a key.
fn behind(key: &[u8]) -> Bytes {
    let mut place = BytesMut::with_capacity(key.len() + 1);
    place.put_slice(key);
    place.put_u8(0);
    place.freeze()
}

/// What a page has looked at of the range asked for.
fn piece(page: Page, asked: &KeyRange, wanted: u64) -> Result<Piece, Failure> {
    let wrong =
        |cause: &str| Failure::BadReply { endpoint: page.header.leader.to_string(), cause: cause.to_owned() };
    let is_full = page.rows.len() as u64 >= wanted;
    let end = match (&page.resume_key, page.rows.last()) {
        // Nothing may be said of what lies behind the last row that was asked for.
        (_, Some(last)) if is_full => Some(behind(last.key.as_ref())),
        (Some(resume_key), _) if !asked.contains(resume_key) => {
            return Err(wrong("it resumes beyond the range"));
        }
        (Some(resume_key), _) => Some(resume_key.clone()),
        (None, _) => asked.end().cloned(),
    };
    let range = KeyRange::new(asked.start().clone(), end).map_err(|_| wrong("the scan does not move on"))?;
    let mut last: Option<&Key> = None;
    let is_ordered = page.rows.iter().all(|row| last.replace(&row.key).is_none_or(|last| *last < row.key));
    let is_asked_for = |key: &Key| range.contains(key.as_ref()) && asked.contains(key.as_ref());
    if !is_ordered || !page.rows.iter().all(|row| is_asked_for(&row.key)) {
        return Err(wrong("its rows are not those of the range, in order"));
    }
    Ok(Piece { range, shard: page.header.shard, revision: page.header.revision, rows: page.rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Header;
    use crate::txn::content::tests::row;
    use kv_types::{ClusterTime, Lamport, NodeId, Revision, ShardId, Term};

    fn page(keys: &[&'static str], resume_key: Option<&'static str>) -> Page {
        let header = Header {
            cluster: "".into(),
            shard: ShardId::new(4),
            epoch: Term::new(1),
            leader: NodeId::new(1),
            revision: Revision::new(9),
            lamport: Lamport::default(),
            cluster_time: ClusterTime::ZERO,
            replayed: false,
        };
        let rows = keys.iter().map(|key| row(key, "v", 3)).collect();
        Page { header, rows, resume_key: resume_key.map(Bytes::from) }
    }

    fn looked_at(page: Page, wanted: u64) -> Result<KeyRange, Failure> {
        let asked = KeyRange::new("b", Some("m".into())).unwrap();
        piece(page, &asked, wanted).map(|piece| piece.range)
    }

    #[test]
    fn a_page_has_looked_as_far_as_it_says() {
        let to = |end: &'static str| Ok(KeyRange::new("b", Some(end.into())).unwrap());
        assert_eq!(looked_at(page(&["b", "c"], None), 9), to("m"));
        assert_eq!(looked_at(page(&[], None), 9), to("m"));
        assert_eq!(looked_at(page(&["b", "c"], Some("d")), 9), to("d"));
        assert_eq!(looked_at(page(&[], Some("d")), 9), to("d"));
        assert_eq!(looked_at(page(&["b", "c"], None), 2), to("c\0"), "the limit may have cut it");
        assert_eq!(looked_at(page(&["b", "c"], Some("d")), 2), to("c\0"));
    }

    #[test]
    fn a_page_that_makes_no_sense_is_refused() {
        let pages = [
            page(&[], Some("b")),
            page(&[], Some("a")),
            page(&["c"], Some("m")),
            page(&["c"], Some("z")),
            page(&["a"], None),
            page(&["m"], None),
            page(&["e", "d"], None),
            page(&["d", "d"], None),
            page(&["e"], Some("d")),
        ];
        for page in pages {
            let refused = looked_at(page.clone(), 9);
            assert!(matches!(refused, Err(Failure::BadReply { .. })), "{page:?}");
        }
        assert!(looked_at(page(&["z"], None), 1).is_err());
    }
}
