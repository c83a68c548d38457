//! Transactions as bytes; the layout rules are those of commands.

use bytes::{BufMut, Bytes, BytesMut};
use kv_types::limits::TXN_OPERATIONS_MAX;
use kv_types::{ClusterTime, Fingerprint, Key, KeyRange, Revision, SessionId, TxnId, Value};

use super::{Ending, Part, Read, Scan, TxnCommand, Write};
use crate::codec::{
    DecodeError, end, put_bytes, put_range, take_bytes, take_flag, take_key, take_range, take_time, take_u8,
    take_u32, take_u64, take_u128,
};

const ROW_VERSION: u8 = 1;

const PREPARE: u8 = 1;
const COMMIT: u8 = 2;
const ABORT: u8 = 3;
const FENCE: u8 = 4;
const FORGET: u8 = 6;
const RESOLVE: u8 = 7;

const ABSENT: u8 = 0;
const PRESENT: u8 = 1;

/// Who holds the lock of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    /// One that writes it.
    Write(TxnId),
    /// Those that have read it, in order.
    Read(Vec<TxnId>),
}

/// A part that a participant has said yes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PreparedPart {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) anchor: Key,
    pub(crate) first_incomplete: u64,
    /// The shard's cluster time when it was prepared.
    pub(crate) since: ClusterTime,
    pub(crate) part: Part,
}

/// A record *committed* that has not been acknowledged by all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OpenRecord {
    pub(crate) fingerprint: Fingerprint,
    pub(crate) participants: Vec<Bytes>,
}

impl TxnCommand {
    pub(crate) fn put(&self, out: &mut BytesMut) {
        match self {
            Self::Prepare { fingerprint, anchor, part } => {
                out.put_u8(PREPARE);
                out.put_u128_le(fingerprint.get());
                put_key(out, anchor);
                put_part(out, part);
            }
            Self::Commit { fingerprint, part, participants } => {
                out.put_u8(COMMIT);
                out.put_u128_le(fingerprint.get());
                put_part(out, part);
                put_places(out, participants);
            }
            Self::Abort { fingerprint } => {
                out.put_u8(ABORT);
                out.put_u128_le(fingerprint.get());
            }
            Self::Fence { txn, fingerprint, first_incomplete } => {
                out.put_u8(FENCE);
                put_txn(out, *txn);
                out.put_u128_le(fingerprint.get());
                out.put_u64_le(*first_incomplete);
            }
            Self::Resolve { endings } => {
                out.put_u8(RESOLVE);
                put_len(out, endings.len());
                for (txn, Ending { fingerprint, committed }) in endings {
                    put_txn(out, *txn);
                    out.put_u128_le(fingerprint.get());
                    out.put_u8(u8::from(*committed));
                }
            }
            Self::Forget { txns } => {
                out.put_u8(FORGET);
                put_len(out, txns.len());
                txns.iter().for_each(|txn| put_txn(out, *txn));
            }
        }
    }

    pub(crate) fn take(input: &mut Bytes) -> Result<Self, DecodeError> {
        Ok(match take_u8(input)? {
            PREPARE => Self::Prepare {
                fingerprint: take_fingerprint(input)?,
                anchor: take_key(input)?,
                part: take_part(input)?,
            },
            COMMIT => Self::Commit {
                fingerprint: take_fingerprint(input)?,
                part: take_part(input)?,
                participants: take_places(input)?,
            },
            ABORT => Self::Abort { fingerprint: take_fingerprint(input)? },
            FENCE => Self::Fence {
                txn: take_txn(input)?,
                fingerprint: take_fingerprint(input)?,
                first_incomplete: take_u64(input)?,
            },
            RESOLVE => {
                let endings = (0..take_len(input)?).map(|_| take_ending(input)).collect::<Result<_, _>>()?;
                Self::Resolve { endings }
            }
            FORGET => {
                let txns = (0..take_len(input)?).map(|_| take_txn(input)).collect::<Result<_, _>>()?;
                Self::Forget { txns }
            }
            tag => return Err(DecodeError::Tag { field: "transaction command", tag }),
        })
    }

    /// Room for its bytes, or a little more.
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Prepare { anchor, part, .. } => 40 + anchor.as_ref().len() + part_room(part),
            Self::Commit { part, participants, .. } => {
                let keys: usize = participants.iter().map(|key| 4 + key.len()).sum();
                40 + part_room(part) + keys
            }
            Self::Abort { .. } | Self::Fence { .. } => 48,
            Self::Resolve { endings } => 16 + 33 * endings.len(),
            Self::Forget { txns } => 16 + 16 * txns.len(),
        }
    }
}

impl Lock {
    pub(super) fn encode(&self) -> Bytes {
        let (kind, owners) = match self {
            Self::Write(txn) => (1, std::slice::from_ref(txn)),
            Self::Read(owners) => (0, owners.as_slice()),
        };
        let mut out = BytesMut::with_capacity(6 + 16 * owners.len());
        out.put_u8(ROW_VERSION);
        out.put_u8(kind);
        put_len(&mut out, owners.len());
        for owner in owners {
            put_txn(&mut out, *owner);
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes.clone();
        take_version(input)?;
        let is_write = take_flag(input)?;
        let owners = (0..take_len(input)?).map(|_| take_txn(input)).collect::<Result<Vec<_>, _>>()?;
        end(input)?;
        match (is_write, owners.as_slice()) {
            (true, [owner]) => Ok(Self::Write(*owner)),
            (false, [_, ..]) if owners.is_sorted_by(|a, b| a < b) => Ok(Self::Read(owners)),
            _ => Err(DecodeError::Field("the owners of a lock")),
        }
    }
}

/// The ranges that one transaction has locked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Ranges(pub(crate) Vec<KeyRange>);

impl Ranges {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ROW_VERSION);
        put_len(&mut out, self.0.len());
        for range in &self.0 {
            put_range(&mut out, range);
        }
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes.clone();
        take_version(input)?;
        let ranges = (0..take_len(input)?).map(|_| take_range(input)).collect::<Result<_, _>>()?;
        end(input)?;
        Ok(Self(ranges))
    }
}

impl PreparedPart {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(64 + self.anchor.as_ref().len() + part_room(&self.part));
        out.put_u8(ROW_VERSION);
        out.put_u128_le(self.fingerprint.get());
        put_key(&mut out, &self.anchor);
        out.put_u64_le(self.first_incomplete);
        out.put_u64_le(self.since.ms());
        put_part(&mut out, &self.part);
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes.clone();
        take_version(input)?;
        let prepared = Self {
            fingerprint: take_fingerprint(input)?,
            anchor: take_key(input)?,
            first_incomplete: take_u64(input)?,
            since: take_time(input)?,
            part: take_part(input)?,
        };
        end(input)?;
        Ok(prepared)
    }
}

impl OpenRecord {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(ROW_VERSION);
        out.put_u128_le(self.fingerprint.get());
        put_places(&mut out, &self.participants);
        out.freeze()
    }

    pub(super) fn decode(bytes: &Bytes) -> Result<Self, DecodeError> {
        let input = &mut bytes.clone();
        take_version(input)?;
        let record = Self { fingerprint: take_fingerprint(input)?, participants: take_places(input)? };
        end(input)?;
        Ok(record)
    }
}

pub(super) fn put_key(out: &mut BytesMut, key: &Key) {
    put_bytes(out, key.as_ref());
}

pub(super) fn put_part(out: &mut BytesMut, part: &Part) {
    put_len(out, part.reads().len());
    for read in part.reads() {
        put_key(out, &read.key);
        out.put_u8(if read.seen.is_some() { PRESENT } else { ABSENT });
        out.put_u64_le(read.seen.unwrap_or_default().get());
    }
    put_len(out, part.scans().len());
    for scan in part.scans() {
        put_range(out, &scan.range);
        out.put_u128_le(scan.digest.get());
    }
    put_len(out, part.writes().len());
    for write in part.writes() {
        put_key(out, &write.key);
        out.put_u8(if write.value.is_some() { PRESENT } else { ABSENT });
        if let Some(value) = &write.value {
            put_bytes(out, value.as_ref());
        }
    }
}

fn take_part(input: &mut Bytes) -> Result<Part, DecodeError> {
    let mut reads = Vec::new();
    for _ in 0..take_len(input)? {
        let key = take_key(input)?;
        let present = take_flag(input)?;
        let seen = Revision::new(take_u64(input)?);
        reads.push(Read { key, seen: present.then_some(seen) });
    }
    let mut scans = Vec::new();
    for _ in 0..take_len(input)? {
        scans.push(Scan { range: take_range(input)?, digest: take_fingerprint(input)? });
    }
    let mut writes = Vec::new();
    for _ in 0..take_len(input)? {
        let key = take_key(input)?;
        let present = take_flag(input)?;
        let value = if present { Some(Value::new(take_bytes(input)?)?) } else { None };
        writes.push(Write { key, value });
    }
    let in_order = reads.is_sorted_by(|a, b| a.key < b.key)
        && scans.is_sorted_by(|a, b| a.range.start() < b.range.start())
        && writes.is_sorted_by(|a, b| a.key < b.key);
    let part = in_order.then(|| Part::new(reads, scans, writes).ok()).flatten();
    part.ok_or(DecodeError::Field("the order of a transaction's keys"))
}

/// At most what a part takes.
fn part_room(part: &Part) -> usize {
    12 + part.bytes() + 13 * (part.reads().len() + part.writes().len()) + 25 * part.scans().len()
}

fn put_places(out: &mut BytesMut, places: &[Bytes]) {
    put_len(out, places.len());
    for place in places {
        put_bytes(out, place);
    }
}

fn take_places(input: &mut Bytes) -> Result<Vec<Bytes>, DecodeError> {
    (0..take_len(input)?).map(|_| take_bytes(input)).collect()
}

fn put_txn(out: &mut BytesMut, txn: TxnId) {
    out.put_u64_le(txn.session.get());
    out.put_u64_le(txn.seq);
}

fn take_txn(input: &mut Bytes) -> Result<TxnId, DecodeError> {
    Ok(TxnId { session: SessionId::new(take_u64(input)?), seq: take_u64(input)? })
}

fn take_ending(input: &mut Bytes) -> Result<(TxnId, Ending), DecodeError> {
    let txn = take_txn(input)?;
    Ok((txn, Ending { fingerprint: take_fingerprint(input)?, committed: take_flag(input)? }))
}

fn put_len(out: &mut BytesMut, len: usize) {
    out.put_u32_le(u32::try_from(len).expect("a transaction has few keys"));
}

fn take_len(input: &mut Bytes) -> Result<usize, DecodeError> {
    let len = usize::try_from(take_u32(input)?).unwrap_or(usize::MAX);
    if len > TXN_OPERATIONS_MAX {
        Err(DecodeError::Field("the number of a transaction's keys"))
    } else {
        Ok(len)
    }
}

fn take_fingerprint(input: &mut Bytes) -> Result<Fingerprint, DecodeError> {
    Ok(Fingerprint::from_raw(take_u128(input)?))
}

fn take_version(input: &mut Bytes) -> Result<(), DecodeError> {
    match take_u8(input)? {
        ROW_VERSION => Ok(()),
        version => Err(DecodeError::Version(version)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Key> {
        prop::collection::vec(any::<u8>(), 1..9).prop_map(|bytes| Key::new(bytes).unwrap())
    }

    fn txn() -> impl Strategy<Value = TxnId> {
        any::<(u64, u64)>().prop_map(|(session, seq)| TxnId { session: SessionId::new(session), seq })
    }

    fn places() -> impl Strategy<Value = Vec<Bytes>> {
        prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from), 0..4)
    }

    fn part() -> impl Strategy<Value = Part> {
        let seen = prop::option::of(any::<u64>().prop_map(Revision::new));
        let value = prop::option::of(prop::collection::vec(any::<u8>(), 0..9));
        let reads = prop::collection::btree_map(key(), seen, 0..4);
        let writes = prop::collection::btree_map(key(), value, 0..4);
        let starts = prop::collection::btree_map(1_u8..9, any::<u128>(), 0..3);
        (reads, starts, writes).prop_map(|(reads, scans, writes)| {
            let scan = |(start, raw): (u8, u128)| Scan {
                range: KeyRange::new(vec![start], (raw % 2 == 0).then(|| vec![start + 1].into())).unwrap(),
                digest: Fingerprint::from_raw(raw),
            };
            let scans = scans.into_iter().map(scan).collect();
            let reads = reads.into_iter().map(|(key, seen)| Read { key, seen }).collect();
            let value = |value: Option<Vec<u8>>| value.map(|bytes| Value::new(bytes).unwrap());
            let writes = writes.into_iter().map(|(key, bytes)| Write { key, value: value(bytes) }).collect();
            Part::new(reads, scans, writes).unwrap()
        })
    }

    fn ending() -> impl Strategy<Value = Ending> {
        any::<(u128, bool)>()
            .prop_map(|(raw, committed)| Ending { fingerprint: Fingerprint::from_raw(raw), committed })
    }

    fn command() -> impl Strategy<Value = TxnCommand> {
        let fingerprint = || any::<u128>().prop_map(Fingerprint::from_raw);
        prop_oneof![
            (fingerprint(), key(), part()).prop_map(|(fingerprint, anchor, part)| TxnCommand::Prepare {
                fingerprint,
                anchor,
                part
            }),
            (fingerprint(), part(), places()).prop_map(|(fingerprint, part, participants)| {
                TxnCommand::Commit { fingerprint, part, participants }
            }),
            fingerprint().prop_map(|fingerprint| TxnCommand::Abort { fingerprint }),
            (txn(), fingerprint(), any::<u64>()).prop_map(|(txn, fingerprint, first_incomplete)| {
                TxnCommand::Fence { txn, fingerprint, first_incomplete }
            }),
            prop::collection::btree_map(txn(), ending(), 0..4)
                .prop_map(|endings| TxnCommand::Resolve { endings }),
            prop::collection::btree_set(txn(), 0..4).prop_map(|txns| TxnCommand::Forget { txns }),
        ]
    }

    fn lock() -> impl Strategy<Value = Lock> {
        prop_oneof![
            txn().prop_map(Lock::Write),
            prop::collection::btree_set(txn(), 1..4)
                .prop_map(|owners| Lock::Read(owners.into_iter().collect())),
        ]
    }

    fn whole<T: PartialEq + std::fmt::Debug>(
        bytes: &Bytes,
        value: &T,
        decode: impl Fn(&Bytes) -> Result<T, DecodeError>,
    ) -> Result<(), TestCaseError> {
        let decoded = decode(bytes);
        prop_assert_eq!(decoded.as_ref(), Ok(value));
        for len in 0..bytes.len() {
            prop_assert!(decode(&bytes.slice(..len)).is_err());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn commands_round_trip_and_every_truncation_is_refused(command in command()) {
            let mut out = BytesMut::new();
            command.put(&mut out);
            prop_assert!(out.len() <= command.room());
            whole(&out.freeze(), &command, |bytes| {
                let input = &mut bytes.clone();
                let taken = TxnCommand::take(input)?;
                end(input).map(|()| taken)
            })?;
        }

        #[test]
        fn rows_round_trip_and_every_truncation_is_refused(
            lock in lock(), raw in any::<u128>(), anchor in key(), number in any::<u64>(), part in part(),
            participants in places()
        ) {
            whole(&lock.encode(), &lock, Lock::decode)?;
            let fingerprint = Fingerprint::from_raw(raw);
            let since = ClusterTime::from_ms(number >> 32).unwrap();
            let ranges = Ranges(part.scans().iter().map(|scan| scan.range.clone()).collect());
            whole(&ranges.encode(), &ranges, Ranges::decode)?;
            let prepared = PreparedPart { fingerprint, anchor, first_incomplete: number, since, part };
            whole(&prepared.encode(), &prepared, PreparedPart::decode)?;
            let record = OpenRecord { fingerprint, participants };
            whole(&record.encode(), &record, OpenRecord::decode)?;
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let bytes = Bytes::from(bytes);
            let _ = TxnCommand::take(&mut bytes.clone());
            let _ = (Lock::decode(&bytes), PreparedPart::decode(&bytes), OpenRecord::decode(&bytes));
        }
    }
}
