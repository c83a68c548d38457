//! Regeneration: the base rewritten into a new generation, because the engine never gives space back.
//!
//! It is a snapshot from oneself. The stream of a [`SnapshotSource`] goes into a [`SnapshotReceiver`] while merges go on;
//! every row is read back and compared with the state hash; then the effect log is followed, some entries at a time,
//! which must lead to the hash that the last of them names. Once it is close behind, the replica freezes its table and hands the
//! [`Checkpoint`](crate::Checkpoint) over ([`ShardStore::freeze_into`](crate::ShardStore::freeze_into)): instead of
//! being merged into the old base, the frozen rows are the last ones to be followed. Then the WAL names the new
//! generation, in one record, and the view with the new base is published. The old base is not touched at all, so
//! nobody who still reads it has to be waited for, and a crash finds either generation whole.

use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use kv_types::LogIndex;

use crate::base::Base;
use crate::effect_log::{EffectHold, EffectLog};
use crate::engine::EngineFactory;
use crate::notes::{BaseNote, Generation};
use crate::snapshot::{NetChanges, RowCheck, SnapshotError, SnapshotReceiver, SnapshotSource};
use crate::store_error::StoreError;

/// Bytes of values written in one step that follows effects.
const FOLLOW_BYTES: usize = 4 << 20;

/// Bytes of effects read at a time, and in such a step. A row that is overwritten again and again is written once a step,
/// as the engine gives nothing back: long ones written as often as they were changed would leave the file as long as it was.
const READ_BYTES: usize = 4 << 20;
const READ_BYTES_MAX: usize = 8 * READ_BYTES;

/// Rows counted in one step.
const COUNT_ROWS: usize = 4096;

/// Why a regeneration ended before its time. What it has written is removed when it is dropped.
#[derive(Debug, thiserror::Error)]
pub enum RegenerationError {
    /// A snapshot has become the base meanwhile.
    #[error("a snapshot has replaced the base that was being rewritten")]
    Replaced,
    /// The disk had no room for the effects that were still to be followed; the base in use is as it was.
    #[error("the effects to follow were given up, as the disk had no room for them: they begin at {first}")]
    Outrun {
        /// The first entry whose effects are still there.
        first: LogIndex,
    },
    /// The disk refused; the base in use is as it was.
    #[error("the new generation: {0}")]
    Io(std::io::Error),
    /// The base in use does not hold what it should, or what was written cannot be read back.
    #[error(transparent)]
    Damaged(StoreError),
}

impl From<StoreError> for RegenerationError {
    fn from(cause: StoreError) -> Self {
        match cause {
            StoreError::Io(cause) => Self::Io(cause),
            StoreError::Compacted { first } => Self::Outrun { first },
            cause @ StoreError::Damaged { .. } => Self::Damaged(cause),
        }
    }
}

impl From<SnapshotError> for RegenerationError {
    fn from(cause: SnapshotError) -> Self {
        match cause {
            SnapshotError::Store(cause) => cause.into(),
            cause @ (SnapshotError::Stream { .. } | SnapshotError::Hash { .. }) => {
                Self::Damaged(StoreError::damaged(cause.to_string()))
            }
        }
    }
}

/// What to do next with a regeneration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegenerationStep {
    /// Step again.
    Again,
    /// It holds all that was applied when the step began.
    CaughtUp,
}

/// A base on its way into a new generation. It belongs to the host's thread for long work; every step is short.
#[derive(Debug)]
pub struct Regeneration {
    receiver: SnapshotReceiver,
    effects: EffectLog,
    /// The generation that began the effect log: another one begins it anew, and ends this.
    effects_of: Generation,
    /// The last entry that is followed.
    upto: LogIndex,
    stage: Stage,
    /// Keeps the effects that are still to be followed.
    held: Option<EffectHold>,
}

#[derive(Debug)]
enum Stage {
    /// The stream flows.
    Copying(Box<SnapshotSource>),
    /// The rows are read back.
    Checking(RowCheck),
    /// The rows are sound, so many of them; effects are added.
    Following(u64),
}

impl Regeneration {
    /// Begins to rewrite the base that `source` streams into generation `generation`, which was never begun before.
    ///
    /// # Errors
    /// [`RegenerationError`] if that cannot be created.
    pub fn begin(
        source: SnapshotSource,
        engines: Arc<dyn EngineFactory>,
        generation: Generation,
    ) -> Result<Self, RegenerationError> {
        let receiver = SnapshotReceiver::new(engines, source.shard(), generation)?;
        let (effects, effects_of) = source.effects();
        let (upto, stage) = (LogIndex::new(u64::MAX), Stage::Copying(Box::new(source)));
        Ok(Self { receiver, effects, effects_of, upto, stage, held: None })
    }

    /// Whether all rows are there and only the effect log is followed.
    pub fn is_following(&self) -> bool {
        matches!(self.stage, Stage::Following(_))
    }

    /// Does a little: one chunk, one batch of rows or of effects, and at most one sync.
    ///
    /// # Errors
    /// [`RegenerationError`]; it is over then.
    pub fn step(&mut self) -> Result<RegenerationStep, RegenerationError> {
        let stepped = self.advance();
        // After the step: what a replaced log made of it is no damage.
        if !self.follows(&self.effects) {
            return Err(RegenerationError::Replaced);
        }
        Ok(stepped?)
    }

    fn advance(&mut self) -> Result<RegenerationStep, SnapshotError> {
        if let Some(held) = &self.held {
            held.check()?;
        }
        match &mut self.stage {
            Stage::Copying(source) => match source.next_chunk()? {
                Some(chunk) => self.receiver.push(&chunk)?,
                None => {
                    self.receiver.check_complete()?;
                    // Taken before the source, and with it its own hold, goes.
                    self.held = Some(self.effects.hold(self.receiver.note().meta.last.index.next()));
                    self.stage = Stage::Checking(RowCheck::new());
                }
            },
            Stage::Checking(check) => {
                if check.step(self.receiver.base())? {
                    self.stage = Stage::Following(self.receiver.compare(check)?);
                }
            }
            Stage::Following(rows) => {
                let upto = self.upto.min(self.effects.last());
                let (from, mut changes) = (self.receiver.note().hash, NetChanges::default());
                for _ in 0..READ_BYTES_MAX / READ_BYTES {
                    let next = self.receiver.note().meta.last.index.next();
                    if next > upto || changes.bytes() >= FOLLOW_BYTES {
                        break;
                    }
                    self.receiver.gather(self.effects.read(next, upto, READ_BYTES)?, &mut changes);
                }
                *rows = rows.saturating_add_signed(self.receiver.follow(from, &changes)?);
                let last = self.receiver.note().meta.last.index;
                self.held = Some(self.effects.hold(last.next()));
                if last >= upto {
                    return Ok(RegenerationStep::CaughtUp);
                }
            }
        }
        Ok(RegenerationStep::Again)
    }

    /// Whether the state is still the one that is being rewritten.
    pub(crate) fn follows(&self, effects: &EffectLog) -> bool {
        effects.generation() == self.effects_of
    }

    /// The rows of the new generation end with this entry.
    pub(crate) fn end_at(&mut self, upto: LogIndex) {
        let last = self.receiver.note().meta.last.index;
        assert!(last <= upto, "a regeneration that has followed {last} cannot end at {upto}");
        self.upto = upto;
    }

    /// Makes the new generation durable; `to` is what the replica holds at its end. Its note is for the WAL.
    pub(crate) fn seal(self, to: &BaseNote) -> Result<(BaseNote, Base), RegenerationError> {
        let generation = self.receiver.base().generation();
        let (expected, found) = (BaseNote { generation, ..to.clone() }, self.receiver.note());
        let found = BaseNote { generation, ..found.clone() };
        let Stage::Following(rows) = self.stage else {
            return Err(RegenerationError::Damaged(StoreError::damaged("sealed before it has caught up")));
        };
        if found != expected {
            let detail = format!("the rewritten base is at {found:?}, the rows are at {expected:?}");
            return Err(RegenerationError::Damaged(StoreError::damaged(detail)));
        }
        Ok(self.receiver.seal(rows, self.effects_of)?.into_parts())
    }
}

/// How large a base is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BaseSize {
    /// Length of its file.
    pub file_bytes: u64,
    /// Its rows.
    pub rows: u64,
    /// Length of the file when all rows had been written at once; zero if they never were. How compact the engine is
    /// depends on the rows, and a rewritten base is no shorter.
    pub fresh_file_bytes: u64,
    /// Rows at that time.
    pub fresh_rows: u64,
}

/// Counts the bytes of all keys and values of a base, step by step, on any thread.
#[derive(Debug)]
pub struct LiveBytes {
    base: Arc<Base>,
    after: Option<Bytes>,
    bytes: u64,
}

impl LiveBytes {
    pub(crate) fn new(base: Arc<Base>) -> Self {
        Self { base, after: None, bytes: 0 }
    }

    /// Looks at some rows; the sum, once that was all.
    ///
    /// # Errors
    /// [`StoreError`] if they cannot be read.
    pub fn step(&mut self) -> Result<Option<u64>, StoreError> {
        let from = self.after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        let (mut rows, mut last, mut bytes) = (0, None, 0);
        self.base.engine().visit(from, &mut |key, value| {
            bytes += (key.len() + value.len()) as u64;
            rows += 1;
            if rows < COUNT_ROWS {
                return ControlFlow::Continue(());
            }
            last = Some(Bytes::copy_from_slice(key));
            ControlFlow::Break(())
        })?;
        self.bytes += bytes;
        self.after = last;
        Ok(self.after.is_none().then_some(self.bytes))
    }
}
