//! What the WAL knows of each shard: its notes, and where its entries stand.

use std::collections::BTreeMap;

use kv_types::{Entry, HardState, LogId, LogIndex, Term};

use super::codec::{Encoded, Record, ShardNote};
use super::layout::SegmentNo;
use super::slots::Slots;
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
    pub(super) slots: Slots,
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
        let mut slots: Slots = (0..count).map(|_| Slot { term: Term::ZERO, at: Slot::UNMET }).collect();
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
            generation: self.base.generation,
            base: self.base.meta.last.index,
            start: self.start.index,
            last: self.start.index.plus(self.slots.len() as u64),
        }
    }

    pub(super) fn last(&self) -> LogId {
        let index = self.start.index.plus(self.slots.len() as u64);
        self.slots.back().map_or(self.start, |slot| LogId::new(slot.term, index))
    }

    /// Takes over the last entry's term from a manifest if the entry was not met yet: a truncation may have made any of
    /// those the last.
    pub(super) fn learn_last(&mut self, last: LogId) {
        let here = self.last();
        if let Some(slot) = self.slots.back_mut()
            && here.index == last.index
            && here.term == Term::ZERO
        {
            slot.term = last.term;
        }
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
            // A checkpoint that was under way when a snapshot took its generation's place says nothing any more.
            WalOp::MergeBegin(merge) if merge.generation != self.base.generation => {}
            WalOp::BaseAt(base) if base.generation != self.base.generation => {}
            WalOp::MergeBegin(merge) => self.merge = Some(*merge),
            WalOp::BaseAt(base) => {
                self.base = base.clone();
                self.merge = None;
            }
            WalOp::Regenerated(base) => {
                self.base = base.clone();
                self.merge = None;
                self.damaged = self.damaged.filter(|damaged| *damaged == base.generation);
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
    pub(super) generation: Generation,
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
                (self.start, self.base, self.generation) = (end, end, base.generation);
                self.last = if *keep_tail { self.last } else { end };
            }
            // Of a generation that a snapshot has replaced meanwhile: it concerns nothing that is left.
            WalOp::MergeBegin(merge) if merge.generation != self.generation => {}
            WalOp::BaseAt(base) if base.generation != self.generation => {}
            WalOp::MergeBegin(merge) => {
                ensure(merge.to <= self.last, "a merge reaches above the durable log")?;
            }
            WalOp::BaseAt(base) => {
                let at = base.meta.last.index;
                ensure(at <= self.last, "a base note lies above the durable log")?;
                ensure(at >= self.base, "a base note goes back")?;
                self.base = at;
            }
            WalOp::Regenerated(base) => {
                let at = base.meta.last.index;
                ensure(at <= self.last, "a rewritten base lies above the durable log")?;
                ensure(at >= self.base, "a rewritten base goes back")?;
                ensure(base.generation != self.generation, "a base is rewritten in its place")?;
                (self.base, self.generation) = (at, base.generation);
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
        ensure(hard.promise_ms >= self.hard.promise_ms, "the longest promise shrinks")?;
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use kv_types::{Body, Lamport};

    use super::*;

    fn entry(term: u64, index: u64) -> Entry {
        let id = LogId::new(Term::new(term), LogIndex::new(index));
        Entry { id, stamp: Lamport::ZERO, body: Body::Command(Bytes::new()) }
    }

    fn places(count: usize) -> Vec<Encoded> {
        (0..count).map(|no| Encoded { at: no * 50, bytes: 50 }).collect()
    }

    fn origin(segment: u32) -> Origin {
        Origin { segment: SegmentNo::new(segment), offset: 4096 }
    }

    /// Entries 1 to 3 of term 1 in segment 1.
    fn state() -> ShardState {
        let mut state = ShardState::default();
        let append = (1..=3).map(|index| entry(1, index)).collect();
        state.apply_op(&WalOp::Raft { hard: None, truncate_from: None, append }, origin(1), &places(3));
        state
    }

    #[test]
    fn a_copy_fills_places_of_its_term_and_changes_nothing_else() {
        let mut state = state();
        let append = vec![entry(2, 2)];
        let rewrite = WalOp::Raft { hard: None, truncate_from: Some(LogIndex::new(2)), append };
        state.apply_op(&rewrite, origin(2), &places(1));
        state.apply_copied(&[entry(1, 1), entry(1, 2), entry(1, 3)], origin(3), &places(3));
        let found: Vec<_> = state.slots.iter().map(|slot| (slot.term.get(), slot.at.segment.get())).collect();
        assert_eq!(found, [(1, 3), (2, 2)], "entry 1 moved, 2 has another term, 3 is gone");
        let held: Vec<_> = state.held.iter().map(|(no, held)| (no.get(), held.entries, held.bytes)).collect();
        assert_eq!(held, [(2, 1, 50), (3, 1, 50)]);
    }

    /// A checkpoint runs on a thread of its own, so its notes may reach the WAL behind the install of a snapshot.
    #[test]
    fn a_checkpoint_of_a_replaced_generation_changes_nothing() {
        let mut state = state();
        let note = |generation, term, index| {
            let mut base = BaseNote { generation: Generation::new(generation), ..BaseNote::default() };
            base.meta.last = entry(term, index).id;
            base
        };
        let install = WalOp::Install { hard: None, base: note(1, 1, 9), keep_tail: false };
        let merge = MergeNote { generation: Generation::new(0), from: LogIndex::ZERO, to: LogIndex::new(3) };
        assert_eq!(state.bounds().step(&install).map(|after| after.seq), Ok(2));
        state.apply_op(&install, origin(2), &[]);
        for late in [WalOp::MergeBegin(merge), WalOp::BaseAt(note(0, 1, 3))] {
            let (before, bounds) = (state.note(), state.bounds());
            assert_eq!(bounds.step(&late), Ok(Bounds { seq: bounds.seq + 1, ..bounds }), "{late:?}");
            state.apply_op(&late, origin(2), &[]);
            assert_eq!(state.note(), ShardNote { seq: before.seq + 1, ..before }, "{late:?}");
        }
    }

    #[test]
    fn every_rule_of_the_log_is_checked() {
        let hard = |term, vote| {
            Some(HardState {
                term: Term::new(term),
                vote: Some(kv_types::NodeId::new(vote)),
                ..HardState::default()
            })
        };
        let raft = |hard, from: Option<u64>, append| WalOp::Raft {
            hard,
            truncate_from: from.map(LogIndex::new),
            append,
        };
        let base = |index| {
            let mut base = BaseNote::default();
            base.meta.last = entry(1, index).id;
            base
        };
        let index = LogIndex::new;
        let (generation, hard_now) = (Generation::new(0), hard(3, 1).unwrap());
        let before =
            Bounds { seq: 9, hard: hard_now, generation, base: index(5), start: index(4), last: index(8) };
        let install = |index, keep_tail| WalOp::Install { hard: None, base: base(index), keep_tail };
        let merge = MergeNote { generation: Generation::new(0), from: index(5), to: index(9) };
        let rewritten = |index, generation| {
            WalOp::Regenerated(BaseNote { generation: Generation::new(generation), ..base(index) })
        };
        let broken = [
            raft(hard(2, 1), None, vec![]),
            raft(hard(3, 2), None, vec![]),
            raft(None, Some(4), vec![]),
            raft(None, Some(5), vec![]),
            raft(None, Some(10), vec![]),
            raft(None, None, vec![entry(3, 10)]),
            raft(None, None, vec![entry(4, 9)]),
            install(3, false),
            install(9, true),
            WalOp::MergeBegin(merge),
            WalOp::BaseAt(base(9)),
            WalOp::BaseAt(base(4)),
            rewritten(9, 1),
            rewritten(4, 1),
            rewritten(8, 0),
            WalOp::Compact(entry(1, 6).id),
        ];
        for op in broken {
            assert!(before.step(&op).is_err(), "{op:?}");
        }
        let sound = [
            (raft(hard(4, 2), Some(6), vec![entry(4, 6)]), (5, 4, 6)),
            (install(9, false), (9, 9, 9)),
            (install(8, true), (8, 8, 8)),
            (WalOp::BaseAt(base(8)), (8, 4, 8)),
            (rewritten(8, 1), (8, 4, 8)),
            (WalOp::Compact(entry(1, 5).id), (5, 5, 8)),
            (WalOp::Compact(entry(1, 1).id), (5, 4, 8)),
        ];
        for (op, (base, start, last)) in sound {
            let after = before.step(&op).unwrap();
            assert_eq!(
                (after.base, after.start, after.last),
                (index(base), index(start), index(last)),
                "{op:?}"
            );
        }
    }
}
