//! What is known of transactions: looks at rows, which change nothing.

use bytes::Bytes;
use kv_types::{ClusterTime, Fingerprint, Key, KeyRange, Space, TxnId};

use super::Part;
use super::codec::{Lock, OpenRecord, PreparedPart};
use crate::apply::Rows;
use crate::gate;
use crate::read::{Looked, ReadError, look};
use crate::system_key;

/// Who keeps a key from being changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockedBy {
    /// One that writes it: its value may be decided to be another one.
    Writer(TxnId),
    /// Those that have read it.
    Readers(Vec<TxnId>),
}

/// A part that waits for the decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prepared {
    /// The transaction.
    pub txn: TxnId,
    /// Of its whole content.
    pub fingerprint: Fingerprint,
    /// Where it is decided.
    pub anchor: Key,
    /// What its client waited for no more when it was prepared.
    pub first_incomplete: u64,
    /// This shard's cluster time when it was prepared.
    pub since: ClusterTime,
    /// What this shard owns of it.
    pub part: Part,
}

/// A record *committed* that has not been forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The transaction.
    pub txn: TxnId,
    /// Of its whole content.
    pub fingerprint: Fingerprint,
    /// A key of each participant, or where a range begins.
    pub participants: Vec<Bytes>,
}

/// Who has locked a key. A reader looks at this first, then at the value, both in one view or in this order.
///
/// # Errors
/// [`ReadError`]
pub fn lock_of<R: Rows>(rows: &R, key: &Key) -> Result<Option<LockedBy>, ReadError<R::Error>> {
    look(rows, system_key::lock(key.as_ref()), |row| {
        Ok(match Lock::decode(&row.value)? {
            Lock::Write(owner) => LockedBy::Writer(owner),
            Lock::Read(owners) => LockedBy::Readers(owners),
        })
    })
}

/// The transactions that have locked keys of a range for writing, each once.
///
/// # Errors
/// [`ReadError`]
pub fn writers_in<R: Rows>(rows: &R, range: &KeyRange) -> Result<Vec<TxnId>, ReadError<R::Error>> {
    let locked = rows.heads_in(Space::System, &system_key::locks_in(range), usize::MAX);
    let mut writers = Vec::new();
    for (key, _) in locked.map_err(ReadError::Rows)? {
        let owner = look(rows, key, |row| {
            Ok(match Lock::decode(&row.value)? {
                Lock::Write(owner) => Some(owner),
                Lock::Read(_) => None,
            })
        })?;
        writers.extend(owner.flatten());
    }
    writers.sort_unstable();
    writers.dedup();
    Ok(writers)
}

/// What an anchor's shard knows of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Its record says so.
    Committed,
    /// Its record says so, or it was settled, or its id is another content's.
    Aborted,
    /// There is no record: it is undecided, or everything of it is forgotten. Of a transaction whose lock is still there
    /// *after* this was asked, it means that it was undecided when it was asked.
    Absent,
}

/// What is known of a transaction with this content at its anchor. A reader that has met its lock asks this, linearisably, after the look
/// that showed the lock.
///
/// # Errors
/// [`ReadError`]
pub fn known<R: Rows>(rows: &R, txn: TxnId, content: Fingerprint) -> Result<Known, ReadError<R::Error>> {
    let open = look(rows, system_key::open_record(txn), |row| OpenRecord::decode(&row.value))?;
    let committed = match open {
        Some(record) => Some(record.fingerprint == content),
        None => gate::is_committed(rows, txn, content)?,
    };
    Ok(match committed {
        Some(true) => Known::Committed,
        Some(false) => Known::Aborted,
        None => Known::Absent,
    })
}

/// The part that a transaction has prepared here.
///
/// # Errors
/// [`ReadError`]
pub fn prepared<R: Rows>(rows: &R, txn: TxnId) -> Result<Option<Prepared>, ReadError<R::Error>> {
    let part = look(rows, system_key::prepared(txn), |row| PreparedPart::decode(&row.value))?;
    Ok(part.map(|PreparedPart { fingerprint, anchor, first_incomplete, since, part }| Prepared {
        txn,
        fingerprint,
        anchor,
        first_incomplete,
        since,
        part,
    }))
}

/// The transactions that have prepared a part here, after one or from the first, at most `limit`: whoever leads the shard
/// sees to it that they end.
///
/// # Errors
/// [`ReadError`]
pub fn prepared_txns<R: Rows>(
    rows: &R,
    after: Option<TxnId>,
    limit: usize,
) -> Result<Vec<TxnId>, ReadError<R::Error>> {
    ids(rows, &system_key::prepared_after(after), limit)
}

/// The records that wait for acknowledgements, after one or from the first, at most `limit`: whoever leads the shard asks
/// for them.
///
/// # Errors
/// [`ReadError`]
pub fn records<R: Rows>(
    rows: &R,
    after: Option<TxnId>,
    limit: usize,
) -> Result<Vec<Record>, ReadError<R::Error>> {
    let mut records = Vec::new();
    for txn in ids(rows, &system_key::open_records_after(after), limit)? {
        let record = look(rows, system_key::open_record(txn), |row| OpenRecord::decode(&row.value))?;
        records.extend(record.map(|OpenRecord { fingerprint, participants }| Record {
            txn,
            fingerprint,
            participants,
        }));
    }
    Ok(records)
}

fn ids<R: Rows>(rows: &R, range: &KeyRange, limit: usize) -> Looked<Vec<TxnId>, R> {
    let found = rows.heads_in(Space::System, range, limit).map_err(ReadError::Rows)?;
    Ok(found.iter().filter_map(|(key, _)| system_key::txn_of(key)).collect())
}
