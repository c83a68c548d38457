//! What the WAL must say, computed the slow way; and workloads.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_storage::disk::faulty::VirtualDisk;
use kv_storage::wal::{EntryHead, RecoveredShard, Wal, WalError, WalOptions, WalRecovery};
use kv_storage::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
use kv_types::{
    Body, Entry, HardState, Incarnation, Lamport, LogId, LogIndex, Membership, NodeId, ShardId, SnapshotMeta,
    Term,
};

pub(crate) const INCARNATION: Incarnation = Incarnation::new(0x5eed);

/// Small segments, so that few records roll over.
pub(crate) fn options() -> WalOptions {
    WalOptions {
        segment_bytes: 32 << 10,
        budget_bytes: 64 << 10,
        total_bytes_max: 128 << 10,
        reserve_bytes: 4 << 10,
        copy_bytes_max: 4 << 10,
        ballast_bytes: 0,
        ..WalOptions::new(INCARNATION)
    }
}

pub(crate) fn open(disk: &VirtualDisk) -> Result<(Wal, WalRecovery), WalError> {
    Wal::open(Arc::new(disk.clone()), options())
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(Vec<WalRecord>),
    Note,
    Prepare,
    /// Another thread makes the next segment.
    HandOut,
    Release,
}

/// One shard of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Shard {
    pub(crate) recovered: RecoveredShard,
    pub(crate) entries: Vec<Entry>,
}

pub(crate) type Model = BTreeMap<ShardId, Shard>;

pub(crate) fn apply(model: &mut Model, record: &WalRecord) {
    let shard = model.entry(record.shard).or_default();
    let state = &mut shard.recovered;
    match &record.op {
        WalOp::Raft { hard, truncate_from, append } => {
            state.hard = hard.unwrap_or(state.hard);
            if let Some(from) = truncate_from {
                shard.entries.retain(|entry| entry.id.index < *from);
            }
            shard.entries.extend(append.iter().cloned());
        }
        WalOp::Install { hard, base, keep_tail } => {
            state.hard = hard.unwrap_or(state.hard);
            shard.entries.retain(|entry| *keep_tail && entry.id.index > base.meta.last.index);
            state.log_start = base.meta.last;
            state.base = base.clone();
            state.merge = None;
            state.damaged = None;
        }
        WalOp::MergeBegin(merge) => state.merge = Some(*merge),
        WalOp::BaseAt(base) => {
            state.base = base.clone();
            state.merge = None;
        }
        WalOp::Regenerated(base) => {
            state.base = base.clone();
            state.merge = None;
            state.damaged = None;
        }
        WalOp::Compact(id) => {
            shard.entries.retain(|entry| entry.id.index > id.index);
            state.log_start = *id;
        }
        WalOp::Damaged(generation) => state.damaged = Some(*generation),
    }
    state.entries = shard.entries.iter().map(EntryHead::of).collect();
    state.configs = shard.entries.iter().filter_map(config).collect();
}

fn config(entry: &Entry) -> Option<(LogIndex, Membership)> {
    match &entry.body {
        Body::Config(membership) => Some((entry.id.index, membership.clone())),
        Body::Blank | Body::Command(_) => None,
    }
}

/// Whether recovery says what the model says, payloads included.
pub(crate) fn agrees(wal: &Wal, recovery: &WalRecovery, model: &Model) -> bool {
    let heads: BTreeMap<_, _> = model.iter().map(|(id, shard)| (*id, shard.recovered.clone())).collect();
    recovery.shards == heads && model.iter().all(|(id, shard)| read_all(wal, *id, shard) == shard.entries)
}

fn read_all(wal: &Wal, id: ShardId, shard: &Shard) -> Vec<Entry> {
    let first = shard.recovered.log_start.index.next();
    let last = shard.recovered.last().index;
    if first > last {
        return Vec::new();
    }
    wal.reader().read(id, first..=last, u64::MAX).unwrap()
}

/// Runs steps until one fails; how many succeeded.
pub(crate) fn run(wal: &mut Wal, steps: &[Step]) -> usize {
    for (done, step) in steps.iter().enumerate() {
        let result = match step {
            Step::Write(records) => wal.write(records),
            Step::Note => wal.sync_note(),
            Step::Prepare => wal.prepare_next(),
            Step::HandOut => {
                if let Some(next) = wal.next_segment() {
                    next.make(|| {});
                }
                Ok(())
            }
            Step::Release => wal.release().map(|_| ()),
        };
        if result.is_err() {
            return done;
        }
    }
    steps.len()
}

/// The model after each number of steps.
pub(crate) fn models(steps: &[Step]) -> Vec<Model> {
    let mut all = vec![Model::new()];
    for step in steps {
        let mut model = all.last().cloned().unwrap_or_default();
        if let Step::Write(records) = step {
            records.iter().for_each(|record| apply(&mut model, record));
        }
        all.push(model);
    }
    all
}

pub(crate) fn entry(term: u64, index: u64, bytes: usize) -> Entry {
    let fill = u8::try_from((term * 31 + index) % 251).unwrap();
    Entry {
        id: id(term, index),
        stamp: Lamport { counter: index * 10 + term, node: NodeId::new(term) },
        body: if bytes == 0 { Body::Blank } else { Body::Command(Bytes::from(vec![fill; bytes])) },
    }
}

pub(crate) fn id(term: u64, index: u64) -> LogId {
    LogId::new(Term::new(term), LogIndex::new(index))
}

pub(crate) fn hard(term: u64, vote: u64) -> Option<HardState> {
    Some(HardState { term: Term::new(term), vote: Some(NodeId::new(vote)), ..HardState::default() })
}

pub(crate) fn raft(
    shard: u32,
    hard: Option<HardState>,
    truncate: Option<u64>,
    append: Vec<Entry>,
) -> WalRecord {
    let op = WalOp::Raft { hard, truncate_from: truncate.map(LogIndex::new), append };
    WalRecord { shard: ShardId::new(shard), op }
}

pub(crate) fn note(generation: u64, term: u64, index: u64) -> BaseNote {
    let membership = Membership::of_voters([1, 2, 3].map(NodeId::new));
    BaseNote {
        generation: Generation::new(generation),
        meta: SnapshotMeta { last: id(term, index), membership },
        stamp: Lamport { counter: index, node: NodeId::new(1) },
        ..BaseNote::default()
    }
}

pub(crate) fn op(shard: u32, op: WalOp) -> WalRecord {
    WalRecord { shard: ShardId::new(shard), op }
}

pub(crate) fn merge(shard: u32, from: u64, to: u64) -> WalRecord {
    let generation = Generation::new(0);
    op(shard, WalOp::MergeBegin(MergeNote { generation, from: LogIndex::new(from), to: LogIndex::new(to) }))
}
