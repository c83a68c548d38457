//! Bodies of records and entries.

use std::collections::BTreeSet;

use bytes::Bytes;
use kv_types::{
    Body, Entry, HardState, Lamport, LogId, LogIndex, Membership, NodeId, ShardId, SnapshotMeta, StateHash,
    Term,
};

use super::bytes_reader::{Malformed, Reader};
use super::layout::{Seed, SegmentNo};
use crate::{BaseNote, Generation, MergeNote, WalOp};

/// Length and checksum before an entry.
const ENTRY_PREFIX_BYTES: usize = 8;

/// Bytes of an entry before its payload.
pub(super) const ENTRY_HEAD_BYTES: usize = ENTRY_PREFIX_BYTES + 33;

/// What a record does; tags are never reused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Record {
    /// A change the caller asked for.
    Op(WalOp),
    /// Entries of an older segment once more, so that it can be dropped: they fill places whose entry has the same
    /// term, and change nothing else.
    Copied(Vec<Entry>),
}

pub(super) const KIND_RAFT: u8 = 1;
pub(super) const KIND_INSTALL: u8 = 2;
pub(super) const KIND_MERGE_BEGIN: u8 = 3;
pub(super) const KIND_BASE_AT: u8 = 4;
pub(super) const KIND_COMPACT: u8 = 5;
pub(super) const KIND_DAMAGED: u8 = 6;
pub(super) const KIND_COPIED: u8 = 7;
pub(super) const KIND_MANIFEST: u8 = 8;
pub(super) const KIND_REGENERATED: u8 = 9;

/// What a segment says before its first record: the state of every shard, and where the previous segment ends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Manifest {
    /// The segment before this one; zero if this is the first.
    pub(super) previous: SegmentNo,
    /// Where its groups end.
    pub(super) previous_end: u64,
    /// Every shard, in order.
    pub(super) shards: Vec<(ShardId, ShardNote)>,
}

/// What a manifest says about a shard.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct ShardNote {
    pub(super) seq: u64,
    pub(super) hard: HardState,
    pub(super) base: BaseNote,
    pub(super) merge: Option<MergeNote>,
    pub(super) damaged: Option<Generation>,
    /// The last entry before the log.
    pub(super) start: LogId,
    /// The last entry of the log; `start` if it is empty.
    pub(super) last: LogId,
}

pub(super) fn kind(op: &WalOp) -> u8 {
    match op {
        WalOp::Raft { .. } => KIND_RAFT,
        WalOp::Install { .. } => KIND_INSTALL,
        WalOp::MergeBegin(_) => KIND_MERGE_BEGIN,
        WalOp::BaseAt(_) => KIND_BASE_AT,
        WalOp::Regenerated(_) => KIND_REGENERATED,
        WalOp::Compact(_) => KIND_COMPACT,
        WalOp::Damaged(_) => KIND_DAMAGED,
    }
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_log_id(out: &mut Vec<u8>, id: LogId) {
    put_u64(out, id.term.get());
    put_u64(out, id.index.get());
}

/// Zero is never a node, so it says "no vote".
fn put_hard(out: &mut Vec<u8>, hard: HardState) {
    put_u64(out, hard.term.get());
    put_u64(out, hard.vote.unwrap_or(NodeId::ZERO).get());
    out.extend_from_slice(&hard.promise_ms.to_le_bytes());
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_membership(out: &mut Vec<u8>, membership: &Membership) {
    for nodes in [&membership.voters, &membership.outgoing, &membership.learners] {
        let count = u16::try_from(nodes.len()).expect("a membership has at most MEMBERS_MAX members");
        out.extend_from_slice(&count.to_le_bytes());
        for node in nodes {
            put_u64(out, node.get());
        }
    }
}

fn put_base(out: &mut Vec<u8>, base: &BaseNote) {
    put_u64(out, base.generation.get());
    put_log_id(out, base.meta.last);
    put_u64(out, base.stamp.counter);
    put_u64(out, base.stamp.node.get());
    out.extend_from_slice(&base.hash.get().to_le_bytes());
    put_membership(out, &base.meta.membership);
}

fn put_merge(out: &mut Vec<u8>, merge: MergeNote) {
    put_u64(out, merge.generation.get());
    put_u64(out, merge.from.get());
    put_u64(out, merge.to.get());
}

/// Where an entry stands in the buffer it was encoded into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Encoded {
    pub(super) at: usize,
    pub(super) bytes: u32,
}

/// Appends one entry.
pub(super) fn put_entry(out: &mut Vec<u8>, entry: &Entry, seed: Seed) -> Encoded {
    let at = out.len();
    out.extend_from_slice(&[0; ENTRY_PREFIX_BYTES]);
    put_log_id(out, entry.id);
    put_u64(out, entry.stamp.counter);
    put_u64(out, entry.stamp.node.get());
    match &entry.body {
        Body::Blank => out.push(0),
        Body::Command(command) => {
            out.push(1);
            out.extend_from_slice(command);
        }
        Body::Config(membership) => {
            out.push(2);
            put_membership(out, membership);
        }
    }
    let bytes = u32::try_from(out.len() - at).expect("an entry is at most ENTRY_BYTES_MAX and its head");
    let len = (bytes - 8).to_le_bytes();
    let (prefix, rest) = out.get_mut(at..).unwrap_or_default().split_at_mut(ENTRY_PREFIX_BYTES);
    let crc = seed.crc_of_two(&len, rest).to_le_bytes();
    for (slot, byte) in prefix.iter_mut().zip(len.into_iter().chain(crc)) {
        *slot = byte;
    }
    Encoded { at, bytes }
}

/// Bytes an entry takes in a segment.
pub(crate) fn entry_bytes(entry: &Entry) -> u64 {
    let payload = match &entry.body {
        Body::Blank => 0,
        Body::Command(command) => command.len(),
        Body::Config(m) => 6 + 8 * (m.voters.len() + m.outgoing.len() + m.learners.len()),
    };
    (ENTRY_HEAD_BYTES + payload) as u64
}

/// Appends entries with their count; says where each stands.
fn put_entries(out: &mut Vec<u8>, entries: &[Entry], seed: Seed, places: &mut Vec<Encoded>) {
    let count = u32::try_from(entries.len()).expect("a record is shorter than a segment");
    out.extend_from_slice(&count.to_le_bytes());
    for entry in entries {
        places.push(put_entry(out, entry, seed));
    }
}

/// Appends the body of a change; the places of its entries are pushed in order.
pub(super) fn put_op(out: &mut Vec<u8>, op: &WalOp, seed: Seed, places: &mut Vec<Encoded>) {
    match op {
        WalOp::Raft { hard, truncate_from, append } => {
            put_option(out, *hard, put_hard);
            put_option(out, *truncate_from, |out, index| put_u64(out, index.get()));
            put_entries(out, append, seed, places);
        }
        WalOp::Install { hard, base, keep_tail } => {
            put_option(out, *hard, put_hard);
            out.push(u8::from(*keep_tail));
            put_base(out, base);
        }
        WalOp::MergeBegin(merge) => put_merge(out, *merge),
        WalOp::BaseAt(base) | WalOp::Regenerated(base) => put_base(out, base),
        WalOp::Compact(id) => put_log_id(out, *id),
        WalOp::Damaged(generation) => put_u64(out, generation.get()),
    }
}

/// Appends the body of a `Copied` record.
pub(super) fn put_copied(out: &mut Vec<u8>, entries: &[Entry], seed: Seed, places: &mut Vec<Encoded>) {
    put_entries(out, entries, seed, places);
}

/// Appends the body of a manifest.
pub(super) fn put_manifest(out: &mut Vec<u8>, manifest: &Manifest) {
    put_u64(out, u64::from(manifest.previous.get()));
    put_u64(out, manifest.previous_end);
    let count = u32::try_from(manifest.shards.len()).expect("a node hosts at most SHARDS_MAX shards");
    out.extend_from_slice(&count.to_le_bytes());
    for (shard, note) in &manifest.shards {
        out.extend_from_slice(&shard.get().to_le_bytes());
        put_u64(out, note.seq);
        put_hard(out, note.hard);
        put_base(out, &note.base);
        put_option(out, note.merge, put_merge);
        put_option(out, note.damaged, |out, generation| put_u64(out, generation.get()));
        put_log_id(out, note.start);
        put_log_id(out, note.last);
    }
}

fn log_id(reader: &mut Reader<'_>) -> Result<LogId, Malformed> {
    Ok(LogId::new(Term::new(reader.u64()?), LogIndex::new(reader.u64()?)))
}

fn hard(reader: &mut Reader<'_>) -> Result<HardState, Malformed> {
    let term = Term::new(reader.u64()?);
    let vote = Some(NodeId::new(reader.u64()?)).filter(|node| *node != NodeId::ZERO);
    Ok(HardState { term, vote, promise_ms: reader.u32()? })
}

fn option<T>(
    reader: &mut Reader<'_>,
    read: impl FnOnce(&mut Reader<'_>) -> Result<T, Malformed>,
) -> Result<Option<T>, Malformed> {
    if reader.flag()? { read(reader).map(Some) } else { Ok(None) }
}

fn nodes(reader: &mut Reader<'_>) -> Result<BTreeSet<NodeId>, Malformed> {
    let mut nodes = BTreeSet::new();
    let mut newest = NodeId::ZERO;
    for _ in 0..reader.u16()? {
        let node = NodeId::new(reader.u64()?);
        if node <= newest {
            return Err(Malformed);
        }
        newest = node;
        nodes.insert(node);
    }
    Ok(nodes)
}

fn membership(reader: &mut Reader<'_>) -> Result<Membership, Malformed> {
    let membership =
        Membership { voters: nodes(reader)?, outgoing: nodes(reader)?, learners: nodes(reader)? };
    membership.check().map_err(|_| Malformed)?;
    Ok(membership)
}

fn lamport(reader: &mut Reader<'_>) -> Result<Lamport, Malformed> {
    Ok(Lamport { counter: reader.u64()?, node: NodeId::new(reader.u64()?) })
}

fn base(reader: &mut Reader<'_>) -> Result<BaseNote, Malformed> {
    let generation = Generation::new(reader.u64()?);
    let last = log_id(reader)?;
    let stamp = lamport(reader)?;
    let hash = StateHash::new(reader.u128()?);
    Ok(BaseNote { generation, meta: SnapshotMeta { last, membership: membership(reader)? }, stamp, hash })
}

fn merge(reader: &mut Reader<'_>) -> Result<MergeNote, Malformed> {
    let generation = Generation::new(reader.u64()?);
    Ok(MergeNote { generation, from: LogIndex::new(reader.u64()?), to: LogIndex::new(reader.u64()?) })
}

/// Reads the entry at the front of `bytes`, which share their memory with its payload; says how long it is.
pub(super) fn entry(bytes: &Bytes, seed: Seed) -> Result<(Entry, usize), Malformed> {
    let mut reader = Reader::new(bytes);
    let len = reader.array::<4>()?;
    let crc = reader.u32()?;
    let rest = reader.bytes(usize::try_from(u32::from_le_bytes(len)).map_err(|_| Malformed)?)?;
    if seed.crc_of_two(&len, rest) != crc {
        return Err(Malformed);
    }
    let end = ENTRY_PREFIX_BYTES + rest.len();
    let mut reader = Reader::new(rest);
    let id = log_id(&mut reader)?;
    let stamp = lamport(&mut reader)?;
    let body = match reader.u8()? {
        0 => {
            reader.end()?;
            Body::Blank
        }
        1 => Body::Command(bytes.slice(ENTRY_HEAD_BYTES..end)),
        2 => {
            let membership = membership(&mut reader)?;
            reader.end()?;
            Body::Config(membership)
        }
        _ => return Err(Malformed),
    };
    Ok((Entry { id, stamp, body }, end))
}

/// Reads entries up to the end of `bytes`; `base` is where `bytes` begin for the places.
fn entries(bytes: &Bytes, at: usize, seed: Seed, places: &mut Vec<Encoded>) -> Result<Vec<Entry>, Malformed> {
    let mut at = at;
    let mut reader = Reader::new(bytes.get(at..).ok_or(Malformed)?);
    let count = usize::try_from(reader.u32()?).map_err(|_| Malformed)?;
    at += 4;
    // Checked before memory is taken: the count is input.
    if count > reader.left() / ENTRY_HEAD_BYTES {
        return Err(Malformed);
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        let (entry, len) = entry(&bytes.slice(at..), seed)?;
        places.push(Encoded { at, bytes: u32::try_from(len).map_err(|_| Malformed)? });
        entries.push(entry);
        at += len;
    }
    if at == bytes.len() { Ok(entries) } else { Err(Malformed) }
}

/// Reads the body of a record of `kind`; the places of its entries are relative to the body.
pub(super) fn record(
    kind: u8,
    body: &Bytes,
    seed: Seed,
    places: &mut Vec<Encoded>,
) -> Result<Record, Malformed> {
    let mut reader = Reader::new(body);
    let op = match kind {
        KIND_RAFT => {
            let hard = option(&mut reader, hard)?;
            let truncate_from = option(&mut reader, |reader| reader.u64().map(LogIndex::new))?;
            let append = entries(body, body.len() - reader.left(), seed, places)?;
            return Ok(Record::Op(WalOp::Raft { hard, truncate_from, append }));
        }
        KIND_COPIED => return Ok(Record::Copied(entries(body, 0, seed, places)?)),
        KIND_INSTALL => {
            let hard = option(&mut reader, hard)?;
            let keep_tail = reader.flag()?;
            WalOp::Install { hard, base: base(&mut reader)?, keep_tail }
        }
        KIND_MERGE_BEGIN => WalOp::MergeBegin(merge(&mut reader)?),
        KIND_BASE_AT => WalOp::BaseAt(base(&mut reader)?),
        KIND_REGENERATED => WalOp::Regenerated(base(&mut reader)?),
        KIND_COMPACT => WalOp::Compact(log_id(&mut reader)?),
        KIND_DAMAGED => WalOp::Damaged(Generation::new(reader.u64()?)),
        _ => return Err(Malformed),
    };
    reader.end()?;
    Ok(Record::Op(op))
}

/// Reads the body of a manifest.
pub(super) fn manifest(body: &[u8]) -> Result<Manifest, Malformed> {
    let mut reader = Reader::new(body);
    let previous = SegmentNo::new(u32::try_from(reader.u64()?).map_err(|_| Malformed)?);
    let previous_end = reader.u64()?;
    let mut shards: Vec<(ShardId, ShardNote)> = Vec::new();
    for _ in 0..reader.u32()? {
        let shard = ShardId::new(reader.u32()?);
        if shards.last().is_some_and(|(before, _)| *before >= shard) {
            return Err(Malformed);
        }
        let note = ShardNote {
            seq: reader.u64()?,
            hard: hard(&mut reader)?,
            base: base(&mut reader)?,
            merge: option(&mut reader, merge)?,
            damaged: option(&mut reader, |reader| reader.u64().map(Generation::new))?,
            start: log_id(&mut reader)?,
            last: log_id(&mut reader)?,
        };
        if note.start.index > note.last.index {
            return Err(Malformed);
        }
        shards.push((shard, note));
    }
    reader.end()?;
    Ok(Manifest { previous, previous_end, shards })
}

#[cfg(test)]
mod tests {
    use kv_types::Incarnation;
    use proptest::collection::{btree_set, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn seed() -> Seed {
        Seed::new(Incarnation::new(1), SegmentNo::new(2))
    }

    fn any_membership() -> impl Strategy<Value = Membership> {
        let nodes = |range| btree_set(range, 0..4);
        (btree_set(1..20_u64, 1..5), nodes(1..20_u64), nodes(20..30_u64)).prop_map(
            |(voters, outgoing, learners)| {
                let set = |raw: BTreeSet<u64>| raw.into_iter().map(NodeId::new).collect();
                Membership { voters: set(voters), outgoing: set(outgoing), learners: set(learners) }
            },
        )
    }

    fn any_id() -> impl Strategy<Value = LogId> {
        (any::<u64>(), any::<u64>())
            .prop_map(|(term, index)| LogId::new(Term::new(term), LogIndex::new(index)))
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let body = prop_oneof![
            Just(Body::Blank),
            vec(any::<u8>(), 0..200).prop_map(|bytes| Body::Command(Bytes::from(bytes))),
            any_membership().prop_map(Body::Config),
        ];
        (any_id(), any::<u64>(), any::<u64>(), body).prop_map(|(id, counter, node, body)| Entry {
            id,
            stamp: Lamport { counter, node: NodeId::new(node) },
            body,
        })
    }

    fn any_hard() -> impl Strategy<Value = Option<HardState>> {
        option::of((any::<u64>(), option::of(1..u64::MAX), any::<u32>()).prop_map(
            |(term, vote, promise_ms)| HardState {
                term: Term::new(term),
                vote: vote.map(NodeId::new),
                promise_ms,
            },
        ))
    }

    fn any_base() -> impl Strategy<Value = BaseNote> {
        (any::<u64>(), any_id(), any_membership(), any::<u64>(), any::<u128>()).prop_map(
            |(generation, last, membership, counter, hash)| BaseNote {
                generation: Generation::new(generation),
                meta: SnapshotMeta { last, membership },
                stamp: Lamport { counter, node: NodeId::new(counter / 2) },
                hash: StateHash::new(hash),
            },
        )
    }

    fn any_merge() -> impl Strategy<Value = MergeNote> {
        any::<[u64; 3]>().prop_map(|[generation, from, to]| MergeNote {
            generation: Generation::new(generation),
            from: LogIndex::new(from),
            to: LogIndex::new(to),
        })
    }

    fn any_op() -> impl Strategy<Value = WalOp> {
        prop_oneof![
            (any_hard(), option::of(any::<u64>()), vec(any_entry(), 0..4)).prop_map(
                |(hard, from, append)| {
                    WalOp::Raft { hard, truncate_from: from.map(LogIndex::new), append }
                }
            ),
            (any_hard(), any_base(), any::<bool>()).prop_map(|(hard, base, keep_tail)| WalOp::Install {
                hard,
                base,
                keep_tail
            }),
            any_merge().prop_map(WalOp::MergeBegin),
            any_base().prop_map(WalOp::BaseAt),
            any_base().prop_map(WalOp::Regenerated),
            any_id().prop_map(WalOp::Compact),
            any::<u64>().prop_map(|raw| WalOp::Damaged(Generation::new(raw))),
        ]
    }

    fn any_note() -> impl Strategy<Value = ShardNote> {
        let rest = (option::of(any_merge()), option::of(any::<u64>()), any_id(), 0..9_u64);
        (any::<u64>(), any_hard(), any_base(), rest).prop_map(
            |(seq, hard, base, (merge, damaged, mut start, more))| {
                start.index = LogIndex::new(start.index.get() / 2);
                let last = LogId::new(start.term, start.index.plus(more));
                let (hard, damaged) = (hard.unwrap_or_default(), damaged.map(Generation::new));
                ShardNote { seq, hard, base, merge, damaged, start, last }
            },
        )
    }

    proptest! {
        #[test]
        fn records_round_trip_and_cuts_are_seen(op in any_op()) {
            let (mut out, mut places, mut found) = (Vec::new(), Vec::new(), Vec::new());
            put_op(&mut out, &op, seed(), &mut places);
            let body = Bytes::from(out);
            prop_assert_eq!(record(kind(&op), &body, seed(), &mut found), Ok(Record::Op(op.clone())));
            prop_assert_eq!(&places, &found);
            for len in 0..body.len() {
                prop_assert_eq!(record(kind(&op), &body.slice(..len), seed(), &mut found), Err(Malformed));
            }
        }

        #[test]
        fn copies_round_trip(entries in vec(any_entry(), 0..5)) {
            let (mut out, mut places, mut found) = (Vec::new(), Vec::new(), Vec::new());
            put_copied(&mut out, &entries, seed(), &mut places);
            let read = record(KIND_COPIED, &Bytes::from(out), seed(), &mut found);
            prop_assert_eq!(read, Ok(Record::Copied(entries)));
            prop_assert_eq!(places, found);
        }

        #[test]
        fn entries_know_their_length_and_their_damage(one in any_entry(), bit in any::<usize>()) {
            let mut out = Vec::new();
            let place = put_entry(&mut out, &one, seed());
            prop_assert_eq!(u64::from(place.bytes), entry_bytes(&one));
            let bytes = Bytes::from(out.clone());
            prop_assert_eq!(entry(&bytes, seed()), Ok((one, out.len())));
            let bit = bit % (out.len() * 8);
            out[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(entry(&Bytes::from(out), seed()), Err(Malformed));
            let elsewhere = Seed::new(Incarnation::new(1), SegmentNo::new(3));
            prop_assert_eq!(entry(&bytes, elsewhere), Err(Malformed));
        }

        #[test]
        fn manifests_round_trip_and_cuts_are_seen(notes in proptest::collection::btree_map(any::<u32>(), any_note(), 0..4)) {
            let shards = notes.into_iter().map(|(shard, note)| (ShardId::new(shard), note)).collect();
            let told = Manifest { previous: SegmentNo::new(4), previous_end: 8192, shards };
            let mut out = Vec::new();
            put_manifest(&mut out, &told);
            prop_assert_eq!(manifest(&out), Ok(told));
            for len in 0..out.len() {
                prop_assert_eq!(manifest(&out[..len]), Err(Malformed));
            }
        }

        #[test]
        fn any_bytes_are_read_without_panic(kind in any::<u8>(), bytes in vec(any::<u8>(), 0..300)) {
            let body = Bytes::from(bytes);
            let _ = record(kind, &body, seed(), &mut Vec::new());
            let _ = manifest(&body);
            let _ = entry(&body, seed());
        }
    }
}
