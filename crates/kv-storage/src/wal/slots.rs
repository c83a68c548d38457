//! Where the entries of a shard stand, in chunks: a log that grows by a million entries moves none of them, which would hold up the
//! write that it happens to.

use std::collections::VecDeque;

use super::state::Slot;

/// Slots of a chunk: 96 KiB.
const CHUNK: usize = 4096;

/// Slots, the oldest first.
///
/// # Invariants
/// Each chunk but the last is full, none is empty, and `gone` is less than the length of the first.
#[derive(Clone, Debug, Default)]
pub(super) struct Slots {
    chunks: VecDeque<Vec<Slot>>,
    /// Slots of the first chunk that are taken off.
    gone: usize,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        let full = self.chunks.len().saturating_sub(1) * CHUNK;
        full + self.chunks.back().map_or(0, Vec::len) - self.gone
    }

    pub(super) fn get(&self, no: usize) -> Option<&Slot> {
        let at = self.gone.checked_add(no)?;
        self.chunks.get(at / CHUNK)?.get(at % CHUNK)
    }

    pub(super) fn get_mut(&mut self, no: usize) -> Option<&mut Slot> {
        let at = self.gone.checked_add(no)?;
        self.chunks.get_mut(at / CHUNK)?.get_mut(at % CHUNK)
    }

    pub(super) fn back(&self) -> Option<&Slot> {
        self.chunks.back()?.last()
    }

    pub(super) fn back_mut(&mut self) -> Option<&mut Slot> {
        self.chunks.back_mut()?.last_mut()
    }

    pub(super) fn push_back(&mut self, slot: Slot) {
        match self.chunks.back_mut().filter(|last| last.len() < CHUNK) {
            Some(last) => last.push(slot),
            None => {
                let mut chunk = Vec::with_capacity(if self.chunks.is_empty() { 0 } else { CHUNK });
                chunk.push(slot);
                self.chunks.push_back(chunk);
            }
        }
    }

    pub(super) fn pop_back(&mut self) -> Option<Slot> {
        let slot = self.chunks.back_mut()?.pop();
        self.settle();
        slot
    }

    pub(super) fn pop_front(&mut self) -> Option<Slot> {
        let slot = *self.chunks.front()?.get(self.gone)?;
        self.gone += 1;
        self.settle();
        Some(slot)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// All slots from one on.
    pub(super) fn iter_from(&self, no: usize) -> impl Iterator<Item = &Slot> {
        let at = self.gone.saturating_add(no);
        let chunks = self.chunks.iter().skip(at / CHUNK).enumerate();
        chunks
            .flat_map(move |(n, chunk)| chunk.get(if n == 0 { at % CHUNK } else { 0 }..).unwrap_or_default())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Slot> {
        self.iter_from(0)
    }

    /// Lets a chunk go of which nothing is left.
    fn settle(&mut self) {
        if self.chunks.back().is_some_and(|last| self.chunks.len() > 1 && last.is_empty()) {
            self.chunks.pop_back();
        }
        if self.chunks.front().is_some_and(|first| self.gone >= first.len()) {
            self.chunks.pop_front();
            self.gone = 0;
        }
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut all = Self::default();
        slots.into_iter().for_each(|slot| all.push_back(slot));
        all
    }
}

#[cfg(test)]
mod tests {
    use kv_types::Term;
    use proptest::prelude::*;

    use super::super::layout::SegmentNo;
    use super::super::state::Position;
    use super::*;

    fn slot(no: u32) -> Slot {
        Slot { term: Term::new(1), at: Position { segment: SegmentNo::ZERO, offset: no, bytes: 0 } }
    }

    /// So many are added at the end, taken off there, or taken off in front.
    fn step() -> impl Strategy<Value = (u8, usize)> {
        let few = CHUNK / 2;
        let many =
            prop_oneof![0..3_usize, few - 1..few + 2, CHUNK - 1..CHUNK + 2, 2 * CHUNK - 1..2 * CHUNK + 2];
        (0..3_u8, many)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]
        #[test]
        fn they_are_as_a_deque(steps in prop::collection::vec(step(), 1..12)) {
            let (mut slots, mut deque, mut next) = (Slots::default(), VecDeque::new(), 0);
            for (what, many) in steps {
                for _ in 0..many {
                    match what {
                        0 => {
                            slots.push_back(slot(next));
                            deque.push_back(slot(next));
                            next += 1;
                        }
                        1 => prop_assert_eq!(slots.pop_back(), deque.pop_back()),
                        _ => prop_assert_eq!(slots.pop_front(), deque.pop_front()),
                    }
                    prop_assert_eq!((slots.len(), slots.back()), (deque.len(), deque.back()));
                    prop_assert_eq!(slots.get(0), deque.front());
                }
                for no in [0, 1, CHUNK - 1, CHUNK, deque.len().saturating_sub(1), deque.len(), usize::MAX] {
                    prop_assert_eq!(slots.get(no), deque.get(no));
                    prop_assert_eq!(slots.get_mut(no), deque.get_mut(no));
                    prop_assert!(slots.iter_from(no).eq(deque.iter().skip(no)));
                }
                prop_assert!(slots.clone().iter().copied().collect::<Slots>().iter().eq(deque.iter()));
            }
        }
    }
}
