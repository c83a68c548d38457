//! The sending side of a snapshot.

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

/// A shard's state as chunks. It holds effect files, on disk, and no memory; merges go on beside it.
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
    stage: Stage,
    /// Items not sent yet.
    pending: BytesMut,
    /// The number of the next chunk.
    number: u32,
    trailer: Trailer,
}

#[derive(Debug)]
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
        let pending = BytesMut::new();
        let effects_of = effects.generation();
        Self {
            shard,
            base,
            from,
            effects,
            effects_of,
            hold,
            stage: Stage::Header,
            pending,
            number: 0,
            trailer,
        }
    }

    /// The next chunk; `None` after the last.
    ///
    /// # Errors
    /// [`StoreError`] if the base or the effects cannot be read, or were replaced; [`StoreError::Compacted`] if the disk
    /// had no room for the effects that it held.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        while self.pending.len() < PAYLOAD_BYTES && !matches!(self.stage, Stage::Sent) {
            self.read_on()?;
        }
        if self.pending.is_empty() {
            return Ok(None);
        }
        let payload = self.pending.split_to(self.pending.len().min(PAYLOAD_BYTES));
        let chunk = chunk(self.number, &payload);
        self.number += 1;
        Ok(Some(chunk))
    }

    /// What the stream amounts to, once its last chunk was taken.
    pub fn trailer(&self) -> Option<&BaseNote> {
        (matches!(self.stage, Stage::Sent) && self.pending.is_empty()).then_some(&self.trailer.note)
    }

    pub(crate) fn shard(&self) -> ShardId {
        self.shard
    }

    /// The effect log, and the generation that had begun it when the stream was begun.
    pub(crate) fn effects(&self) -> (EffectLog, Generation) {
        (self.effects.clone(), self.effects_of)
    }

    fn read_on(&mut self) -> Result<(), StoreError> {
        self.hold.check()?;
        self.stage = match &self.stage {
            Stage::Header => {
                let mut note = Vec::new();
                put_base_note(&mut note, &self.from);
                put_item(&mut self.pending, Tag::Header, &[&self.shard.get().to_le_bytes(), &note]);
                Stage::Base(None)
            }
            Stage::Base(after) => match self.base_rows(after.clone())? {
                Some(after) => Stage::Base(Some(after)),
                None => self.base_ends()?,
            },
            Stage::Effects { next, upto } => self.effect_records(*next, *upto)?,
            Stage::Sent => Stage::Sent,
        };
        Ok(())
    }

    /// Adds rows of the engine; gives the last key, if more may follow it.
    fn base_rows(&mut self, after: Option<Bytes>) -> Result<Option<Bytes>, StoreError> {
        let from = after.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        for found in self.base.engine().scan(from, Bound::Unbounded) {
            let (key, value) = found?;
            if key == NOTE_KEY {
                continue;
            }
            unseal(&key, &value)?;
            let key_bytes = len_u32(key.len()).to_le_bytes();
            put_item(&mut self.pending, Tag::Row, &[&key_bytes, &key, &value]);
            self.trailer.rows += 1;
            if self.pending.len() >= PAYLOAD_BYTES {
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

    fn effect_records(&mut self, mut next: LogIndex, upto: LogIndex) -> Result<Stage, StoreError> {
        let entries = self.effects.read(next, upto, PAYLOAD_BYTES)?;
        if entries.is_empty() && next <= upto {
            return Err(StoreError::damaged(format!("the effect log ends before {upto}")));
        }
        for entry in entries {
            let mut body = Vec::new();
            entry.encode(&mut body);
            put_item(&mut self.pending, Tag::Effect, &[&body]);
            self.trailer.effects += 1;
            next = entry.id.index.next();
            let note = &mut self.trailer.note;
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
        put_item(&mut self.pending, Tag::Trailer, &[&self.trailer.encode()]);
        Ok(Stage::Sent)
    }
}
