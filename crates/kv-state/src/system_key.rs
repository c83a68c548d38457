//! The keys of a shard's system rows, all in one place, so that no two kinds meet.
//!
//! | key | row | group |
//! |---|---|---|
//! | `cluster` | members and settings | meta |
//! | `gate` | cluster time, horizon, how far records without a session are collected | all |
//! | `r/` session | the session's floor | all |
//! | `r/` session, place | the outcome of a request of a session; its place is its number modulo 256 | all |
//! | `t/` timed id | the outcome of a request without a session | all |
//! | `m/` session | a session that lives, or is closed and has a lease running | meta |
//! | `n/` nonce | the session that was opened with it | meta |
//! | `sessions` | how many sessions there are | meta |
//! | `l/` user's key | who has locked the key | all |
//! | `g/` session, number | the ranges that a transaction has locked | all |
//! | `p/` session, number | the part that a transaction has prepared | all |
//! | `x/` session, number | that a transaction is committed, until all participants have acknowledged it | all |
//!
//! Numbers are big endian, so rows lie in the order of their numbers; the floor of a session lies before its records.

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::limits::SESSION_WINDOW;
use kv_types::{KeyRange, RequestId, RowKey, SessionId, Space, TimedId, TxnId};

const OF_SESSION: &[u8; 2] = b"r/";
const TIMED: &[u8; 2] = b"t/";
const META_SESSION: &[u8; 2] = b"m/";
const NONCE: &[u8; 2] = b"n/";
const LOCK: &[u8; 2] = b"l/";
const RANGES: &[u8; 2] = b"g/";
const PREPARED: &[u8; 2] = b"p/";
const OPEN_RECORD: &[u8; 2] = b"x/";

/// The cluster's row.
pub(crate) fn cluster() -> RowKey {
    RowKey::new(Space::System, b"cluster")
}

/// The gate's row.
pub(crate) fn gate() -> RowKey {
    RowKey::new(Space::System, b"gate")
}

/// The row that counts the sessions.
pub(crate) fn session_count() -> RowKey {
    RowKey::new(Space::System, b"sessions")
}

/// A session's floor.
pub(crate) fn floor(session: SessionId) -> RowKey {
    RowKey::new(Space::System, &numbered(OF_SESSION, session.get()))
}

/// The record of a request's outcome.
pub(crate) fn record(id: RequestId) -> RowKey {
    match id {
        RequestId::Session { session, seq } => RowKey::new(Space::System, &of_session(session, seq)),
        RequestId::Timed(id) => RowKey::new(Space::System, &timed(id)),
    }
}

/// All rows of a session: its floor, then its records.
pub(crate) fn of_one_session(session: SessionId) -> KeyRange {
    let start = numbered(OF_SESSION, session.get());
    KeyRange::prefix(Bytes::copy_from_slice(&start)).expect("the prefix is short")
}

/// The rows of all sessions after one, or of all.
pub(crate) fn of_sessions_after(session: Option<SessionId>) -> Option<KeyRange> {
    numbers_after(OF_SESSION, session)
}

/// The records without a session in `[from, to)`.
pub(crate) fn timed_records(from: TimedId, to: TimedId) -> KeyRange {
    range(timed(from), Some(timed(to)))
}

/// A session at the meta group.
pub(crate) fn meta_session(session: SessionId) -> RowKey {
    RowKey::new(Space::System, &numbered(META_SESSION, session.get()))
}

/// The sessions at the meta group after one, or all.
pub(crate) fn meta_sessions_after(session: Option<SessionId>) -> Option<KeyRange> {
    numbers_after(META_SESSION, session)
}

/// The session that was opened with a nonce.
pub(crate) fn nonce(nonce: u128) -> RowKey {
    let mut key = [0; 18];
    key[..2].copy_from_slice(NONCE);
    key[2..].copy_from_slice(&nonce.to_be_bytes());
    RowKey::new(Space::System, &key)
}

/// The lock of a user's key.
pub(crate) fn lock(key: &[u8]) -> RowKey {
    let mut row = BytesMut::with_capacity(LOCK.len() + key.len());
    row.put_slice(LOCK);
    row.put_slice(key);
    RowKey::new(Space::System, &row)
}

/// The user's key that a lock is of, by the lock's key; `None` for another row.
pub(crate) fn locked(row: &RowKey) -> Option<Bytes> {
    let key = row.key();
    key.starts_with(LOCK).then(|| key.slice(LOCK.len()..))
}

/// The locks of the keys in a range.
pub(crate) fn locks_in(range: &KeyRange) -> KeyRange {
    range.behind(LOCK)
}

/// The ranges that a transaction has locked.
pub(crate) fn ranges(txn: TxnId) -> RowKey {
    RowKey::new(Space::System, &of_txn(RANGES, txn))
}

/// The ranges that all transactions have locked.
pub(crate) fn all_ranges() -> KeyRange {
    KeyRange::prefix(Bytes::from_static(RANGES)).expect("the prefix is short")
}

/// What a transaction has prepared.
pub(crate) fn prepared(txn: TxnId) -> RowKey {
    RowKey::new(Space::System, &of_txn(PREPARED, txn))
}

/// That a transaction is committed.
pub(crate) fn open_record(txn: TxnId) -> RowKey {
    RowKey::new(Space::System, &of_txn(OPEN_RECORD, txn))
}

/// What transactions have prepared, after one or from the first.
pub(crate) fn prepared_after(txn: Option<TxnId>) -> KeyRange {
    txns_after(PREPARED, txn)
}

/// The records of transactions, after one or from the first.
pub(crate) fn open_records_after(txn: Option<TxnId>) -> KeyRange {
    txns_after(OPEN_RECORD, txn)
}

/// The transaction that a row is about, by its key; `None` for another row.
pub(crate) fn txn_of(key: &RowKey) -> Option<TxnId> {
    let bytes = key.key();
    let kinds = [PREPARED, OPEN_RECORD, RANGES];
    let rest = kinds.into_iter().find_map(|kind| bytes.strip_prefix(kind))?;
    let (session, seq) = rest.split_first_chunk()?;
    let session = SessionId::new(u64::from_be_bytes(*session));
    seq.first_chunk().map(|seq| TxnId { session, seq: u64::from_be_bytes(*seq) })
}

fn of_txn(prefix: &[u8; 2], txn: TxnId) -> [u8; 18] {
    let mut key = [0; 18];
    key[..10].copy_from_slice(&numbered(prefix, txn.session.get()));
    key[10..].copy_from_slice(&txn.seq.to_be_bytes());
    key
}

fn txns_after(prefix: &[u8; 2], txn: Option<TxnId>) -> KeyRange {
    let whole = KeyRange::prefix(Bytes::copy_from_slice(prefix)).expect("the prefix is short");
    // The first key after that of the transaction is the same with a zero behind it.
    let start =
        txn.map_or_else(|| whole.start().clone(), |txn| [&of_txn(prefix, txn)[..], &[0]].concat().into());
    KeyRange::new(start, whole.end().cloned()).expect("what begins with the prefix is before its end")
}

/// The session that a row of a session is about, by its key; `None` for another row.
pub(crate) fn session_of(key: &RowKey) -> Option<SessionId> {
    let bytes = key.key();
    let rest = bytes.strip_prefix(OF_SESSION).or_else(|| bytes.strip_prefix(META_SESSION))?;
    rest.first_chunk().map(|raw| SessionId::new(u64::from_be_bytes(*raw)))
}

/// The id that a record without a session is about, by its key; `None` for another row.
pub(crate) fn timed_of(key: &RowKey) -> Option<TimedId> {
    let bytes = key.key();
    let rest: &[u8; 16] = bytes.strip_prefix(TIMED)?.first_chunk()?;
    Some(TimedId::from_raw(u128::from_be_bytes(*rest)))
}

fn numbered(prefix: &[u8; 2], number: u64) -> [u8; 10] {
    let mut key = [0; 10];
    key[..2].copy_from_slice(prefix);
    key[2..].copy_from_slice(&number.to_be_bytes());
    key
}

fn of_session(session: SessionId, seq: u64) -> [u8; 11] {
    let mut key = [0; 11];
    key[..10].copy_from_slice(&numbered(OF_SESSION, session.get()));
    let place = seq % SESSION_WINDOW;
    key[10] = u8::try_from(place).expect("a window has as many places as a byte");
    key
}

const _: () = assert!(SESSION_WINDOW == 1 << u8::BITS, "the place of a request is a byte of its number");

fn timed(id: TimedId) -> [u8; 18] {
    let mut key = [0; 18];
    key[..2].copy_from_slice(TIMED);
    key[2..].copy_from_slice(&id.get().to_be_bytes());
    key
}

/// From the number after `last` to the end of the prefix; `None` if there is no such number.
fn numbers_after(prefix: &[u8; 2], last: Option<SessionId>) -> Option<KeyRange> {
    let first = last.map_or(Some(0), |last| last.get().checked_add(1))?;
    let mut start = BytesMut::with_capacity(10);
    start.put_slice(&numbered(prefix, first));
    let whole = KeyRange::prefix(Bytes::copy_from_slice(prefix)).expect("the prefix is short");
    KeyRange::new(start.freeze(), whole.end().cloned()).ok()
}

/// # Panics
/// If the range is empty; callers ask for ranges that are not.
fn range<const N: usize>(start: [u8; N], end: Option<[u8; N]>) -> KeyRange {
    let end = end.map(|end| Bytes::copy_from_slice(&end));
    KeyRange::new(Bytes::copy_from_slice(&start), end).expect("callers ask for ranges that are not empty")
}

#[cfg(test)]
mod tests {
    use kv_types::limits::KEY_BYTES_MAX;

    use super::*;

    fn timed_id(raw: u128) -> RequestId {
        RequestId::Timed(TimedId::from_raw(raw))
    }

    #[test]
    fn the_locks_of_a_range_are_found_however_long_its_bounds_are() {
        let longest = vec![b'k'; KEY_BYTES_MAX];
        let behind = [&longest[..], &[0]].concat();
        let bounds = [
            (vec![], None),
            (longest.clone(), Some(behind.clone())),
            (behind, None),
            (vec![], Some(longest.clone())),
        ];
        for (start, end) in bounds {
            let range = KeyRange::new(start, end.map(Bytes::from)).unwrap();
            for key in [&b"a"[..], b"kk", &longest, b"z", &[0xff; KEY_BYTES_MAX]] {
                let found = locks_in(&range).contains(&lock(key).key());
                assert_eq!(found, range.contains(key), "{} bytes in {range}", key.len());
            }
            assert!(!locks_in(&range).contains(&cluster().key()));
        }
    }

    #[test]
    fn kinds_of_rows_never_meet_and_lie_in_order() {
        let of = |session, seq| record(RequestId::Session { session: SessionId::new(session), seq });
        let (one, two) = (SessionId::new(1), SessionId::new(2));
        let keys = [
            cluster(),
            gate(),
            meta_session(one),
            nonce(0),
            floor(one),
            of(1, 0),
            of(1, 254),
            of(1, 255),
            floor(two),
            of(u64::MAX, u64::MAX),
            session_count(),
            record(timed_id(0)),
            record(timed_id(u128::MAX)),
        ];
        assert!(keys.is_sorted() && keys.windows(2).all(|pair| pair[0] != pair[1]), "{keys:?}");
    }

    #[test]
    fn ranges_hold_what_they_say() {
        let one = SessionId::new(1);
        let of = |seq| record(RequestId::Session { session: one, seq }).key();
        assert_eq!(of(3), of(259), "the place of 3 is free for 259");
        let all = of_one_session(one);
        assert!(all.contains(&floor(one).key()) && all.contains(&of(u64::MAX)));
        assert!(!all.contains(&floor(SessionId::new(2)).key()));
        let after = of_sessions_after(Some(one)).unwrap();
        assert!(!after.contains(&of(u64::MAX)) && after.contains(&floor(SessionId::new(2)).key()));
        assert!(after.contains(&floor(SessionId::new(u64::MAX)).key()));
        assert!(!after.contains(&record(timed_id(0)).key()));
        assert_eq!(of_sessions_after(Some(SessionId::new(u64::MAX))), None);
        let last = of_one_session(SessionId::new(u64::MAX));
        assert!(last.contains(&floor(SessionId::new(u64::MAX)).key()), "the last prefix has an end, too");
        assert_eq!(session_of(&floor(one)), Some(one));
        assert_eq!(session_of(&meta_session(one)), Some(one));
        assert_eq!(session_of(&gate()), None);
    }
}
