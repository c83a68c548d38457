//! One node: a virtual disk, a real WAL, real replicas, opened the way the daemon opens them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kv_raft::{Message, WriteId};
use kv_shard::{LamportClock, Opening, Replica};
use kv_storage::disk::Disk;
use kv_storage::disk::faulty::{DirLoss, VirtualDisk};
use kv_storage::wal::{Wal, WalOptions, WalRecovery};
use kv_storage::{
    Checkpoint, EngineFactory, ShardStore, StoreOptions, StoreStart, TwinFactory, Verification, WalOp,
    WalRecord,
};
use kv_types::{HardState, Incarnation, LogId, Membership, Nanos, NodeId, ShardId};

use crate::conditions::Settings;

/// What arrived at a replica since its last turn.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) persisted: Option<WriteId>,
    pub(crate) messages: Vec<(Message, u64)>,
    pub(crate) writes: Vec<(Bytes, usize)>,
    pub(crate) reads: Vec<usize>,
}

impl Mail {
    pub(crate) fn is_empty(&self) -> bool {
        self.persisted.is_none()
            && self.messages.is_empty()
            && self.writes.is_empty()
            && self.reads.is_empty()
    }
}

/// Who is told that a record is durable.
#[derive(Debug)]
pub(crate) enum Durable {
    Replica(ShardId, WriteId),
    Merge(ShardId),
    Nobody,
}

/// A checkpoint under way.
#[derive(Debug)]
pub(crate) struct Merge {
    pub(crate) checkpoint: Checkpoint,
    /// Its record is on its way to the disk.
    pub(crate) waits: bool,
}

/// What the disk holds of a shard's log, told from the records that were written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    hard: HardState,
    start: LogId,
    ids: Vec<LogId>,
}

impl Held {
    fn take(&mut self, op: &WalOp) {
        match op {
            WalOp::Raft { hard, truncate_from, append } => {
                self.hard = hard.unwrap_or(self.hard);
                if let Some(from) = truncate_from {
                    self.ids.retain(|id| id.index < *from);
                }
                self.ids.extend(append.iter().map(|entry| entry.id));
            }
            WalOp::Install { hard, base, keep_tail } => {
                self.hard = hard.unwrap_or(self.hard);
                self.ids.retain(|_| *keep_tail);
                self.begin_after(base.meta.last);
            }
            WalOp::Compact(id) => self.begin_after(*id),
            WalOp::MergeBegin(_) | WalOp::BaseAt(_) | WalOp::Damaged(_) => {}
        }
    }

    fn begin_after(&mut self, start: LogId) {
        if start.index > self.start.index {
            self.start = start;
            self.ids.retain(|id| id.index > start.index);
        }
    }

    /// Whether it holds the entry, or something that rests on it.
    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.start.index >= id.index || self.ids.contains(&id)
    }
}

/// What ends with the process.
#[derive(Debug)]
pub(crate) struct Life {
    pub(crate) wal: Wal,
    pub(crate) clock: Arc<LamportClock>,
    pub(crate) replicas: BTreeMap<ShardId, Replica<usize>>,
    pub(crate) mail: BTreeMap<ShardId, Mail>,
    /// Records on their way to the disk.
    pub(crate) queue: VecDeque<(WalRecord, Durable)>,
    pub(crate) merges: BTreeMap<ShardId, Merge>,
    /// Comparisons of rows with their hash, under way since the start.
    pub(crate) verifications: BTreeMap<ShardId, Verification>,
}

/// A node, up or down.
#[derive(Debug)]
pub(crate) struct Node {
    id: NodeId,
    pub(crate) disk: VirtualDisk,
    pub(crate) engines: Arc<TwinFactory>,
    pub(crate) lives: u64,
    pub(crate) life: Option<Life>,
    pub(crate) held: BTreeMap<ShardId, Held>,
    /// What the disk may hold instead: it went away during a write.
    torn: Option<BTreeMap<ShardId, Held>>,
}

impl Node {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            disk: VirtualDisk::new(),
            engines: Arc::new(TwinFactory::new()),
            lives: 0,
            life: None,
            held: BTreeMap::new(),
            torn: None,
        }
    }

    /// Opens the data directory and the replicas.
    ///
    /// # Errors
    /// Why it did not open, which is no wonder if the power is off.
    pub(crate) fn start(&mut self, now: Nanos, settings: &Settings) -> Result<(), String> {
        assert!(self.life.is_none(), "{} runs", self.id);
        self.lives += 1;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let options = WalOptions {
            segment_bytes: settings.segment_bytes,
            budget_bytes: settings.segment_bytes * 3,
            reserve_bytes: 0,
            copy_bytes_max: 4 << 10,
            ballast_bytes: 0,
            ..WalOptions::new(Incarnation::new(self.id.get()))
        };
        let (wal, mut recovery) = Wal::open(disk, options).map_err(|cause| format!("{cause:?}"))?;
        self.check_recovered(&recovery, settings);
        let clock = Arc::new(LamportClock::new(self.id, 0));
        let mut life = Life {
            replicas: BTreeMap::new(),
            mail: settings.shards().map(|shard| (shard, Mail::default())).collect(),
            queue: VecDeque::new(),
            merges: BTreeMap::new(),
            verifications: BTreeMap::new(),
            clock,
            wal,
        };
        for shard in settings.shards() {
            let opening = Opening {
                shard,
                raft: self.raft_config(settings, shard),
                genesis: Membership::of_voters(settings.nodes()),
                recovered: recovery.shards.remove(&shard).unwrap_or_default(),
                reader: life.wal.reader(),
                log_cache_bytes: settings.log_cache_bytes,
                clock: Arc::clone(&life.clock),
            };
            let replica = self.open_replica(opening, now)?;
            life.verifications.insert(shard, replica.verification());
            life.replicas.insert(shard, replica);
        }
        self.life = Some(life);
        Ok(())
    }

    /// As the daemon does it.
    fn open_replica(&self, opening: Opening, now: Nanos) -> Result<Replica<usize>, String> {
        let (disk, engines): (Arc<dyn Disk>, Arc<dyn EngineFactory>) =
            (Arc::new(self.disk.clone()), Arc::<TwinFactory>::clone(&self.engines));
        let shard = opening.shard;
        let options =
            StoreOptions { effect_file_bytes: 8 << 10, step_rows_max: 5, ..StoreOptions::default() };
        let opened = Replica::open(opening, now, |recovered| {
            let start = StoreStart {
                shard,
                base: recovered.base.clone(),
                merge: recovered.merge,
                wal_last: recovered.last().index,
            };
            ShardStore::open(disk, engines, start, options)
        });
        opened.map_err(|cause| format!("{} {shard}: {cause:?}", self.id))
    }

    fn raft_config(&self, settings: &Settings, shard: ShardId) -> kv_raft::Config {
        let seed = settings.seed.wrapping_add(u64::from(shard.get())).wrapping_add(self.lives << 32);
        kv_raft::Config {
            election_timeout_min: Duration::from_millis(100),
            heartbeat: Duration::from_millis(20),
            in_flight_appends_max: settings.in_flight_appends_max,
            in_flight_bytes_max: 1 << 20,
            append_bytes_max: 64 << 10,
            append_entries_max: settings.append_entries_max,
            uncommitted_bytes_max: settings.uncommitted_bytes_max,
            ..kv_raft::Config::new(self.id, self.lives, seed)
        }
    }

    /// The WAL gives back what was written durably, and nothing else.
    fn check_recovered(&mut self, recovery: &WalRecovery, settings: &Settings) {
        let found: BTreeMap<ShardId, Held> = settings
            .shards()
            .map(|shard| {
                let shard_found = recovery.shards.get(&shard).cloned().unwrap_or_default();
                let ids = shard_found.entries.iter().map(|head| head.id).collect();
                (shard, Held { hard: shard_found.hard, start: shard_found.log_start, ids })
            })
            .collect();
        let torn = self.torn.take();
        let written = |held: &BTreeMap<ShardId, Held>| {
            found
                .iter()
                .all(|(shard, found)| held.get(shard).map_or(*found == Held::default(), |h| h == found))
        };
        assert!(
            written(&self.held) || torn.as_ref().is_some_and(written),
            "{} recovers {found:?}, was {:?} or {torn:?}",
            self.id,
            self.held
        );
        self.held = found;
    }

    /// Makes the first `count` records that wait durable, as one group.
    pub(crate) fn write_wal(&mut self, count: usize) -> usize {
        let Some(life) = self.life.as_mut() else { return 0 };
        if life.queue.is_empty() {
            return 0;
        }
        let mut bytes = 0;
        let fits = |(record, _): &&(WalRecord, Durable)| {
            bytes += record_bytes(record);
            bytes <= 128 << 10
        };
        let count = life.queue.iter().take(count).take_while(fits).count().max(1).min(life.queue.len());
        let (records, durable): (Vec<WalRecord>, Vec<Durable>) = life.queue.drain(..count).unzip();
        life.wal.write(&records).unwrap();
        for record in &records {
            self.held.entry(record.shard).or_default().take(&record.op);
        }
        for durable in durable {
            match durable {
                Durable::Replica(shard, id) => {
                    let mail = life.mail.get_mut(&shard).unwrap();
                    mail.persisted = mail.persisted.max(Some(id));
                }
                Durable::Merge(shard) => life.merges.get_mut(&shard).unwrap().waits = false,
                Durable::Nobody => {}
            }
        }
        count
    }

    /// The power goes in the middle of writing all records that wait.
    pub(crate) fn tear_wal(&mut self, calls: u64) {
        let Some(life) = self.life.as_mut() else { return };
        let records: Vec<WalRecord> = life.queue.drain(..).map(|(record, _)| record).collect();
        let mut torn = self.held.clone();
        for record in &records {
            torn.entry(record.shard).or_default().take(&record.op);
        }
        self.torn = Some(torn);
        self.disk.power_off_after(calls);
        // Whether it failed is for the next life to find out.
        let _ = life.wal.write(&records);
    }

    /// The power goes. What was not made durable is kept, lost or torn as `choose` says.
    pub(crate) fn crash(&mut self, choose: &mut dyn FnMut(usize) -> usize) {
        self.disk = self.disk.crash(DirLoss::Prefix, &mut |outcomes: usize| choose(outcomes));
        self.engines.crash(&mut |writes| choose(writes + 1));
        self.life = None;
    }
}

fn record_bytes(record: &WalRecord) -> u64 {
    match &record.op {
        WalOp::Raft { append, .. } => append.iter().map(|entry| entry.body.payload_bytes() + 64).sum(),
        WalOp::Install { .. }
        | WalOp::MergeBegin(_)
        | WalOp::BaseAt(_)
        | WalOp::Compact(_)
        | WalOp::Damaged(_) => 256,
    }
}
