//! What each transaction did to each key, taken apart from what it found there.

use std::collections::BTreeMap;

use super::anomaly::{AnomalyKind, Findings};
use crate::datum::Datum;
use crate::transaction::{Ending, MicroOperation, Named, Shown, Transaction, TransactionHistory};

/// What one transaction did to one key.
#[derive(Clone, Debug)]
pub(super) struct Access<'a> {
    /// The transaction, by its position in the history.
    pub(super) txn: usize,
    /// How it ended.
    pub(super) ending: Ending,
    /// What it appended, in order.
    pub(super) own: Vec<i64>,
    /// The list as others left it: what it read, without its own elements behind. None if it did not read, or if what it
    /// read contradicts itself.
    pub(super) external: Option<&'a [i64]>,
    /// The longest list it read.
    pub(super) seen: Option<&'a [i64]>,
}

/// A key, and all that was done to it.
pub(super) struct Key<'a> {
    /// Its name.
    pub(super) name: &'a Datum,
    /// In the order of the history, one for each transaction.
    pub(super) accesses: Vec<Access<'a>>,
    /// Who appended an element: by element, the position among the accesses, and which of its own it is.
    writers: Vec<(i64, Writer)>,
}

/// Who appended an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    /// The position among the key's accesses.
    pub(super) access: usize,
    /// How many elements the same transaction appended before.
    pub(super) nth: usize,
}

impl Key<'_> {
    /// Who appended the element, if anybody did.
    pub(super) fn writer(&self, element: i64) -> Option<Writer> {
        let at = self.writers.binary_search_by_key(&element, |(element, _)| *element).ok()?;
        self.writers.get(at).map(|(_, writer)| *writer)
    }
}

/// All keys in their order. Transactions that contradict themselves are told of.
pub(super) fn keys<'a>(history: &'a TransactionHistory, findings: &mut Findings<'a>) -> Vec<Key<'a>> {
    let mut keys: BTreeMap<&Datum, Vec<Access<'a>>> = BTreeMap::new();
    for (txn, transaction) in history.transactions().iter().enumerate() {
        for (name, access) in accesses(txn, transaction, findings) {
            keys.entry(name).or_default().push(access);
        }
    }
    keys.into_iter()
        .map(|(name, accesses)| {
            let writers = accesses.iter().enumerate().flat_map(|(access, of)| {
                of.own.iter().enumerate().map(move |(nth, element)| (*element, Writer { access, nth }))
            });
            let mut writers: Vec<_> = writers.collect();
            writers.sort_unstable_by_key(|(element, _)| *element);
            Key { name, accesses, writers }
        })
        .collect()
}

/// What a transaction did, key by key.
fn accesses<'a>(
    txn: usize,
    transaction: &'a Transaction,
    findings: &mut Findings<'a>,
) -> BTreeMap<&'a Datum, Access<'a>> {
    let mut accesses: BTreeMap<&Datum, Access<'a>> = BTreeMap::new();
    let ending = transaction.ending;
    for operation in &transaction.operations {
        let fresh = || Access { txn, ending, own: Vec::new(), external: None, seen: None };
        let access = accesses.entry(operation.key()).or_insert_with(fresh);
        match operation {
            MicroOperation::Append { element, .. } => access.own.push(*element),
            MicroOperation::Read { list: Some(list), .. } if ending == Ending::Committed => {
                if let Err(reason) = access.read(operation.key(), list) {
                    findings.add(AnomalyKind::Internal, [txn], || vec![reason]);
                }
            }
            MicroOperation::Read { .. } => {}
        }
    }
    for (key, access) in &mut accesses {
        // An element of its own among those of others was read before it was appended.
        let early = access.external.and_then(|list| list.iter().find(|element| access.own.contains(element)));
        if let Some(element) = early {
            let reason =
                || vec![format!("T{} read {element} in {} before it appended it", txn + 1, Named(key))];
            findings.add(AnomalyKind::Internal, [txn], reason);
            (access.external, access.seen) = (None, None);
        }
    }
    accesses
}

impl<'a> Access<'a> {
    /// Takes a read into account, or says how it contradicts what the transaction did before.
    fn read(&mut self, key: &Datum, list: &'a [i64]) -> Result<(), String> {
        let (who, key) = (self.txn + 1, Named(key));
        let Some(external) = list.strip_suffix(self.own.as_slice()) else {
            let own = Shown(&self.own);
            return Err(format!("T{who} read {key} as {}, which does not end in its own {own}", Shown(list)));
        };
        match self.external {
            Some(before) if before != external => {
                let (before, now) = (Shown(before), Shown(external));
                Err(format!("T{who} read {key} first as {before}, then as {now}, its own appends left out"))
            }
            Some(_) | None => {
                self.external = Some(external);
                self.seen = Some(list);
                Ok(())
            }
        }
    }
}
