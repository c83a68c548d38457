//! How far the merges of a node are behind, and at which rate its leaders take writes meanwhile.
//!
//! Writes that go on at full speed until the log or the memtables are full are then all refused until a merge ends, for
//! seconds. So merges hurry in time, and if that is not enough, writes are slowed down: the further merges are behind,
//! the less of the rate before is let through, down to the rate at which merges keep up. A write waits for its turn, or
//! is refused if that is more than [`WAIT_MAX`] away. It is a leaky bucket for all shards of the node: what one write
//! weighs decides when the next may go.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kv_types::Nanos;

/// Nobody waits longer for his turn.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// Those who wait go together, so that batches stay worth an `fdatasync`.
const TICK: Duration = Duration::from_millis(8);

/// What a write weighs beside its bytes.
const WRITE_BYTES: u64 = 128;

/// The rate before is known by the mean of about so long.
const MEMORY: Duration = Duration::from_secs(1);

/// No node is slowed down below so many bytes a second.
const RATE_MIN: u64 = 1_000_000;

/// Merges of a node that took less than so many bytes a second are behind for another reason.
const RATE_BEFORE_MIN: u64 = 4_000_000;

/// All of the rate before.
const ALL: u64 = 1024;

/// What waits for merges, and how much of it there may be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Debt {
    /// Bytes of the log that are kept for what is in no base.
    pub(crate) log: u64,
    pub(crate) log_max: u64,
    /// Bytes of memtables, frozen ones included.
    pub(crate) rows: u64,
    pub(crate) rows_max: u64,
}

impl Debt {
    /// Whether the log is so full that what holds its oldest part is merged first.
    pub(crate) fn is_of_log(self) -> bool {
        self.log > self.log_max / 2
    }

    /// Whether memory is so full that readers who keep rows in it are given up.
    pub(crate) fn is_of_rows(self) -> bool {
        self.rows > self.rows_max / 4 * 3
    }

    /// Whether merges shall hurry.
    fn is_urgent(self) -> bool {
        self.is_of_log() || self.is_of_rows()
    }

    /// How much of the rate before may be let through, of [`ALL`].
    fn share(self) -> u64 {
        let left = |value: u64, from: u64, max: u64| {
            let part = max.saturating_sub(value).saturating_mul(ALL).checked_div(max.saturating_sub(from));
            part.unwrap_or(0).min(ALL)
        };
        let log = left(self.log, self.log_max / 4 * 3, self.log_max);
        log.min(left(self.rows, self.rows_max / 8 * 7, self.rows_max))
    }
}

/// When a write may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Now,
    At(Nanos),
    /// Too many are before it.
    Never,
}

/// The bucket, and whether merges hurry: what replicas and merges see of it.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// Bytes a second; none for any.
    rate: AtomicU64,
    /// When the next one may go, if it has to wait.
    next: AtomicU64,
    /// What all writes weighed that may go.
    taken: AtomicU64,
    hurry: AtomicBool,
}

impl Pace {
    /// When a write of so many bytes may go, after all that asked before.
    pub(crate) fn turn(&self, bytes: usize, now: Nanos) -> Turn {
        let weight = WRITE_BYTES.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        let mut turn = Turn::Now;
        if let Some(nanos) = weight.saturating_mul(1_000_000_000).checked_div(self.rate()) {
            let asked = self.next.try_update(Ordering::AcqRel, Ordering::Acquire, |next| {
                let at = Nanos::new(next).max(now);
                let wait = at.since(now);
                turn = if wait.is_zero() { Turn::Now } else { Turn::At(at) };
                (wait <= WAIT_MAX).then(|| at.after(Duration::from_nanos(nanos)).get())
            });
            if asked.is_err() {
                return Turn::Never;
            }
        }
        self.taken.fetch_add(weight, Ordering::Relaxed);
        turn
    }

    /// Whether so much waits that nothing else may.
    pub(crate) fn is_used_up(&self, now: impl FnOnce() -> Nanos) -> bool {
        !self.is_open() && Nanos::new(self.next.load(Ordering::Acquire)).since(now()) > WAIT_MAX
    }

    /// Whether merges are behind.
    pub(crate) fn is_urgent(&self) -> bool {
        self.hurry.load(Ordering::Acquire)
    }

    /// Bytes a second that are let through; none for any.
    pub(crate) fn rate(&self) -> u64 {
        self.rate.load(Ordering::Acquire)
    }

    fn is_open(&self) -> bool {
        self.rate() == 0
    }
}

/// Sets the pace: maintenance has it.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// Bytes a second while nothing was held back.
    before: u64,
    /// What was taken when it looked last.
    last: Option<(u64, Nanos)>,
}

impl Pacer {
    /// So much waits for merges now.
    pub(crate) fn look(&mut self, pace: &Pace, debt: Debt, now: Nanos) {
        pace.hurry.store(debt.is_urgent(), Ordering::Release);
        let taken = pace.taken.load(Ordering::Relaxed);
        let last = self.last.replace((taken, now));
        let share = debt.share();
        if share < ALL {
            let rate = self.before.max(RATE_BEFORE_MIN) / ALL * share;
            pace.rate.store(rate.max(RATE_MIN), Ordering::Release);
            return;
        }
        pace.rate.store(0, Ordering::Release);
        let Some((taken_then, then)) = last else { return };
        let (span, memory) = (now.since(then).as_nanos(), MEMORY.as_nanos());
        // What was taken in this span, and for the rest of what is remembered the rate before.
        let news = u128::from(taken - taken_then) * memory / span.max(memory);
        let before = u128::from(self.before) * memory.saturating_sub(span) / memory + news;
        self.before = u64::try_from(before).unwrap_or(u64::MAX);
    }
}

/// Those that wait for their turn, in its order.
#[derive(Debug)]
pub(crate) struct Line<T>(VecDeque<(Nanos, T)>);

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<T> Line<T> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn push(&mut self, at: Nanos, thing: T) {
        let tick = u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX);
        self.0.push_back((Nanos::new(at.get().next_multiple_of(tick)), thing));
    }

    /// When the first one's turn comes, if anybody waits.
    pub(crate) fn next(&self) -> Option<Nanos> {
        self.0.front().map(|(at, _)| *at)
    }

    /// Those whose turn has come: all, if the pace has been given up.
    pub(crate) fn due(&mut self, pace: &Pace, now: Nanos) -> Vec<T> {
        let upto = if pace.is_open() { self.0.len() } else { self.0.partition_point(|(at, _)| *at <= now) };
        self.0.drain(..upto).map(|(_, thing)| thing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn ms(ms: u64) -> Nanos {
        Nanos::new(ms * 1_000_000)
    }

    fn debt(log: u64) -> Debt {
        Debt { log: log * MIB, log_max: 400 * MIB, rows: 0, rows_max: 64 * MIB }
    }

    #[test]
    fn merges_hurry_before_writes_are_slowed_down() {
        let with_rows = |rows| Debt { rows: rows * MIB, ..debt(0) };
        for (debt, hurry, share) in [
            (debt(200), false, ALL),
            (debt(201), true, ALL),
            (debt(300), true, ALL),
            (debt(350), true, ALL / 2),
            (debt(400), true, 0),
            (debt(500), true, 0),
            (with_rows(48), false, ALL),
            (with_rows(56), true, ALL),
            (with_rows(60), true, ALL / 2),
            (with_rows(70), true, 0),
        ] {
            assert_eq!((debt.is_urgent(), debt.share()), (hurry, share), "{debt:?}");
        }
    }

    /// Writes 1,000 writes of 9,872 bytes, which weigh 10,000, in one second, and looks ten times.
    fn busy(pacer: &mut Pacer, pace: &Pace) {
        for at in 1..=1000 {
            assert_eq!(pace.turn(9_872, ms(at)), Turn::Now);
            if at % 100 == 0 {
                pacer.look(pace, debt(100), ms(at));
            }
        }
    }

    #[test]
    fn a_write_waits_for_those_before_it_while_merges_are_behind() {
        let (mut pacer, pace) = (Pacer::default(), Pace::default());
        pacer.look(&pace, debt(0), ms(0));
        busy(&mut pacer, &pace);
        // Ten looks, each a tenth of the way: two thirds of ten million a second.
        assert!((6_400_000..6_600_000).contains(&pacer.before), "{}", pacer.before);
        pacer.before = 10_240_000;
        pacer.look(&pace, debt(350), ms(1000));
        // At half of the rate before, each of these takes 2 ms.
        let turns: Vec<Turn> = (0..103).map(|_| pace.turn(10_112, ms(1000))).collect();
        assert_eq!(turns.first(), Some(&Turn::Now));
        assert_eq!(turns.get(1), Some(&Turn::At(ms(1002))));
        assert_eq!(turns.get(100), Some(&Turn::At(ms(1200))));
        assert_eq!(turns.get(101..), Some([Turn::Never, Turn::Never].as_slice()));
        assert!(pace.is_used_up(|| ms(1000)) && !pace.is_used_up(|| ms(1002)));
        assert_eq!(pace.turn(10_112, ms(1150)), Turn::At(ms(1202)));
        assert_eq!(pace.turn(9_872, ms(2000)), Turn::Now);
        pacer.look(&pace, debt(400), ms(2000));
        assert_eq!(pace.rate(), RATE_MIN, "never at a standstill");
        pacer.look(&pace, debt(300), ms(2100));
        assert_eq!((pace.turn(9_872, ms(2100)), pace.is_used_up(|| ms(0))), (Turn::Now, false));
    }

    #[test]
    fn those_that_wait_go_together_and_all_when_nothing_is_behind() {
        let (mut pacer, pace, mut line) = (Pacer::default(), Pace::default(), Line::default());
        pacer.look(&pace, debt(350), ms(0));
        for (at, name) in [(17, 'a'), (24, 'b'), (25, 'c'), (33, 'd')] {
            line.push(ms(at), name);
        }
        assert_eq!((line.next(), line.len()), (Some(ms(24)), 4));
        assert_eq!(line.due(&pace, ms(23)), []);
        assert_eq!(line.due(&pace, ms(24)), ['a', 'b']);
        assert_eq!(line.next(), Some(ms(32)));
        pacer.look(&pace, debt(0), ms(25));
        assert_eq!(line.due(&pace, ms(25)), ['c', 'd']);
        assert_eq!((line.next(), line.len()), (None, 0));
    }
}
