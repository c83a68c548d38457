//! Which configurations have been entered.

use super::{FixedMap, StateNumber};

/// The operations that are placed, as bits: those that returned and those that are open apart.
#[derive(Debug)]
pub(super) struct Placed {
    /// For each operation whether it returned, and its number among its like, in the order of their calls.
    slots: Vec<(bool, usize)>,
    returned: Bits,
    open: Bits,
}

/// Bits that are mostly one below a moving window and zero above it.
///
/// # Invariants
///
/// - All words below `low` are full, and all from `high` on are zero.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    low: usize,
    high: usize,
}

impl Bits {
    fn new(count: usize) -> Self {
        Self { words: vec![0; count.div_ceil(64)], low: 0, high: 0 }
    }

    fn insert(&mut self, number: usize) {
        let at = number / 64;
        self.words.get_mut(at).into_iter().for_each(|word| *word |= 1 << (number % 64));
        self.high = self.high.max(at + 1);
        while self.words.get(self.low) == Some(&u64::MAX) {
            self.low += 1;
        }
    }

    fn remove(&mut self, number: usize) {
        let at = number / 64;
        self.words.get_mut(at).into_iter().for_each(|word| *word &= !(1 << (number % 64)));
        self.low = self.low.min(at);
        while self.high > 0 && self.words.get(self.high - 1) == Some(&0) {
            self.high -= 1;
        }
    }

    /// The words of the window. With `low` they tell the whole set.
    fn window(&self) -> &[u64] {
        self.words.get(self.low..self.high).unwrap_or_default()
    }
}

impl Placed {
    /// None of the operations, of which it is said whether they returned.
    pub(super) fn new(returned: impl Iterator<Item = bool>) -> Self {
        let mut counts = [0, 0];
        let slots: Vec<_> = returned
            .map(|returned| {
                let [open, done] = &mut counts;
                let count = if returned { done } else { open };
                *count += 1;
                (returned, *count - 1)
            })
            .collect();
        let [open, done] = counts;
        Self { slots, returned: Bits::new(done), open: Bits::new(open) }
    }

    pub(super) fn insert(&mut self, operation: usize) {
        match self.slots.get(operation) {
            Some((true, number)) => self.returned.insert(*number),
            Some((false, number)) => self.open.insert(*number),
            None => {}
        }
    }

    pub(super) fn remove(&mut self, operation: usize) {
        match self.slots.get(operation) {
            Some((true, number)) => self.returned.remove(*number),
            Some((false, number)) => self.open.remove(*number),
            None => {}
        }
    }
}

/// A set of open operations: the words up to the last that is not zero.
type OpenSet = Box<[u64]>;

/// The configurations that have been entered.
///
/// The key is the whole configuration but for the open operations, so that equal hashes of different ones do no harm.
/// The value is the sets of open operations it was entered with, none of which holds another.
#[derive(Debug, Default)]
pub(super) struct Memo {
    entered: FixedMap<Box<[u64]>, Vec<OpenSet>>,
    count: usize,
    key: Vec<u64>,
}

impl Memo {
    /// Notes the configuration. False if it, or one with fewer open operations, is known already.
    pub(super) fn enter(&mut self, state: StateNumber, placed: &Placed) -> bool {
        self.key.clear();
        self.key.extend([u64::from(state), placed.returned.low as u64]);
        self.key.extend(placed.returned.window());
        let open = placed.open.words.get(..placed.open.high).unwrap_or_default();
        let Some(known) = self.entered.get_mut(self.key.as_slice()) else {
            self.entered.insert(self.key.as_slice().into(), vec![open.into()]);
            self.count += 1;
            return true;
        };
        if known.iter().any(|known| is_within(known, open)) {
            return false;
        }
        let before = known.len();
        known.retain(|known| !is_within(open, known));
        known.push(open.into());
        self.count = self.count + known.len() - before;
        true
    }

    /// How many configurations are remembered.
    pub(super) fn len(&self) -> usize {
        self.count
    }
}

/// Whether every bit of the first set is in the second.
fn is_within(first: &[u64], second: &[u64]) -> bool {
    first.iter().enumerate().all(|(at, word)| word & !second.get(at).copied().unwrap_or_default() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_follows_what_is_placed() {
        let mut bits = Bits::new(200);
        for number in 0..130 {
            bits.insert(number);
        }
        assert_eq!((bits.low, bits.window()), (2, [0b11].as_slice()));
        bits.remove(129);
        bits.remove(128);
        assert_eq!((bits.low, bits.window()), (2, [].as_slice()));
        bits.remove(3);
        assert_eq!((bits.low, bits.window()), (0, [!8, u64::MAX].as_slice()));
    }

    #[test]
    fn a_configuration_is_entered_once() {
        let mut placed = Placed::new([true, true, false].into_iter());
        let mut memo = Memo::default();
        placed.insert(0);
        assert!(memo.enter(7, &placed));
        assert!(!memo.enter(7, &placed), "the same again");
        assert!(memo.enter(8, &placed), "another state");
        placed.insert(1);
        assert!(memo.enter(7, &placed), "more placed");
        assert_eq!(memo.len(), 3);
    }

    #[test]
    fn the_same_window_elsewhere_is_another_configuration() {
        let mut placed = Placed::new((0..200).map(|_| true));
        let mut memo = Memo::default();
        (0..64).for_each(|number| placed.insert(number));
        assert!(memo.enter(1, &placed));
        (64..128).for_each(|number| placed.insert(number));
        assert!(memo.enter(1, &placed), "both windows are empty");
        placed.insert(130);
        assert!(memo.enter(1, &placed));
    }

    #[test]
    fn fewer_open_operations_are_better() {
        let mut placed = Placed::new([false, false, true].into_iter());
        let mut memo = Memo::default();
        placed.insert(2);
        placed.insert(0);
        assert!(memo.enter(1, &placed));
        placed.insert(1);
        assert!(!memo.enter(1, &placed), "one with fewer is known");
        placed.remove(0);
        assert!(memo.enter(1, &placed), "another open operation");
        placed.remove(1);
        assert!(memo.enter(1, &placed), "none at all");
        assert_eq!(memo.len(), 1, "it stands for all the others");
    }
}
