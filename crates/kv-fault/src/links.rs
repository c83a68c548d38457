//! Sets of links.

use std::collections::BTreeSet;

use crate::Link;

/// The links that a rule is about, already resolved to nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Links {
    /// Every link there is, those of clients as well.
    All,
    /// Exactly these.
    Only(BTreeSet<Link>),
}

impl Links {
    /// Whether `link` is one of them.
    pub fn contains(&self, link: Link) -> bool {
        match self {
            Self::All => true,
            Self::Only(links) => links.contains(&link),
        }
    }
}
