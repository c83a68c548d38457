//! Opening a shard's state after any end of the process, also when it is damaged.

use std::path::Path;
use std::sync::Arc;

use kv_types::LogIndex;

use crate::base::{Base, generation_dir, shard_dir};
use crate::disk::Disk;
use crate::effect::AppliedEntry;
use crate::effect_log::{EffectLog, EffectLogStart};
use crate::engine::{Engine, EngineError, EngineFactory};
use crate::memtable::{Below, Memtable, Position};
use crate::notes::{BaseNote, Generation, MergeNote};
use crate::options::StoreOptions;
use crate::pins::PinSet;
use crate::store::{Opened, StoreStart};
use crate::store_error::StoreError;

/// A shard's state as recovered.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) base_note: BaseNote,
    pub(crate) base: Base,
    pub(crate) table: Memtable,
    pub(crate) effects: EffectLog,
    pub(crate) opened: Opened,
    pub(crate) effect_bytes: u64,
    pub(crate) interrupted: Option<LogIndex>,
    /// Why nothing of it can be read.
    pub(crate) damage: Option<String>,
}

/// Opens the state; if it is damaged, what there is without it.
pub(crate) fn open(
    disk: Arc<dyn Disk>,
    engines: &dyn EngineFactory,
    start: StoreStart,
    options: StoreOptions,
) -> Result<Recovered, StoreError> {
    let detail = if start.damaged {
        "it was found damaged in an earlier life".to_owned()
    } else {
        match recover(Arc::clone(&disk), engines, start.clone(), options) {
            Err(StoreError::Damaged { detail }) => detail,
            recovered => return recovered,
        }
    };
    let StoreStart { shard, base: base_note, .. } = start;
    let effects = EffectLog::lost(disk, shard, &base_note, options.effect_file_bytes)?;
    let Redo { opened, table, .. } = Redo::new(&base_note, Below::Settled);
    let base = Base::lost(shard, base_note.generation, detail.clone());
    Ok(Recovered {
        base_note,
        base,
        table,
        effects,
        opened,
        effect_bytes: 0,
        interrupted: None,
        damage: Some(detail),
    })
}

/// Deletes what no manifest names, opens the base the WAL names, and does its effects again.
fn recover(
    disk: Arc<dyn Disk>,
    engines: &dyn EngineFactory,
    start: StoreStart,
    options: StoreOptions,
) -> Result<Recovered, StoreError> {
    let StoreStart { shard, base: base_note, merge, wal_last, damaged: _ } = start;
    let at = base_note.meta.last.index;
    if wal_last < at {
        return Err(damaged(format!("the base holds entries up to {at}, the WAL ends at {wal_last}")));
    }
    let current = base_note.generation.to_string();
    let generations = engines.list(&shard_dir(shard))?.into_iter().filter(|name| name.starts_with("gen-"));
    for name in generations.filter(|name| *name != current) {
        engines.remove(&shard_dir(shard).join(name))?;
    }
    let dir = generation_dir(shard, base_note.generation);
    let engine = open_engine(engines, &dir, at)?;
    let merge = merge.filter(|merge| merge.generation == base_note.generation && merge.to > at);
    let interrupted = merge.map(|merge| merge.to);
    let base = Base::new(engine, dir, base_note.generation, interrupted.unwrap_or(at));
    let effects_of = check_note(&base, &base_note, merge.as_ref())?;

    let below = if interrupted.is_some() { Below::Interrupted } else { Below::Settled };
    let mut redo = Redo::new(&base_note, below);
    let effects_start = EffectLogStart {
        shard,
        generation: effects_of,
        base: at,
        needed: interrupted.unwrap_or(at),
        wal_last,
        file_bytes_max: options.effect_file_bytes,
    };
    let effects = EffectLog::open(disk, &effects_start, &mut |entry, bytes| redo.entry(entry, bytes))?;
    let reached = redo.opened.applied.index;
    assert!(reached == effects.last(), "redo ended at {reached}, the effect log at {}", effects.last());
    if interrupted.is_some_and(|to| reached < to) {
        return Err(damaged(format!("a merge of {merge:?} was begun, the effects end at {reached}")));
    }
    let Redo { opened, table, effect_bytes, .. } = redo;
    Ok(Recovered { base_note, base, table, effects, opened, effect_bytes, interrupted, damage: None })
}

/// A base that holds nothing for certain is made if it is not there, and made anew if a crash left half of it: all its
/// rows are in the effects. Any other must be there.
fn open_engine(
    engines: &dyn EngineFactory,
    dir: &Path,
    base: LogIndex,
) -> Result<Arc<dyn Engine>, StoreError> {
    let new = base == LogIndex::ZERO;
    match engines.open(dir, new) {
        Err(EngineError::Damaged { detail }) if new => {
            tracing::warn!(%detail, dir = %dir.display(), "an empty base is made anew");
            engines.remove(dir)?;
            Ok(engines.open(dir, true)?)
        }
        opened => Ok(opened?),
    }
}

/// The base must say that it is what the WAL says, or what the merge under way would have made of it. Gives the
/// generation that began its effect log.
fn check_note(base: &Base, expected: &BaseNote, merge: Option<&MergeNote>) -> Result<Generation, StoreError> {
    let stored = base.note()?;
    let fits = match stored.as_ref().map(|stored| &stored.note) {
        None => expected.meta.last.index == LogIndex::ZERO,
        Some(note) if note.generation != expected.generation => false,
        Some(note) => note == expected || merge.is_some_and(|merge| note.meta.last.index == merge.to),
    };
    if !fits {
        return Err(damaged(format!("the base says {stored:?}, the WAL {expected:?}")));
    }
    Ok(stored.map_or(expected.generation, |stored| stored.effects))
}

fn damaged(detail: String) -> StoreError {
    StoreError::damaged(detail)
}

/// Does effects again, blindly: the state machine is not asked.
struct Redo {
    opened: Opened,
    table: Memtable,
    pins: PinSet,
    effect_bytes: u64,
}

impl Redo {
    fn new(base: &BaseNote, below: Below) -> Self {
        let opened = Opened {
            applied: base.meta.last,
            stamp: base.stamp,
            hash: base.hash,
            membership: base.meta.membership.clone(),
        };
        let position = Position { id: base.meta.last, stamp: base.stamp, hash: base.hash };
        Self { opened, table: Memtable::new(position, below), pins: PinSet::default(), effect_bytes: 0 }
    }

    fn entry(&mut self, entry: AppliedEntry, bytes: u64) {
        let AppliedEntry { id, stamp, membership, changes, hash } = entry;
        self.table.apply(Position { id, stamp, hash }, changes, &self.pins, usize::MAX);
        let membership = membership.unwrap_or_else(|| std::mem::take(&mut self.opened.membership));
        self.opened = Opened { applied: id, stamp, hash, membership };
        self.effect_bytes += bytes;
    }
}
