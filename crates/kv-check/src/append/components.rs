//! Which nodes can all reach each other: Tarjan's algorithm (1972), with a stack of its own, for circles may be long.

use super::graph::{Graph, Kinds};

/// No component.
const NONE: usize = usize::MAX;

/// The strongly connected components of a graph, or of parts of one.
pub(super) struct Components {
    /// The component of each node.
    of: Vec<usize>,
    /// The members of each. An edge leads into the same component or into one further to the front.
    members: Vec<Vec<usize>>,
}

impl Components {
    /// The components of the whole graph, by the edges of these kinds.
    pub(super) fn new(graph: &Graph, kinds: Kinds) -> Self {
        Search::run(graph, kinds, None)
    }

    /// The components within those of others that have several members.
    pub(super) fn within(graph: &Graph, kinds: Kinds, outer: &Self) -> Self {
        Search::run(graph, kinds, Some(outer))
    }

    /// The component of a node, if it was looked at.
    pub(super) fn of(&self, node: usize) -> Option<usize> {
        self.of.get(node).copied().filter(|component| *component != NONE)
    }

    /// Whether both are in one component.
    pub(super) fn join(&self, a: usize, b: usize) -> bool {
        self.of(a).is_some() && self.of(a) == self.of(b)
    }

    /// The components with several members. One node alone is in no circle: no edge leads from a node to itself.
    pub(super) fn circular(&self) -> impl Iterator<Item = &[usize]> {
        self.members.iter().map(Vec::as_slice).filter(|members| members.len() > 1)
    }
}

struct Search<'a> {
    graph: &'a Graph,
    kinds: Kinds,
    outer: Option<&'a Components>,
    /// When each node was met with first, and the earliest node on the path that it leads back to.
    met: Vec<usize>,
    low: Vec<usize>,
    clock: usize,
    /// Nodes whose component is not complete.
    waiting: Vec<usize>,
    /// The path that is followed: nodes, and how many of their edges were followed.
    path: Vec<(usize, usize)>,
    found: Components,
}

impl Search<'_> {
    fn run(graph: &Graph, kinds: Kinds, outer: Option<&Components>) -> Components {
        let nodes = graph.len();
        let found = Components { of: vec![NONE; nodes], members: Vec::new() };
        let (met, low) = (vec![NONE; nodes], vec![NONE; nodes]);
        let (waiting, path) = (Vec::new(), Vec::new());
        let mut search = Search { graph, kinds, outer, met, low, clock: 0, waiting, path, found };
        match outer {
            None => (0..nodes).for_each(|node| search.follow(node)),
            Some(outer) => outer.circular().flatten().for_each(|node| search.follow(*node)),
        }
        search.found
    }

    fn is_new(&self, node: usize) -> bool {
        self.met.get(node) == Some(&NONE)
    }

    fn enter(&mut self, node: usize) {
        if let (Some(met), Some(low)) = (self.met.get_mut(node), self.low.get_mut(node)) {
            (*met, *low) = (self.clock, self.clock);
        }
        self.clock += 1;
        self.waiting.push(node);
        self.path.push((node, 0));
    }

    /// Completes the components of everything that can be reached.
    fn follow(&mut self, start: usize) {
        if self.is_new(start) {
            self.enter(start);
        }
        let graph = self.graph;
        while let Some((node, followed)) = self.path.last_mut() {
            let node = *node;
            let edge = graph.edges(node).get(*followed);
            *followed += 1;
            let Some(edge) = edge else {
                self.leave(node);
                continue;
            };
            let is_inside = self.outer.is_none_or(|outer| outer.join(node, edge.to));
            if !self.kinds.has(edge.kind) || !is_inside {
                continue;
            }
            if self.is_new(edge.to) {
                self.enter(edge.to);
            } else if self.found.of(edge.to).is_none() {
                self.lower(node, self.met.get(edge.to).copied());
            }
        }
    }

    fn lower(&mut self, node: usize, to: Option<usize>) {
        if let (Some(low), Some(to)) = (self.low.get_mut(node), to) {
            *low = to.min(*low);
        }
    }

    /// All edges of the node were followed.
    fn leave(&mut self, node: usize) {
        self.path.pop();
        let low = self.low.get(node).copied();
        if let Some((before, _)) = self.path.last() {
            self.lower(*before, low);
        }
        if low != self.met.get(node).copied() {
            return;
        }
        let component = self.found.members.len();
        let begin = self.waiting.iter().rposition(|waiting| *waiting == node).unwrap_or_default();
        let mut members = self.waiting.split_off(begin);
        members.sort_unstable();
        for member in &members {
            if let Some(of) = self.found.of.get_mut(*member) {
                *of = component;
            }
        }
        self.found.members.push(members);
    }
}
