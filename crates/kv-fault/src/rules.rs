//! The rules in force.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::coin::{Coin, Purpose, below};
use crate::limits::{COPIES_MAX, ENDED_MAX, RULES_MAX};
use crate::{Action, Fate, Link, Message, Rule, RuleName, Verdict, Wire, WireAction};

/// The rules in force, with the seed that their coins come from and what they have matched.
///
/// # Invariants
/// At most [`RULES_MAX`] rules are in force, no two of one name. At most [`ENDED_MAX`] that ended are remembered.
#[derive(Clone, Debug)]
pub struct Rules {
    seed: u64,
    in_force: Vec<Standing>,
    ended: VecDeque<InForce>,
}

/// How often a rule had to do with messages of a link.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Messages that fit the whole filter while the rule was on. Of a rule below messages, connections that it refused, or whose
    /// end it had come late; what others do to connections is not counted.
    pub matched: u64,
    /// Those of them that it changed something about: another rule may have dropped them already.
    pub acted: u64,
}

/// A rule and what it has matched.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InForce {
    /// The rule.
    pub rule: Rule,
    /// Per link on which it matched anything.
    pub counts: BTreeMap<Link, Counts>,
    /// When it was loaded.
    pub since: Duration,
    /// When it was healed; not given while it is in force.
    pub ended: Option<Duration>,
}

/// Why rules were not loaded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Another rule has that name.
    #[error("a rule `{0}` is in force already")]
    NameTaken(RuleName),
    /// There would be too many.
    #[error("there would be {0} rules in force; the limit is {RULES_MAX}")]
    TooMany(usize),
    /// Something about a rule is out of bounds.
    #[error("rule `{name}`: {flaw}")]
    OutOfBounds {
        /// The rule.
        name: RuleName,
        /// What is wrong with it.
        flaw: &'static str,
    },
}

#[derive(Clone, Debug)]
struct Standing {
    entry: InForce,
    /// Per link, how many messages fit all but `nth` and probability.
    ordinals: BTreeMap<Link, u64>,
}

impl InForce {
    /// What it matched on all links.
    pub fn matched(&self) -> u64 {
        self.counts.values().map(|counts| counts.matched).sum()
    }

    /// What it acted on, on all links.
    pub fn acted(&self) -> u64 {
        self.counts.values().map(|counts| counts.acted).sum()
    }
}

impl Rules {
    /// No rules.
    pub fn new(seed: u64) -> Self {
        Self { seed, in_force: Vec::new(), ended: VecDeque::new() }
    }

    /// The seed that coins come from.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// From now on coins come from this seed.
    pub fn reseed(&mut self, seed: u64) {
        self.seed = seed;
    }

    /// Puts rules into force: all of them, or none. Pulses begin `now`.
    ///
    /// # Errors
    /// [`RuleError`] if a name is taken, or anything is out of bounds; nothing has changed then.
    pub fn load(&mut self, now: Duration, step: Vec<Rule>) -> Result<(), RuleError> {
        let count = self.in_force.len().saturating_add(step.len());
        if count > RULES_MAX {
            return Err(RuleError::TooMany(count));
        }
        for (nth, rule) in step.iter().enumerate() {
            let mut others =
                self.in_force.iter().map(|standing| &standing.entry.rule).chain(step.iter().take(nth));
            if others.any(|other| other.name == rule.name) {
                return Err(RuleError::NameTaken(rule.name.clone()));
            }
            if let Some(flaw) = rule.flaw() {
                return Err(RuleError::OutOfBounds { name: rule.name.clone(), flaw });
            }
        }
        self.in_force.extend(step.into_iter().map(|rule| Standing::new(rule, now)));
        assert!(self.in_force.len() <= RULES_MAX, "{} rules are in force", self.in_force.len());
        Ok(())
    }

    /// Takes a rule, or all, out of force, and returns what was. What they matched stays in the table.
    pub fn heal(&mut self, now: Duration, which: Option<&RuleName>) -> Vec<Rule> {
        let is_healed = |standing: &mut Standing| which.is_none_or(|name| standing.entry.rule.name == *name);
        let healed: Vec<_> = self.in_force.extract_if(.., is_healed).map(|standing| standing.entry).collect();
        let rules = healed.iter().map(|entry| entry.rule.clone()).collect();
        self.ended.extend(healed.into_iter().map(|entry| InForce { ended: Some(now), ..entry }));
        let surplus = self.ended.len().saturating_sub(ENDED_MAX);
        self.ended.drain(..surplus);
        rules
    }

    /// What happens to one message. Each message of a link is asked about once, in the order of the link.
    pub fn judge(&mut self, now: Duration, link: Link, message: &Message) -> Verdict {
        let mut matching: Vec<(&mut Standing, Coin)> = Vec::new();
        for standing in &mut self.in_force {
            if let Some(coin) = standing.matches(self.seed, now, link, message) {
                matching.push((standing, coin));
            }
        }
        let of_action = |matching: &[(&mut Standing, Coin)], action| {
            matching
                .iter()
                .find(|(standing, _)| standing.entry.rule.action == action)
                .map(|(standing, _)| standing.entry.rule.name.clone())
        };
        let mut verdict = Verdict::PLAIN;
        // What overrides all others is looked for first, so that the others do not count as having acted.
        let overriding = if of_action(&matching, Action::Drop).is_some() {
            verdict.fate = Fate::Drop;
            Some(Action::Drop)
        } else if let Some(name) = of_action(&matching, Action::Hold) {
            verdict.fate = Fate::Hold(name);
            Some(Action::Hold)
        } else {
            None
        };
        for (standing, coin) in matching {
            let action = standing.entry.rule.action;
            let has_acted = match overriding {
                Some(overriding) => action == overriding,
                None => verdict.join(action, coin),
            };
            standing.entry.counts.entry(link).or_default().acted += u64::from(has_acted);
        }
        verdict.delay_copies();
        verdict
    }

    /// What is in force below messages on a link. Of a rule's filter only the links are asked.
    pub fn wire(&self, now: Duration, link: Link) -> Wire {
        let mut wire = Wire::default();
        for standing in &self.in_force {
            let rule = &standing.entry.rule;
            if let Action::Wire(action) = rule.action
                && rule.filter.links.contains(link)
                && standing.is_on(now)
            {
                wire.join(&rule.name, action);
            }
        }
        wire
    }

    /// Counts a connection that was refused on a link, or whose end was late there, for the rules that have done it.
    pub fn count_wire(&mut self, now: Duration, link: Link, is_it: fn(WireAction) -> bool) {
        for standing in &mut self.in_force {
            let rule = &standing.entry.rule;
            let has_done = matches!(rule.action, Action::Wire(action) if is_it(action));
            if has_done && rule.filter.links.contains(link) && standing.is_on(now) {
                let counts = standing.entry.counts.entry(link).or_default();
                (counts.matched, counts.acted) = (counts.matched + 1, counts.acted + 1);
            }
        }
    }

    /// Whether nothing is in force.
    pub fn is_empty(&self) -> bool {
        self.in_force.is_empty()
    }

    /// What ended, then what is in force, each in the order of ending or of loading.
    pub fn table(&self) -> Vec<InForce> {
        self.ended.iter().chain(self.in_force.iter().map(|standing| &standing.entry)).cloned().collect()
    }
}

impl Standing {
    fn new(rule: Rule, since: Duration) -> Self {
        let entry = InForce { rule, counts: BTreeMap::new(), since, ended: None };
        Self { entry, ordinals: BTreeMap::new() }
    }

    fn is_on(&self, now: Duration) -> bool {
        let age = now.saturating_sub(self.entry.since);
        self.entry.rule.pulse.is_none_or(|pulse| pulse.is_on(age))
    }

    /// Whether the rule matches, with the coins for what it does. Counts.
    fn matches(&mut self, seed: u64, now: Duration, link: Link, message: &Message) -> Option<Coin> {
        let rule = &self.entry.rule;
        if matches!(rule.action, Action::Wire(_)) || !rule.filter.fits(link, message) {
            return None;
        }
        // Counted while the rule is off as well: else the moment of a message would change the coins of later ones.
        let ordinal = self.ordinals.entry(link).or_default();
        *ordinal += 1;
        let coin = Coin::new(seed, &rule.name, link, *ordinal);
        let is_chosen = rule.filter.nth.is_none_or(|nth| nth.contains(*ordinal))
            && rule.filter.probability.happens(coin.toss(Purpose::Probability, 0));
        if !is_chosen || !self.is_on(now) {
            return None;
        }
        self.entry.counts.entry(link).or_default().matched += 1;
        Some(coin)
    }
}

impl Verdict {
    /// Takes up one more action that overrides nothing. Whether that changed anything.
    fn join(&mut self, action: Action, coin: Coin) -> bool {
        match action {
            Action::Delay(delay) => {
                let more = delay.drawn(coin.toss(Purpose::Delay, 0));
                self.delay = self.delay.saturating_add(more);
                !more.is_zero()
            }
            Action::Duplicate { copies, gap } => {
                let has = u32::try_from(self.copies.len()).unwrap_or(u32::MAX);
                let room = COPIES_MAX.saturating_sub(has);
                self.copies.extend((1..=copies.min(room)).map(|nth| gap.saturating_mul(nth)));
                room > 0
            }
            Action::Reorder { window } => {
                let drawn = below(coin.toss(Purpose::Reorder, 0), u64::from(window) + 1);
                let drawn = u32::try_from(drawn).ok().filter(|drawn| *drawn > 0);
                self.reorder = self.reorder.max(drawn);
                drawn.is_some()
            }
            Action::Flip { bits } => {
                self.flips.extend((0..u64::from(bits)).map(|nth| coin.toss(Purpose::Flip, nth)));
                true
            }
            Action::Drop | Action::Hold | Action::Wire(_) => false,
        }
    }

    /// A copy is never before its message.
    fn delay_copies(&mut self) {
        let delay = self.delay;
        self.copies.iter_mut().for_each(|copy| *copy = copy.saturating_add(delay));
    }
}
