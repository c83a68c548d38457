//! Roles become nodes.

use std::collections::{BTreeMap, BTreeSet};

use kv_types::{NodeId, ShardId, TxnId};

use crate::limits::NODES_MAX;
use crate::{Roles, Who, coin};

/// Why a step cannot be carried out as things are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// The shard has no leader that is known.
    #[error("{0} has no known leader")]
    NoLeader(ShardId),
    /// The transaction is not known, or is over.
    #[error("{0} is not in doubt, or nobody knows who manages it")]
    NoManager(TxnId),
    /// Nothing is in doubt.
    #[error("no transaction is in doubt")]
    NothingInDoubt,
    /// The node is not one of the cluster's.
    #[error("{0} is not a node of the cluster")]
    UnknownNode(NodeId),
    /// A role could only be that of a node which is already taken, or there is none.
    #[error("no node is left to be `{0}`")]
    NobodyLeft(Who),
    /// The two ends of a link are the same node.
    #[error("`{0}` and `{1}` are both {2}")]
    SameNode(Who, Who, NodeId),
    /// A rule would be about no link.
    #[error("there is no such link in a cluster of this size")]
    NoLink,
    /// A node of the cluster is in no group.
    #[error("{0} is in no group")]
    InNoGroup(NodeId),
    /// The shape needs more nodes.
    #[error("it takes {needed} nodes at least, there are {has}")]
    TooFewNodes {
        /// How many it needs.
        needed: usize,
        /// How many there are.
        has: usize,
    },
    /// There are more nodes than partitions are made for.
    #[error("there are {0} nodes; the limit is {NODES_MAX}")]
    TooManyNodes(usize),
}

/// Looks up roles for one step: what is looked up once stays the same for all of the step.
pub(crate) struct Resolver<'a, R> {
    roles: &'a R,
    seed: u64,
    nodes: BTreeSet<NodeId>,
    chosen: BTreeMap<String, NodeId>,
}

impl<'a, R: Roles> Resolver<'a, R> {
    pub(crate) fn new(roles: &'a R, seed: u64) -> Self {
        Self { roles, seed, nodes: roles.nodes(), chosen: BTreeMap::new() }
    }

    pub(crate) fn nodes(&self) -> &BTreeSet<NodeId> {
        &self.nodes
    }

    /// A seed for what this step leaves to chance beside roles.
    pub(crate) fn seed_for(&self, what: &str) -> u64 {
        coin::hash(&[self.seed, coin::text(what)])
    }

    /// The node that somebody is.
    pub(crate) fn who(&mut self, who: Who) -> Result<NodeId, ResolveError> {
        self.who_but(who, None)
    }

    /// The two different nodes at the ends of a link. What is drawn is drawn so that they differ.
    pub(crate) fn pair(&mut self, a: Who, b: Who) -> Result<(NodeId, NodeId), ResolveError> {
        let (first, second) = if a.is_drawn() && !b.is_drawn() {
            let second = self.who(b)?;
            (self.who_but(a, Some(second))?, second)
        } else {
            let first = self.who(a)?;
            (first, self.who_but(b, Some(first))?)
        };
        if first == second { Err(ResolveError::SameNode(a, b, first)) } else { Ok((first, second)) }
    }

    /// The nodes that roles stood for.
    pub(crate) fn into_chosen(self) -> BTreeMap<String, NodeId> {
        self.chosen
    }

    fn who_but(&mut self, who: Who, taken: Option<NodeId>) -> Result<NodeId, ResolveError> {
        let text = who.to_string();
        match self.chosen.get(&text) {
            Some(node) if Some(*node) != taken || !who.is_drawn() => return Ok(*node),
            // The same words at both ends of a link: the second is another node, and has another name.
            Some(_) => return self.draw(who, taken, format!("{text} (2)")),
            None => {}
        }
        let node = match who {
            Who::Node(node) => node,
            Who::LeaderOf(shard) => self.roles.leader_of(shard).ok_or(ResolveError::NoLeader(shard))?,
            Who::ManagerOf(txn) => self
                .roles
                .manager_of(txn)
                .ok_or_else(|| txn.map_or(ResolveError::NothingInDoubt, ResolveError::NoManager))?,
            Who::FollowerOf(_) | Who::Any => return self.draw(who, taken, text),
        };
        if !self.nodes.contains(&node) {
            return Err(ResolveError::UnknownNode(node));
        }
        // What is named by its number needs no record of what it was.
        if !matches!(who, Who::Node(_)) {
            self.chosen.insert(text, node);
        }
        Ok(node)
    }

    fn draw(&mut self, who: Who, taken: Option<NodeId>, name: String) -> Result<NodeId, ResolveError> {
        if let Some(node) = self.chosen.get(&name).filter(|node| Some(**node) != taken) {
            return Ok(*node);
        }
        let leader = match who {
            Who::FollowerOf(shard) => Some(self.roles.leader_of(shard).ok_or(ResolveError::NoLeader(shard))?),
            Who::Node(_) | Who::LeaderOf(_) | Who::ManagerOf(_) | Who::Any => None,
        };
        let free = self.nodes.iter().copied().filter(|node| Some(*node) != taken && Some(*node) != leader);
        let order = coin::shuffled(free, self.seed_for(&name));
        let node = *order.first().ok_or(ResolveError::NobodyLeft(who))?;
        self.chosen.insert(name, node);
        Ok(node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Three;

    impl Roles for Three {
        fn nodes(&self) -> BTreeSet<NodeId> {
            (1..=3).map(NodeId::new).collect()
        }

        fn leader_of(&self, shard: ShardId) -> Option<NodeId> {
            Some(NodeId::new(u64::from(shard.get()))).filter(|node| node.get() > 0)
        }

        fn manager_of(&self, txn: Option<TxnId>) -> Option<NodeId> {
            txn.is_none().then_some(NodeId::new(2))
        }
    }

    fn who(text: &str) -> Who {
        text.parse().unwrap()
    }

    #[test]
    fn roles_are_looked_up() {
        let mut resolver = Resolver::new(&Three, 1);
        assert_eq!(resolver.who(who("leader-of(3)")), Ok(NodeId::new(3)));
        assert_eq!(resolver.who(who("manager-of(any)")), Ok(NodeId::new(2)));
        assert_eq!(resolver.who(who("leader-of(0)")).unwrap_err().to_string(), "s0 has no known leader");
        assert_eq!(
            resolver.who(who("leader-of(4)")).unwrap_err().to_string(),
            "n4 is not a node of the cluster"
        );
        let error = resolver.who(who("manager-of(ses1/2)")).unwrap_err().to_string();
        assert_eq!(error, "ses1/2 is not in doubt, or nobody knows who manages it");
    }

    #[test]
    fn who_is_drawn_stays_the_same_for_a_step_and_followers_do_not_lead() {
        for seed in 0..50 {
            let mut resolver = Resolver::new(&Three, seed);
            let any = resolver.who(who("any")).unwrap();
            assert_eq!(resolver.who(who("any")), Ok(any));
            assert_ne!(resolver.who(who("follower-of(1)")), Ok(NodeId::new(1)));
            let (a, b) = resolver.pair(who("any"), who("any")).unwrap();
            assert!(a == any && a != b);
            assert_eq!(resolver.pair(who("any"), who("any")), Ok((a, b)));
            assert_eq!(
                resolver.into_chosen().keys().collect::<Vec<_>>(),
                ["any", "any (2)", "follower-of(1)"]
            );
        }
    }

    #[test]
    fn two_ends_differ_or_it_is_an_error() {
        for seed in 0..50 {
            let mut resolver = Resolver::new(&Three, seed);
            let (a, b) = resolver.pair(who("any"), who("leader-of(1)")).unwrap();
            assert!(a != b && b == NodeId::new(1));
        }
        let mut resolver = Resolver::new(&Three, 1);
        let error = resolver.pair(who("n1"), who("leader-of(1)")).unwrap_err().to_string();
        assert_eq!(error, "`n1` and `leader-of(1)` are both n1");
    }
}
