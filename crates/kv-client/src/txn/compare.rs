//! Transactions in one step: compare keys, then do one thing or another.

use std::collections::BTreeSet;

use kv_proto::request::Expect;
use kv_types::{Key, Value};

use super::{Committed, Txn, TxnError, TxnRow};
use crate::client::Client;

/// What is to be compared, and what is to be done if all is as expected, or else.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Compare {
    expected: Vec<(Key, Expect)>,
    then: Vec<TxnOp>,
    or_else: Vec<TxnOp>,
}

/// One step of a branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOp {
    /// Reads a key; it sees the writes of the steps before.
    Get(Key),
    /// Writes a key.
    Put(Key, Value),
    /// Deletes a key.
    Delete(Key),
}

/// What a comparison came to; it was so at the instant at which its branch took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Whether all keys were as expected, so that the branch was that of [`Compare::then`].
    pub held: bool,
    /// What the branch's gets found, in their order; `None` of an absent key.
    pub found: Vec<Option<TxnRow>>,
    /// Of the transaction.
    pub committed: Committed,
}

impl Compare {
    /// Compares nothing, which holds, and does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Compares one more key. It has to be as expected like all others.
    #[must_use]
    pub fn expect(mut self, key: Key, expect: Expect) -> Self {
        self.expected.push((key, expect));
        self
    }

    /// Adds a step of what is done if all keys are as expected.
    #[must_use]
    pub fn then(mut self, op: TxnOp) -> Self {
        self.then.push(op);
        self
    }

    /// Adds a step of what is done if one key is not as expected.
    #[must_use]
    pub fn or_else(mut self, op: TxnOp) -> Self {
        self.or_else.push(op);
        self
    }
}

impl Client {
    /// Compares keys and carries one of two branches out, all at one instant. It is a transaction that is tried as
    /// [`Client::transact`] does, and committed also if its branch is empty, so that its answer was true.
    ///
    /// ```no_run
    /// # async fn run(client: kv_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use kv_client::{Compare, Expect, TxnOp};
    /// use kv_types::{Key, Value};
    ///
    /// let owner = Key::new("lock/7")?;
    /// let taken = client
    ///     .compare(
    ///         Compare::new()
    ///             .expect(owner.clone(), Expect::Absent)
    ///             .then(TxnOp::Put(owner.clone(), Value::new("me")?))
    ///             .or_else(TxnOp::Get(owner)),
    ///     )
    ///     .await?;
    /// println!("taken by me: {}, found: {:?}", taken.held, taken.found);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Client::transact`]. That a key was not as expected is no error.
    pub async fn compare(&self, compare: Compare) -> Result<Compared, TxnError> {
        let compare = &compare;
        let tried = self.transact_told(|mut txn| async move { evaluate(&mut txn, compare).await });
        let ((held, found), committed) = tried.await?;
        Ok(Compared { held, found, committed })
    }
}

async fn evaluate(txn: &mut Txn, compare: &Compare) -> Result<(bool, Vec<Option<TxnRow>>), TxnError> {
    // One call a shard; each key is then known.
    txn.multi_get(compare.expected.iter().map(|(key, _)| key.clone()).collect()).await?;
    let mut held = true;
    for (key, expect) in &compare.expected {
        held &= txn.compare(key.clone(), expect).await?;
    }
    let branch = if held { &compare.then } else { &compare.or_else };
    txn.multi_get(needed(branch)).await?;
    let mut found = Vec::new();
    for op in branch {
        match op {
            TxnOp::Get(key) => found.push(txn.get(key.clone()).await?),
            TxnOp::Put(key, value) => txn.put(key.clone(), value.clone())?,
            TxnOp::Delete(key) => txn.delete(key.clone())?,
        }
    }
    Ok((held, found))
}

/// The keys that a branch reads before it writes them.
fn needed(branch: &[TxnOp]) -> Vec<Key> {
    let (mut needed, mut written) = (Vec::new(), BTreeSet::new());
    for op in branch {
        match op {
            TxnOp::Get(key) if !written.contains(key) => needed.push(key.clone()),
            TxnOp::Get(_) => {}
            TxnOp::Put(key, _) | TxnOp::Delete(key) => {
                written.insert(key);
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_reads_what_it_has_not_written() {
        let key = |text: &'static str| Key::new(text).unwrap();
        let branch = [
            TxnOp::Get(key("a")),
            TxnOp::Put(key("a"), Value::default()),
            TxnOp::Delete(key("b")),
            TxnOp::Get(key("a")),
            TxnOp::Get(key("b")),
            TxnOp::Get(key("c")),
        ];
        assert_eq!(needed(&branch), [key("a"), key("c")]);
    }
}
