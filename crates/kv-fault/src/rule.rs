//! A rule.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::limits::{COPIES_MAX, FLIPS_MAX, NAME_LEN_MAX, REORDER_MAX, SPAN_MAX};
use crate::quantity::ParseError;
use crate::{Action, Delay, Filter, Kind, Links, Nth, Probability, WireAction};

/// What a rule is called: unique among the rules in force.
///
/// # Invariants
/// 1 to [`NAME_LEN_MAX`] lower-case letters, digits and dashes, a letter first. Checked where it is read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleName(String);

/// What happens to which messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rule {
    /// Its name.
    pub name: RuleName,
    /// Which messages.
    pub filter: Filter,
    /// What happens.
    pub action: Action,
    /// When it comes and goes; always there if not given.
    pub pulse: Option<Pulse>,
}

/// A rule that flaps: in force for a while, then not, from when it was loaded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pulse {
    /// How long it is in force.
    pub on: Duration,
    /// How long it is not.
    pub off: Duration,
}

impl RuleName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RuleName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let is_short = text.len() <= NAME_LEN_MAX;
        let is_plain = text.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if is_short && is_plain && text.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Ok(Self(text.to_owned()));
        }
        let expected = "up to 64 lower-case letters, digits and dashes are expected, a letter first";
        Err(ParseError::new(text, "name", expected))
    }
}

impl fmt::Display for RuleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Pulse {
    /// Whether it is on, this long after the rule was loaded.
    pub fn is_on(self, age: Duration) -> bool {
        let period = self.on.saturating_add(self.off);
        let phase = age.as_nanos().checked_rem(period.as_nanos());
        phase.is_none_or(|phase| phase < self.on.as_nanos())
    }
}

impl Rule {
    /// What is out of bounds, if anything is.
    pub(crate) fn flaw(&self) -> Option<&'static str> {
        let is_long = |span: Duration| span > SPAN_MAX;
        let delay_flaw = |delay: Delay| {
            let is_none = delay.base.is_zero() && delay.jitter.is_zero();
            let is_bad = is_long(delay.base) || is_long(delay.jitter) || is_none;
            is_bad.then_some("a delay and its jitter are at most 120s, and not both 0s")
        };
        let pulse_flaw = self.pulse.and_then(|pulse| {
            let is_bad = |span: Duration| span.is_zero() || is_long(span);
            if self.action == Action::Wire(WireAction::Reset) {
                return Some("a reset is done once, when its rule is loaded: it has no pulse");
            }
            (is_bad(pulse.on) || is_bad(pulse.off))
                .then_some("a pulse is on and off for up to 120s each, not for 0s")
        });
        let action_flaw = match self.action {
            Action::Drop | Action::Hold => None,
            Action::Delay(delay) | Action::Wire(WireAction::Latency(delay)) => delay_flaw(delay),
            Action::Duplicate { copies, gap } => {
                let is_bad = copies == 0 || copies > COPIES_MAX || is_long(gap);
                is_bad.then_some("there are 1 to 16 copies, with a gap of up to 120s")
            }
            Action::Reorder { window } => {
                (window == 0 || window > REORDER_MAX).then_some("a reordering reaches over 1 to 64 messages")
            }
            Action::Flip { bits } => (bits == 0 || bits > FLIPS_MAX).then_some("1 to 64 bits are flipped"),
            Action::Wire(WireAction::Bandwidth { bytes_per_second }) => {
                (bytes_per_second == 0).then_some("a bandwidth is at least 1B/s")
            }
            Action::Wire(WireAction::SlowClose(span)) => {
                (span.is_zero() || is_long(span)).then_some("a close is up to 120s late, not 0s")
            }
            Action::Wire(
                WireAction::Refuse
                | WireAction::Reset
                | WireAction::BlackHole
                | WireAction::Stall
                | WireAction::HalfClose,
            ) => None,
        };
        self.filter.flaw().or(pulse_flaw).or(action_flaw)
    }
}

impl Filter {
    /// Why it can never fit, if that is so.
    fn flaw(&self) -> Option<&'static str> {
        let has_no_link = matches!(&self.links, Links::Only(links) if links.is_empty());
        let mut ranges = self.terms.iter().chain(&self.indexes);
        let has_zero = match self.nth {
            Some(Nth::First(number) | Nth::Only(number) | Nth::Every(number) | Nth::After(number)) => {
                number == 0
            }
            None => false,
        };
        let is_of_clients: Vec<bool> = match &self.links {
            Links::All => vec![false, true],
            Links::Only(links) => links.iter().map(|link| link.is_of_clients()).collect(),
        };
        if has_no_link {
            Some("it is about no link")
        } else if ranges.any(|range| range.is_empty()) {
            Some("a range is empty")
        } else if has_zero {
            Some("messages are numbered from 1")
        } else if self.probability == Probability::NEVER {
            Some("it never happens")
        } else {
            self.contradiction(&is_of_clients)
        }
    }

    /// Why no message that there is can fit, if that is so, on links of which these are of clients.
    pub(crate) fn contradiction(&self, is_of_clients: &[bool]) -> Option<&'static str> {
        let fits = |kind: Kind| is_of_clients.iter().any(|of_clients| kind.can_fit(self, *of_clients));
        (!Kind::ALL.into_iter().any(fits)).then_some(
            "no message is all of that: only `append` requests have log indexes, `client` messages name no shard, those \
             between clients and nodes are `client` and no others, only Raft's have a term, and `heartbeat` and \
             `timeout-now` are not answered by one of their kind",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        assert_eq!("lose-acks-2".parse::<RuleName>().unwrap().to_string(), "lose-acks-2");
        assert!("a".repeat(NAME_LEN_MAX).parse::<RuleName>().is_ok());
        let long = "a".repeat(NAME_LEN_MAX + 1);
        for bad in ["", "A", "2a", "-a", "a b", "a_b", long.as_str()] {
            assert!(bad.parse::<RuleName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_no_message_can_be_is_refused() {
        let flaw = |text: &str| {
            let text = format!("name = \"a\"\ndrop = true\n{text}");
            crate::Draft::parse(&text).err().map(|error| error.to_string())
        };
        let bad = [
            "indexes = \"3\"\nkinds = [\"vote\", \"heartbeat\"]",
            "indexes = \"3\"\nhalf = \"reply\"",
            "shard = 1\nkinds = [\"client\"]",
            "shard = 1\nlinks = [\"clients->n1\"]",
            "terms = \"3\"\nkinds = [\"client\", \"prepare\"]",
            "half = \"reply\"\nkinds = [\"timeout-now\", \"heartbeat\"]",
            "kinds = [\"append\"]\nlinks = [\"n1->clients\"]",
            "kinds = [\"client\"]\nlinks = [\"leader-of(1)->*\"]",
        ];
        for text in bad {
            assert!(flaw(text).unwrap().contains("no message is all of that"), "{text}");
        }
        let good = [
            "indexes = \"3\"",
            "indexes = \"3\"\nkinds = [\"vote\", \"append\"]",
            "shard = 1\nkinds = [\"client\", \"prepare\"]",
            "terms = \"3\"\nkinds = [\"snapshot-chunk\"]\nhalf = \"reply\"",
            "kinds = [\"client\"]",
            "kinds = [\"client\"]\nlinks = [\"n1->n2\", \"clients->*\"]",
        ];
        for text in good {
            assert_eq!(flaw(text), None, "{text}");
        }
    }

    #[test]
    fn a_pulse_comes_and_goes() {
        let ms = Duration::from_millis;
        let pulse = Pulse { on: ms(200), off: ms(300) };
        let on: Vec<_> = (0..11).filter(|tenth| pulse.is_on(ms(tenth * 100))).collect();
        assert_eq!(on, [0, 1, 5, 6, 10]);
    }
}
