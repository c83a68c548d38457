//! Nodes by what they do.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use kv_types::{NodeId, RequestId, ShardId, TxnId};

use crate::end::node;
use crate::quantity::{ParseError, whole};

/// A node, or the role of one, which is looked up when a step fires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Who {
    /// This node: `n3` or `3`.
    Node(NodeId),
    /// The leader of a shard: `leader-of(1)`.
    LeaderOf(ShardId),
    /// Some node that does not lead the shard: `follower-of(1)`.
    FollowerOf(ShardId),
    /// The node that manages a transaction, `manager-of(ses5/7)`, or any that is in doubt, `manager-of(any)`.
    ManagerOf(Option<TxnId>),
    /// Some node: `any`.
    Any,
}

/// Who looks up roles: whoever plays the drill knows the cluster.
pub trait Roles {
    /// All nodes.
    fn nodes(&self) -> BTreeSet<NodeId>;

    /// The leader of a shard, if one is known.
    fn leader_of(&self, shard: ShardId) -> Option<NodeId>;

    /// The manager of a transaction, or of any in doubt, if one is known.
    fn manager_of(&self, txn: Option<TxnId>) -> Option<NodeId>;
}

impl Who {
    /// Whether it is left to chance.
    pub(crate) fn is_drawn(self) -> bool {
        matches!(self, Self::FollowerOf(_) | Self::Any)
    }
}

/// A shard as `1` or `s1`.
pub(crate) fn shard(text: &str) -> Option<ShardId> {
    whole(text.strip_prefix('s').unwrap_or(text)).map(ShardId::new)
}

impl FromStr for Who {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let read = || {
            let text = text.trim();
            if text == "any" {
                return Some(Self::Any);
            }
            if let Some(node) = node(text) {
                return Some(Self::Node(node));
            }
            let (role, of) = text.strip_suffix(')')?.split_once('(')?;
            match role {
                "leader-of" => shard(of).map(Self::LeaderOf),
                "follower-of" => shard(of).map(Self::FollowerOf),
                "manager-of" if of == "any" => Some(Self::ManagerOf(None)),
                "manager-of" => match of.parse().ok()? {
                    RequestId::Session { session, seq } => {
                        Some(Self::ManagerOf(Some(TxnId { session, seq })))
                    }
                    RequestId::Timed(_) => None,
                },
                _ => None,
            }
        };
        let expected =
            "n1, leader-of(1), follower-of(1), manager-of(ses5/7), manager-of(any) or any is expected";
        read().ok_or_else(|| ParseError::new(text, "node", expected))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "{node}"),
            Self::LeaderOf(shard) => write!(f, "leader-of({})", shard.get()),
            Self::FollowerOf(shard) => write!(f, "follower-of({})", shard.get()),
            Self::ManagerOf(Some(txn)) => write!(f, "manager-of({txn})"),
            Self::ManagerOf(None) => f.write_str("manager-of(any)"),
            Self::Any => f.write_str("any"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_print_and_read_back() {
        for text in ["n3", "leader-of(1)", "follower-of(0)", "manager-of(ses5/7)", "manager-of(any)", "any"] {
            assert_eq!(text.parse::<Who>().unwrap().to_string(), text);
        }
        assert_eq!("3".parse(), Ok(Who::Node(NodeId::new(3))));
        assert_eq!("leader-of(s1)".parse(), Ok(Who::LeaderOf(ShardId::new(1))));
        for bad in [
            "",
            "n0",
            "leader-of",
            "leader-of()",
            "leader-of(x)",
            "manager-of(1)",
            "leader of(1)",
            "follower",
        ] {
            assert!(bad.parse::<Who>().is_err(), "{bad}");
        }
    }
}
