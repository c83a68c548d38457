//! Which messages a rule is about.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use kv_types::ShardId;

use crate::quantity::{ParseError, whole};
use crate::{Half, Kind, Link, Links, Message, Probability};

/// Which messages. All that is given must fit.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    /// On which links.
    pub links: Links,
    /// Of which kinds; none given is any.
    pub kinds: BTreeSet<Kind>,
    /// Only what asks, or only what answers.
    pub half: Option<Half>,
    /// About one shard.
    pub shard: Option<ShardId>,
    /// Of senders in these terms.
    pub terms: Option<RangeInclusive<u64>>,
    /// With an entry at one of these log indexes.
    pub indexes: Option<RangeInclusive<u64>>,
    /// Which of those that fit all the above, counted on each link by itself.
    pub nth: Option<Nth>,
    /// How many of those that fit all the above.
    pub probability: Probability,
}

/// Which of the messages that fit, by their number from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nth {
    /// The first so many.
    First(u64),
    /// This one only.
    Only(u64),
    /// Each of which the number is a multiple of this.
    Every(u64),
    /// All but the first so many.
    After(u64),
}

impl Filter {
    /// Every message on these links.
    pub const fn on(links: Links) -> Self {
        Self {
            links,
            kinds: BTreeSet::new(),
            half: None,
            shard: None,
            terms: None,
            indexes: None,
            nth: None,
            probability: Probability::CERTAIN,
        }
    }

    /// Whether all but [`Filter::nth`] and [`Filter::probability`] fits.
    pub(crate) fn fits(&self, link: Link, message: &Message) -> bool {
        let overlaps = |wanted: &RangeInclusive<u64>| {
            let found = message.indexes.as_ref();
            found.is_some_and(|found| {
                !found.is_empty() && found.start() <= wanted.end() && wanted.start() <= found.end()
            })
        };
        self.links.contains(link)
            && (self.kinds.is_empty() || self.kinds.contains(&message.kind))
            && self.half.is_none_or(|half| half == message.half)
            && (self.shard.is_none() || self.shard == message.shard)
            && self
                .terms
                .as_ref()
                .is_none_or(|terms| message.term.is_some_and(|term| terms.contains(&term.get())))
            && self.indexes.as_ref().is_none_or(overlaps)
    }
}

impl Nth {
    /// Whether the message of this number is one of them.
    pub fn contains(self, ordinal: u64) -> bool {
        match self {
            Self::First(count) => ordinal <= count,
            Self::Only(number) => ordinal == number,
            Self::Every(step) => step > 0 && ordinal.is_multiple_of(step),
            Self::After(count) => ordinal > count,
        }
    }
}

impl FromStr for Nth {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let number = |text: &str| whole::<u64>(text.trim()).filter(|number| *number > 0);
        let found = match text.trim().split_once(' ') {
            Some(("first", count)) => number(count).map(Self::First),
            Some(("every", step)) => number(step).map(Self::Every),
            Some(("after", count)) => number(count).map(Self::After),
            Some(_) => None,
            None => number(text).map(Self::Only),
        };
        let expected = "`first 2`, `5`, `every 3` or `after 10` is expected, with a number from 1";
        found.ok_or_else(|| ParseError::new(text, "choice of messages", expected))
    }
}

impl fmt::Display for Nth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First(count) => write!(f, "first {count}"),
            Self::Only(number) => write!(f, "{number}"),
            Self::Every(step) => write!(f, "every {step}"),
            Self::After(count) => write!(f, "after {count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use kv_types::Term;

    use super::*;

    fn message() -> Message {
        Message {
            kind: Kind::Append,
            half: Half::Request,
            shard: Some(ShardId::new(1)),
            term: Some(Term::new(3)),
            indexes: Some(10..=12),
            bytes: 100,
        }
    }

    fn fits(change: impl FnOnce(&mut Filter), message: &Message) -> bool {
        let link: Link = "n1->n2".parse().unwrap();
        let mut filter = Filter::on(Links::Only(BTreeSet::from([link])));
        change(&mut filter);
        filter.fits(link, message)
    }

    #[test]
    fn all_that_is_given_must_fit() {
        let message = message();
        assert!(fits(|_| {}, &message));
        assert!(fits(|filter| filter.kinds = BTreeSet::from([Kind::Append, Kind::Vote]), &message));
        assert!(!fits(|filter| filter.kinds = BTreeSet::from([Kind::Vote]), &message));
        assert!(!fits(|filter| filter.half = Some(Half::Reply), &message));
        assert!(!fits(|filter| filter.shard = Some(ShardId::new(2)), &message));
        assert!(fits(|filter| filter.terms = Some(3..=3), &message));
        assert!(!fits(|filter| filter.terms = Some(4..=5), &message));
        assert!(!fits(|filter| filter.links = Links::Only(BTreeSet::new()), &message));
        assert!(fits(|filter| filter.links = Links::All, &message));
    }

    #[test]
    fn indexes_overlap() {
        let message = message();
        for (range, is_fit) in
            [(0..=9, false), (0..=10, true), (11..=11, true), (12..=99, true), (13..=99, false)]
        {
            assert_eq!(fits(|filter| filter.indexes = Some(range), &message), is_fit);
        }
    }

    #[test]
    fn what_is_unknown_fits_nothing_that_is_asked_for() {
        let bare = Message { shard: None, term: None, indexes: None, ..message() };
        assert!(fits(|_| {}, &bare));
        assert!(!fits(|filter| filter.shard = Some(ShardId::new(1)), &bare));
        assert!(!fits(|filter| filter.terms = Some(0..=u64::MAX), &bare));
        assert!(!fits(|filter| filter.indexes = Some(0..=u64::MAX), &bare));
    }

    #[test]
    fn numbers_choose() {
        let chosen = |text: &str| {
            let nth: Nth = text.parse().unwrap();
            assert_eq!(nth.to_string(), text);
            (1..=7).filter(|ordinal| nth.contains(*ordinal)).collect::<Vec<_>>()
        };
        assert_eq!(chosen("first 2"), [1, 2]);
        assert_eq!(chosen("5"), [5]);
        assert_eq!(chosen("every 3"), [3, 6]);
        assert_eq!(chosen("after 5"), [6, 7]);
        for bad in ["", "0", "first", "first 0", "last 3", "every -1", "every 1 2"] {
            assert!(bad.parse::<Nth>().is_err(), "{bad}");
        }
    }
}
