//! One node: a virtual disk, a real WAL, real replicas, opened the way the daemon opens them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use kv_raft::{LeaseUpdate, Message, WriteId};
use kv_shard::{LamportClock, Opening, Replica};
use kv_storage::disk::Disk;
use kv_storage::disk::faulty::{DirLoss, VirtualDisk};
use kv_storage::wal::{Wal, WalError, WalOptions, WalRecovery};
use kv_storage::{
    CeilingFile, Checkpoint, EngineFactory, Generation, Regeneration, ShardStore, StoreOptions, StoreStart,
    TwinFactory, Verification, WalOp, WalRecord,
};
use kv_types::{Incarnation, LogIndex, Membership, Nanos, NodeId, ShardId};

use crate::held::Held;
use crate::party::Parties;
#[cfg(feature = "planted")]
use crate::planted::Planted;
use crate::settings::Settings;
use crate::violation::{Holds, Violation, hold};

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
    /// Bases on their way into a new generation.
    pub(crate) regenerations: BTreeMap<ShardId, Box<Regeneration>>,
    /// The newest generation begun of each shard: none is begun twice.
    pub(crate) begun: BTreeMap<ShardId, Generation>,
    /// Comparisons of rows with their hash, under way since the start.
    pub(crate) verifications: BTreeMap<ShardId, Verification>,
    /// What the clock showed at the last turn of each replica.
    pub(crate) readings: BTreeMap<ShardId, Nanos>,
    /// Reads by a lease that wait until what was committed when they came is applied.
    pub(crate) lease_reads: BTreeMap<ShardId, Vec<(LogIndex, usize)>>,
    /// What readers see of each replica: the term and end of its lease, and what is committed.
    pub(crate) published: BTreeMap<ShardId, Published>,
    /// The parties of transactions that are at work here.
    pub(crate) parties: Parties,
    /// Whether there may be something left to do in the background.
    pub(crate) is_busy: bool,
}

/// What readers see of a replica without a turn of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Published {
    pub(crate) lease: LeaseUpdate,
    pub(crate) commit: LogIndex,
}

/// A node, up or down.
#[derive(Debug)]
pub(crate) struct Node {
    id: NodeId,
    pub(crate) disk: VirtualDisk,
    pub(crate) engines: Arc<TwinFactory>,
    pub(crate) lives: u64,
    /// The largest Lamport counter it has told others, in any life.
    pub(crate) told: u64,
    pub(crate) life: Option<Life>,
    /// Records that the disk may hold: it went away while they were written.
    torn: Option<Vec<WalRecord>>,
    /// What a start found that then failed: the next one finds the same.
    found: Option<BTreeMap<ShardId, Held>>,
    /// Groups that had no room on its full disk.
    pub(crate) put_off: usize,
}

/// What a disk holds of every shard: the log, and the memberships in it.
pub(crate) type Found = BTreeMap<ShardId, (Held, Vec<(LogIndex, Membership)>)>;

/// Why a node did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// Its disk fails, or holds what no disk of this node can hold.
    Fails(String),
    /// An invariant does not hold.
    Broken(Violation),
}

impl StartError {
    fn of(cause: &dyn std::fmt::Debug) -> Self {
        Self::Fails(format!("{cause:?}"))
    }
}

impl Life {
    fn new(wal: Wal, clock: Arc<LamportClock>, settings: &Settings) -> Self {
        Self {
            replicas: BTreeMap::new(),
            mail: settings.shards().map(|shard| (shard, Mail::default())).collect(),
            queue: VecDeque::new(),
            merges: BTreeMap::new(),
            regenerations: BTreeMap::new(),
            begun: BTreeMap::new(),
            verifications: BTreeMap::new(),
            readings: BTreeMap::new(),
            lease_reads: BTreeMap::new(),
            published: BTreeMap::new(),
            parties: Parties::default(),
            is_busy: true,
            clock,
            wal,
        }
    }

    /// The generation that a snapshot is received into, or a base is rewritten into.
    pub(crate) fn begin_generation(&mut self, shard: ShardId) -> Generation {
        let newest = self.begun.entry(shard).or_default();
        let current = self.replicas.get(&shard).map(|replica| replica.status().generation);
        *newest = current.unwrap_or_default().max(*newest).next();
        *newest
    }
}

impl Node {
    pub(crate) fn new(id: NodeId) -> Self {
        Self {
            id,
            disk: VirtualDisk::new(),
            engines: Arc::new(TwinFactory::new()),
            lives: 0,
            told: 0,
            life: None,
            torn: None,
            found: None,
            put_off: 0,
        }
    }

    /// Opens the data directory and the replicas; what the disk held.
    ///
    /// # Errors
    /// Why it did not open, which is no wonder if the power is off.
    pub(crate) fn start(
        &mut self,
        now: Nanos,
        settings: &Settings,
        disk_holds: &BTreeMap<ShardId, Held>,
    ) -> Result<Found, StartError> {
        assert!(self.life.is_none(), "{} runs", self.id);
        self.lives += 1;
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let (wal, mut recovery) = Wal::open(Arc::clone(&disk), self.wal_options(settings))
            .map_err(|cause| StartError::of(&cause))?;
        let found = found(&recovery, settings);
        self.check_recovered(&found, disk_holds).map_err(StartError::Broken)?;
        CeilingFile::create(disk.as_ref()).map_err(|cause| StartError::of(&cause))?;
        let ceiling = CeilingFile::open(Arc::clone(&disk)).map_err(|cause| StartError::of(&cause))?;
        let clock = Arc::new(LamportClock::new(self.id, Arc::new(ceiling)));
        self.check_clock(clock.now()).map_err(StartError::Broken)?;
        let mut life = Life::new(wal, clock, settings);
        for shard in settings.shards() {
            let opening = Opening {
                shard,
                raft: self.raft_config(settings, shard),
                genesis: Membership::of_voters(settings.voters()),
                recovered: recovery.shards.remove(&shard).unwrap_or_default(),
                reader: life.wal.reader(),
                log_cache_bytes: settings.log_cache_bytes,
                clock: Arc::clone(&life.clock),
            };
            #[cfg_attr(not(feature = "planted"), allow(unused_mut, reason = "a bug may be planted in it"))]
            let mut replica = self.open_replica(opening, now)?;
            #[cfg(feature = "planted")]
            replica.plant(settings.bug_of_replicas());
            life.verifications.insert(shard, replica.verification());
            life.replicas.insert(shard, replica);
        }
        #[cfg(feature = "planted")]
        life.parties.plant(settings.fault_of_parties());
        self.life = Some(life);
        self.found = None;
        Ok(found)
    }

    fn wal_options(&self, settings: &Settings) -> WalOptions {
        WalOptions {
            segment_bytes: settings.segment_bytes,
            budget_bytes: settings.segment_bytes * 3,
            total_bytes_max: settings.segment_bytes * 5,
            reserve_bytes: 0,
            copy_bytes_max: 4 << 10,
            ballast_bytes: 0,
            ..WalOptions::new(Incarnation::new(self.id.get()))
        }
    }

    /// As the daemon does it.
    fn open_replica(&self, opening: Opening, now: Nanos) -> Result<Replica<usize>, StartError> {
        let (disk, engines): (Arc<dyn Disk>, Arc<dyn EngineFactory>) =
            (Arc::new(self.disk.clone()), Arc::<TwinFactory>::clone(&self.engines));
        let shard = opening.shard;
        let options =
            StoreOptions { effect_file_bytes: 8 << 10, step_rows_max: 5, ..StoreOptions::default() };
        let opened = Replica::open(opening, now, |recovered| {
            let start = StoreStart::of(shard, recovered);
            ShardStore::open(disk, engines, start, options)
        });
        opened.map_err(|cause| StartError::of(&cause))
    }

    fn raft_config(&self, settings: &Settings, shard: ShardId) -> kv_raft::Config {
        let seed = settings.seed.wrapping_add(u64::from(shard.get())).wrapping_add(self.lives << 32);
        kv_raft::Config {
            election_timeout_min: settings.election_timeout,
            heartbeat: settings.heartbeat,
            in_flight_appends_max: settings.in_flight_appends_max,
            in_flight_bytes_max: 1 << 20,
            append_bytes_max: 64 << 10,
            append_entries_max: settings.append_entries_max,
            uncommitted_bytes_max: settings.uncommitted_bytes_max,
            lease: settings.lease,
            #[cfg(feature = "planted")]
            planted: match settings.planted {
                Some(Planted::Core(bug)) => Some(bug),
                _ => None,
            },
            ..kv_raft::Config::new(self.id, self.lives, seed)
        }
    }

    /// The WAL gives back what was written durably, and nothing else.
    fn check_recovered(&mut self, found: &Found, disk_holds: &BTreeMap<ShardId, Held>) -> Holds {
        let torn = self.torn.take();
        let written = |held: &BTreeMap<ShardId, Held>| {
            found.iter().all(|(shard, (found, _))| {
                held.get(shard).map_or(*found == Held::default(), |held| held == found)
            })
        };
        let with_torn = torn.map(|records| {
            let mut held = disk_holds.clone();
            for record in &records {
                held.entry(record.shard).or_default().take(&record.op);
            }
            held
        });
        let name = "recovery";
        let is_whole = match &self.found {
            Some(before) => written(before),
            None => written(disk_holds) || with_torn.as_ref().is_some_and(written),
        };
        let before = &self.found;
        hold!(
            is_whole,
            name,
            "{} recovers {found:?}, was {before:?}, {disk_holds:?} or {with_torn:?}",
            self.id
        );
        self.found = Some(found.iter().map(|(shard, (held, _))| (*shard, held.clone())).collect());
        Ok(())
    }

    /// The Lamport clock never tells again what it told in an earlier life.
    fn check_clock(&self, counter: u64) -> Holds {
        hold!(counter >= self.told, "recovery", "{} may repeat {} after {counter}", self.id, self.told);
        Ok(())
    }

    /// Makes the first `count` records that wait durable, as one group; these records. On a full disk they go on waiting.
    ///
    /// # Errors
    /// The disk fails: the node must stop.
    pub(crate) fn write_wal(&mut self, count: usize) -> Result<Vec<WalRecord>, String> {
        let Some(life) = self.life.as_mut() else { return Ok(Vec::new()) };
        if life.queue.is_empty() {
            return Ok(Vec::new());
        }
        let mut bytes = 0;
        let fits = |(record, _): &&(WalRecord, Durable)| {
            bytes += record_bytes(record);
            bytes <= 128 << 10
        };
        let count = life.queue.iter().take(count).take_while(fits).count().max(1).min(life.queue.len());
        let (records, durable): (Vec<WalRecord>, Vec<Durable>) = life.queue.drain(..count).unzip();
        match life.wal.write(&records) {
            Ok(()) => {}
            Err(WalError::Full) => {
                for waiting in records.into_iter().zip(durable).rev() {
                    life.queue.push_front(waiting);
                }
                self.put_off += 1;
                return Ok(Vec::new());
            }
            Err(cause) => {
                self.torn = Some(records);
                return Err(format!("{cause:?}"));
            }
        }
        for durable in durable {
            match durable {
                Durable::Replica(shard, id) => {
                    let mail = life.mail.entry(shard).or_default();
                    mail.persisted = mail.persisted.max(Some(id));
                }
                Durable::Merge(shard) => {
                    if let Some(merge) = life.merges.get_mut(&shard) {
                        merge.waits = false;
                    }
                }
                Durable::Nobody => {}
            }
        }
        Ok(records)
    }

    /// The power goes in the middle of writing all records that wait.
    pub(crate) fn tear_wal(&mut self, calls: u64) {
        let Some(life) = self.life.as_mut() else { return };
        let records: Vec<WalRecord> = life.queue.drain(..).map(|(record, _)| record).collect();
        self.disk.power_off_after(calls);
        // Whether it failed is for the next life to find out.
        let _ = life.wal.write(&records);
        self.torn = Some(records);
    }

    /// The power goes. What was not made durable is kept, lost or torn as `choose` says.
    pub(crate) fn crash(&mut self, choose: &mut dyn FnMut(usize) -> usize) {
        self.disk = self.disk.crash(DirLoss::Prefix, &mut |outcomes: usize| choose(outcomes));
        self.engines.crash(&mut |writes| choose(writes + 1));
        if let Some(mut life) = self.life.take() {
            // The process that would have tidied up is dead.
            std::mem::forget((std::mem::take(&mut life.regenerations), std::mem::take(&mut life.merges)));
        }
    }

    /// The disk is replaced by an empty one.
    pub(crate) fn wipe(&mut self) {
        self.disk = VirtualDisk::new();
        self.engines = Arc::new(TwinFactory::new());
        self.told = 0;
        self.torn = None;
        self.found = None;
    }
}

/// What a recovery found of every shard.
fn found(recovery: &WalRecovery, settings: &Settings) -> Found {
    let of = |shard| {
        let found = recovery.shards.get(&shard).cloned().unwrap_or_default();
        let ids = found.entries.iter().map(|head| head.id).collect();
        let held = Held { hard: found.hard, start: found.log_start, ids };
        let base = if found.base.meta.membership == Membership::default() {
            (LogIndex::ZERO, Membership::of_voters(settings.voters()))
        } else {
            (found.base.meta.last.index, found.base.meta.membership)
        };
        let newer = found.configs.into_iter().filter(|(index, _)| *index > base.0);
        (held, std::iter::once(base.clone()).chain(newer).collect())
    };
    settings.shards().map(|shard| (shard, of(shard))).collect()
}

fn record_bytes(record: &WalRecord) -> u64 {
    match &record.op {
        WalOp::Raft { append, .. } => append.iter().map(|entry| entry.body.payload_bytes() + 64).sum(),
        WalOp::Install { .. }
        | WalOp::MergeBegin(_)
        | WalOp::BaseAt(_)
        | WalOp::Regenerated(_)
        | WalOp::Compact(_)
        | WalOp::Damaged(_) => 256,
    }
}
