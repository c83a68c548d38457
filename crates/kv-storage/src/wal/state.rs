//! What the WAL knows of each shard: its notes, and where its entries stand.

use std::collections::{BTreeMap, VecDeque};

use kv_types::{Entry, HardState, LogId, LogIndex, Term};

use super::codec::{Encoded, Record, ShardNote};
use super::layout::SegmentNo;
use crate::{BaseNote, Generation, MergeNote, WalOp};

/// Where an entry stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Position {
    pub(super) segment: SegmentNo,
    pub(super) offset: u32,
    pub(super) bytes: u32,
}

/// An entry of the log; 24 bytes each, so that a log of a million small entries costs 24 MB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Slot {
    pub(super) term: Term,
    /// `SegmentNo::ZERO` while recovery has not met the entry: its segment is gone and its copy still to come.
    pub(super) at: Position,
}

impl Slot {
    const UNMET: Position = Position { segment: SegmentNo::ZERO, offset: 0, bytes: 0 };

    pub(super) fn is_met(&self) -> bool {
        self.at.segment != SegmentNo::ZERO
    }
}

/// What a segment holds of a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Held {
    pub(super) entries: u64,
    pub(super) bytes: u64,
}

/// One shard.
///
/// # Invariants
/// - `slots` are the entries after `start`, without a hole.
/// - `held` sums up the slots by segment; no sum is zero.
/// - `base` never lies below `start` nor above the last entry: [`Bounds::step`].
#[derive(Clone, Debug, Default)]
pub(super) struct ShardState {
    pub(super) seq: u64,
    pub(super) hard: HardState,
    pub(super) base: BaseNote,
    pub(super) merge: Option<MergeNote>,
    pub(super) damaged: Option<Generation>,
    pub(super) start: LogId,
    pub(super) slots: VecDeque<Slot>,
    pub(super) held: BTreeMap<SegmentNo, Held>,
}

/// Where the entries of a record were written: the segment, and the group's offset in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) segment: SegmentNo,
    pub(super) offset: u64,
}

impl Origin {
    fn position(self, place: Encoded) -> Position {
        let offset = u32::try_from(self.offset + place.at as u64).expect("a segment is shorter than 4 GiB");
        Position { segment: self.segment, offset, bytes: place.bytes }
    }
}

impl ShardState {
    /// The state a manifest describes; none of its entries has been met.
    pub(super) fn of_note(note: &ShardNote) -> Self {
        let count = note.last.index.since(note.start.index);
        let mut slots: VecDeque<Slot> =
            (0..count).map(|_| Slot { term: Term::ZERO, at: Slot::UNMET }).collect();
        if let Some(last) = slots.back_mut() {
            last.term = note.last.term;
        }
        Self {
            seq: note.seq,
            hard: note.hard,
            base: note.base.clone(),
            merge: note.merge,
            damaged: note.damaged,
            start: note.start,
            slots,
            held: BTreeMap::new(),
        }
    }

    /// What a manifest says about this state.
    pub(super) fn note(&self) -> ShardNote {
        ShardNote {
            seq: self.seq,
            hard: self.hard,
            base: self.base.clone(),
            merge: self.merge,
            damaged: self.damaged,
            start: self.start,
            last: self.last(),
        }
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds {
            seq: self.seq,
            hard: self.hard,
            base: self.base.meta.last.index,
            start: self.start.index,
            last: self.start.index.plus(self.slots.len() as u64),
        }
    }

    pub(super) fn last(&self) -> LogId {
        let index = self.start.index.plus(self.slots.len() as u64);
        self.slots.back().map_or(self.start, |slot| LogId::new(slot.term, index))
    }

    fn slot_no(&self, index: LogIndex) -> Option<usize> {
        let first = self.start.index.next();
        (index >= first).then(|| usize::try_from(index.since(first)).unwrap_or(usize::MAX))
    }

    pub(super) fn slot(&self, index: LogIndex) -> Option<&Slot> {
        self.slots.get(self.slot_no(index)?)
    }

    /// Takes a record over; [`Bounds::step`] has accepted it.
    pub(super) fn apply(&mut self, record: &Record, origin: Origin, places: &[Encoded]) {
        match record {
            Record::Op(op) => self.apply_op(op, origin, places),
            Record::Copied(entries) => self.apply_copied(entries, origin, places),
        }
    }

    pub(super) fn apply_op(&mut self, op: &WalOp, origin: Origin, places: &[Encoded]) {
        self.seq += 1;
        match op {
            WalOp::Raft { hard, truncate_from, append } => {
                self.hard = hard.unwrap_or(self.hard);
                if let Some(from) = truncate_from {
                    self.truncate(*from);
                }
                for (entry, place) in append.iter().zip(places) {
                    self.push(entry.id.term, origin.position(*place));
                }
            }
            WalOp::Install { hard, base, keep_tail } => {
                self.hard = hard.unwrap_or(self.hard);
                if !keep_tail {
                    self.slots.clear();
                    self.held.clear();
                }
                self.compact(base.meta.last);
                self.base = base.clone();
                self.merge = None;
                self.damaged = self.damaged.filter(|damaged| *damaged == base.generation);
            }
            WalOp::MergeBegin(merge) => self.merge = Some(*merge),
            WalOp::BaseAt(base) => {
                self.base = base.clone();
                self.merge = None;
            }
            WalOp::Compact(id) => self.compact(*id),
            WalOp::Damaged(generation) => self.damaged = Some(*generation),
        }
    }

    /// Moves entries to their copies; an entry that is gone or has another term stays as it is.
    pub(super) fn apply_copied(&mut self, entries: &[Entry], origin: Origin, places: &[Encoded]) {
        self.seq += 1;
        for (entry, place) in entries.iter().zip(places) {
            let Some(no) = self.slot_no(entry.id.index) else { continue };
            let Some(slot) = self.slots.get_mut(no) else { continue };
            if slot.term == entry.id.term || slot.term == Term::ZERO {
                let old = std::mem::replace(slot, Slot { term: entry.id.term, at: origin.position(*place) });
                let new = slot.at;
                self.let_go(old);
                self.hold(new);
            }
        }
    }

    fn push(&mut self, term: Term, at: Position) {
        self.slots.push_back(Slot { term, at });
        self.hold(at);
    }

    fn hold(&mut self, at: Position) {
        let held = self.held.entry(at.segment).or_default();
        held.entries += 1;
        held.bytes += u64::from(at.bytes);
    }

    fn let_go(&mut self, slot: Slot) {
        if !slot.is_met() {
            return;
        }
        let held = self.held.get_mut(&slot.at.segment).expect("every slot that was met is counted");
        held.entries -= 1;
        held.bytes -= u64::from(slot.at.bytes);
        if held.entries == 0 {
            self.held.remove(&slot.at.segment);
        }
    }

    fn truncate(&mut self, from: LogIndex) {
        let keep = self.slot_no(from).unwrap_or(0);
        while self.slots.len() > keep {
            if let Some(slot) = self.slots.pop_back() {
                self.let_go(slot);
            }
        }
    }

    /// Begins the log after `upto`; entries up to there go, if they are not gone already.
    fn compact(&mut self, upto: LogId) {
        if upto.index < self.start.index {
            return;
        }
        for _ in 0..upto.index.since(self.start.index) {
            match self.slots.pop_front() {
                Some(slot) => self.let_go(slot),
                None => break,
            }
        }
        self.start = upto;
    }
}

/// The numbers a record is checked against. Small, so that a whole group is checked before any of it is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Bounds {
    pub(super) seq: u64,
    pub(super) hard: HardState,
    pub(super) base: LogIndex,
    pub(super) start: LogIndex,
    pub(super) last: LogIndex,
}

impl Bounds {
    /// The bounds after `op`.
    ///
    /// # Errors
    /// What rule of the log `op` breaks.
    pub(super) fn step(mut self, op: &WalOp) -> Result<Self, &'static str> {
        self.seq += 1;
        match op {
            WalOp::Raft { hard, truncate_from, append } => {
                self.take_hard(*hard)?;
                if let Some(from) = truncate_from {
                    ensure(*from > self.start, "a truncation reaches below the log's start")?;
                    ensure(*from > self.base, "a truncation reaches into the base")?;
                    ensure(*from <= self.last.next(), "a truncation begins behind the log's end")?;
                    self.last = from.prev();
                }
                self.append(append)?;
            }
            WalOp::Install { hard, base, keep_tail } => {
                self.take_hard(*hard)?;
                let end = base.meta.last.index;
                ensure(end >= self.start, "a snapshot ends below the log's start")?;
                ensure(
                    !keep_tail || end <= self.last,
                    "a snapshot keeps a tail that the log does not reach",
                )?;
                (self.start, self.base) = (end, end);
                self.last = if *keep_tail { self.last } else { end };
            }
            WalOp::MergeBegin(merge) => {
                ensure(merge.to <= self.last, "a merge reaches above the durable log")?;
            }
            WalOp::BaseAt(base) => {
                let at = base.meta.last.index;
                ensure(at <= self.last, "a base note lies above the durable log")?;
                ensure(at >= self.base, "a base note goes back")?;
                self.base = at;
            }
            WalOp::Compact(id) => {
                ensure(id.index <= self.base, "a compaction reaches above the base")?;
                self.start = self.start.max(id.index);
            }
            WalOp::Damaged(_) => {}
        }
        Ok(self)
    }

    fn take_hard(&mut self, hard: Option<HardState>) -> Result<(), &'static str> {
        let Some(hard) = hard else { return Ok(()) };
        ensure(hard.term >= self.hard.term, "the term goes back")?;
        let same_vote = self.hard.vote.is_none() || hard.vote == self.hard.vote;
        ensure(hard.term > self.hard.term || same_vote, "the vote of a term changes")?;
        self.hard = hard;
        Ok(())
    }

    fn append(&mut self, entries: &[Entry]) -> Result<(), &'static str> {
        for entry in entries {
            ensure(entry.id.index == self.last.next(), "an entry does not follow the log's end")?;
            ensure(entry.id.term <= self.hard.term, "an entry has a later term than the hard state")?;
            self.last = entry.id.index;
        }
        Ok(())
    }
}

fn ensure(holds: bool, rule: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(rule) }
}
