//! The search for an order: Wing and Gong's, with Lowe's memory of what has been tried.
//!
//! A *configuration* is the set of operations placed so far and the state after them. An operation can be placed next
//! if no operation that is still to be placed returned before it was called. The search places one, and another, and
//! turns back where it cannot go on; it never enters a configuration twice. An order is found when every operation that
//! returned is placed: those that are open may stay out.
//!
//! # Shortcuts, and why no order is lost
//!
//! 1. *Observations at once.* If an operation that returned, never changes the state and fits the present state can be
//!    placed next, only that is tried. Take any order that goes on from here: it places the operation somewhere later.
//!    Moved to the front, it is allowed there in time and in its result; the others see the same states as before.
//! 2. *One of equals.* Of several equal operations that can be placed next, only the one that returns first is tried,
//!    with open ones last. Take an order that places another of them, b, and the first, a, later or never. Exchanged, b
//!    stands where a stood, before anything that was called after a returned, and so before anything that was called
//!    after b returned, which is not earlier.
//! 3. *No idle open operations.* An open operation that would leave the state as it is is not tried: the same order
//!    without it is good too.
//! 4. *Fewer open ones are better.* Of two configurations that differ only in the open operations used, the one whose
//!    open operations are among the other's can go on in every way the other can. So a configuration is not entered if
//!    such a one was entered before.
//! 5. *Outlook.* A state after which the model knows that some result cannot come true any more is not entered.
//! 6. *Forgotten states.* States that no operation to come can tell apart count as one: what can follow one of them can
//!    follow the others. That holds for shortcut 3 as well: an open operation from one forgotten state to another is idle.
//! 7. *Changes that nobody sees.* In a forgotten state, an operation that returned and that leaves it forgotten, and of
//!    which nothing up to the next change can tell whether it was there, is placed at once. Take an order that places it
//!    later: in front it makes no difference to what follows, and where it stood nobody misses it.

mod memo;
mod timeline;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, DefaultHasher};

use crate::model::{Expected, Model, Outlook};
use memo::{Memo, Placed};
use timeline::Timeline;

/// An operation in a model's words, with its times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timed<Op> {
    /// What was done, with its result.
    pub op: Op,
    /// When it was called.
    pub call: u64,
    /// When it returned; none if it is open: it may take effect at any later time, or never.
    pub ret: Option<u64>,
}

/// How far a search came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is an order.
    Found,
    /// There is none.
    Exhausted,
    /// The steps are used up; the search can go on.
    Paused,
}

/// A hash map whose hashes are the same in every run. It is only asked, never walked through.
type FixedMap<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// The number of a state among those seen.
type StateNumber = u32;

/// Stands for every state that is forgotten.
const FORGOTTEN: StateNumber = StateNumber::MAX;

/// A configuration on the way to the present one.
#[derive(Debug)]
struct Frame {
    /// The operation that led here; none for the first.
    placed: Option<usize>,
    state: StateNumber,
    /// Its candidates are `candidates[next..]`, up to the next frame's.
    first: usize,
    next: usize,
}

/// A search over the operations of one object. It can be interrupted and taken up again.
pub(crate) struct Search<'a, M: Model> {
    model: &'a M,
    ops: &'a [Timed<M::Op>],
    timeline: Timeline,
    outlook: M::Outlook,
    looks_ahead: bool,
    /// For each operation the number of its equals; equal operations have the same.
    classes: Vec<usize>,
    /// For each class the candidate found in the frame being made, and which frame that was.
    best: Vec<(usize, u64)>,
    scans: u64,
    states: Vec<M::State>,
    numbers: FixedMap<M::State, StateNumber>,
    memo: Memo,
    placed: Placed,
    /// How many operations that returned are not placed.
    missing: usize,
    frames: Vec<Frame>,
    candidates: Vec<usize>,
    /// The longest order that was left again.
    longest: Vec<usize>,
}

impl<'a, M: Model> Search<'a, M> {
    pub(crate) fn new(model: &'a M, ops: &'a [Timed<M::Op>]) -> Self {
        Self::begin(model, ops, true)
    }

    /// A search without shortcut 5: it takes longer, and comes as far as an order can.
    pub(crate) fn thorough(model: &'a M, ops: &'a [Timed<M::Op>]) -> Self {
        Self::begin(model, ops, false)
    }

    fn begin(model: &'a M, ops: &'a [Timed<M::Op>], looks_ahead: bool) -> Self {
        let expected: Vec<_> = ops.iter().map(|timed| Expected { op: &timed.op, ret: timed.ret }).collect();
        let mut known = BTreeMap::new();
        let classes: Vec<usize> = ops
            .iter()
            .map(|timed| {
                let new = known.len();
                *known.entry(&timed.op).or_insert(new)
            })
            .collect();
        let mut search = Self {
            model,
            ops,
            timeline: Timeline::new(ops),
            outlook: model.outlook(&expected),
            looks_ahead,
            best: vec![(0, 0); known.len()],
            classes,
            scans: 0,
            states: Vec::new(),
            numbers: FixedMap::default(),
            memo: Memo::default(),
            placed: Placed::new(ops.iter().map(|timed| timed.ret.is_some())),
            missing: ops.iter().filter(|timed| timed.ret.is_some()).count(),
            frames: Vec::new(),
            candidates: Vec::new(),
            longest: Vec::new(),
        };
        let initial = search.number(model.initial());
        if !(looks_ahead && search.outlook.hopeless(&model.initial())) {
            search.enter(None, initial);
        }
        search
    }

    /// Goes on for at most so many steps. A step tries to place one operation.
    pub(crate) fn run(&mut self, steps: &mut u64) -> Progress {
        loop {
            if self.missing == 0 {
                return Progress::Found;
            }
            let Some(frame) = self.frames.last_mut() else { return Progress::Exhausted };
            let Some(candidate) = self.candidates.get(frame.next).copied() else {
                self.leave();
                continue;
            };
            if *steps == 0 {
                return Progress::Paused;
            }
            *steps -= 1;
            frame.next += 1;
            let state = frame.state;
            self.attempt(candidate, state);
        }
    }

    /// The order found, or as far as the search stands now.
    pub(crate) fn order(&self) -> Vec<usize> {
        self.frames.iter().filter_map(|frame| frame.placed).collect()
    }

    /// The longest order that the search had to leave.
    pub(crate) fn longest(&self) -> &[usize] {
        &self.longest
    }

    /// How many configurations it remembers.
    pub(crate) fn configurations(&self) -> usize {
        self.memo.len()
    }

    /// Places an operation if something good can come after it.
    fn attempt(&mut self, candidate: usize, from: StateNumber) {
        let (Some(timed), Some(before)) = (self.ops.get(candidate), self.states.get(from as usize)) else {
            return;
        };
        let Some(after) = self.model.step(before, &timed.op) else { return };
        let is_open = timed.ret.is_none();
        self.outlook.take(candidate);
        let forgets = self.outlook.forgotten(&after);
        let is_idle = after == *before || (forgets && self.outlook.forgotten(before));
        if (is_open && is_idle) || (self.looks_ahead && self.outlook.hopeless(&after)) {
            self.outlook.put_back(candidate);
            return;
        }
        let state = self.number(after);
        self.placed.insert(candidate);
        if !self.memo.enter(if forgets { FORGOTTEN } else { state }, &self.placed) {
            self.placed.remove(candidate);
            self.outlook.put_back(candidate);
            return;
        }
        self.timeline.lift(candidate);
        self.missing -= usize::from(!is_open);
        self.enter(Some(candidate), state);
    }

    /// Goes back from the present configuration to the one before.
    fn leave(&mut self) {
        if self.frames.len() > self.longest.len() + 1 {
            self.longest = self.order();
        }
        let Some(frame) = self.frames.pop() else { return };
        self.candidates.truncate(frame.first);
        let Some(placed) = frame.placed else { return };
        self.timeline.put_back(placed);
        self.placed.remove(placed);
        self.outlook.put_back(placed);
        self.missing += usize::from(self.ops.get(placed).is_some_and(|timed| timed.ret.is_some()));
    }

    /// Makes the frame of a configuration, with what can be placed next.
    fn enter(&mut self, placed: Option<usize>, state: StateNumber) {
        let first = self.candidates.len();
        self.frames.push(Frame { placed, state, first, next: first });
        let Some(present) = self.states.get(state as usize) else { return };
        let is_forgotten = self.outlook.forgotten(present);
        self.scans += 1;
        for candidate in self.timeline.available() {
            let Some(timed) = self.ops.get(candidate) else { continue };
            let observes_only = !self.model.nature(&timed.op).changes();
            let at_once = if observes_only {
                // Shortcut 1. One that does not fit now will be looked at again in every frame to come.
                self.model.step(present, &timed.op).is_some()
            } else {
                // Shortcut 7.
                is_forgotten && self.outlook.settles(candidate)
            };
            if at_once && timed.ret.is_some() {
                self.candidates.truncate(first);
                self.candidates.push(candidate);
                return;
            }
            if observes_only {
                continue;
            }
            // Shortcut 2.
            let class = self.classes.get(candidate).copied().unwrap_or_default();
            let Some(best) = self.best.get_mut(class) else { continue };
            if best.1 != self.scans {
                *best = (self.candidates.len(), self.scans);
                self.candidates.push(candidate);
            } else if let Some(other) = self.candidates.get_mut(best.0) {
                let returns =
                    |number: usize| self.ops.get(number).and_then(|timed| timed.ret).unwrap_or(u64::MAX);
                if returns(candidate) < returns(*other) {
                    *other = candidate;
                }
            }
        }
    }

    fn number(&mut self, state: M::State) -> StateNumber {
        if let Some(number) = self.numbers.get(&state) {
            return *number;
        }
        // More than four billion states do not fit into memory before they fit into the number.
        let number = StateNumber::try_from(self.states.len()).unwrap_or(StateNumber::MAX);
        self.states.push(state.clone());
        self.numbers.insert(state, number);
        number
    }
}
