//! Cuts that have a name.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use kv_types::NodeId;

use crate::Who;
use crate::end::node;
use crate::quantity::ParseError;

/// Which links are cut. [`Partition::resolve`] says what it comes to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Partition {
    /// One node is cut off, in both directions: `isolate n1`.
    Isolate(Who),
    /// These groups, of which each node is in one: `1,2/3,4,5`.
    Groups(Vec<BTreeSet<NodeId>>),
    /// The largest minority is cut off, with this node in it if one is given: `minority`, `minority n1`.
    Minority(Option<Who>),
    /// Two groups of equal size, or one larger by one: `halves`.
    Halves,
    /// As [`Partition::Halves`], and one more node that reaches both: `bridge`, `bridge n1`.
    Bridge(Option<Who>),
    /// Each node reaches a majority, itself counted, and no two the same: `ring`.
    Ring,
    /// From the one to the other: `one-way n1->n2`.
    OneWay(Who, Who),
    /// It hears, and nobody hears it: `mute n1`.
    Mute(Who),
    /// It speaks, and hears nobody: `deaf n1`.
    Deaf(Who),
    /// Both directions between two that see all others: `partial n1<->n2`.
    Partial(Who, Who),
}

/// What is expected of a text.
const EXPECTED: &str = "isolate A, 1,2/3,4,5, minority [A], halves, bridge [A], ring, one-way A->B, mute A, deaf A or \
                        partial A<->B is expected";

impl FromStr for Partition {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new(text, "partition", EXPECTED);
        let (word, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        let one = || rest.parse::<Who>();
        let maybe = || if rest.is_empty() { Ok(None) } else { one().map(Some) };
        let two = |arrow| {
            let (a, b) = rest.split_once(arrow).ok_or_else(bad)?;
            let (a, b): (Who, Who) = (a.parse()?, b.parse()?);
            // What is drawn is drawn so that it differs.
            if a == b && !a.is_drawn() { Err(bad()) } else { Ok((a, b)) }
        };
        match word {
            "isolate" => one().map(Self::Isolate),
            "minority" => maybe().map(Self::Minority),
            "halves" if rest.is_empty() => Ok(Self::Halves),
            "bridge" => maybe().map(Self::Bridge),
            "ring" if rest.is_empty() => Ok(Self::Ring),
            "one-way" => two("->").map(|(from, to)| Self::OneWay(from, to)),
            "mute" => one().map(Self::Mute),
            "deaf" => one().map(Self::Deaf),
            "partial" => two("<->").map(|(a, b)| Self::Partial(a, b)),
            _ => groups(text).map(Self::Groups).ok_or_else(bad),
        }
    }
}

/// At least two groups, none empty, no node twice.
fn groups(text: &str) -> Option<Vec<BTreeSet<NodeId>>> {
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for part in text.split('/') {
        let mut group = BTreeSet::new();
        for member in part.split(',') {
            let node = node(member.trim())?;
            if !seen.insert(node) {
                return None;
            }
            group.insert(node);
        }
        groups.push(group);
    }
    (groups.len() > 1).then_some(groups)
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolate(who) => write!(f, "isolate {who}"),
            Self::Groups(groups) => {
                let texts: Vec<_> = groups.iter().map(show_group).collect();
                f.write_str(&texts.join("/"))
            }
            Self::Minority(None) => f.write_str("minority"),
            Self::Minority(Some(who)) => write!(f, "minority {who}"),
            Self::Halves => f.write_str("halves"),
            Self::Bridge(None) => f.write_str("bridge"),
            Self::Bridge(Some(who)) => write!(f, "bridge {who}"),
            Self::Ring => f.write_str("ring"),
            Self::OneWay(from, to) => write!(f, "one-way {from}->{to}"),
            Self::Mute(who) => write!(f, "mute {who}"),
            Self::Deaf(who) => write!(f, "deaf {who}"),
            Self::Partial(a, b) => write!(f, "partial {a}<->{b}"),
        }
    }
}

fn show_group(group: &BTreeSet<NodeId>) -> String {
    let texts: Vec<_> = group.iter().map(|node| node.get().to_string()).collect();
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_prints_and_reads_back() {
        for text in [
            "isolate leader-of(1)",
            "1,2/3,4,5",
            "1/2/3",
            "minority",
            "minority n1",
            "halves",
            "bridge",
            "bridge follower-of(2)",
            "ring",
            "one-way n1->any",
            "one-way any->any",
            "mute manager-of(ses5/7)",
            "deaf n2",
            "partial leader-of(1)<->leader-of(2)",
        ] {
            assert_eq!(text.parse::<Partition>().unwrap().to_string(), text);
        }
        assert_eq!(" n2, 1 / n3 ".parse::<Partition>().unwrap().to_string(), "1,2/3");
    }

    #[test]
    fn what_is_no_shape_is_refused() {
        for bad in [
            "",
            "isolate",
            "isolate x",
            "isolate n1 n2",
            "1,2,3",
            "1,1/2",
            "1/1",
            "1//2",
            "halves n1",
            "ring 3",
            "one-way n1",
            "one-way n1->n1",
            "one-way n1 n2",
            "partial n1->n2",
            "partial leader-of(1)<->leader-of(1)",
            "half",
        ] {
            assert!(bad.parse::<Partition>().is_err(), "{bad}");
        }
    }
}
