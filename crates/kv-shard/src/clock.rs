//! The node's Lamport clock (Lamport 1978), shared by all its replicas.
//!
//! # The ceiling
//!
//! What the clock only told others is in no log of its own. So that it never tells the same again after a restart, it
//! stays below a *ceiling* that is durable, and begins there in its next life. The ceiling rises in steps of
//! [`LAMPORT_STEP`]; it is asked for half a step ahead, where nobody waits for it. Only a jump past it waits.
//!
//! The clock itself does no I/O: its host brings a [`Ceiling`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use kv_storage::CeilingFile;
use kv_storage::data_dir::DataDirError;
use kv_types::limits::LAMPORT_STEP;
use kv_types::{Lamport, NodeId};

/// After this many more counters a ceiling that was asked for and has not risen is asked for again.
const ASK_AGAIN: u64 = LAMPORT_STEP / 16;

/// Keeps a clock's ceiling durably.
pub trait Ceiling: fmt::Debug + Send + Sync {
    /// The ceiling; what a restart would find is never below it.
    fn durable(&self) -> u64;

    /// Raises it soon, in the background. It may fail: whoever needs it asks again.
    fn begin(&self, to: u64);

    /// Raises it to at least `to` before this returns.
    ///
    /// # Errors
    /// Why it cannot; the node must stop then, for it may not go on counting.
    fn raise(&self, to: u64) -> Result<(), DataDirError>;
}

/// For a host without a background: the clock waits once a step.
impl Ceiling for CeilingFile {
    fn durable(&self) -> u64 {
        self.durable()
    }

    fn begin(&self, _to: u64) {}

    fn raise(&self, to: u64) -> Result<(), DataDirError> {
        self.raise(to)
    }
}

/// A counter that every message carries and every stamp raises.
///
/// # Invariants
/// - it never runs back, not by a restart either: it is never above the durable ceiling;
/// - a stamp is larger than every counter merged before it.
#[derive(Debug)]
pub struct LamportClock {
    node: NodeId,
    counter: AtomicU64,
    ceiling: Arc<dyn Ceiling>,
    /// The counter from which on the ceiling is asked for.
    ask_at: AtomicU64,
}

impl LamportClock {
    /// The clock of a node that starts: it begins at its ceiling, above everything it may have told in an earlier life.
    pub fn new(node: NodeId, ceiling: Arc<dyn Ceiling>) -> Self {
        let counter = ceiling.durable();
        let clock = Self { node, counter: AtomicU64::new(counter), ceiling, ask_at: AtomicU64::new(0) };
        clock.look_ahead(counter, counter);
        clock
    }

    /// The largest counter seen so far.
    pub fn now(&self) -> u64 {
        self.counter.load(Ordering::Acquire)
    }

    /// Takes note of a counter that came with a message or an entry.
    ///
    /// # Errors
    /// If it is above the ceiling and that cannot be raised; the clock is as it was.
    pub fn merge(&self, counter: u64) -> Result<(), DataDirError> {
        if counter > self.now() {
            self.cover(counter)?;
            self.counter.fetch_max(counter, Ordering::AcqRel);
        }
        Ok(())
    }

    /// A new stamp, above everything seen and above `floor`.
    ///
    /// # Errors
    /// If it would be above the ceiling and that cannot be raised; no stamp is given then.
    ///
    /// # Panics
    /// When the counter would pass `u64::MAX`; merging checks keep it far below.
    pub fn stamp(&self, floor: Lamport) -> Result<Lamport, DataDirError> {
        self.merge(floor.counter)?;
        let mut before = self.now();
        let counter = loop {
            let next = before.checked_add(1).expect("a Lamport counter stays far below 2^64");
            self.cover(next)?;
            match self.counter.compare_exchange_weak(before, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break next,
                Err(now) => before = now,
            }
        };
        assert!(counter > floor.counter, "stamp {counter} must be above {floor}");
        Ok(Lamport { counter, node: self.node })
    }

    /// Sees to it that the ceiling is not below `counter`, before anybody can see the clock there.
    fn cover(&self, counter: u64) -> Result<(), DataDirError> {
        let mut durable = self.ceiling.durable();
        if counter > durable {
            self.ceiling.raise(counter.saturating_add(LAMPORT_STEP))?;
            durable = self.ceiling.durable();
            assert!(counter <= durable, "the ceiling is {durable} after it was raised above {counter}");
        }
        self.look_ahead(counter, durable);
        Ok(())
    }

    /// Asks for the next step in time.
    fn look_ahead(&self, counter: u64, durable: u64) {
        if durable - counter > LAMPORT_STEP / 2 {
            return;
        }
        let ask_at = self.ask_at.load(Ordering::Acquire);
        let asked_again = counter.saturating_add(ASK_AGAIN);
        // Of several callers one asks.
        if counter >= ask_at
            && self.ask_at.compare_exchange(ask_at, asked_again, Ordering::AcqRel, Ordering::Acquire).is_ok()
        {
            self.ceiling.begin(counter.saturating_add(LAMPORT_STEP));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::Mutex;

    use kv_storage::disk::faulty::VirtualDisk;
    use proptest::prelude::*;

    use super::*;

    /// Keeps what it is asked for until the test lets it happen.
    #[derive(Debug, Default)]
    struct Paper {
        durable: AtomicU64,
        begun: Mutex<Vec<u64>>,
        raised: Mutex<Vec<u64>>,
        full: bool,
    }

    impl Paper {
        fn at(durable: u64) -> Arc<Self> {
            Arc::new(Self { durable: AtomicU64::new(durable), ..Self::default() })
        }

        fn begun(&self) -> Vec<u64> {
            self.begun.lock().unwrap().clone()
        }

        fn raised(&self) -> Vec<u64> {
            self.raised.lock().unwrap().clone()
        }

        /// Does what was begun, or loses it.
        fn finish(&self, lost: bool) {
            for to in std::mem::take(&mut *self.begun.lock().unwrap()) {
                self.durable.fetch_max(if lost { 0 } else { to }, Ordering::AcqRel);
            }
        }
    }

    impl Ceiling for Paper {
        fn durable(&self) -> u64 {
            self.durable.load(Ordering::Acquire)
        }

        fn begin(&self, to: u64) {
            self.begun.lock().unwrap().push(to);
        }

        fn raise(&self, to: u64) -> Result<(), DataDirError> {
            if self.full {
                let source = io::ErrorKind::StorageFull.into();
                return Err(DataDirError::Io { doing: "write", path: PathBuf::from("lamport"), source });
            }
            self.raised.lock().unwrap().push(to);
            self.durable.fetch_max(to, Ordering::AcqRel);
            Ok(())
        }
    }

    fn clock(paper: &Arc<Paper>) -> LamportClock {
        LamportClock::new(NodeId::new(1), Arc::<Paper>::clone(paper))
    }

    #[test]
    fn stamps_rise_above_floor_and_merged() {
        let clock = clock(&Paper::at(5));
        let first = clock.stamp(Lamport::ZERO).unwrap();
        assert_eq!(first.counter, 6);
        clock.merge(40).unwrap();
        let second = clock.stamp(first).unwrap();
        assert_eq!(second.counter, 41);
        let third = clock.stamp(Lamport { counter: 100, node: NodeId::new(9) }).unwrap();
        assert!(third.counter > 100 && clock.now() == third.counter);
    }

    #[test]
    fn the_ceiling_is_asked_for_half_a_step_ahead_and_nobody_waits() {
        let paper = Paper::at(LAMPORT_STEP);
        let clock = clock(&paper);
        assert_eq!(paper.begun(), [2 * LAMPORT_STEP], "a start asks at once");
        paper.finish(false);
        let half = LAMPORT_STEP + LAMPORT_STEP / 2;
        clock.merge(half - 1).unwrap();
        assert!(paper.begun().is_empty(), "{:?}", paper.begun());
        assert_eq!(clock.stamp(Lamport::ZERO).unwrap().counter, half);
        assert_eq!(paper.begun(), [half + LAMPORT_STEP]);
        for _ in 0..100 {
            clock.stamp(Lamport::ZERO).unwrap();
        }
        assert_eq!(paper.begun().len(), 1, "what was asked for is on its way");
        paper.finish(true);
        clock.merge(half + ASK_AGAIN).unwrap();
        assert_eq!(paper.begun(), [half + ASK_AGAIN + LAMPORT_STEP], "what failed is asked for again");
        assert!(paper.raised().is_empty());
    }

    #[test]
    fn only_a_jump_past_the_ceiling_waits() {
        let paper = Paper::at(LAMPORT_STEP);
        let clock = clock(&paper);
        clock.merge(5 * LAMPORT_STEP).unwrap();
        assert_eq!(paper.raised(), [6 * LAMPORT_STEP]);
    }

    #[test]
    fn a_clock_whose_ceiling_does_not_rise_stands_still() {
        let full = Paper { durable: AtomicU64::new(3), full: true, ..Paper::default() };
        let clock = LamportClock::new(NodeId::new(1), Arc::new(full));
        assert!(clock.merge(4).is_err() && clock.stamp(Lamport::ZERO).is_err());
        assert!(clock.merge(3).is_ok());
        assert_eq!(clock.now(), 3);
    }

    #[derive(Clone, Debug)]
    enum Event {
        Stamp,
        Merge(u64),
        /// What is begun becomes durable.
        Finish,
        /// The process dies, and what is begun is lost or not.
        Restart {
            lost: bool,
        },
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Stamp),
            3 => (0..2 * LAMPORT_STEP).prop_map(Event::Merge),
            1 => Just(Event::Finish),
            2 => any::<bool>().prop_map(|lost| Event::Restart { lost }),
        ]
    }

    proptest! {
        #[test]
        fn no_life_counts_what_an_earlier_one_may_have_told(events in prop::collection::vec(event(), 1..60)) {
            let paper = Paper::at(0);
            let mut alive = clock(&paper);
            let mut told = 0;
            for event in events {
                match event {
                    Event::Stamp => {
                        let stamp = alive.stamp(Lamport::ZERO).unwrap().counter;
                        prop_assert!(stamp > told, "stamp {stamp} after {told} was told");
                    }
                    Event::Merge(ahead) => alive.merge(alive.now() + ahead).unwrap(),
                    Event::Finish => paper.finish(false),
                    Event::Restart { lost } => {
                        paper.finish(lost);
                        alive = clock(&paper);
                    }
                }
                prop_assert!(alive.now() >= told && alive.now() <= paper.durable());
                told = alive.now();
            }
        }
    }

    #[test]
    fn a_crash_between_raise_and_use_leaves_a_gap_and_no_repetition() {
        let disk = VirtualDisk::new();
        CeilingFile::create(&disk).unwrap();
        let open = |disk: &VirtualDisk| {
            let file = CeilingFile::open(Arc::new(disk.clone())).unwrap();
            LamportClock::new(NodeId::new(1), Arc::new(file))
        };
        let first = open(&disk).stamp(Lamport::ZERO).unwrap();
        // The raise for this stamp is durable; the power goes before the stamp is used, at every call of the raise.
        for cut in 0..12 {
            let run = disk.copy();
            let clock = open(&run);
            run.power_off_after(cut);
            let told = clock.stamp(first).map_or(first.counter, |stamp| stamp.counter);
            let after = run.crash(kv_storage::disk::faulty::DirLoss::Prefix, &mut |_| 0);
            let next = open(&after).stamp(Lamport::ZERO).unwrap();
            assert!(next.counter > told, "cut {cut}: {next} after {told} was told");
        }
    }
}
