//! The retry budget: retries stay a small part of the load, however many calls fail.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Retries that may be made at once after a quiet time: a change of the leader fails all calls in flight together.
const RESERVE: f64 = 256.0;

/// What each call adds. Below a tenth, so that with the trickle a steady failure adds no more than a tenth to the load.
const PER_CALL: f64 = 1.0 / 12.0;

/// Retries of a client that calls rarely.
const TRICKLE: Duration = Duration::from_millis(100);

/// The trickle fills up to this many.
const TRICKLE_MAX: f64 = 10.0;

/// Tokens for retries; each takes one.
#[derive(Debug)]
pub(crate) struct Budget(Mutex<Tokens>);

#[derive(Debug)]
struct Tokens {
    left: f64,
    filled: Instant,
}

impl Budget {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Tokens { left: RESERVE, filled: now }))
    }

    /// A call begins.
    pub(crate) fn deposit(&self) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.left = (tokens.left + PER_CALL).min(RESERVE);
    }

    /// A retry was not made: there was nobody to ask.
    pub(crate) fn give_back(&self) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.left = (tokens.left + 1.0).min(RESERVE);
    }

    /// Whether a retry may be made now.
    pub(crate) fn withdraw(&self, now: Instant) -> bool {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let grown = now.saturating_duration_since(tokens.filled).div_duration_f64(TRICKLE);
        tokens.filled = now;
        if tokens.left < TRICKLE_MAX {
            tokens.left = (tokens.left + grown).min(TRICKLE_MAX);
        }
        let granted = tokens.left >= 1.0;
        if granted {
            tokens.left -= 1.0;
        }
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_steady_failure_retries_are_a_tenth_of_the_calls() {
        let start = Instant::now();
        let budget = Budget::new(start);
        while budget.withdraw(start) {}
        let mut retries = 0;
        // A thousand calls a second for a minute, each of which asks for three retries.
        for call in 0..60_000 {
            budget.deposit();
            let now = start + Duration::from_millis(call);
            retries += (0..3).filter(|_| budget.withdraw(now)).count();
        }
        assert!((5_000..=6_000).contains(&retries), "{retries}");
    }

    #[test]
    fn a_rare_caller_may_always_try_again() {
        let start = Instant::now();
        let budget = Budget::new(start);
        while budget.withdraw(start) {}
        let later = start + Duration::from_millis(250);
        assert!(budget.withdraw(later) && budget.withdraw(later) && !budget.withdraw(later));
        let much_later = later + Duration::from_secs(60);
        assert_eq!((0..100).filter(|_| budget.withdraw(much_later)).count(), 10);
    }
}
