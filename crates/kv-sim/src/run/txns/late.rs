//! What clients have asked managers for is kept somewhere, and arrives again at any later time.

use std::time::Duration;

use kv_types::NodeId;
use rand::RngExt;

use super::super::{Happening, Run};
use super::Deed;
use super::calls::Letter;
use crate::party::owner;

/// Letters kept at the most; then they take each other's places.
const KEPT_MAX: usize = 400;

/// Letters that arrive once more at the very end.
const LAST_LETTERS: usize = 60;

impl Run {
    /// Keeps a copy of what a client has asked for.
    pub(super) fn keep_letter(&mut self, letter: &Letter) {
        let Some(txns) = self.txns.as_mut() else { return };
        let rng = &mut self.dice.txns;
        if rng.random_range(0..100) >= txns.plan.kept {
            return;
        }
        if txns.kept.len() < KEPT_MAX {
            txns.kept.push(letter.clone());
        } else if let Some(place) = txns.kept.get_mut(rng.random_range(0..KEPT_MAX)) {
            *place = letter.clone();
        }
    }

    /// Something arrives again that was asked for of late, or at any time.
    pub(super) fn ask_something_late(&mut self) {
        let Some(txns) = self.txns.as_mut() else { return };
        let late_ms = self.counting.as_ref().map_or(1000, |counting| counting.late_ms());
        let rng = &mut self.dice.txns;
        let pause = Duration::from_micros(rng.random_range(1..=4000 * late_ms));
        let len = txns.kept.len();
        let first = if rng.random_range(0..2) == 0 { len.saturating_sub(5) } else { 0 };
        let chosen = txns.kept.get(rng.random_range(first..len.max(first + 1))).cloned();
        // A prepare that comes late may lock keys once more, for as long as parts are left alone.
        if let Some(letter) = chosen.filter(|_| !txns.is_ending) {
            self.deliver_letter_again(letter);
        }
        self.after(pause, Happening::Txn(Deed::Late));
    }

    fn deliver_letter_again(&mut self, letter: Letter) {
        let Letter::Commit { caller, request, txn, .. } = letter else { return };
        if let Some(txns) = self.txns.as_mut() {
            txns.tally.late += 1;
        }
        let to: NodeId = self.seems_to_lead(owner(txn.anchor().as_ref()));
        self.letter_arrives(Letter::Commit { to, caller, request, txn });
    }

    /// All of it, long after the sessions were forgotten.
    pub(in crate::run) fn deliver_letters(&mut self) {
        let Some(txns) = self.txns.as_ref() else { return };
        let step = txns.kept.len().div_ceil(LAST_LETTERS).max(1);
        let chosen: Vec<Letter> = txns.kept.iter().step_by(step).cloned().collect();
        for letter in chosen {
            self.deliver_letter_again(letter);
            let soon = self.cluster.now.after(Duration::from_millis(2));
            self.run_until(soon, |_| false);
        }
    }
}
