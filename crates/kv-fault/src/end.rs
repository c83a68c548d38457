//! One end of a link.

use std::fmt;
use std::str::FromStr;

use kv_types::NodeId;

use crate::quantity::{ParseError, whole};

/// One end of a link. Prints as `n1` or `clients`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum End {
    /// A node.
    Node(NodeId),
    /// All clients.
    Clients,
}

/// A node as `n1` or `1`.
pub(crate) fn node(text: &str) -> Option<NodeId> {
    whole(text.strip_prefix('n').unwrap_or(text)).filter(|raw| *raw > 0).map(NodeId::new)
}

impl FromStr for End {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        match text.trim() {
            "clients" => Ok(Self::Clients),
            text => node(text).map(Self::Node).ok_or_else(|| {
                ParseError::new(text, "end of a link", "a node such as n1, or clients, is expected")
            }),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::Clients => f.write_str("clients"),
        }
    }
}
