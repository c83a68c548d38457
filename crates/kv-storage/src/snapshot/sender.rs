//! The sending side of a snapshot.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use kv_types::{LogIndex, ShardId};

use super::frame::{PAYLOAD_BYTES, Tag, Trailer, chunk, put_item};
use crate::base::Base;
use crate::chunks::{NOTE_KEY, unseal};
use crate::effect_log::{EffectHold, EffectLog};
use crate::encoding::{len_u32, put_base_note};
use crate::notes::{BaseNote, Generation};
use crate::store_error::StoreError;

/// A shard's state as chunks. It holds effect files, on disk, and hardly any memory; merges go on beside it.
///
/// # Rewinding
///
/// A source that is [`rewindable`](SnapshotSource::rewindable) can give chunks anew from one that it gave out lately,
/// for a receiver that has taken in all chunks before that one and nothing of it or of any later one. The chunks need
/// not be the same: rows that a merge has touched meanwhile are read as they are now. That is as good, because to such a
/// receiver the source is one that has paused at this place. Rows read later are rows of any moment since note b, as
/// they always were; the effects (b, e], which are held for as long as the source lives, set every row that was
/// caught halfway; and e is found after the last row was read, the last time it is read. Only an item that lies in
/// two chunks must go on as it began, which is why a cursor keeps what was read and not given out.
///
/// # Invariants
/// - A cursor is the source as it was before the chunk of its number; cursors ascend without a gap up to `at`.
#[derive(Debug)]
pub struct SnapshotSource {
    shard: ShardId,
    base: Arc<Base>,
    from: BaseNote,
    effects: EffectLog,
    /// The generation that began the effect log.
    effects_of: Generation,
    /// Keeps the effects after `from` from being purged.
    hold: EffectHold,
    at: Cursor,
    /// The places to which it can go back, the oldest first.
    cursors: VecDeque<Cursor>,
    cursors_max: usize,
}

/// A place in the stream, between two chunks.
#[derive(Debug, Clone)]
struct Cursor {
    /// The number of the next chunk.
    number: u32,
    stage: Stage,
    /// What was read and not given out.
    pending: Bytes,
    trailer: Trailer,
}

#[derive(Debug, Clone)]
enum Stage {
    Header,
    /// Rows of the engine after a key.
    Base(Option<Bytes>),
    /// Effects from the next one on, up to the last.
    Effects {
        next: LogIndex,
        upto: LogIndex,
    },
    Sent,
}

impl SnapshotSource {
    pub(crate) fn new(shard: ShardId, base: Arc<Base>, from: BaseNote, effects: EffectLog) -> Self {
        let hold = effects.hold(from.meta.last.index.next());
        let trailer = Trailer { note: from.clone(), rows: 0, effects: 0 };
        let effects_of = effects.generation();
        let at = Cursor { number: 0, stage: Stage::Header, pending: Bytes::new(), trailer };
        Self { shard, base, from, effects, effects_of, hold, at, cursors: VecDeque::new(), cursors_max: 0 }
    }

    /// The same, able to go back by so many chunks. Each of them costs the memory of what was read and not yet given
    /// out: usually half a row, at most a chunk, and an effect record that is longer than a chunk once.
    #[must_use]
    pub fn rewindable(self, chunks: usize) -> Self {
        Self { cursors_max: chunks, ..self }
    }

    /// The next chunk; `None` after the last.
    ///
    /// # Errors
    /// [`StoreError`] if the base or the effects cannot be read, or were replaced; [`StoreError::Compacted`] if the disk
    /// had no room for the effects that it held.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        self.remember();
        if self.at.pending.len() < PAYLOAD_BYTES {
            let mut read = BytesMut::from(&self.at.pending[..]);
            while read.len() < PAYLOAD_BYTES && !matches!(self.at.stage, Stage::Sent) {
                if let Err(cause) = self.read_on(&mut read) {
                    // What another log in the place of this one makes of it is no damage.
                    let is_replaced = self.effects.generation() != self.effects_of;
                    let gone = || StoreError::Compacted { first: self.effects.first() };
                    return Err(if is_replaced { gone() } else { cause });
                }
            }
            self.at.pending = read.freeze();
        }
        let pending = &mut self.at.pending;
        if pending.is_empty() {
            return Ok(None);
        }
        let payload = pending.split_to(pending.len().min(PAYLOAD_BYTES));
        let chunk = chunk(self.at.number, &payload);
        if pending.len() < PAYLOAD_BYTES {
            // A short rest does not keep the memory of all that was read with it.
            *pending = Bytes::copy_from_slice(pending);
        }
        self.at.number += 1;
        Ok(Some(chunk))
    }

    /// Goes back, so that the next chunk is the one with this number; `false`, and nothing changes, if that is not
    /// possible: it lies further back than cursors are kept, or has not been given out.
    pub fn rewind(&mut self, number: u32) -> bool {
        match self.cursors.iter().position(|cursor| cursor.number == number) {
            Some(found) => {
                self.cursors.truncate(found + 1);
                if let Some(cursor) = self.cursors.pop_back() {
                    self.at = cursor;
                }
                true
            }
            None => self.at.number == number,
        }
    }

    fn remember(&mut self) {
        if self.cursors_max == 0 {
            return;
        }
        if self.cursors.back().is_none_or(|newest| newest.number < self.at.number) {
            if self.cursors.len() == self.cursors_max {
                self.cursors.pop_front();
            }
            self.cursors.push_back(self.at.clone());
        }
    }

    /// What the stream amounts to, once its last chunk was taken.
    pub fn trailer(&self) -> Option<&BaseNote> {
        let all = matches!(self.at.stage, Stage::Sent) && self.at.pending.is_empty();
        all.then_some(&self.at.trailer.note)
    }

    /// The life of the base that is streamed.
    pub fn generation(&self) -> Generation {
        self.from.generation
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.shard
    }

    /// The effect log, and the generation that had begun it when the stream was begun.
    pub(crate) fn effects(&self) -> (EffectLog, Generation) {
        (self.effects.clone(), self.effects_of)
    }

    fn read_on(&mut self, read: &mut BytesMut) -> Result<(), StoreError> {
        self.hold.check()?;
        self.at.stage = match &self.at.stage {
            Stage::Header => {
                let mut note = Vec::new();
                put_base_note(&mut note, &self.from);
                put_item(read, Tag::Header, &[&self.shard.get().to_le_bytes(), &note]);
                Stage::Base(None)
            }
            Stage::Base(after) => match self.base_rows(after.clone(), read)? {
                Some(after) => Stage::Base(Some(after)),
                None => self.base_ends()?,
            },
            Stage::Effects { next, upto } => self.effect_records(*next, *upto, read)?,
            Stage::Sent => Stage::Sent,
        };
        Ok(())
    }

    /// Adds rows of the engine; gives the last key, if more may follow it.
    fn base_rows(&mut self, after: Option<Bytes>, read: &mut BytesMut) -> Result<Option<Bytes>, StoreError> {
        let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        for found in self.base.engine().scan(from, Bound::Unbounded) {
            let (key, value) = found?;
            if key == NOTE_KEY {
                continue;
            }
            unseal(&key, &value)?;
            let key_bytes = len_u32(key.len()).to_le_bytes();
            put_item(read, Tag::Row, &[&key_bytes, &key, &value]);
            self.at.trailer.rows += 1;
            if read.len() >= PAYLOAD_BYTES {
                return Ok(Some(key));
            }
        }
        Ok(None)
    }

    /// Fixes e. Effects that end below a merge of this base are those of another generation, installed meanwhile.
    fn base_ends(&self) -> Result<Stage, StoreError> {
        let (merging_to, upto) = (self.base.merging_to(), self.effects.last());
        if upto < merging_to {
            return Err(StoreError::Compacted { first: self.effects.first() });
        }
        Ok(Stage::Effects { next: self.from.meta.last.index.next(), upto })
    }

    fn effect_records(
        &mut self,
        mut next: LogIndex,
        upto: LogIndex,
        read: &mut BytesMut,
    ) -> Result<Stage, StoreError> {
        let entries = self.effects.read(next, upto, PAYLOAD_BYTES)?;
        if entries.is_empty() && next <= upto {
            return Err(StoreError::damaged(format!("the effect log ends before {upto}")));
        }
        for entry in entries {
            let mut body = Vec::new();
            entry.encode(&mut body);
            put_item(read, Tag::Effect, &[&body]);
            self.at.trailer.effects += 1;
            next = entry.id.index.next();
            let note = &mut self.at.trailer.note;
            note.meta.last = entry.id;
            note.stamp = entry.stamp;
            note.hash = entry.hash;
            if let Some(membership) = entry.membership {
                note.meta.membership = membership;
            }
        }
        if next <= upto {
            return Ok(Stage::Effects { next, upto });
        }
        put_item(read, Tag::Trailer, &[&self.at.trailer.encode()]);
        Ok(Stage::Sent)
    }
}
