//! One session of this client, as its calls use it: numbers that are given out, and which of them are still open.
//!
//! A shard refuses a number 256 or more above the smallest open one it was told of. This client tells it that number
//! rounded down to a multiple of 16: then a shard moves the session's floor, which costs it two rows, once in sixteen
//! writes. So the numbers that may be open at once are counted from the rounded one, too.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kv_types::limits::SESSION_WINDOW;
use kv_types::{ClusterTime, SessionId, SessionRequest};

/// Floors told are multiples of this.
const FLOOR_STEP: u64 = 16;

const _: () = assert!(FLOOR_STEP < SESSION_WINDOW && FLOOR_STEP.is_power_of_two(), "a step leaves room");

/// A session.
///
/// # Invariants
/// - a number is given out once;
/// - every open number is less than a window above the floor that is told. Asserted where numbers are given out.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) session: SessionId,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    next: u64,
    open: BTreeSet<u64>,
    lease_until: ClusterTime,
    /// When the newest lease was asked for, by two clocks: one misses what the other may have been set over.
    renewed: (Instant, SystemTime),
    dead: bool,
}

impl State {
    fn floor(&self) -> u64 {
        self.open.first().copied().unwrap_or(self.next) / FLOOR_STEP * FLOOR_STEP
    }

    fn room(&self) -> u64 {
        SESSION_WINDOW - (self.next - self.floor())
    }
}

impl Lane {
    /// A session that was asked for at `asked`.
    pub(crate) fn new(session: SessionId, lease_until: ClusterTime, asked: (Instant, SystemTime)) -> Self {
        let state = State { next: 1, open: BTreeSet::new(), lease_until, renewed: asked, dead: false };
        Self { session, state: Mutex::new(state) }
    }

    /// A new number; `None` if too many are open or the session is dead.
    pub(crate) fn begin(&self) -> Option<u64> {
        let mut state = self.lock();
        if state.dead || state.room() == 0 {
            return None;
        }
        let seq = state.next;
        state.next += 1;
        state.open.insert(seq);
        assert!(seq - state.floor() < SESSION_WINDOW, "{seq} is a window above {}", state.floor());
        Some(seq)
    }

    /// Whether a new number can be given out.
    pub(crate) fn has_room(&self) -> bool {
        let state = self.lock();
        !state.dead && state.room() > 0
    }

    /// The call with this number has its answer, or is given up; how many more numbers may be given out for it.
    pub(crate) fn end(&self, seq: u64) -> u64 {
        let mut state = self.lock();
        let before = state.room();
        state.open.remove(&seq);
        state.room() - before
    }

    /// What an attempt of the call with this number says about itself.
    pub(crate) fn request(&self, seq: u64) -> SessionRequest {
        let state = self.lock();
        let (session, lease_until) = (self.session, state.lease_until);
        SessionRequest { session, seq, first_incomplete: state.floor().min(seq), lease_until }
    }

    /// The lease was moved on, or the session is gone.
    pub(crate) fn renewed(&self, lease_until: Option<ClusterTime>, asked: (Instant, SystemTime)) {
        let mut state = self.lock();
        match lease_until {
            Some(lease_until) => {
                state.lease_until = state.lease_until.max(lease_until);
                state.renewed = asked;
            }
            None => state.dead = true,
        }
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.lock().dead
    }

    /// Whether the lease may be over: then the session is renewed before it is used.
    pub(crate) fn may_be_over(&self, ttl: Duration) -> bool {
        let (instant, system) = self.lock().renewed;
        // A clock set back says nothing.
        instant.elapsed() >= ttl || system.elapsed().is_ok_and(|elapsed| elapsed >= ttl)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics halfway through a change of it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Now, by both clocks.
pub(crate) fn clocks() -> (Instant, SystemTime) {
    (Instant::now(), SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane::new(SessionId::new(7), ClusterTime::ZERO, clocks())
    }

    #[test]
    fn numbers_are_given_out_until_the_window_is_full() {
        let lane = lane();
        let open: Vec<u64> = std::iter::from_fn(|| lane.begin()).collect();
        assert_eq!(open, (1..SESSION_WINDOW).collect::<Vec<_>>());
        assert_eq!(lane.request(200).first_incomplete, 0);
        assert_eq!((2..=200).map(|seq| lane.end(seq)).sum::<u64>(), 0, "the first one holds all others");
        assert_eq!((lane.begin(), lane.end(1)), (None, 192));
        assert_eq!(lane.begin(), Some(SESSION_WINDOW));
        let request = lane.request(SESSION_WINDOW);
        assert_eq!((request.session.get(), request.first_incomplete), (7, 192));
        for seq in 201..=SESSION_WINDOW {
            lane.end(seq);
        }
        let last = lane.begin().unwrap();
        assert!(lane.request(last).first_incomplete <= last);
    }

    #[test]
    fn a_dead_session_gives_no_numbers_and_an_old_lease_may_be_over() {
        let lane = lane();
        assert!(!lane.may_be_over(Duration::from_secs(60)) && lane.may_be_over(Duration::ZERO));
        let later = ClusterTime::from_ms(9).unwrap();
        lane.renewed(Some(later), clocks());
        lane.renewed(Some(ClusterTime::ZERO), clocks());
        let seq = lane.begin().unwrap();
        assert_eq!(lane.request(seq).lease_until, later, "a lease is never taken back");
        lane.renewed(None, clocks());
        assert!(lane.is_dead() && lane.begin().is_none());
    }
}
