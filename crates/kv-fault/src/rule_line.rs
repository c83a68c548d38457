//! A rule in one line, as drills write it.

use std::fmt;

use crate::quantity::{ShowDuration, ShowRange};
use crate::{Action, Delay, Links, Probability, Rule, WireAction};

/// Prints as the value of a step's `rule`, so that [`Draft::parse`](crate::Draft::parse) reads it back: a rule travels as this.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ name = \"{}\"", self.name)?;
        if let Links::Only(links) = &self.filter.links {
            write!(f, ", links = {}", Texts(links))?;
        }
        if !self.filter.kinds.is_empty() {
            write!(f, ", kinds = {}", Texts(&self.filter.kinds))?;
        }
        if let Some(half) = self.filter.half {
            write!(f, ", half = \"{half}\"")?;
        }
        if let Some(shard) = self.filter.shard {
            write!(f, ", shard = {}", shard.get())?;
        }
        if let Some(terms) = &self.filter.terms {
            write!(f, ", terms = \"{}\"", ShowRange(terms))?;
        }
        if let Some(indexes) = &self.filter.indexes {
            write!(f, ", indexes = \"{}\"", ShowRange(indexes))?;
        }
        if let Some(nth) = self.filter.nth {
            write!(f, ", nth = \"{nth}\"")?;
        }
        if self.filter.probability != Probability::CERTAIN {
            write!(f, ", probability = {}", self.filter.probability)?;
        }
        if let Some(pulse) = self.pulse {
            let (on, off) = (ShowDuration(pulse.on), ShowDuration(pulse.off));
            write!(f, ", pulse = {{ on = \"{on}\", off = \"{off}\" }}")?;
        }
        write!(f, ", {} }}", ActionField(self.action))
    }
}

/// A list of texts without quotes in them.
struct Texts<'a, T>(&'a T);

impl<'a, T, I> fmt::Display for Texts<'a, T>
where
    &'a T: IntoIterator<Item = I>,
    I: fmt::Display,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts: Vec<_> = self.0.into_iter().map(|item| format!("\"{item}\"")).collect();
        write!(f, "[{}]", texts.join(", "))
    }
}

/// The field that says what a rule does.
struct ActionField(Action);

impl fmt::Display for ActionField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Action::Drop => f.write_str("drop = true"),
            Action::Delay(delay) => write!(f, "delay = {}", DelayValue(delay)),
            Action::Duplicate { copies, gap } => {
                write!(f, "duplicate = {{ copies = {copies}, gap = \"{}\" }}", ShowDuration(gap))
            }
            Action::Reorder { window } => write!(f, "reorder = {window}"),
            Action::Hold => f.write_str("hold = true"),
            Action::Flip { bits } => write!(f, "flip = {bits}"),
            Action::Wire(WireAction::Latency(delay)) => write!(f, "latency = {}", DelayValue(delay)),
            Action::Wire(WireAction::Bandwidth { bytes_per_second }) => {
                write!(f, "bandwidth = \"{bytes_per_second}B/s\"")
            }
            Action::Wire(WireAction::SlowClose(span)) => write!(f, "slow-close = \"{}\"", ShowDuration(span)),
            // The others are named by a word alone.
            Action::Wire(
                action @ (WireAction::Refuse
                | WireAction::Reset
                | WireAction::BlackHole
                | WireAction::Stall
                | WireAction::HalfClose),
            ) => write!(f, "{action} = true"),
        }
    }
}

/// A delay as a value.
struct DelayValue(Delay);

impl fmt::Display for DelayValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Delay { base, jitter, shape } = self.0;
        if jitter.is_zero() {
            return write!(f, "\"{}\"", ShowDuration(base));
        }
        let (base, jitter) = (ShowDuration(base), ShowDuration(jitter));
        write!(f, "{{ base = \"{base}\", jitter = \"{jitter}\", shape = \"{shape}\" }}")
    }
}
