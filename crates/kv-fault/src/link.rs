//! One direction between two ends.

use std::fmt;
use std::str::FromStr;

use kv_types::NodeId;

use crate::End;
use crate::quantity::ParseError;

/// A direction in which messages travel: an answer travels the other way. Prints as `n1->n2`; `1->2` is read as well.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Link {
    /// Where its messages come from.
    pub from: End,
    /// Where they go.
    pub to: End,
}

impl Link {
    /// The link between two nodes.
    pub const fn between(from: NodeId, to: NodeId) -> Self {
        Self { from: End::Node(from), to: End::Node(to) }
    }

    /// Whether one of its ends is all clients.
    pub fn is_of_clients(self) -> bool {
        [self.from, self.to].contains(&End::Clients)
    }

    /// The other direction.
    #[must_use]
    pub const fn opposite(self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

impl FromStr for Link {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let bad = || ParseError::new(text, "link", "two different ends are expected, such as n1->n2");
        let (from, to) = text.split_once("->").ok_or_else(bad)?;
        let link = Self { from: from.parse().map_err(|_| bad())?, to: to.parse().map_err(|_| bad())? };
        if link.from == link.to { Err(bad()) } else { Ok(link) }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}", self.from, self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_print_and_read_back() {
        for text in ["n1->n2", "clients->n3", "n3->clients"] {
            assert_eq!(text.parse::<Link>().unwrap().to_string(), text);
        }
        assert_eq!("1->2".parse(), Ok(Link::between(NodeId::new(1), NodeId::new(2))));
        for bad in ["", "n1", "n1->n1", "n0->n1", "n1->", "n1->n2->n3", "x->n1", "clients->clients"] {
            assert!(bad.parse::<Link>().is_err(), "{bad}");
        }
    }
}
