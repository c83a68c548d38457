//! What each partition promises, on clusters of every size and for many seeds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/cluster.rs"]
mod cluster;

use std::collections::BTreeSet;

use cluster::Named;
use kv_fault::{Cut, Link, Partition, ResolveError};
use kv_types::NodeId;

const SIZES: [u64; 7] = [3, 4, 5, 6, 7, 8, 9];

fn resolve(text: &str, nodes: u64, seed: u64) -> Result<Cut, ResolveError> {
    text.parse::<Partition>().unwrap().resolve(&Named::of(nodes), seed)
}

/// Runs a check for every size and for many seeds.
fn each(text: &str, check: impl Fn(u64, &Cut)) {
    for nodes in SIZES {
        for seed in 0..40 {
            let cut = resolve(text, nodes, seed).unwrap();
            assert_eq!(resolve(text, nodes, seed).unwrap(), cut, "the same seed is the same cut");
            let all: BTreeSet<_> = cut.sides.iter().flatten().copied().collect();
            assert_eq!(all, ids(1..=nodes), "every node is on a side");
            assert!(cut.sides.is_sorted_by_key(|side| std::cmp::Reverse(side.len())));
            check(nodes, &cut);
        }
    }
}

fn ids(raw: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    raw.into_iter().map(NodeId::new).collect()
}

fn id(raw: u64) -> NodeId {
    NodeId::new(raw)
}

/// Whom a node reaches in both directions, itself counted.
fn reach(cut: &Cut, nodes: u64, node: NodeId) -> BTreeSet<NodeId> {
    let is_open = |from, to| !cut.links.contains(&Link::between(from, to));
    ids(1..=nodes)
        .into_iter()
        .filter(|other| *other == node || is_open(node, *other) && is_open(*other, node))
        .collect()
}

fn is_both_ways(cut: &Cut) -> bool {
    cut.links.iter().all(|link| cut.links.contains(&link.opposite()))
}

#[test]
fn isolate_cuts_off_one() {
    each("isolate leader-of(2)", |nodes, cut| {
        assert!(is_both_ways(cut));
        assert_eq!(cut.links.len() as u64, 2 * (nodes - 1));
        assert_eq!(cut.sides, [(1..=nodes).filter(|node| *node != 2).map(id).collect(), ids([2])]);
        assert_eq!(cut.chosen["leader-of(2)"], id(2));
    });
}

#[test]
fn a_minority_is_as_large_as_it_may_be_and_holds_whom_it_should() {
    for text in ["minority", "minority leader-of(2)"] {
        each(text, |nodes, cut| {
            assert!(is_both_ways(cut));
            assert_eq!(cut.sides.len(), 2);
            assert_eq!(cut.minority(), cut.sides[1]);
            assert_eq!(cut.sides[1].len() as u64, (nodes - 1) / 2);
            assert!(text == "minority" || cut.sides[1].contains(&id(2)));
        });
    }
}

#[test]
fn halves_are_equal_or_nearly_so() {
    each("halves", |nodes, cut| {
        assert!(is_both_ways(cut));
        let sizes: Vec<_> = cut.sides.iter().map(|side| side.len() as u64).collect();
        assert_eq!(sizes, [nodes.div_ceil(2), nodes / 2]);
        // Half of an even number is no majority.
        assert_eq!(cut.minority().len() as u64, if nodes % 2 == 0 { nodes } else { nodes / 2 });
    });
}

#[test]
fn a_bridge_is_one_node_that_reaches_both_banks() {
    for text in ["bridge", "bridge n1", "bridge follower-of(1)"] {
        each(text, |nodes, cut| {
            assert!(is_both_ways(cut));
            assert_eq!(cut.sides.len(), 2);
            let both: Vec<_> = cut.sides[0].intersection(&cut.sides[1]).copied().collect();
            assert_eq!(both.len(), 1);
            assert_eq!(reach(cut, nodes, both[0]), ids(1..=nodes));
            assert!(text != "bridge n1" || both[0] == id(1));
            assert!(text != "bridge follower-of(1)" || both[0] == cut.chosen["follower-of(1)"]);
            assert!(cut.sides[0].len() - cut.sides[1].len() <= 1);
            assert!(nodes % 2 == 0 || cut.minority().is_empty());
        });
    }
}

#[test]
fn in_a_ring_each_reaches_a_majority_and_no_two_the_same() {
    each("ring", |nodes, cut| {
        assert!(is_both_ways(cut) && !cut.links.is_empty());
        let reached: BTreeSet<_> = (1..=nodes).map(|node| reach(cut, nodes, id(node))).collect();
        assert_eq!(reached.len() as u64, nodes, "no two are the same");
        assert!(reached.iter().all(|set| set.len() as u64 > nodes / 2), "each is a majority");
        assert!(cut.minority().is_empty());
        assert_eq!(cut.clone().with_clients(), *cut);
    });
}

#[test]
fn one_direction_is_cut_alone() {
    each("one-way n1->n2", |_, cut| assert_eq!(cut.links, BTreeSet::from(["n1->n2".parse().unwrap()])));
    each("one-way any->any", |_, cut| {
        assert_eq!(cut.links, BTreeSet::from([Link::between(cut.chosen["any"], cut.chosen["any (2)"])]));
    });
    each("mute n1", |nodes, cut| {
        assert_eq!(cut.links, (2..=nodes).map(|other| Link::between(id(1), id(other))).collect());
        assert_eq!(cut.minority(), ids([1]));
    });
    each("deaf n1", |nodes, cut| {
        assert_eq!(cut.links, (2..=nodes).map(|other| Link::between(id(other), id(1))).collect());
        assert_eq!(cut.minority(), ids([1]));
    });
}

#[test]
fn partial_cuts_one_pair() {
    each("partial leader-of(1)<->leader-of(2)", |nodes, cut| {
        let link = Link::between(id(1), id(2));
        assert_eq!(cut.links, BTreeSet::from([link, link.opposite()]));
        assert_eq!(reach(cut, nodes, id(3)), ids(1..=nodes));
        assert_eq!(cut.sides.len(), 2);
    });
}

#[test]
fn groups_are_cut_from_each_other() {
    let cut = resolve("1,2/3,4,5", 5, 0).unwrap();
    assert!(is_both_ways(&cut));
    assert_eq!((cut.links.len(), cut.sides.clone()), (12, vec![ids([3, 4, 5]), ids([1, 2])]));
    assert_eq!(resolve("1/2/3", 3, 0).unwrap().links.len(), 6);
}

#[test]
fn every_node_is_drawn_for_some_seed() {
    for text in ["isolate any", "minority", "bridge", "isolate follower-of(1)"] {
        let drawn: BTreeSet<_> = (0..100).map(|seed| resolve(text, 5, seed).unwrap().links).collect();
        assert!(drawn.len() >= 4, "{text}: {} different cuts", drawn.len());
    }
}

#[test]
fn what_does_not_fit_is_said() {
    let error = |text, nodes| resolve(text, nodes, 0).unwrap_err().to_string();
    assert_eq!(error("1,2/3,4,5", 6), "n6 is in no group");
    assert_eq!(error("1,2/3,4,5", 4), "n5 is not a node of the cluster");
    assert_eq!(error("ring", 2), "it takes 3 nodes at least, there are 2");
    assert_eq!(error("halves", 1), "it takes 2 nodes at least, there are 1");
    assert_eq!(error("isolate n1", 10), "there are 10 nodes; the limit is 9");
    assert_eq!(error("isolate leader-of(9)", 3), "s9 has no known leader");
    assert_eq!(error("one-way n1->leader-of(1)", 3), "`n1` and `leader-of(1)` are both n1");
    // Made by hand, a node may be in two groups.
    let twice = Partition::Groups(vec![ids([1, 2]), ids([2, 3])]);
    assert_eq!(twice.resolve(&Named::of(3), 0), Err(ResolveError::UnknownNode(id(2))));
}
