//! Short circles in a graph, the worst kind first.
//!
//! Whether there is a circle is decided by the components, and takes linear time. Which one is told is a matter of
//! taste: a short one, with few reads to blame. That search has a bound, beyond which a longer circle may be told, or one
//! with more such reads than necessary. A circle is always named by what is in it.

use std::collections::{BTreeSet, VecDeque};

use super::anomaly::AnomalyKind;
use super::components::Components;
use super::graph::{Edge, Graph, Kind, Kinds, Why};

/// Why a transaction of a circle was before the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// The transaction.
    pub(super) from: usize,
    /// The next one.
    pub(super) to: usize,
    /// The kind of the edge.
    pub(super) kind: Kind,
    /// What it speaks of.
    pub(super) why: Why,
}

/// How many edges are followed in search of shorter circles than the first.
const EDGES_MAX: u64 = 20_000_000;

/// The kinds of edges that circles are looked for in, one after the other. Those without real time come first: they break
/// more promises.
const LEVELS: [Kinds; 6] = [
    Kinds { wr: false, rw: false, realtime: false },
    Kinds { wr: true, rw: false, realtime: false },
    Kinds { wr: true, rw: true, realtime: false },
    Kinds { wr: false, rw: false, realtime: true },
    Kinds { wr: true, rw: false, realtime: true },
    Kinds { wr: true, rw: true, realtime: true },
];

/// Circles: at each level one of every component that holds none of an earlier level. `lost` are transactions that lost updates to each other: the circle of two
/// such is known already, unless it can be told without reads.
pub(super) fn cycles(graph: &Graph, lost: &[[usize; 2]]) -> Vec<Vec<Step>> {
    cycles_within(graph, lost, EDGES_MAX)
}

fn cycles_within(graph: &Graph, lost: &[[usize; 2]], edges_max: u64) -> Vec<Vec<Step>> {
    let all = Components::new(graph, Kinds { wr: true, rw: true, realtime: true });
    if all.circular().next().is_none() {
        return Vec::new();
    }
    let mut finder = Finder::new(graph, edges_max);
    let mut cycles: Vec<Vec<Step>> = Vec::new();
    for kinds in LEVELS {
        let components = Components::within(graph, kinds, &all);
        // A component that holds a whole circle that was told needs no other.
        let mut told = BTreeSet::new();
        for cycle in &cycles {
            let first = cycle.first().map_or(0, |step| step.from);
            if cycle.iter().all(|step| components.join(first, step.from)) {
                told.extend(components.of(first));
            }
        }
        for [first, second] in lost.iter().copied().filter(|_| kinds.rw) {
            told.extend(components.of(first).filter(|_| components.join(first, second)));
        }
        // Without the reads to blame there is no circle here that was not told: the components are in an order.
        let order = Components::within(graph, Kinds { rw: false, ..kinds }, &all);
        for members in components.circular() {
            let component = members.first().and_then(|node| components.of(*node));
            if component.is_none_or(|component| told.contains(&component)) {
                continue;
            }
            let area = Area { kinds, components: &components, order: &order };
            cycles.extend(finder.shortest(&area, members));
        }
    }
    cycles
}

/// The name of a circle.
pub(super) fn kind(cycle: &[Step]) -> AnomalyKind {
    let count = |kind| cycle.iter().filter(|step| step.kind == kind).count();
    match (count(Kind::Rw), count(Kind::Wr), count(Kind::Realtime)) {
        (0, 0, 0) => AnomalyKind::G0,
        (0, _, 0) => AnomalyKind::G1c,
        (1, _, 0) => AnomalyKind::GSingle,
        (_, _, 0) => AnomalyKind::G2,
        (0, 0, _) => AnomalyKind::G0Realtime,
        (0, _, _) => AnomalyKind::G1cRealtime,
        (1, _, _) => AnomalyKind::GSingleRealtime,
        (_, _, _) => AnomalyKind::G2Realtime,
    }
}

/// Where a search goes.
#[derive(Clone, Copy)]
struct Area<'a> {
    kinds: Kinds,
    components: &'a Components,
    order: &'a Components,
}

/// How a node was reached: from which, by which edge, and over how many transactions.
#[derive(Clone, Copy)]
struct Reached {
    from: usize,
    edge: Edge,
    length: u32,
}

struct Finder<'a> {
    graph: &'a Graph,
    edges_left: u64,
    reached: Vec<Option<Reached>>,
    /// The nodes that were reached, to forget them again.
    touched: Vec<usize>,
}

impl<'a> Finder<'a> {
    fn new(graph: &'a Graph, edges_left: u64) -> Self {
        Self { graph, edges_left, reached: vec![None; graph.len()], touched: Vec::new() }
    }

    /// A short circle among the members of a component: one with a single read to blame, if it finds one.
    fn shortest(&mut self, area: &Area<'_>, members: &[usize]) -> Option<Vec<Step>> {
        let mut best: Option<Vec<Step>> = None;
        if area.kinds.rw {
            for from in members {
                for edge in self.graph.edges(*from).iter().filter(|edge| edge.kind == Kind::Rw) {
                    self.improve(&mut best, |finder, below| finder.with_one_read(area, *from, *edge, below));
                }
            }
        }
        if best.is_some() {
            return best;
        }
        for start in members.iter().filter(|node| self.graph.is_transaction(**node)) {
            self.improve(&mut best, |finder, below| {
                let path = finder.path(area, *start, *start, below)?;
                Some(steps(finder.graph, &path))
            });
        }
        best
    }

    /// Takes a shorter circle, if there is one. The first is looked for at any price, the others while edges are left.
    fn improve(
        &mut self,
        best: &mut Option<Vec<Step>>,
        find: impl FnOnce(&mut Self, u32) -> Option<Vec<Step>>,
    ) {
        let below = best.as_ref().map_or(u32::MAX, |best| u32::try_from(best.len()).unwrap_or(u32::MAX));
        // There are no circles of one.
        if below > 2
            && (self.edges_left > 0 || best.is_none())
            && let Some(shorter) = find(self, below)
        {
            *best = Some(shorter);
        }
    }

    /// A circle through this edge, without another of its kind.
    fn with_one_read(&mut self, area: &Area<'_>, from: usize, edge: Edge, below: u32) -> Option<Vec<Step>> {
        let is_back = area.components.join(from, edge.to) && area.order.of(edge.to) >= area.order.of(from);
        if !is_back || self.edges_left == 0 {
            return None;
        }
        let narrow = Area { kinds: Kinds { rw: false, ..area.kinds }, ..*area };
        let mut path = vec![(from, edge)];
        path.extend(self.path(&narrow, edge.to, from, below - 1)?);
        Some(steps(self.graph, &path))
    }

    /// A shortest path of at least one edge, if it goes over fewer transactions than `below`.
    fn path(&mut self, area: &Area<'_>, start: usize, goal: usize, below: u32) -> Option<Vec<(usize, Edge)>> {
        // If reads to blame do not count, the components have an order that leads to the goal only from behind.
        let floor = area.order.of(goal).filter(|_| !area.kinds.rw);
        let mut queue = VecDeque::from([(start, 0)]);
        while let Some((node, length)) = queue.pop_front() {
            let is_outdated = node != start && self.length(node).is_some_and(|shorter| shorter < length);
            if is_outdated || self.length(goal).is_some_and(|found| found <= length) {
                continue;
            }
            for edge in self.graph.edges(node) {
                self.edges_left = self.edges_left.saturating_sub(1);
                let is_short = edge.kind == Kind::Rest;
                let length = length + u32::from(!is_short);
                let is_inside = area.components.join(node, edge.to) && area.order.of(edge.to) >= floor;
                let is_better = length < below && self.length(edge.to).is_none_or(|before| length < before);
                if !area.kinds.has(edge.kind) || !is_inside || !is_better {
                    continue;
                }
                self.reach(edge.to, Reached { from: node, edge: *edge, length });
                if is_short {
                    queue.push_front((edge.to, length));
                } else {
                    queue.push_back((edge.to, length));
                }
            }
        }
        let path = self.way_to(start, goal);
        for node in self.touched.drain(..) {
            if let Some(reached) = self.reached.get_mut(node) {
                *reached = None;
            }
        }
        path
    }

    fn length(&self, node: usize) -> Option<u32> {
        self.reached.get(node)?.map(|reached| reached.length)
    }

    fn reach(&mut self, node: usize, how: Reached) {
        self.touched.push(node);
        if let Some(reached) = self.reached.get_mut(node) {
            *reached = Some(how);
        }
    }

    fn way_to(&self, start: usize, goal: usize) -> Option<Vec<(usize, Edge)>> {
        let mut path = Vec::new();
        let mut node = goal;
        while path.is_empty() || node != start {
            let reached = (*self.reached.get(node)?)?;
            path.push((reached.from, reached.edge));
            node = reached.from;
        }
        path.reverse();
        Some(path)
    }
}

/// The steps between transactions that a circle of nodes stands for, from the transaction with the lowest number on. The
/// circle begins at a transaction.
fn steps(graph: &Graph, path: &[(usize, Edge)]) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for (node, edge) in path {
        match steps.last_mut() {
            Some(step) if !graph.is_transaction(*node) => {
                step.to = edge.to;
                step.why = if edge.why == Why::Nothing { step.why } else { edge.why };
            }
            _ => steps.push(Step { from: *node, to: edge.to, kind: edge.kind, why: edge.why }),
        }
    }
    let first = steps.iter().enumerate().min_by_key(|(_, step)| step.from).map_or(0, |(at, _)| at);
    steps.rotate_left(first);
    steps
}

#[cfg(test)]
mod tests {
    use super::super::access::keys;
    use super::super::anomaly::Findings;
    use super::super::order::Order;
    use super::*;
    use crate::transaction::TransactionHistory;
    use crate::workload::TransactionWorkload;

    /// Without any edge to spare each component still tells of a circle that is one, if a longer one.
    #[test]
    fn the_search_for_short_circles_is_bounded() {
        let (mut short, mut long) = (0, 0);
        for seed in 0..50 {
            let workload = TransactionWorkload { seed, skews: 1000, ..TransactionWorkload::new(20, 20, 200) };
            let history = TransactionHistory::from_events(workload.events()).unwrap();
            let mut findings = Findings::new(&history);
            let keys = keys(&history, &mut findings);
            let orders: Vec<_> = keys.into_iter().map(|key| Order::new(key, &mut findings)).collect();
            let graph = Graph::new(&history, &orders);
            let [best, bounded] = [EDGES_MAX, 0].map(|edges_max| cycles_within(&graph, &[], edges_max));
            assert_eq!(best.is_empty(), bounded.is_empty());
            for cycle in best.iter().chain(&bounded) {
                let next = cycle.iter().skip(1).chain(cycle.first());
                assert!(cycle.iter().zip(next).all(|(step, next)| step.to == next.from), "{cycle:?}");
                let mut members: Vec<_> = cycle.iter().map(|step| step.from).collect();
                members.sort_unstable();
                members.dedup();
                assert!(members.len() == cycle.len() && cycle.len() > 1, "{cycle:?}");
            }
            short += best.first().map_or(0, Vec::len);
            long += bounded.first().map_or(0, Vec::len);
        }
        assert!(short < long, "{short} steps and {long}");
    }
}
