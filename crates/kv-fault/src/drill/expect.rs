//! What is expected of the cluster.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::error::Flaw;
use super::table::{self, Reader, Value};
use crate::RuleName;
use crate::limits::WORKLOAD_MAX;
use crate::quantity::{self, ParseError, ShowDuration, whole};

/// What is expected of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Nodes that are cut off from the majority refuse writes, this soon after the cut.
    MinorityRefusesWithin(Within),
    /// The majority answers again, this soon after the cut.
    MajorityAvailableWithin(Within),
    /// All answer again, this soon after the last heal.
    AvailableAfterHealWithin(Within),
    /// Somebody else leads, this soon after the first fault.
    LeaderChangeWithin(Within),
    /// Everybody leads all the time what he led at the beginning.
    NoLeaderChange,
    /// The faults were met.
    MatchedAtLeast {
        /// By this rule.
        rule: RuleName,
        /// So many times.
        count: u64,
    },
}

/// A time, in a measure that fits every cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Within {
    /// This long: `2s`.
    Fixed(Duration),
    /// So many of the longest election timeouts: `3E`.
    Elections(u32),
}

impl Expect {
    /// Whether it asks for faults that were met, and not for a cluster that bears them.
    pub fn is_of_exercise(&self) -> bool {
        matches!(self, Self::MatchedAtLeast { .. })
    }
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinorityRefusesWithin(within) => write!(f, "minority-refuses-within {within}"),
            Self::MajorityAvailableWithin(within) => write!(f, "majority-available-within {within}"),
            Self::AvailableAfterHealWithin(within) => write!(f, "available-after-heal-within {within}"),
            Self::LeaderChangeWithin(within) => write!(f, "leader-change-within {within}"),
            Self::NoLeaderChange => f.write_str("no-leader-change"),
            Self::MatchedAtLeast { rule, count } => write!(f, "matched-at-least {count} by {rule}"),
        }
    }
}

/// An expectation, and where a rule that it names stands.
pub(super) struct PlacedExpect {
    pub(super) expect: Expect,
    pub(super) at: usize,
}

impl Within {
    /// The time, where an election timeout lasts this long at the most.
    pub fn duration(self, longest_election_timeout: Duration) -> Duration {
        match self {
            Self::Fixed(span) => span,
            Self::Elections(count) => longest_election_timeout.saturating_mul(count),
        }
    }
}

impl FromStr for Within {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let read = || match text.strip_suffix('E') {
            Some(count) => whole(count).filter(|count| (1..=100).contains(count)).map(Self::Elections),
            None => {
                let span = quantity::duration(text).ok()?;
                (!span.is_zero() && span <= WORKLOAD_MAX).then_some(Self::Fixed(span))
            }
        };
        let expected = "up to 120s, such as 2s, or up to 100 election timeouts, such as 3E, is expected";
        read().ok_or_else(|| ParseError::new(text, "patience", expected))
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(span) => write!(f, "{}", ShowDuration(*span)),
            Self::Elections(count) => write!(f, "{count}E"),
        }
    }
}

const FIELDS: [&str; 6] = [
    "minority-refuses-within",
    "majority-available-within",
    "available-after-heal-within",
    "leader-change-within",
    "no-leader-change",
    "matched-at-least",
];

pub(super) fn read(value: &Value<'_>) -> Result<PlacedExpect, Flaw> {
    let reader = Reader::of(value, "an expectation", &FIELDS)?;
    let (word, value) = reader.one_of(&FIELDS)?;
    let at = value.span().start;
    let expect = match word {
        "minority-refuses-within" => Expect::MinorityRefusesWithin(table::parsed(value)?),
        "majority-available-within" => Expect::MajorityAvailableWithin(table::parsed(value)?),
        "available-after-heal-within" => Expect::AvailableAfterHealWithin(table::parsed(value)?),
        "leader-change-within" => Expect::LeaderChangeWithin(table::parsed(value)?),
        "no-leader-change" => table::yes(value).map(|()| Expect::NoLeaderChange)?,
        _ => {
            let matched = Reader::of(value, "`matched-at-least`", &["rule", "count"])?;
            let rule = matched.need("rule")?;
            let count = matched.read("count", |value| table::integer(value, 1..=u64::MAX))?.unwrap_or(1);
            let at = rule.span().start;
            return Ok(PlacedExpect {
                expect: Expect::MatchedAtLeast { rule: table::parsed(rule)?, count },
                at,
            });
        }
    };
    Ok(PlacedExpect { expect, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_time_or_elections() {
        for text in ["2s", "1500ms", "3E"] {
            assert_eq!(text.parse::<Within>().unwrap().to_string(), text);
        }
        for bad in ["", "0s", "0E", "101E", "121s", "E", "1.5E"] {
            assert!(bad.parse::<Within>().is_err(), "{bad}");
        }
        let timeout = Duration::from_millis(300);
        assert_eq!(Within::Elections(3).duration(timeout), Duration::from_millis(900));
    }
}
