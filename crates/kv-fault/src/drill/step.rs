//! A step: when something happens, and what.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use kv_types::ShardId;

use super::draft::Draft;
use crate::quantity::{ParseError, whole};
use crate::who::shard;
use crate::{Partition, RuleName, Who};

/// When something happens, and what.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Its number in the file, from 1. The steps that a swizzle stands for share its number.
    pub number: usize,
    /// The line where it begins, from 1.
    pub line: usize,
    /// When it happens.
    pub trigger: Trigger,
    /// What happens.
    pub deed: Deed,
}

/// When a step fires. Times count from the start of the workload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Trigger {
    /// Once, then.
    At(Duration),
    /// Again and again: at `from`, and every `interval` after that, before `until`.
    Every {
        /// The time between one and the next.
        interval: Duration,
        /// The first time.
        from: Duration,
        /// Not at this time or later.
        until: Duration,
    },
    /// Once, as soon as this is so.
    When(Condition),
}

/// What a step waits for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Condition {
    /// A rule matched so many messages: `matched NAME >= 3`.
    Matched {
        /// The rule.
        rule: RuleName,
        /// How many.
        count: u64,
    },
    /// A shard is led by another node than when the drill began: `leader-changed 1`.
    LeaderChanged(ShardId),
    /// A shard's term is larger than this: `term 1 > 3`.
    TermAbove {
        /// The shard.
        shard: ShardId,
        /// The term.
        term: u64,
    },
}

/// What a step does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Cuts links by one rule that drops everything on them.
    Partition {
        /// The rule's name.
        name: RuleName,
        /// Which links.
        partition: Partition,
        /// Whether clients stay with the first side.
        clients: bool,
    },
    /// Loads a rule.
    Rule(Draft),
    /// Does something to a process.
    Process(Process),
    /// Takes rules out of force.
    Heal {
        /// What happens to what they held.
        held: Held,
        /// One rule only; all if not given.
        only: Option<RuleName>,
    },
}

/// What happens to held messages when they are no longer held.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Held {
    /// They arrive late.
    Late,
    /// They never arrive.
    Discard,
}

/// What is done to which process. Prints as `kill leader-of(1)`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Process {
    /// What is done.
    pub verb: Verb,
    /// To whom.
    pub target: Target,
}

/// What can be done to a process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verb {
    /// It ends at once.
    Kill,
    /// It stands still.
    Pause,
    /// It goes on after a pause.
    Resume,
    /// It is started after a kill, a wipe or damage.
    Restart,
    /// It ends at once, and its data directory is emptied.
    Wipe,
    /// It ends at once, and the rows of its shards on its disk are damaged; its log is not.
    Damage,
}

/// Whose process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// One node's. With [`Verb::Resume`] and [`Verb::Restart`] a role stands for the node that it stood for when that was
    /// paused, killed, wiped or damaged, whoever has the role by now.
    Who(Who),
    /// Of every node that is paused, or down; with [`Verb::Resume`] and [`Verb::Restart`] only.
    All,
}

impl Trigger {
    /// When it fires for the last time, if that is known.
    pub(super) fn last(&self) -> Option<Duration> {
        match self {
            Self::At(at) => Some(*at),
            Self::Every { interval, from, until } => {
                let span = until.saturating_sub(*from).as_nanos().saturating_sub(1);
                let count = u32::try_from(span.checked_div(interval.as_nanos())?).ok()?;
                Some(from.saturating_add(interval.saturating_mul(count)))
            }
            Self::When(_) => None,
        }
    }
}

impl Verb {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Kill, Self::Pause, Self::Resume, Self::Restart, Self::Wipe, Self::Damage];

    /// Its name in text.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Restart => "restart",
            Self::Wipe => "wipe",
            Self::Damage => "damage",
        }
    }

    /// What mends it, if it breaks anything.
    pub(super) const fn mended_by(self) -> Option<Self> {
        match self {
            Self::Kill | Self::Wipe | Self::Damage => Some(Self::Restart),
            Self::Pause => Some(Self::Resume),
            Self::Resume | Self::Restart => None,
        }
    }
}

impl FromStr for Condition {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let words: Vec<_> = text.split_whitespace().collect();
        let read = || match words.as_slice() {
            ["matched", rule, ">=", count] => {
                let count = whole(count).filter(|count| *count > 0)?;
                Some(Self::Matched { rule: rule.parse().ok()?, count })
            }
            ["leader-changed", of] => shard(of).map(Self::LeaderChanged),
            ["term", of, ">", term] => Some(Self::TermAbove { shard: shard(of)?, term: whole(term)? }),
            _ => None,
        };
        let expected = "`matched NAME >= 3`, `leader-changed 1` or `term 1 > 3` is expected";
        read().ok_or_else(|| ParseError::new(text, "condition", expected))
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Matched { rule, count } => write!(f, "matched {rule} >= {count}"),
            Self::LeaderChanged(shard) => write!(f, "leader-changed {}", shard.get()),
            Self::TermAbove { shard, term } => write!(f, "term {} > {term}", shard.get()),
        }
    }
}

impl FromStr for Process {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let expected = "kill A, pause A, wipe A, damage A, resume A or restart A is expected; resume and restart may say all";
        let bad = || ParseError::new(text, "deed to a process", expected);
        let (word, rest) = text.trim().split_once(' ').ok_or_else(bad)?;
        let verb = Verb::ALL.into_iter().find(|verb| verb.name() == word).ok_or_else(bad)?;
        let target = match rest.trim() {
            "all" if verb.mended_by().is_none() => Target::All,
            "all" => return Err(bad()),
            who => Target::Who(who.parse()?),
        };
        Ok(Self { verb, target })
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.verb.name())?;
        match self.target {
            Target::Who(who) => write!(f, "{who}"),
            Target::All => f.write_str("all"),
        }
    }
}

impl FromStr for Held {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text {
            "late" => Ok(Self::Late),
            "discard" => Ok(Self::Discard),
            _ => Err(ParseError::new(text, "end of what was held", "late or discard is expected")),
        }
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Late => "late",
            Self::Discard => "discard",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_print_and_read_back() {
        for text in ["matched a >= 3", "leader-changed 1", "term 1 > 3"] {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), text);
        }
        for text in ["kill leader-of(1)", "pause n1", "resume all", "restart any", "wipe n5", "damage any"] {
            assert_eq!(text.parse::<Process>().unwrap().to_string(), text);
        }
        for text in ["late", "discard"] {
            assert_eq!(text.parse::<Held>().unwrap().to_string(), text);
        }
        for bad in ["", "matched a >= 0", "matched a", "term 1 >= 3", "term 1", "leader-changed"] {
            assert!(bad.parse::<Condition>().is_err(), "{bad}");
        }
        for bad in ["", "kill", "kill all", "stop n1", "kill n1 n2"] {
            assert!(bad.parse::<Process>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_repeated_step_ends_before_its_end() {
        let s = Duration::from_secs;
        let last = |from, until| Trigger::Every { interval: s(3), from: s(from), until: s(until) }.last();
        assert_eq!(last(1, 10), Some(s(7)));
        assert_eq!(last(1, 11), Some(s(10)));
        assert_eq!(last(1, 2), Some(s(1)));
    }
}
