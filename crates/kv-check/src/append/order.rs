//! The order in which elements were appended to a key, as far as reads show it.

use std::collections::{BTreeMap, BTreeSet};

use super::access::{Access, Key, Writer};
use super::anomaly::{AnomalyKind, Findings};
use crate::transaction::{Ending, Named, Shown};

/// A key and the beginning of the list that it held in the end.
pub(super) struct Order<'a> {
    /// The key.
    pub(super) key: Key<'a>,
    /// The elements whose place is known. Those that stand in no read come after all these, in an order that nobody can
    /// tell.
    pub(super) list: Vec<i64>,
    /// How many of its own elements each access has in the list.
    pub(super) listed: Vec<usize>,
    /// Whether the list is one: if reads contradict each other, no order follows from them.
    pub(super) is_sound: bool,
    /// Transactions that lost an update to each other.
    pub(super) lost: Vec<[usize; 2]>,
}

impl<'a> Order<'a> {
    /// Takes a key's order from its reads, and tells what is wrong with them.
    pub(super) fn new(key: Key<'a>, findings: &mut Findings<'a>) -> Self {
        let longest = longest(&key);
        let mut order = Self {
            list: longest.map(<[i64]>::to_vec).unwrap_or_default(),
            listed: Vec::new(),
            is_sound: true,
            lost: Vec::new(),
            key,
        };
        order.compare_reads(findings);
        order.find_lost_updates(findings);
        order.find_intermediate_reads(findings);
        order.count_listed(findings);
        order
    }

    /// The transaction that appended the element at this position.
    pub(super) fn writer_at(&self, position: usize) -> Option<usize> {
        let writer = self.key.writer(*self.list.get(position)?)?;
        self.key.accesses.get(writer.access).map(|access| access.txn)
    }

    /// Every read must be a beginning of the longest, and every element must be of a transaction that did not fail.
    fn compare_reads(&mut self, findings: &mut Findings<'a>) {
        let name = Named(self.key.name);
        let shows_most = self.key.accesses.iter().find(|access| access.seen == Some(&self.list));
        let shows_most = shows_most.map_or(0, |access| access.txn);
        // Up to where the elements of the longest read were looked at, by readers before.
        let mut looked_at = 0;
        for access in &self.key.accesses {
            let Some(seen) = access.seen else { continue };
            let common = seen.iter().zip(&self.list).take_while(|(a, b)| a == b).count();
            if common < seen.len() {
                self.is_sound = false;
                let (kind, reason, others) = match twice(seen) {
                    Some(element) => {
                        let reason = format!("T{} read {name} with {element} in it twice", access.txn + 1);
                        (AnomalyKind::DuplicateElements, reason, None)
                    }
                    None => {
                        let reason = format!(
                            "T{} read {name} as {}, T{} read it as {}: they differ from element {} on",
                            shows_most + 1,
                            Shown(&self.list),
                            access.txn + 1,
                            Shown(seen),
                            common + 1
                        );
                        (AnomalyKind::IncompatibleOrder, reason, Some(shows_most))
                    }
                };
                findings.add(kind, others.into_iter().chain([access.txn]), || vec![reason]);
            }
            let from = common.min(looked_at);
            let is_strange =
                find_strange(&self.key, access.txn, seen.get(from..).unwrap_or_default(), findings);
            self.is_sound = self.is_sound && !is_strange;
            looked_at = looked_at.max(common);
        }
    }

    fn find_lost_updates(&mut self, findings: &mut Findings<'a>) {
        // The length comes first: lists of different lengths need no comparison.
        let mut first: BTreeMap<(usize, &[i64]), &Access<'_>> = BTreeMap::new();
        for access in self.key.accesses.iter().filter(|access| !access.own.is_empty()) {
            let Some(external) = access.external else { continue };
            let Some(before) = first.get(&(external.len(), external)) else {
                first.insert((external.len(), external), access);
                continue;
            };
            let pair = [before.txn, access.txn];
            self.lost.push(pair);
            findings.add(AnomalyKind::LostUpdate, pair, || {
                vec![format!(
                    "T{} and T{} both read {} as {}, and both appended to that: {} and {}",
                    before.txn + 1,
                    access.txn + 1,
                    Named(self.key.name),
                    Shown(external),
                    Shown(&before.own),
                    Shown(&access.own)
                )]
            });
        }
    }

    /// A list that ends amid what another transaction appended. Nothing more is taken from such a read.
    fn find_intermediate_reads(&mut self, findings: &mut Findings<'a>) {
        let mut intermediate = Vec::new();
        for (at, access) in self.key.accesses.iter().enumerate() {
            let Some((list, last)) = access.external.and_then(|list| Some((list, list.last()?))) else {
                continue;
            };
            let Some(writer) = self.key.writer(*last) else { continue };
            let Some(of) = self.key.accesses.get(writer.access) else { continue };
            // If the next one stands elsewhere in the list, that is torn, not intermediate.
            let is_missing = |next: &&i64| of.ending != Ending::Failed && !list.contains(next);
            let Some(next) = of.own.get(writer.nth + 1).filter(is_missing) else { continue };
            intermediate.push(at);
            findings.add(AnomalyKind::G1b, [of.txn, access.txn], || {
                let (reader, writer, key) = (access.txn + 1, of.txn + 1, Named(self.key.name));
                vec![format!(
                    "T{reader} read T{writer}'s append of {last} to {key}, but not its next, of {next}"
                )]
            });
        }
        for at in intermediate {
            if let Some(access) = self.key.accesses.get_mut(at) {
                access.external = None;
            }
        }
    }

    /// Elements of one transaction must come in their order, from the first on.
    fn count_listed(&mut self, findings: &mut Findings<'a>) {
        self.listed = vec![0; self.key.accesses.len()];
        let mut torn = BTreeSet::new();
        for element in &self.list {
            let Some(Writer { access, nth }) = self.key.writer(*element) else { continue };
            let Some(listed) = self.listed.get_mut(access) else { continue };
            if *listed != nth {
                torn.insert(access);
            }
            *listed += 1;
        }
        for access in torn.into_iter().filter_map(|at| self.key.accesses.get(at)) {
            self.is_sound = false;
            findings.add(AnomalyKind::TornAppends, [access.txn], || {
                let (own, key, list) = (Shown(&access.own), Named(self.key.name), Shown(&self.list));
                vec![format!("T{} appended {own} to {key}, which was then read as {list}", access.txn + 1)]
            });
        }
    }
}

/// The longest read without an element in it twice; the first of several.
fn longest<'a>(key: &Key<'a>) -> Option<&'a [i64]> {
    let mut lists: Vec<_> = key.accesses.iter().filter_map(|access| access.seen).collect();
    lists.sort_by_key(|list| std::cmp::Reverse(list.len()));
    lists.into_iter().find(|list| twice(list).is_none())
}

/// An element that the list has twice.
fn twice(list: &[i64]) -> Option<i64> {
    let mut sorted = list.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).find_map(|pair| match pair {
        [a, b] if a == b => Some(*a),
        _ => None,
    })
}

/// Tells of elements that must not be in a list. Returns whether there are any.
fn find_strange<'a>(key: &Key<'a>, reader: usize, list: &[i64], findings: &mut Findings<'a>) -> bool {
    let mut is_strange = false;
    for element in list {
        let writer = key.writer(*element).and_then(|writer| key.accesses.get(writer.access));
        let (reader_number, name) = (reader + 1, Named(key.name));
        match writer {
            None => findings.add(AnomalyKind::GarbageRead, [reader], || {
                vec![format!("T{reader_number} read {element} in {name}, which nobody appended")]
            }),
            Some(of) if of.ending == Ending::Failed => {
                findings.add(AnomalyKind::G1a, [of.txn, reader], || {
                    let writer = of.txn + 1;
                    vec![format!(
                        "T{reader_number} read T{writer}'s append of {element} to {name}, but T{writer} failed"
                    )]
                });
            }
            Some(_) => continue,
        }
        is_strange = true;
    }
    is_strange
}
