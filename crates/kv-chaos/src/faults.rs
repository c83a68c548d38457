//! The rules in force, as all connections of the proxy see them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kv_fault::{Action, InForce, Link, Message, Rule, RuleError, RuleName, Rules, Verdict, Wire, WireAction};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::message_log::MessageLog;

/// Messages that are held or wait, over all links.
const WAITING_MAX: usize = 100_000;

/// Bytes of them.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Faults {
    begin: Instant,
    state: Mutex<State>,
    /// Nobody looks at messages: they pass as they are.
    quiet: AtomicBool,
    /// Connections are carried message by message; else as bytes.
    watched: AtomicBool,
    /// Some rule is about what is below messages.
    wires: AtomicBool,
    /// Some rule comes and goes by itself.
    pulses: AtomicBool,
    /// Counts changes of the rules.
    changes: watch::Sender<u64>,
    /// What connections of each direction look at all the time.
    directions: Mutex<BTreeMap<Link, Arc<Passing>>>,
    waiting: AtomicUsize,
    waiting_bytes: AtomicUsize,
    overflowed: AtomicU64,
    pub(crate) log: MessageLog,
}

/// What is counted of a direction, without a lock.
#[derive(Debug, Default)]
pub(crate) struct Passing {
    /// Bytes that passed.
    pub(crate) bytes: AtomicU64,
    /// How often its connections were to be reset. Never less: one that began later has seen as many.
    pub(crate) resets: AtomicU64,
}

#[derive(Debug)]
struct State {
    rules: Rules,
    /// When each rule was healed last, as a change, and whether what it held arrives.
    healed: BTreeMap<RuleName, (u64, bool)>,
    /// When each link with a bandwidth is free again.
    free: BTreeMap<Link, Instant>,
    /// Pieces that were delayed, to draw the next delay by.
    pieces: BTreeMap<Link, u64>,
    change: u64,
}

/// What has become of a held message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Held {
    /// It waits on.
    Still,
    /// It arrives now.
    Released,
    /// It is lost.
    Lost,
}

/// Room for a message that waits; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    faults: Arc<Faults>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.faults.waiting.fetch_sub(1, Ordering::Relaxed);
        self.faults.waiting_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Faults {
    /// Nothing in force; every draw of lots depends on `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            rules: Rules::new(seed),
            healed: BTreeMap::new(),
            free: BTreeMap::new(),
            pieces: BTreeMap::new(),
            change: 0,
        };
        Self {
            begin: Instant::now(),
            state: Mutex::new(state),
            quiet: AtomicBool::new(true),
            watched: AtomicBool::new(false),
            wires: AtomicBool::new(false),
            pulses: AtomicBool::new(false),
            changes: watch::Sender::new(0),
            directions: Mutex::default(),
            waiting: AtomicUsize::new(0),
            waiting_bytes: AtomicUsize::new(0),
            overflowed: AtomicU64::new(0),
            log: MessageLog::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the proxy began.
    pub(crate) fn now(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Puts rules in force, all or none.
    ///
    /// # Errors
    /// [`RuleError`]
    pub(crate) fn load(&self, rules: Vec<Rule>, seed: Option<u64>, links: &[Link]) -> Result<(), RuleError> {
        let mut state = self.state();
        state.rules.load(self.now(), rules.clone())?;
        if let Some(seed) = seed {
            state.rules.reseed(seed);
        }
        let is_reset = |rule: &&Rule| rule.action == Action::Wire(WireAction::Reset);
        for rule in rules.iter().filter(is_reset) {
            for link in links.iter().filter(|link| rule.filter.links.contains(**link)) {
                self.passing(*link).resets.fetch_add(1, Ordering::Release);
            }
        }
        self.changed(state);
        Ok(())
    }

    /// Takes a rule, or all, out of force; what they held arrives, or is lost.
    pub(crate) fn heal(&self, which: Option<&RuleName>, late: bool) -> Vec<RuleName> {
        let mut state = self.state();
        let healed: Vec<_> = state.rules.heal(self.now(), which).into_iter().map(|rule| rule.name).collect();
        let change = state.change + 1;
        state.healed.extend(healed.iter().map(|name| (name.clone(), (change, late))));
        state.free.clear();
        self.changed(state);
        healed
    }

    /// Looks at messages from now on if they are logged.
    pub(crate) fn log_changed(&self) {
        self.changed(self.state());
    }

    /// Has connections carried message by message from now on, or as bytes unless somebody looks at messages.
    pub(crate) fn watch(&self, on: bool) {
        let state = self.state();
        if on || self.is_quiet() {
            self.watched.store(on, Ordering::Release);
            self.changed(state);
        }
    }

    fn changed(&self, mut state: MutexGuard<'_, State>) {
        state.change += 1;
        let in_force: Vec<_> =
            state.rules.table().into_iter().filter(|entry| entry.ended.is_none()).collect();
        let is_wire = |entry: &InForce| matches!(entry.rule.action, Action::Wire(_));
        self.wires.store(in_force.iter().any(is_wire), Ordering::Release);
        self.pulses.store(in_force.iter().any(|entry| entry.rule.pulse.is_some()), Ordering::Release);
        let is_quiet = in_force.iter().all(is_wire) && !self.log.is_on();
        if !is_quiet {
            // It stays so: a rule that is healed breaks nothing.
            self.watched.store(true, Ordering::Release);
        }
        self.quiet.store(is_quiet, Ordering::Release);
        self.changes.send_replace(state.change);
    }

    /// Told when rules change.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether nobody looks at messages.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet.load(Ordering::Acquire)
    }

    /// Whether connections are carried message by message.
    pub(crate) fn is_watched(&self) -> bool {
        self.watched.load(Ordering::Acquire)
    }

    /// Whether rules come and go by themselves.
    pub(crate) fn has_pulses(&self) -> bool {
        self.pulses.load(Ordering::Acquire)
    }

    /// What happens to a message; and at which change that was said.
    pub(crate) fn judge(&self, link: Link, message: &Message) -> (Verdict, u64) {
        let (verdict, change) = {
            let mut state = self.state();
            (state.rules.judge(self.now(), link, message), state.change)
        };
        self.log.write(self.now(), link, message, &verdict);
        (verdict, change)
    }

    /// What has become of a message that a rule held after `change`.
    pub(crate) fn held(&self, by: &RuleName, change: u64) -> Held {
        match self.state().healed.get(by) {
            Some((healed, late)) if *healed > change => {
                if *late {
                    Held::Released
                } else {
                    Held::Lost
                }
            }
            _ => Held::Still,
        }
    }

    /// What is in force on a direction, below messages.
    pub(crate) fn wire(&self, link: Link) -> Wire {
        if !self.wires.load(Ordering::Acquire) {
            return Wire::default();
        }
        self.state().rules.wire(self.now(), link)
    }

    /// Notes that rules have done something to one connection.
    pub(crate) fn count_wire(&self, link: Link, is_it: fn(WireAction) -> bool) {
        self.state().rules.count_wire(self.now(), link, is_it);
    }

    /// What is counted of a direction.
    pub(crate) fn passing(&self, link: Link) -> Arc<Passing> {
        let mut directions = self.directions.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(directions.entry(link).or_default())
    }

    /// How long a piece of bytes takes longer.
    pub(crate) fn latency(&self, link: Link, wire: &Wire) -> Duration {
        if wire.latency.is_empty() {
            return Duration::ZERO;
        }
        let mut state = self.state();
        let ordinal = state.pieces.entry(link).or_default();
        *ordinal += 1;
        let ordinal = *ordinal;
        wire.latency_of(state.rules.seed(), link, ordinal)
    }

    /// When so many bytes have passed a link of this rate, which all its connections share.
    pub(crate) fn reserve(&self, link: Link, rate: u64, bytes: usize) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / rate as f64);
        let mut state = self.state();
        let free = state.free.entry(link).or_insert_with(Instant::now);
        *free = (*free).max(Instant::now()) + takes;
        *free
    }

    /// Room for a message that waits; `None` if there is none.
    pub(crate) fn room(self: &Arc<Self>, bytes: usize) -> Option<Room> {
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting_bytes = self.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { faults: Arc::clone(self), bytes };
        if waiting >= WAITING_MAX || waiting_bytes.saturating_add(bytes) > WAITING_BYTES_MAX {
            self.overflowed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        Some(room)
    }

    /// Bytes that have passed a direction.
    pub(crate) fn bytes(&self, link: Link) -> u64 {
        self.passing(link).bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn table(&self) -> Vec<InForce> {
        self.state().rules.table()
    }

    /// Messages that wait now, and those for which there was no room.
    pub(crate) fn waiting(&self) -> (usize, u64) {
        (self.waiting.load(Ordering::Relaxed), self.overflowed.load(Ordering::Relaxed))
    }
}
