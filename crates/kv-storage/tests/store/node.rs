//! A replica's storage under test, and the model it is compared with.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use kv_storage::disk::Disk;
use kv_storage::disk::faulty::{DirLoss, VirtualDisk};
use kv_storage::{
    AppliedEntry, BaseNote, Checkpoint, CheckpointStep, EngineFactory, MergeNote, Opened, PageLimit, Retired,
    RowRange, ShardStore, StoreError, StoreOptions, StoreStart, TwinFactory, WalOp,
};
use kv_types::{
    Lamport, LogId, LogIndex, Membership, Nanos, NodeId, Row, RowChange, RowKey, ShardId, Space, StateHash,
    Term,
};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

pub(crate) const SHARD: ShardId = ShardId::new(1);
pub(crate) const PAGE: PageLimit = PageLimit { rows: 7, bytes: 1 << 20 };

pub(crate) type Rows = BTreeMap<RowKey, Row>;

/// The log of a shard as a state machine applied it: any replica gets the same.
#[derive(Debug)]
pub(crate) struct Model {
    rng: ChaCha8Rng,
    keys: usize,
    entries: Vec<AppliedEntry>,
    /// The rows after each entry; the first are those of index 0.
    states: Vec<Rows>,
    memberships: Vec<Membership>,
}

impl Model {
    pub(crate) fn new(seed: u64, keys: usize) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        let (states, memberships) = (vec![Rows::new()], vec![Membership::default()]);
        Self { rng, keys, entries: Vec::new(), states, memberships }
    }

    pub(crate) fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(crate) fn state(&self, index: LogIndex) -> &Rows {
        &self.states[usize::try_from(index.get()).unwrap()]
    }

    pub(crate) fn entry(&mut self, index: LogIndex) -> AppliedEntry {
        while self.last() < index.get() {
            self.grow();
        }
        self.entries[usize::try_from(index.get()).unwrap() - 1].clone()
    }

    pub(crate) fn opened(&self, index: LogIndex) -> Opened {
        let at = usize::try_from(index.get()).unwrap();
        let entry = at.checked_sub(1).map(|at| &self.entries[at]);
        Opened {
            applied: entry.map_or(LogId::ZERO, |entry| entry.id),
            stamp: entry.map_or(Lamport::ZERO, |entry| entry.stamp),
            hash: entry.map_or(StateHash::EMPTY, |entry| entry.hash),
            membership: self.memberships[at].clone(),
        }
    }

    fn grow(&mut self) {
        let index = LogIndex::new(self.last() + 1);
        let stamp = Lamport { counter: index.get() * 2, node: NodeId::new(1) };
        let mut rows = self.states.last().unwrap().clone();
        let mut hash = self.entries.last().map_or(StateHash::EMPTY, |entry| entry.hash);
        let mut changes: Vec<RowChange> = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            let space = if self.rng.random_bool(0.2) { Space::System } else { Space::User };
            let name = format!("k{:03}", self.rng.random_range(0..self.keys));
            let key = RowKey::new(space, name.as_bytes());
            if changes.iter().all(|change| change.key != key) {
                let change = self.change(key, &rows, index, stamp);
                let old = rows.get(&change.key).map(|old| &old.head);
                hash = hash.replaced(&change.key, old, change.row.as_ref().map(|row| &row.head));
                match &change.row {
                    Some(row) => {
                        rows.insert(change.key.clone(), row.clone());
                    }
                    None => {
                        rows.remove(&change.key);
                    }
                }
                changes.push(change);
            }
        }
        let membership =
            self.rng.random_bool(0.05).then(|| Membership::of_voters([NodeId::new(index.get())]));
        self.memberships.push(membership.clone().unwrap_or_else(|| self.memberships.last().unwrap().clone()));
        let id = LogId::new(Term::new(1 + index.get() / 50), index);
        self.entries.push(AppliedEntry { id, stamp, membership, changes, hash });
        self.states.push(rows);
    }

    fn change(&mut self, key: RowKey, rows: &Rows, index: LogIndex, stamp: Lamport) -> RowChange {
        let old = rows.get(&key).map(|row| row.head);
        let previous = old.map(|head| head.modified);
        if self.rng.random_bool(0.25) {
            return RowChange { key, row: None, previous };
        }
        let bytes = match self.rng.random_range(0..12) {
            0 => self.rng.random_range(16_385..50_000),
            1 => 16_384,
            _ => self.rng.random_range(0..64),
        };
        let value = Bytes::from(vec![self.rng.random::<u8>(); bytes]);
        let created = old.map_or(index.revision(), |head| head.created);
        let version = old.map_or(1, |head| head.version + 1);
        let row = Row::new(created, index.revision(), version, stamp, &value);
        RowChange { key, row: Some(row), previous }
    }
}

/// What a WAL that never loses anything would say of the shard.
#[derive(Debug, Clone)]
pub(crate) struct Wal {
    pub(crate) base: BaseNote,
    pub(crate) merge: Option<MergeNote>,
    /// Limits what recovery may use, if the WAL lost its end.
    pub(crate) last: Option<LogIndex>,
}

impl Wal {
    pub(crate) fn write(&mut self, op: WalOp) {
        match op {
            WalOp::MergeBegin(note) => self.merge = Some(note),
            WalOp::BaseAt(base) | WalOp::Regenerated(base) | WalOp::Install { base, .. } => {
                self.base = base;
                self.merge = None;
            }
            other => panic!("{other:?} is not the store's"),
        }
    }
}

pub(crate) fn small_steps() -> StoreOptions {
    StoreOptions { effect_file_bytes: 8 << 10, step_rows_max: 5, ..StoreOptions::default() }
}

/// One replica.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) disk: VirtualDisk,
    pub(crate) engines: Arc<TwinFactory>,
    pub(crate) wal: Wal,
    pub(crate) store: ShardStore,
}

impl Node {
    pub(crate) fn new() -> Self {
        let wal = Wal { base: BaseNote::default(), merge: None, last: None };
        let (disk, engines) = (VirtualDisk::new(), Arc::new(TwinFactory::new()));
        let (store, opened) = Self::open(&disk, &engines, &wal, 0).unwrap();
        assert_eq!(opened.applied, LogId::ZERO);
        Self { disk, engines, wal, store }
    }

    pub(crate) fn open(
        disk: &VirtualDisk,
        engines: &Arc<TwinFactory>,
        wal: &Wal,
        model_last: u64,
    ) -> Result<(ShardStore, Opened), StoreError> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let engines: Arc<dyn EngineFactory> = Arc::<TwinFactory>::clone(engines);
        let wal_last = wal.last.unwrap_or(LogIndex::new(model_last)).max(wal.base.meta.last.index);
        let start =
            StoreStart { shard: SHARD, base: wal.base.clone(), merge: wal.merge, wal_last, damaged: false };
        ShardStore::open(disk, engines, start, small_steps())
    }

    pub(crate) fn apply(&mut self, model: &mut Model, count: u64) {
        for _ in 0..count {
            let next = self.store.applied().applied.index.next();
            self.store.apply(model.entry(next)).unwrap();
        }
    }

    /// One step of a checkpoint, with what the host does after it; whether it is done.
    pub(crate) fn step(&mut self, checkpoint: &mut Checkpoint) -> bool {
        match checkpoint.step(Nanos::default()).unwrap() {
            CheckpointStep::Again => false,
            CheckpointStep::Wait => panic!("a pin is in the way"),
            CheckpointStep::Wal(op) => {
                self.wal.write(op);
                false
            }
            CheckpointStep::Done(done) => {
                drop(self.store.merged(done));
                true
            }
        }
    }

    pub(crate) fn checkpoint(&mut self) {
        if let Some(mut checkpoint) = self.store.freeze() {
            while !self.step(&mut checkpoint) {}
        }
    }

    /// Removes what is not needed any more.
    pub(crate) fn sweep(&mut self) {
        self.store.retired().into_iter().try_for_each(Retired::remove).unwrap();
    }

    pub(crate) fn purge(&mut self, below: LogIndex) {
        self.store.purge_effects(below);
        self.sweep();
    }

    /// The power goes: each part keeps what it must and, of the rest, what `choose` says.
    pub(crate) fn crash(self, model: &Model, choose: &mut dyn FnMut(usize) -> usize) -> Self {
        let Self { disk, engines, wal, store } = self;
        let disk = disk.crash(DirLoss::Any, &mut |outcomes: usize| choose(outcomes));
        engines.crash(&mut |writes| choose(writes + 1));
        drop(store);
        let (store, opened) = Self::open(&disk, &engines, &wal, model.last()).unwrap();
        assert!(opened.applied.index >= wal.base.meta.last.index);
        assert_eq!(opened, model.opened(opened.applied.index));
        let node = Self { disk, engines, wal, store };
        node.check(model);
        node
    }

    /// The process is killed: everything written stays, as far as it left the process.
    pub(crate) fn kill(self, model: &Model) -> Self {
        self.crash(model, &mut |_| 0)
    }

    /// Compares everything the store says with the model.
    pub(crate) fn check(&self, model: &Model) {
        let applied = self.store.applied().applied.index;
        assert_eq!(*self.store.applied(), model.opened(applied));
        let reader = self.store.reader();
        assert_eq!(reader.hash(), (applied, self.store.applied().hash));
        self.store.verify().unwrap();
        let pin = reader.pin(Nanos::default()).unwrap();
        assert_eq!(&scan_all(&pin), model.state(applied));
        drop(pin);
        for (key, row) in model.state(applied) {
            assert_eq!(reader.get(key).unwrap().as_ref(), Some(row));
            assert_eq!(self.store.head(key).unwrap(), Some(row.head));
        }
        let keys = self.store.keys(&RowRange::ALL, usize::MAX).unwrap();
        assert!(keys.iter().map(|(key, _)| key).eq(model.state(applied).keys()));
    }
}

pub(crate) fn scan_all(pin: &kv_storage::Pin) -> Rows {
    let (mut rows, mut range) = (Rows::new(), RowRange::ALL);
    loop {
        let page = pin.scan(&range, PAGE, Nanos::default()).unwrap();
        rows.extend(page.rows);
        match page.resume {
            Some(key) => range = range.starting_at(key),
            None => return rows,
        }
    }
}

/// Choices of a crash, drawn from a seed.
pub(crate) fn chooser(seed: u64) -> impl FnMut(usize) -> usize {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    move |outcomes| rng.random_range(0..outcomes)
}
