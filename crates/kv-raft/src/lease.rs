//! Leader leases: a leader serves reads without a round for as long as no other one can be elected.
//!
//! A voter that answers an append has promised to give and request no vote for E of its own clock, from when it took
//! the append. The leader counts from *before* it handed the append out, on its own clock, and for less than E. Every
//! clock runs within `1 - rho` and `1 + rho` of real time, so the promise lasts `E / (1 + rho)` of real time at least,
//! and a lease of `L` lasts `L / (1 - rho)` at most: with `L <= E (1 - rho) / (1 + rho)` it ends first.
//!
//! No promise binds a voter that the leader itself asks to elect another, so the lease ends before such a wish leaves;
//! and since the wish may be held up in the network, no lease is taken again in that term.

use std::collections::VecDeque;
use std::time::Duration;

use kv_types::{Nanos, NodeId, Term};

/// How far a leader trusts clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// The bound on the rates of all clocks of the group, *rho*, in parts per million: each runs within `1 - rho` and
    /// `1 + rho` of real time.
    pub drift_ppm: u32,
    /// How coarse the clocks are: taken off every lease.
    pub granularity: Duration,
}

impl LeaseConfig {
    const MILLION: u128 = 1_000_000;

    /// Whether the bound leaves anything of a lease.
    pub(crate) fn is_sound(&self) -> bool {
        u128::from(self.drift_ppm) < Self::MILLION
    }

    /// How far the rates of two clocks may be apart before the leader trusts them no more: half the bound on each, so
    /// that a clock on its way out of bound is noticed.
    pub(crate) fn rate_bound_ppm(&self) -> u32 {
        self.drift_ppm / 2
    }

    /// How long a lease lasts after the round that earned it was begun, if voters promised `promise_ms`. Rounded down.
    pub fn length(&self, promise_ms: u32) -> Duration {
        let drift = u128::from(self.drift_ppm);
        let promise = Duration::from_millis(u64::from(promise_ms)).as_nanos();
        let length = promise.saturating_mul(Self::MILLION.saturating_sub(drift)) / (Self::MILLION + drift);
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        Duration::from_nanos(length).saturating_sub(self.granularity)
    }
}

/// The newest lease of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct LeaseUpdate {
    /// The term that the replica is in.
    pub term: Term,
    /// The lease is good while the replica's own clock shows less than this; zero is none.
    pub until: Nanos,
}

/// Why a replica has no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoLease {
    /// It is not asked to have one.
    Off,
    /// It does not lead.
    NotLeader,
    /// It has applied no entry of its term yet, and cannot know what was committed before.
    NothingApplied,
    /// It is handing its office over.
    Transferring,
    /// It has asked another replica of this term to campaign, and that wish may still be obeyed.
    HandedOver,
    /// The clock of this voter certainly runs too fast or too slow.
    ClockRate(NodeId),
    /// No quorum has answered a round that counts.
    Unconfirmed,
}

/// What a replica says of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The lease is good while the replica's own clock shows less than this; zero is none.
    pub until: Nanos,
    /// Why there is none.
    pub none: Option<NoLease>,
    /// The longest promise this replica ever gave to a leader, in milliseconds.
    pub promise_ms: u32,
    /// It gives and requests no vote before this, unless its leader wishes so.
    pub withhold_until: Nanos,
}

/// Rounds begun and not confirmed that are remembered; older ones are given up.
const ROUNDS_MAX: usize = 1024;

/// The lease of a leader.
///
/// # Invariants
/// Rounds ascend, and so do their stamps. A stamp was read before any message of its round was handed out.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// Rounds begun and not yet answered by a quorum, with the time.
    begun: VecDeque<(u64, Nanos)>,
    /// When the newest round that a quorum has answered, and that counts, was begun.
    confirmed: Option<Nanos>,
    /// Rounds before this one do not count: they were answered under other conditions.
    counts_from: u64,
    /// A wish to campaign has left.
    pub(crate) handed_over: bool,
    until: Nanos,
}

impl Lease {
    pub(crate) fn until(&self) -> Nanos {
        self.until
    }

    /// A round is begun, and nothing of it has been handed out yet.
    pub(crate) fn begin(&mut self, round: u64, now: Nanos) {
        if self.begun.len() == ROUNDS_MAX {
            self.begun.pop_front();
        }
        self.begun.push_back((round, now));
    }

    /// A quorum has answered `round`, and so every earlier one. `received` counts from the answer instead, which is
    /// wrong.
    pub(crate) fn confirm(&mut self, round: u64, received: Option<Nanos>) {
        while let Some((number, begun)) = self.begun.pop_front_if(|(number, _)| *number <= round) {
            if number >= self.counts_from {
                self.confirmed = Some(received.unwrap_or(begun));
            }
        }
    }

    /// Only rounds from `round` on count.
    pub(crate) fn restart(&mut self, round: u64) {
        self.counts_from = round;
        self.confirmed = None;
        self.end();
    }

    /// There is no lease at the moment.
    pub(crate) fn end(&mut self) {
        self.until = Nanos::default();
    }

    /// There is one, of this length.
    pub(crate) fn extend(&mut self, length: Duration) {
        if let Some(confirmed) = self.confirmed {
            self.until = self.until.max(confirmed.after(length));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUGH: LeaseConfig = LeaseConfig { drift_ppm: 10_000, granularity: Duration::from_millis(1) };

    #[test]
    fn the_length_keeps_the_bound_and_rounds_down() {
        // 500 ms * 0.99 / 1.01 = 490.099009.. ms.
        assert_eq!(ROUGH.length(500), Duration::from_nanos(489_099_009));
        let exact = LeaseConfig { drift_ppm: 0, granularity: Duration::ZERO };
        assert_eq!(exact.length(500), Duration::from_millis(500));
        assert_eq!(ROUGH.length(0), Duration::ZERO);
        assert_eq!(ROUGH.length(1), Duration::ZERO, "the granularity eats it up");
        let wild = LeaseConfig { drift_ppm: u32::MAX, ..ROUGH };
        assert!(!wild.is_sound());
        assert_eq!(wild.length(u32::MAX), Duration::ZERO);
    }

    #[test]
    fn a_lease_counts_from_the_start_of_the_newest_confirmed_round() {
        let mut lease = Lease::default();
        for (round, at) in [(1, 10), (2, 20), (3, 30)] {
            lease.begin(round, Nanos::new(at));
        }
        lease.extend(Duration::from_nanos(5));
        assert_eq!(lease.until(), Nanos::default(), "nothing is confirmed");
        lease.confirm(2, None);
        lease.extend(Duration::from_nanos(5));
        assert_eq!(lease.until(), Nanos::new(25));
        lease.confirm(1, None);
        lease.extend(Duration::from_nanos(5));
        assert_eq!(lease.until(), Nanos::new(25), "an older answer changes nothing");
    }

    #[test]
    fn rounds_from_before_a_restart_do_not_count() {
        let mut lease = Lease::default();
        lease.begin(1, Nanos::new(10));
        lease.begin(2, Nanos::new(20));
        lease.restart(3);
        lease.begin(3, Nanos::new(30));
        lease.confirm(2, None);
        lease.extend(Duration::from_nanos(5));
        assert_eq!(lease.until(), Nanos::default());
        lease.confirm(3, None);
        lease.extend(Duration::from_nanos(5));
        assert_eq!(lease.until(), Nanos::new(35));
    }

    #[test]
    fn forgotten_rounds_confirm_nothing() {
        let mut lease = Lease::default();
        for round in 0..=ROUNDS_MAX as u64 {
            lease.begin(round, Nanos::new(round));
        }
        lease.confirm(0, None);
        assert!(lease.confirmed.is_none());
        lease.confirm(1, None);
        assert!(lease.confirmed.is_some());
    }
}
