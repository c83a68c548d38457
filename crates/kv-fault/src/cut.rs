//! What a partition comes to.

use std::collections::{BTreeMap, BTreeSet};

use kv_types::NodeId;

use crate::{End, Link};

/// Links that are cut, and what that leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cut {
    /// The links.
    pub links: BTreeSet<Link>,
    /// The node that each role stood for, by the role's text.
    pub chosen: BTreeMap<String, NodeId>,
    /// The largest sets of nodes that all reach each other in both directions, the largest first; they may overlap. So if
    /// there is a majority side, the first is one.
    pub sides: Vec<BTreeSet<NodeId>>,
}

impl Cut {
    /// What is left of `nodes` without `links`.
    pub(crate) fn new(
        nodes: &BTreeSet<NodeId>,
        links: BTreeSet<Link>,
        chosen: BTreeMap<String, NodeId>,
    ) -> Self {
        let sides = sides(nodes, &links);
        Self { links, chosen, sides }
    }

    /// Clients are cut off as well, from the [minority](Cut::minority). If there is no majority anywhere, they stay with the
    /// first side.
    #[must_use]
    pub fn with_clients(mut self) -> Self {
        let mut lost = self.minority();
        if lost == self.nodes()
            && let Some(first) = self.sides.first()
        {
            lost.retain(|node| !first.contains(node));
        }
        for node in lost {
            let link = Link { from: End::Clients, to: End::Node(node) };
            self.links.extend([link, link.opposite()]);
        }
        self
    }

    /// The nodes that are cut off: see [`minority`].
    pub fn minority(&self) -> BTreeSet<NodeId> {
        minority(&self.sides)
    }

    /// All nodes.
    fn nodes(&self) -> BTreeSet<NodeId> {
        self.sides.iter().flatten().copied().collect()
    }
}

/// The nodes that do not reach more than half of all in both directions, themselves counted, where these are the sides of a
/// cut. In a ring that is nobody, though no side is a majority.
pub fn minority(sides: &[BTreeSet<NodeId>]) -> BTreeSet<NodeId> {
    let nodes: BTreeSet<_> = sides.iter().flatten().copied().collect();
    let is_cut_off = |node: &NodeId| {
        let reached = sides.iter().filter(|side| side.contains(node)).flatten();
        reached.collect::<BTreeSet<_>>().len() * 2 <= nodes.len()
    };
    nodes.iter().copied().filter(is_cut_off).collect()
}

/// The maximal cliques of what is connected both ways, by Bron and Kerbosch's search without a pivot: nodes are few.
fn sides(nodes: &BTreeSet<NodeId>, links: &BTreeSet<Link>) -> Vec<BTreeSet<NodeId>> {
    let reaches = |a: NodeId, b: NodeId| {
        a != b && !links.contains(&Link::between(a, b)) && !links.contains(&Link::between(b, a))
    };
    let mut found = Vec::new();
    let mut open = vec![(BTreeSet::new(), nodes.clone(), BTreeSet::new())];
    while let Some((side, mut candidates, mut done)) = open.pop() {
        if candidates.is_empty() && done.is_empty() {
            found.push(side);
            continue;
        }
        while let Some(node) = candidates.pop_first() {
            let reached = |set: &BTreeSet<NodeId>| {
                set.iter().copied().filter(|other| reaches(node, *other)).collect::<BTreeSet<_>>()
            };
            let mut larger: BTreeSet<NodeId> = side.clone();
            larger.insert(node);
            open.push((larger, reached(&candidates), reached(&done)));
            done.insert(node);
        }
    }
    found.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(links: &[&str]) -> Cut {
        let nodes = (1..=5).map(NodeId::new).collect();
        let links = links.iter().map(|link| link.parse().unwrap()).collect();
        Cut::new(&nodes, links, BTreeMap::new())
    }

    fn ids(sides: &[BTreeSet<NodeId>]) -> Vec<Vec<u64>> {
        sides.iter().map(|side| side.iter().map(|node| node.get()).collect()).collect()
    }

    #[test]
    fn sides_are_the_largest_that_all_reach_each_other() {
        assert_eq!(ids(&cut(&[]).sides), [[1, 2, 3, 4, 5]]);
        // One direction is enough to part two.
        assert_eq!(ids(&cut(&["n1->n2"]).sides), [[1, 3, 4, 5], [2, 3, 4, 5]]);
        let all = ["n1->n2", "n1->n3", "n1->n4", "n1->n5"];
        assert_eq!(ids(&cut(&all).sides), [vec![2, 3, 4, 5], vec![1]]);
        assert_eq!(cut(&all).minority(), BTreeSet::from([NodeId::new(1)]));
    }

    #[test]
    fn the_minority_is_who_reaches_no_more_than_half() {
        let side = |nodes: &[u64]| nodes.iter().copied().map(NodeId::new).collect::<BTreeSet<_>>();
        assert_eq!(minority(&[side(&[2, 3, 4, 5]), side(&[1])]), side(&[1]));
        assert_eq!(minority(&[side(&[1, 2]), side(&[3, 4])]), side(&[1, 2, 3, 4]));
        // A bridge: who is on it reaches all.
        assert_eq!(minority(&[side(&[1, 2, 3]), side(&[3, 4, 5])]), side(&[]));
        assert_eq!(minority(&[]), side(&[]));
    }

    #[test]
    fn clients_stay_with_the_first_side() {
        let cut = cut(&["n1->n2", "n1->n3", "n1->n4", "n1->n5"]).with_clients();
        let of_clients: Vec<_> =
            cut.links.iter().map(ToString::to_string).filter(|link| link.contains("clients")).collect();
        assert_eq!(of_clients, ["n1->clients", "clients->n1"]);
    }
}
