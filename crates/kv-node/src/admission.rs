//! How many writes of a shard may be under way: as many as are answered soon.
//!
//! A queue that is longer than what is carried out within the patience of those who wait is work for nobody: each is
//! served when it has given up, and tries again. So a replica watches how long a write takes from its proposal to its
//! answer, and takes fewer at a time when that is longer than [`TARGET`], more when it is not (additive increase and
//! multiplicative decrease, as TCP does). What is beyond is refused at once, before any work is done for it; and so is
//! what would be answered after its deadline.

use std::time::Duration;

use kv_types::limits::MAILBOX_LEN_MAX;
use kv_types::{LogIndex, Nanos};

/// A write that takes longer has waited in a queue.
const TARGET: Duration = Duration::from_millis(200);

/// Fewer than this many at a time would not make batches worth an `fdatasync`.
const WRITES_MIN: usize = 256;

/// Between two changes for the worse, so that the last one can have its effect.
const PAUSE: Duration = Duration::from_millis(50);

/// One write that is watched, and what was learnt from those before.
#[derive(Debug)]
pub(crate) struct Admission {
    limit: usize,
    watched: Option<(LogIndex, Nanos)>,
    /// How long the last one watched took, or has taken so far if that is longer; nothing when none is under way.
    delay: Duration,
    lowered: Nanos,
}

impl Admission {
    pub(crate) fn new() -> Self {
        Self { limit: MAILBOX_LEN_MAX, watched: None, delay: Duration::ZERO, lowered: Nanos::default() }
    }

    /// Writes up to `last` are proposed.
    pub(crate) fn proposed(&mut self, last: LogIndex, now: Nanos) {
        self.watched.get_or_insert((last, now));
    }

    /// Everything up to `applied` is answered, and so many writes are under way.
    pub(crate) fn applied(&mut self, applied: LogIndex, under_way: usize, now: Nanos) {
        if under_way == 0 {
            self.delay = Duration::ZERO;
        }
        let Some((index, since)) = self.watched else { return };
        let delay = now.since(since);
        let is_answered = applied >= index;
        if is_answered || under_way == 0 {
            self.watched = None;
        }
        if under_way > 0 {
            self.delay = if is_answered { delay } else { self.delay.max(delay) };
        }
        if delay <= TARGET {
            if is_answered {
                self.limit = (self.limit + self.limit / 8).min(MAILBOX_LEN_MAX);
            }
        } else if now.since(self.lowered) >= PAUSE {
            self.lowered = now;
            self.limit = (self.limit.min(under_way) * 7 / 8).max(WRITES_MIN);
        }
    }

    /// When a write that is taken now will be answered, as far as can be seen.
    pub(crate) fn answered_by(&self, now: Nanos) -> Nanos {
        now.after(self.delay)
    }

    /// How many more may be taken while so many are under way.
    pub(crate) fn room(&self, under_way: usize) -> usize {
        self.limit.saturating_sub(under_way)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica that carries out so many writes a millisecond, and clients that always want more.
    fn steady(writes_per_ms: usize, admission: &mut Admission) -> (usize, Duration) {
        let mut queue = std::collections::VecDeque::new();
        let (mut last, mut now) = (0, Nanos::new(1));
        let mut delay = Duration::ZERO;
        for _ in 0..20_000 {
            now = now.after(Duration::from_millis(1));
            for _ in 0..admission.room(queue.len()) {
                last += 1;
                queue.push_back((last, now));
            }
            admission.proposed(LogIndex::new(last), now);
            for _ in 0..writes_per_ms {
                let Some((_, since)) = queue.pop_front() else { break };
                delay = now.since(since);
            }
            let applied = queue.front().map_or(last, |(index, _)| index - 1);
            admission.applied(LogIndex::new(applied), queue.len(), now);
        }
        (queue.len(), delay)
    }

    #[test]
    fn the_queue_is_as_long_as_what_is_answered_soon() {
        let (len, delay) = steady(10, &mut Admission::new());
        assert!(len >= 10 * 100, "{len} keep it busy");
        assert!(delay <= TARGET * 3 / 2, "{delay:?}");
        let (len, _) = steady(1, &mut Admission::new());
        assert!((WRITES_MIN - 1..=WRITES_MIN * 2).contains(&len), "a slow one has batches: {len}");
        let (len, _) = steady(100, &mut Admission::new());
        assert!(len >= MAILBOX_LEN_MAX - 100, "a fast one is not held back: {len}");
    }

    #[test]
    fn after_a_stall_it_takes_more_again() {
        let mut admission = Admission::new();
        let second = |n: u64| Nanos::new(1_000_000_000 * n);
        admission.proposed(LogIndex::new(9), second(1));
        for n in 2..60 {
            admission.applied(LogIndex::new(0), 9, second(n));
        }
        assert_eq!(admission.room(9), WRITES_MIN - 9);
        for n in 60..100 {
            admission.applied(LogIndex::new(n), 0, second(n));
            admission.proposed(LogIndex::new(n + 1), second(n + 1));
        }
        assert_eq!(admission.room(0), MAILBOX_LEN_MAX);
    }

    #[test]
    fn what_takes_long_is_not_begun_just_before_its_deadline() {
        let ms = |n: u64| Nanos::new(1_000_000 * n);
        let mut admission = Admission::new();
        admission.proposed(LogIndex::new(9), ms(1));
        assert_eq!(admission.answered_by(ms(1)), ms(1), "nothing is known");
        admission.applied(LogIndex::new(0), 9, ms(51));
        assert_eq!(admission.answered_by(ms(60)), ms(110), "it has taken so long already");
        admission.applied(LogIndex::new(9), 9, ms(81));
        assert_eq!(admission.answered_by(ms(90)), ms(170));
        admission.proposed(LogIndex::new(18), ms(90));
        admission.applied(LogIndex::new(18), 1, ms(100));
        assert_eq!(admission.answered_by(ms(100)), ms(110), "it is faster again");
        admission.applied(LogIndex::new(19), 0, ms(101));
        assert_eq!(admission.answered_by(ms(101)), ms(101), "nothing is in the way");
    }

    #[test]
    fn a_leader_that_lost_its_office_watches_nothing() {
        let mut admission = Admission::new();
        admission.proposed(LogIndex::new(9), Nanos::new(1));
        admission.applied(LogIndex::new(0), 0, Nanos::new(2));
        admission.applied(LogIndex::new(0), 0, Nanos::new(u64::MAX));
        assert_eq!(admission.room(0), MAILBOX_LEN_MAX);
    }
}
