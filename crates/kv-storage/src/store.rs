//! A shard's state: what its replica owns.
//!
//! # Terms
//! *Effects*: what applying an entry changed, an [`AppliedEntry`]. *Base*: the rows in the engine, one *generation* of
//! them; its [`BaseNote`] says up to which entry. *Frozen table*: rows on their way into the base. *Redo*: effects after
//! the base's note, done again at open.
//!
//! # How it works
//! [`ShardStore::apply`] appends an entry's effects to the effect log's buffer and puts its rows into the active table:
//! memory only. Readers stack the active table over the frozen one over the base (`View`), through a [`ShardReader`] on
//! any thread. [`ShardStore::freeze`] swaps the active table and hands out a [`Checkpoint`], which a thread of the host
//! steps until the base holds the frozen rows; [`ShardStore::merged`] then lets them go. [`ShardStore::open`] finds the
//! base that the WAL names, wherever a crash left it, and does the effects after it again.
//! [`ShardStore::snapshot_source`] streams the state, [`ShardStore::install`] replaces it;
//! [`ShardStore::freeze_into`] ends a [`Regeneration`], which streams the state into a new base of its own.
//!
//! # Caller's duties
//! 1. Every entry is applied, in order, blank ones too, and only once it is committed.
//! 2. A checkpoint is stepped only while the own WAL is durable through [`Checkpoint::upto`]; an operation it asks for
//!    is durable before the next step; one checkpoint is stepped by one thread at a time.
//! 3. A snapshot is installed after its `Install` record is durable, and no older checkpoint is stepped after that.
//! 4. WAL entries go only up to the base's note ([`ShardStore::base`]).
//! 5. After [`StoreError::Damaged`] the store is told that it is [lost](ShardStore::lose) until a snapshot is installed;
//!    after any other error it is dropped, and the replica stops.
//!
//! # What it does not do
//! It starts no thread, knows no time but what it is given, decides neither when to merge nor what to purge, and knows
//! nothing of commands: rows come as they shall be.

use std::collections::BTreeSet;
use std::sync::Arc;

use kv_types::{
    Lamport, LogId, LogIndex, Membership, Row, RowHead, RowKey, ShardId, SnapshotMeta, StateHash,
};

use crate::base::Base;
use crate::checkpoint::{Checkpoint, CheckpointDone, Stage};
use crate::chunks::Fresh;
use crate::disk::Disk;
use crate::effect::AppliedEntry;
use crate::effect_log::EffectLog;
use crate::engine::EngineFactory;
use crate::memtable::{Below, Memtable, Position};
use crate::notes::{BaseNote, MergeNote};
use crate::options::StoreOptions;
use crate::reader::{NEWEST, ShardReader};
use crate::recovery::{self, Recovered};
use crate::regeneration::Regeneration;
use crate::row_range::RowRange;
use crate::snapshot::{ReceivedSnapshot, SnapshotSource};
use crate::store_error::StoreError;
use crate::verify::Verification;
use crate::view::View;
use crate::wal::RecoveredShard;

/// Changes of an entry that are compared one by one.
const COMPARED_MAX: usize = 8;

/// What a shard's state was when it was opened or installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The last entry whose effects it holds: committed entries after it are to be applied.
    pub applied: LogId,
    /// The stamp of that entry.
    pub stamp: Lamport,
    /// The state hash after that entry.
    pub hash: StateHash,
    /// The membership in force there, as far as applied entries tell.
    pub membership: Membership,
}

/// The state of one shard, written by its replica alone.
#[derive(Debug)]
pub struct ShardStore {
    shard: ShardId,
    engines: Arc<dyn EngineFactory>,
    options: StoreOptions,
    reader: Arc<ShardReader>,
    effects: EffectLog,
    opened: Opened,
    /// What the base holds for certain.
    base: BaseNote,
    /// A merge that a crash cut reached up to here at most.
    interrupted: Option<LogIndex>,
    /// Whether a checkpoint is under way.
    merging: bool,
    /// Bytes of effects in the frozen table, and in the active one.
    frozen_effect_bytes: u64,
    active_effect_bytes: u64,
    /// Bases of former generations that readers may still look at.
    retired: Vec<Arc<Base>>,
    /// Why nothing can be read, until a snapshot is installed.
    damage: Option<String>,
    /// What was damaged: it stays until there is something in its place.
    lost: Vec<Arc<Base>>,
}

/// Memory that is no longer needed. Dropping it may take some 100 ms: do that where nobody waits.
#[derive(Debug)]
pub struct Freed {
    _tables: Vec<Arc<Memtable>>,
}

/// Files that nobody needs any more. To remove them may take some 100 ms: do that where nobody waits.
#[derive(Debug)]
pub struct Retired(RetiredFiles);

#[derive(Debug)]
enum RetiredFiles {
    /// A base that was replaced and that nobody reads any more.
    Base { base: Base, engines: Arc<dyn EngineFactory> },
    /// The oldest files of an effect log.
    Effects(EffectLog),
}

impl Retired {
    /// Closes and deletes them.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the removal. They stay: a base until the next open, effects until more of them are retired.
    pub fn remove(self) -> Result<(), StoreError> {
        match self.0 {
            RetiredFiles::Base { base, engines } => {
                let dir = base.dir().to_owned();
                // The engine closes its files before they are removed.
                drop(base);
                Ok(engines.remove(&dir)?)
            }
            RetiredFiles::Effects(effects) => effects.remove_purged(),
        }
    }
}

impl ShardStore {
    /// Recovers a shard's state from what the WAL says of it: base, open merge and last entry. A shard that never was
    /// has the default base; its store is created.
    ///
    /// If base or effects are not what the WAL says, the store opens [lost](ShardStore::damage): at the base's note,
    /// without a row that could be read.
    ///
    /// # Errors
    /// [`StoreError`] of the disk.
    pub fn open(
        disk: Arc<dyn Disk>,
        engines: Arc<dyn EngineFactory>,
        start: StoreStart,
        options: StoreOptions,
    ) -> Result<(Self, Opened), StoreError> {
        let shard = start.shard;
        let recovered = recovery::open(disk, &*engines, start, options)?;
        let Recovered { base_note, base, table, effects, opened, effect_bytes, interrupted, damage } =
            recovered;
        let view = View { active: Arc::new(table), frozen: Vec::new(), base: Arc::new(base) };
        let reader = ShardReader::new(view, opened.applied.index, effects.clone(), options);
        let store = Self {
            shard,
            engines,
            options,
            reader: Arc::new(reader),
            effects,
            opened: opened.clone(),
            base: base_note,
            interrupted,
            merging: false,
            frozen_effect_bytes: 0,
            active_effect_bytes: effect_bytes,
            retired: Vec::new(),
            damage,
            lost: Vec::new(),
        };
        Ok((store, opened))
    }

    /// Why nothing can be read from it; only a snapshot helps.
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// The rows are not what they should be: from now on nothing of them is read. The state goes back to the base's note,
    /// as if it was opened lost.
    ///
    pub fn lose(&mut self, detail: String) -> Freed {
        let SnapshotMeta { last, membership } = self.base.meta.clone();
        let (stamp, hash) = (self.base.stamp, self.base.hash);
        let position = Position { id: last, stamp, hash };
        let base = Base::lost(self.shard, self.base.generation, detail.clone());
        let active = Arc::new(Memtable::new(position, Below::Settled));
        let old = self.reader.publish(View { active, frozen: Vec::new(), base: Arc::new(base) });
        self.reader.set_applied(last.index);
        self.opened = Opened { applied: last, stamp, hash, membership };
        self.lost.push(Arc::clone(&old.base));
        self.damage = Some(detail);
        self.frozen_effect_bytes = 0;
        self.active_effect_bytes = 0;
        Freed { _tables: old.tables().cloned().collect() }
    }

    /// What other threads read through.
    pub fn reader(&self) -> Arc<ShardReader> {
        Arc::clone(&self.reader)
    }

    /// The last entry applied, and what came with it.
    pub fn applied(&self) -> &Opened {
        &self.opened
    }

    /// What the base holds.
    pub fn base(&self) -> &BaseNote {
        &self.base
    }

    /// The newest row of a key.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn get(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        self.reader.newest(key)
    }

    /// The newest row of a key, without its value.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be read.
    pub fn head(&self, key: &RowKey) -> Result<Option<RowHead>, StoreError> {
        self.reader.view().head(key, NEWEST)
    }

    /// The newest rows of a range in key order, without their values, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be read.
    pub fn keys(&self, range: &RowRange, limit: usize) -> Result<Vec<(RowKey, RowHead)>, StoreError> {
        let view = self.reader.view();
        let mut scan = view.scan(range, NEWEST);
        let mut keys = Vec::new();
        while keys.len() < limit {
            let Some((key, found)) = scan.next()? else { break };
            let head = *found.head();
            keys.push((key, head));
        }
        Ok(keys)
    }

    /// Takes the effects of the next entry; blank entries, too. Readers see all its rows at once.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the effect log cannot be written.
    ///
    /// # Panics
    /// If `entry` does not follow the last one, or changes a row twice.
    pub fn apply(&mut self, entry: AppliedEntry) -> Result<(), StoreError> {
        assert!(changes_each_once(&entry), "entry {} changes a row twice", entry.id);
        self.active_effect_bytes += self.effects.append(&entry)?;
        let AppliedEntry { id, stamp, membership, changes, hash } = entry;
        let position = Position { id, stamp, hash };
        let view = self.reader.view();
        view.active.apply(position, changes, self.reader.pins(), self.options.pin_bytes_max);
        self.reader.set_applied(id.index);
        let membership = membership.unwrap_or_else(|| std::mem::take(&mut self.opened.membership));
        self.opened = Opened { applied: id, stamp, hash, membership };
        Ok(())
    }

    /// Whether the effects of another entry have room on the disk; if not, it may be asked again later.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the effect log cannot be written.
    pub fn has_room(&self) -> Result<bool, StoreError> {
        self.effects.has_room()
    }

    /// Memory of the tables.
    pub fn memtable_bytes(&self) -> usize {
        let view = self.reader.view();
        view.active.bytes() + view.frozen.iter().map(|table| table.bytes()).sum::<usize>()
    }

    /// Bytes of effects that the base does not hold yet.
    pub fn unmerged_bytes(&self) -> u64 {
        self.frozen_effect_bytes + self.active_effect_bytes
    }

    /// Swaps in a new table and hands out the work of merging the old one; none if the base already holds all, or a
    /// merge is still under way: a second frozen table would only hold more memory, while the active one goes on
    /// overwriting in place.
    pub fn freeze(&mut self) -> Option<Checkpoint> {
        let is_due = !self.merging && self.opened.applied.index != self.base.meta.last.index;
        is_due.then(|| self.swap_table())
    }

    /// Swaps in a new table and hands out the work of ending a regeneration with the old one; the regeneration itself,
    /// if a merge is still under way or a snapshot has replaced the state.
    ///
    /// # Errors
    /// The regeneration.
    pub fn freeze_into(
        &mut self,
        mut regeneration: Box<Regeneration>,
    ) -> Result<Checkpoint, Box<Regeneration>> {
        if self.merging || !regeneration.follows(&self.effects) {
            return Err(regeneration);
        }
        regeneration.end_at(self.opened.applied.index);
        Ok(Checkpoint { regeneration: Some(regeneration), ..self.swap_table() })
    }

    fn swap_table(&mut self) -> Checkpoint {
        let Opened { applied, stamp, hash, membership } = self.opened.clone();
        let view = self.reader.view();
        let table = Arc::clone(&view.active);
        let active = Arc::new(Memtable::new(table.position(), Below::Settled));
        let frozen = std::iter::once(&table).chain(&view.frozen).cloned().collect();
        let base = Arc::clone(&view.base);
        self.reader.publish(View { active, frozen, base: Arc::clone(&base) });
        self.merging = true;
        self.frozen_effect_bytes = std::mem::take(&mut self.active_effect_bytes);
        let meta = SnapshotMeta { last: applied, membership };
        Checkpoint {
            base,
            table,
            effects: self.effects.clone(),
            pins: Arc::clone(self.reader.pins()),
            options: self.options,
            from: self.base.meta.last.index,
            to: BaseNote { generation: self.base.generation, meta, stamp, hash },
            interrupted: self.interrupted,
            regeneration: None,
            settled: false,
            fresh: Fresh::default(),
            stage: Stage::Waiting,
        }
    }

    /// Publishes the view without the table that was merged, and over the rewritten base if there is one. A checkpoint of
    /// a former generation changes nothing.
    pub fn merged(&mut self, done: CheckpointDone) -> Freed {
        let CheckpointDone { note, table, of, rewritten } = done;
        if of == self.base.generation && self.damage.is_some() {
            // The WAL names this base from now on. Nobody reads it: a snapshot replaces it.
            self.base = note;
            self.merging = false;
            self.lost.extend(rewritten);
        } else if of == self.base.generation {
            let view = self.reader.view();
            let frozen = view.frozen.iter().filter(|other| !Arc::ptr_eq(other, &table)).cloned().collect();
            let base = rewritten.unwrap_or_else(|| Arc::clone(&view.base));
            if !Arc::ptr_eq(&base, &view.base) {
                self.retired.push(Arc::clone(&view.base));
            }
            self.reader.publish(View { active: Arc::clone(&view.active), frozen, base });
            self.base = note;
            self.interrupted = None;
            self.merging = false;
            self.frozen_effect_bytes = 0;
        }
        Freed { _tables: vec![table] }
    }

    /// Hands buffered effects to the operating system.
    ///
    /// # Errors
    /// [`StoreError::Io`] of the write.
    pub fn flush_effects(&self) -> Result<(), StoreError> {
        self.effects.flush()
    }

    /// Makes effects durable.
    ///
    /// # Errors
    /// [`StoreError::Io`], final.
    pub fn sync_effects(&self) -> Result<(), StoreError> {
        self.effects.sync()
    }

    /// Lets effects below `below` go, by whole files, as far as neither redo nor a snapshot under way needs them. The files
    /// are among what is [retired](ShardStore::retired) next.
    pub fn purge_effects(&mut self, below: LogIndex) {
        self.effects.purge(below.min(self.base.meta.last.index.next()));
    }

    /// Begins a snapshot of this shard.
    pub fn snapshot_source(&self) -> SnapshotSource {
        let base = Arc::clone(&self.reader.view().base);
        SnapshotSource::new(self.shard, base, self.base.clone(), self.effects.clone())
    }

    /// Makes a received snapshot the state. The WAL's `Install` record of it is durable, and no checkpoint of the
    /// former generation will be stepped again.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the effect log cannot be begun anew.
    pub fn install(&mut self, received: ReceivedSnapshot) -> Result<(Opened, Freed), StoreError> {
        let (note, base) = received.into_parts();
        let SnapshotMeta { last, membership } = note.meta.clone();
        self.effects.reset(note.generation, last.index)?;
        let position = Position { id: last, stamp: note.stamp, hash: note.hash };
        let active = Arc::new(Memtable::new(position, Below::Settled));
        self.reader.will_install();
        let old = self.reader.publish(View { active, frozen: Vec::new(), base: Arc::new(base) });
        self.reader.set_applied(last.index);
        self.opened = Opened { applied: last, stamp: note.stamp, hash: note.hash, membership };
        self.base = note;
        self.damage = None;
        self.interrupted = None;
        self.merging = false;
        self.frozen_effect_bytes = 0;
        self.active_effect_bytes = 0;
        match self.lost.is_empty() {
            true => self.retired.push(Arc::clone(&old.base)),
            false => self.retired.append(&mut self.lost),
        }
        let tables = std::iter::once(&old.active).chain(&old.frozen).cloned().collect();
        drop(old);
        Ok((self.opened.clone(), Freed { _tables: tables }))
    }

    /// Former generations and effects that nobody reads any more, to be removed by any thread that nobody waits for. Bases
    /// that are dropped instead are removed at the next open.
    pub fn retired(&mut self) -> Vec<Retired> {
        let mut unread = Vec::new();
        for base in std::mem::take(&mut self.retired) {
            match Arc::try_unwrap(base) {
                Err(shared) => self.retired.push(shared),
                Ok(base) => {
                    unread.push(Retired(RetiredFiles::Base { base, engines: Arc::clone(&self.engines) }));
                }
            }
        }
        if self.effects.wants_removal() {
            unread.push(Retired(RetiredFiles::Effects(self.effects.clone())));
        }
        unread
    }

    /// The work of comparing all rows with the state hash. Until it ends, nothing may be applied.
    pub fn verification(&self) -> Verification {
        Verification::new(self.reader.view(), self.opened.applied.index, self.opened.hash)
    }

    /// Compares all rows with the state hash, at once.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if they differ.
    pub fn verify(&self) -> Result<StateHash, StoreError> {
        let mut verification = self.verification();
        while !verification.step()? {}
        Ok(self.opened.hash)
    }
}

/// A change names what it replaced in the state before the entry, so two of one row could not both be right.
/// Most entries change a few rows: comparing each with those before it needs no memory.
fn changes_each_once(entry: &AppliedEntry) -> bool {
    let keys = || entry.changes.iter().map(|change| &change.key);
    if entry.changes.len() > COMPARED_MAX {
        return keys().collect::<BTreeSet<_>>().len() == entry.changes.len();
    }
    keys().enumerate().all(|(at, key)| keys().take(at).all(|before| before != key))
}

impl StoreStart {
    /// What is recovered of a shard.
    pub fn of(shard: ShardId, recovered: &RecoveredShard) -> Self {
        Self {
            shard,
            base: recovered.base.clone(),
            merge: recovered.merge,
            wal_last: recovered.last().index,
            damaged: recovered.damaged == Some(recovered.base.generation),
        }
    }
}

/// What the WAL says of a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStart {
    /// The shard.
    pub shard: ShardId,
    /// Its base; the default for a shard that never was.
    pub base: BaseNote,
    /// A merge that was begun after that note.
    pub merge: Option<MergeNote>,
    /// The last entry of its log.
    pub wal_last: LogIndex,
    /// Whether base or effects were found damaged before.
    pub damaged: bool,
}
