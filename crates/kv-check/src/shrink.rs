//! The small part of a history that cannot be explained.
//!
//! Leaving operations out can turn a good history into a bad one: without its write, a read is impossible. So a part
//! may be shown only if its being impossible makes the whole impossible. Three steps keep to that:
//!
//! - *Cut.* A beginning of a history that can be explained can be explained itself, with what had not returned by then
//!   open. So if the beginning is impossible, the whole is.
//! - *Leave out observations*: they do not change the state, so whatever explains the whole explains the rest.
//! - *Leave out changes*, but none that may explain an observation left in ([`Model::explains`]), unless it was called
//!   after that observation returned, or lies before another explanation that overwrote it ([`Model::overwrites`]).
//!
//! What is left is smallest in the sense that nothing more can be left out in this way.

use crate::budget::{Exhausted, Purse};
use crate::linearise::{Linearised, linearise_within};
use crate::model::Model;
use crate::search::Timed;

/// How many steps one attempt to leave something out may take. One that takes more is given up.
const STEPS_PER_ATTEMPT: u64 = 60_000;

/// How many operations are left out at once at the most. Finding out what explains what takes the square of it.
const CHUNK_MAX: usize = 512;

/// Up to how many operations the horizon of each is looked for.
const HORIZON_OPS_MAX: usize = 10_000;

/// An observation that more changes may explain is vague.
const VAGUE: usize = 4;

/// A part of the operations that cannot be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Core {
    /// The operations in it, by their numbers; in rising order.
    pub(crate) kept: Vec<usize>,
    /// The moment after which nothing counts: what returned later is open.
    pub(crate) until: u64,
    /// The longest order of operations in it, by their numbers.
    pub(crate) longest: Vec<usize>,
    /// Whether time was left to try everything.
    pub(crate) is_minimal: bool,
}

/// Shrinks operations that cannot be explained.
pub(crate) fn shrink<M: Model>(
    model: &M,
    ops: &[Timed<M::Op>],
    longest: Vec<usize>,
    purse: &mut Purse<'_>,
) -> Core {
    let core = Core { kept: (0..ops.len()).collect(), until: u64::MAX, longest, is_minimal: false };
    let horizons = vec![None; ops.len()];
    let mut shrinking = Shrinking { model, ops, purse, core, horizons };
    let result = shrinking.run();
    shrinking.core.is_minimal = result.is_ok();
    shrinking.core
}

/// The operation as it stood at that moment.
pub(crate) fn cut_at<M: Model>(model: &M, timed: &Timed<M::Op>, until: u64) -> Timed<M::Op> {
    match timed.ret {
        Some(ret) if ret > until => Timed { op: model.opened(&timed.op), call: timed.call, ret: None },
        _ => timed.clone(),
    }
}

struct Shrinking<'a, 'b, M: Model> {
    model: &'a M,
    ops: &'a [Timed<M::Op>],
    purse: &'a mut Purse<'b>,
    core: Core,
    /// For each operation, once it was asked for: what returned before this does not explain it.
    horizons: Vec<Option<u64>>,
}

impl<M: Model> Shrinking<'_, '_, M> {
    fn run(&mut self) -> Result<(), Exhausted> {
        // Without what is vague every attempt is decided sooner.
        self.drop_vague()?;
        self.cut()?;
        self.drop_vague()?;
        self.take_latest()?;
        self.leave_out()
    }

    /// Finds the earliest return by which the history is impossible. More history never makes it possible again, so
    /// the middle can be tried first.
    fn cut(&mut self) -> Result<(), Exhausted> {
        let mut returns: Vec<u64> = self.ops.iter().filter_map(|timed| timed.ret).collect();
        returns.sort_unstable();
        let (mut good, mut bad) = (0, returns.len());
        while good < bad {
            let middle = good + (bad - good) / 2;
            let Some(until) = returns.get(middle).copied() else { break };
            let called = |timed: &Timed<M::Op>| timed.call <= until;
            let kept = self.core.kept.iter().copied();
            let kept = kept.filter(|number| self.ops.get(*number).is_some_and(called)).collect();
            if self.attempt(kept, until)? { bad = middle } else { good = middle + 1 }
        }
        // Operations that are open now overwrite nothing for certain.
        self.horizons.fill(None);
        Ok(())
    }

    /// Leaves out all observations that very many changes may explain: they say little, and would keep much.
    fn drop_vague(&mut self) -> Result<(), Exhausted> {
        if self.core.kept.len() > HORIZON_OPS_MAX {
            return Ok(());
        }
        let all = self.core.kept.len();
        let mut rest = Vec::new();
        for at in 0..all {
            let horizon = self.horizon(at);
            let number = self.core.kept.get(at).copied().unwrap_or_default();
            let observes_only =
                self.ops.get(number).is_some_and(|timed| !self.model.nature(&timed.op).changes());
            let explained = || (0..all).filter(|change| self.explains(*change, at, horizon));
            if !observes_only || explained().nth(VAGUE).is_none() {
                rest.push(number);
            }
        }
        if rest.len() < all {
            self.attempt(rest, self.core.until)?;
        }
        Ok(())
    }

    /// Tries the latest few operations, then twice as many, until they are impossible with what explains them: the
    /// contradiction came up at the end.
    fn take_latest(&mut self) -> Result<(), Exhausted> {
        let mut size = 4;
        while size < self.core.kept.len() {
            let rest = self.without(0, self.core.kept.len() - size);
            if rest.len() < self.core.kept.len() && self.attempt(rest, self.core.until)? {
                break;
            }
            size *= 2;
        }
        Ok(())
    }

    /// Leaves out ever smaller chunks, the latest operations first: observations go before what explains them.
    fn leave_out(&mut self) -> Result<(), Exhausted> {
        let mut size = self.core.kept.len().div_ceil(2).min(CHUNK_MAX);
        while size > 0 {
            let mut end = self.core.kept.len();
            let mut has_shrunk = false;
            while end > 0 {
                let start = end.saturating_sub(size);
                let rest = self.without(start, end);
                if rest.len() < self.core.kept.len() && self.attempt(rest, self.core.until)? {
                    has_shrunk = true;
                }
                end = start.min(self.core.kept.len());
            }
            // The last round goes on until it finds nothing.
            size = if size == 1 { usize::from(has_shrunk) } else { size.div_ceil(2) };
        }
        Ok(())
    }

    /// The kept operations without those from `start` to `end`, but with all that may explain the others.
    fn without(&mut self, start: usize, end: usize) -> Vec<usize> {
        let mut keeps: Vec<bool> = (0..self.core.kept.len()).map(|at| at < start || at >= end).collect();
        let mut reasons: Vec<usize> = (0..keeps.len()).filter(|at| keeps.get(*at) == Some(&true)).collect();
        // What is kept again is an observation itself, perhaps, and needs its own explanations.
        while let Some(reason) = reasons.pop() {
            let horizon = self.horizon(reason);
            for at in start..end {
                if keeps.get(at) == Some(&false) && self.explains(at, reason, horizon) {
                    keeps.get_mut(at).into_iter().for_each(|keep| *keep = true);
                    reasons.push(at);
                }
            }
        }
        self.core.kept.iter().zip(keeps).filter(|(_, keep)| *keep).map(|(number, _)| *number).collect()
    }

    /// Whether one kept operation may be needed for another, which is explained by nothing before the horizon.
    fn explains(&self, change: usize, observation: usize, horizon: u64) -> bool {
        let timed = |at: usize| self.core.kept.get(at).and_then(|number| self.ops.get(*number));
        let (Some(change), Some(observation)) = (timed(change), timed(observation)) else { return false };
        let in_time = self.ret(observation).is_none_or(|ret| change.call <= ret)
            && self.ret(change).is_none_or(|ret| ret >= horizon);
        in_time && self.model.explains(&change.op, &observation.op)
    }

    /// The latest call of a change that explains the kept observation, overwrites what was before it and returned before
    /// the observation was called.
    fn horizon(&mut self, observation: usize) -> u64 {
        let Some(number) = self.core.kept.get(observation).copied() else { return 0 };
        if let Some(known) = self.horizons.get(number).copied().flatten() {
            return known;
        }
        let Some(observed) = self.ops.get(number) else { return 0 };
        // All pairs are looked at: too many in a long history, in which old explanations stay.
        let is_short = self.ops.len() <= HORIZON_OPS_MAX;
        let candidates = self.ops.iter().filter(|change| {
            is_short
                && self.ret(change).is_some_and(|ret| ret < observed.call)
                && self.model.overwrites(&change.op)
                && self.model.explains(&change.op, &observed.op)
        });
        let horizon = candidates.map(|change| change.call).max().unwrap_or(0);
        self.horizons.get_mut(number).into_iter().for_each(|slot| *slot = Some(horizon));
        horizon
    }

    fn ret(&self, timed: &Timed<M::Op>) -> Option<u64> {
        timed.ret.filter(|ret| *ret <= self.core.until)
    }

    /// Keeps this part if it is impossible too.
    fn attempt(&mut self, mut kept: Vec<usize>, until: u64) -> Result<bool, Exhausted> {
        // An open observation says nothing.
        kept.retain(|number| {
            let timed = self.ops.get(*number);
            timed.is_some_and(|timed| {
                timed.ret.is_some_and(|ret| ret <= until) || self.model.nature(&timed.op).changes()
            })
        });
        let part: Vec<_> = kept
            .iter()
            .filter_map(|number| self.ops.get(*number))
            .map(|timed| cut_at(self.model, timed, until))
            .collect();
        // An attempt costs at least a look at each operation.
        self.purse.pay(part.len() as u64)?;
        match linearise_within(self.model, &part, self.purse, STEPS_PER_ATTEMPT) {
            Linearised::Impossible { longest } => {
                let longest = longest.iter().filter_map(|at| kept.get(*at).copied()).collect();
                self.core = Core { kept, until, longest, is_minimal: false };
                Ok(true)
            }
            Linearised::Order(_) | Linearised::Unknown(Exhausted::Steps) => Ok(false),
            Linearised::Unknown(exhausted) => Err(exhausted),
        }
    }
}
