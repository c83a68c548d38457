//! The links that each partition cuts.

use std::collections::BTreeSet;

use kv_types::NodeId;

use crate::limits::NODES_MAX;
use crate::resolve::Resolver;
use crate::{Cut, Link, Partition, ResolveError, Roles, Who, coin};

impl Partition {
    /// Looks up roles, draws what is left to chance, and says what is cut. Clients are not: see [`Cut::with_clients`].
    ///
    /// # Errors
    /// [`ResolveError`] if a role is nobody's, or the shape does not fit the cluster.
    pub fn resolve(&self, roles: &impl Roles, seed: u64) -> Result<Cut, ResolveError> {
        let mut resolver = Resolver::new(roles, seed);
        let nodes = resolver.nodes().clone();
        if nodes.len() > usize::try_from(NODES_MAX).unwrap_or(usize::MAX) {
            return Err(ResolveError::TooManyNodes(nodes.len()));
        }
        let links = self.links(&nodes, &mut resolver)?;
        Ok(Cut::new(&nodes, links, resolver.into_chosen()))
    }

    fn links(
        &self,
        nodes: &BTreeSet<NodeId>,
        resolver: &mut Resolver<'_, impl Roles>,
    ) -> Result<BTreeSet<Link>, ResolveError> {
        match self {
            Self::Isolate(who) => {
                let node = at_least(2, nodes).and_then(|()| resolver.who(*who))?;
                Ok(between_groups(&[BTreeSet::from([node]), without(nodes, node)]))
            }
            Self::Groups(groups) => {
                check_groups(groups, nodes)?;
                Ok(between_groups(groups))
            }
            Self::Minority(who) => {
                let size = at_least(3, nodes).map(|()| (nodes.len() - 1) / 2)?;
                let (minority, rest) = drawn(size, *who, nodes, resolver)?;
                Ok(between_groups(&[minority, rest]))
            }
            Self::Halves => {
                let size = at_least(2, nodes).map(|()| nodes.len() / 2)?;
                let (smaller, larger) = drawn(size, None, nodes, resolver)?;
                Ok(between_groups(&[smaller, larger]))
            }
            Self::Bridge(who) => {
                at_least(3, nodes)?;
                let (bridge, others) = drawn(1, *who, nodes, resolver)?;
                let order = coin::shuffled(others, resolver.seed_for("banks"));
                let (left, right) = order.split_at(order.len() / 2);
                assert_eq!(bridge.len(), 1, "a bridge is one node");
                Ok(between_groups(&[left.iter().copied().collect(), right.iter().copied().collect()]))
            }
            Self::Ring => {
                at_least(3, nodes)?;
                Ok(ring(&coin::shuffled(nodes.iter().copied(), resolver.seed_for("ring"))))
            }
            Self::OneWay(from, to) => {
                let (from, to) = resolver.pair(*from, *to)?;
                Ok(BTreeSet::from([Link::between(from, to)]))
            }
            Self::Mute(who) => {
                let node = at_least(2, nodes).and_then(|()| resolver.who(*who))?;
                Ok(without(nodes, node).into_iter().map(|other| Link::between(node, other)).collect())
            }
            Self::Deaf(who) => {
                let node = at_least(2, nodes).and_then(|()| resolver.who(*who))?;
                Ok(without(nodes, node).into_iter().map(|other| Link::between(other, node)).collect())
            }
            Self::Partial(a, b) => {
                let (a, b) = resolver.pair(*a, *b)?;
                Ok(BTreeSet::from([Link::between(a, b), Link::between(b, a)]))
            }
        }
    }
}

fn at_least(needed: usize, nodes: &BTreeSet<NodeId>) -> Result<(), ResolveError> {
    let has = nodes.len();
    if has < needed { Err(ResolveError::TooFewNodes { needed, has }) } else { Ok(()) }
}

fn without(nodes: &BTreeSet<NodeId>, node: NodeId) -> BTreeSet<NodeId> {
    nodes.iter().copied().filter(|other| *other != node).collect()
}

/// `size` nodes, `who` among them if given, and the others.
fn drawn(
    size: usize,
    who: Option<Who>,
    nodes: &BTreeSet<NodeId>,
    resolver: &mut Resolver<'_, impl Roles>,
) -> Result<(BTreeSet<NodeId>, BTreeSet<NodeId>), ResolveError> {
    let first = who.map(|who| resolver.who(who)).transpose()?;
    let others = nodes.iter().copied().filter(|node| Some(*node) != first);
    let order = first.into_iter().chain(coin::shuffled(others, resolver.seed_for("sides")));
    let mut rest: BTreeSet<_> = nodes.clone();
    let taken: BTreeSet<_> = order.take(size).collect();
    rest.retain(|node| !taken.contains(node));
    Ok((taken, rest))
}

/// All nodes are in a group, and all in groups are nodes. That none is in two is checked where groups are read, and again
/// here: they may have been made by hand.
fn check_groups(groups: &[BTreeSet<NodeId>], nodes: &BTreeSet<NodeId>) -> Result<(), ResolveError> {
    let mut left = nodes.clone();
    if let Some(node) = groups.iter().flatten().find(|node| !left.remove(node)) {
        return Err(ResolveError::UnknownNode(*node));
    }
    left.first().map_or(Ok(()), |node| Err(ResolveError::InNoGroup(*node)))
}

/// All links from one group to another.
fn between_groups(groups: &[BTreeSet<NodeId>]) -> BTreeSet<Link> {
    let mut links = BTreeSet::new();
    for (nth, group) in groups.iter().enumerate() {
        for other in groups.iter().skip(nth + 1).flatten() {
            for node in group {
                links.extend([Link::between(*node, *other), Link::between(*other, *node)]);
            }
        }
    }
    links
}

/// Nodes in a circle reach as many neighbours on either side as make a majority. Three nodes have no such circle: with
/// neighbours on both sides each would reach all. There the circle is opened.
fn ring(order: &[NodeId]) -> BTreeSet<Link> {
    let count = order.len();
    let reach = (count / 2).div_ceil(2);
    let mut links = BTreeSet::new();
    for (at, node) in order.iter().enumerate() {
        for (other_at, other) in order.iter().enumerate() {
            let ahead = (other_at + count - at) % count;
            let distance = ahead.min(count - ahead);
            let is_far = if count == 3 { at.abs_diff(other_at) > 1 } else { distance > reach };
            if is_far {
                links.insert(Link::between(*node, *other));
            }
        }
    }
    links
}
