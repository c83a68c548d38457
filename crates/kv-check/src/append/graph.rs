//! Which transaction was before which, and why.

use super::order::Order;
use crate::transaction::{Ending, TransactionHistory};

/// Why one transaction was before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The other appended behind it.
    Ww,
    /// The other read what it appended.
    Wr,
    /// It did not read what the other appended.
    Rw,
    /// It returned before the other was called.
    Realtime,
    /// The way on from a node that is no transaction: it belongs to the edge into that node.
    Rest,
}

/// What an edge speaks of, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Of time, or what follows says it.
    Nothing,
    /// Of the element at this position of a key's list.
    Listed {
        /// The key, by its position.
        key: usize,
        /// The position in its list.
        at: usize,
    },
    /// Of an element behind all that is listed.
    Unlisted {
        /// The key, by its position.
        key: usize,
        /// The element.
        element: i64,
    },
}

/// An edge, without where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// Where it leads.
    pub(super) to: usize,
    /// Its kind.
    pub(super) kind: Kind,
    /// What it speaks of.
    pub(super) why: Why,
}

/// Which kinds of edges count. `Ww` and `Rest` always do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kinds {
    /// Whether `Wr` does.
    pub(super) wr: bool,
    /// Whether `Rw` does.
    pub(super) rw: bool,
    /// Whether `Realtime` does.
    pub(super) realtime: bool,
}

impl Kinds {
    /// Whether an edge of this kind counts.
    pub(super) fn has(self, kind: Kind) -> bool {
        match kind {
            Kind::Ww | Kind::Rest => true,
            Kind::Wr => self.wr,
            Kind::Rw => self.rw,
            Kind::Realtime => self.realtime,
        }
    }
}

/// Transactions, and a few nodes that are none and keep the number of edges small: points of time, between returns and
/// later calls; and ends of lists, between those who read a list to its end and those whose appends come after.
///
/// No circle consists of such nodes alone: points of time lead to later ones only, and ends of lists to none. So there is
/// a circle of transactions exactly if there is one of nodes.
pub(super) struct Graph {
    /// How many nodes are transactions: the first ones, in the order of the history.
    transactions: usize,
    edges: Vec<Vec<Edge>>,
}

/// Who read a list to its end.
#[derive(Default)]
struct Ends {
    /// Those that did not append to it. They share a node, for they may be many.
    readers: Vec<usize>,
    /// The one that did: its append stands in no read either, and the node would lead it back to itself.
    appender: Option<usize>,
}

impl Graph {
    /// Everything that follows from the orders and from time.
    pub(super) fn new(history: &TransactionHistory, orders: &[Order<'_>]) -> Self {
        let transactions = history.transactions().len();
        let mut graph = Self { transactions, edges: vec![Vec::new(); transactions] };
        let counts = that_count(history, orders);
        for (key, order) in orders.iter().enumerate().filter(|(_, order)| order.is_sound) {
            graph.add_writers(key, order);
            let ends = graph.add_readers(key, order);
            graph.add_unlisted(key, order, &ends, &counts);
        }
        graph.add_time(history, &counts);
        graph
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.edges.len()
    }

    /// Whether the node is a transaction.
    pub(super) fn is_transaction(&self, node: usize) -> bool {
        node < self.transactions
    }

    /// The edges out of a node.
    pub(super) fn edges(&self, node: usize) -> &[Edge] {
        self.edges.get(node).map_or(&[], Vec::as_slice)
    }

    fn node(&mut self) -> usize {
        self.edges.push(Vec::new());
        self.edges.len() - 1
    }

    /// An edge; none from a transaction to itself.
    fn add(&mut self, from: usize, to: usize, kind: Kind, why: Why) {
        if let Some(edges) = self.edges.get_mut(from).filter(|_| from != to) {
            edges.push(Edge { to, kind, why });
        }
    }

    /// Each writer of a list is before the next one.
    fn add_writers(&mut self, key: usize, order: &Order<'_>) {
        let mut before = None;
        for at in 0..order.list.len() {
            let writer = order.writer_at(at);
            if let (Some(before), Some(writer)) = (before, writer) {
                self.add(before, writer, Kind::Ww, Why::Listed { key, at });
            }
            before = writer;
        }
    }

    /// A reader is behind the writer of the last element it read, and before the writer of the next one. Returns those
    /// that read all there is.
    fn add_readers(&mut self, key: usize, order: &Order<'_>) -> Ends {
        let mut ends = Ends::default();
        for access in &order.key.accesses {
            let Some(length) = access.external.map(<[i64]>::len) else { continue };
            if let Some(at) = length.checked_sub(1)
                && let Some(writer) = order.writer_at(at)
            {
                self.add(writer, access.txn, Kind::Wr, Why::Listed { key, at });
            }
            match order.writer_at(length) {
                Some(writer) => self.add(access.txn, writer, Kind::Rw, Why::Listed { key, at: length }),
                None if access.own.is_empty() => ends.readers.push(access.txn),
                // A second one would have lost an update, which was told.
                None => ends.appender = ends.appender.or(Some(access.txn)),
            }
        }
        ends
    }

    /// What stands in no read was appended behind all that does, and after all that read this.
    fn add_unlisted(&mut self, key: usize, order: &Order<'_>, ends: &Ends, counts: &[bool]) {
        let last = order.list.len().checked_sub(1).and_then(|at| order.writer_at(at));
        let mut end = None;
        for (access, listed) in order.key.accesses.iter().zip(&order.listed) {
            let Some(element) = access.own.get(*listed) else { continue };
            if counts.get(access.txn) != Some(&true) {
                continue;
            }
            let why = Why::Unlisted { key, element: *element };
            if let Some(last) = last {
                self.add(last, access.txn, Kind::Ww, why);
            }
            if let Some(appender) = ends.appender {
                self.add(appender, access.txn, Kind::Rw, why);
            }
            if !ends.readers.is_empty() {
                let end = *end.get_or_insert_with(|| self.node());
                self.add(end, access.txn, Kind::Rest, why);
            }
        }
        let Some(end) = end else { return };
        for reader in &ends.readers {
            self.add(*reader, end, Kind::Rw, Why::Nothing);
        }
    }

    /// Every return leads to a point of time, every such point to the next one and to the calls until then.
    fn add_time(&mut self, history: &TransactionHistory, counts: &[bool]) {
        let mut events = Vec::new();
        for (txn, transaction) in history.transactions().iter().enumerate() {
            if counts.get(txn) == Some(&true) {
                // At one time calls come first: what returns at the time of a call is not before it.
                events.push((transaction.call, false, txn));
                events.extend(transaction.ret.map(|ret| (ret, true, txn)));
            }
        }
        events.sort_unstable();
        // The point that the next return leads to, if no call has made use of it.
        let (mut open, mut latest) = (None, None);
        for (_, is_return, txn) in events {
            match (is_return, latest) {
                (true, _) => {
                    let point = open.unwrap_or_else(|| {
                        let point = self.node();
                        if let Some(before) = latest {
                            self.add(before, point, Kind::Rest, Why::Nothing);
                        }
                        point
                    });
                    (open, latest) = (Some(point), Some(point));
                    self.add(txn, point, Kind::Realtime, Why::Nothing);
                }
                (false, Some(point)) => {
                    self.add(point, txn, Kind::Rest, Why::Nothing);
                    open = None;
                }
                (false, None) => {}
            }
        }
    }
}

/// Which transactions took effect: those that committed, and the open ones of which something was read. The other open
/// ones may be thought never to have happened.
pub(super) fn that_count(history: &TransactionHistory, orders: &[Order<'_>]) -> Vec<bool> {
    let endings = history.transactions().iter().map(|transaction| transaction.ending);
    let mut counts: Vec<bool> = endings.map(|ending| ending == Ending::Committed).collect();
    for order in orders.iter().filter(|order| order.is_sound) {
        for (access, listed) in order.key.accesses.iter().zip(&order.listed) {
            if let Some(counts) = counts.get_mut(access.txn).filter(|_| *listed > 0) {
                *counts = true;
            }
        }
    }
    counts
}
