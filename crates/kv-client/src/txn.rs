//! Transactions: what an application reads and writes together, over keys of whatever shards.
//!
//! A [`Txn`] reads with the ordinary calls and remembers the revisions it saw; its writes stay in this client. Its commit
//! sends all of it in one call, which carries the writes out if everything that was read still is as it was. Nothing is
//! locked before that, and nothing is sent if it is dropped.

mod commit;
mod compare;
mod content;
mod error;
mod number;
mod reserve;
mod row;
mod scan;
mod scanned;
mod transact;
mod validate;

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use kv_proto::request::Expect;
use kv_types::{Key, KeyRange, Value};

use crate::client::Client;
use crate::error::{Error, Failure};
use crate::reply::Got;
use content::Content;

pub use commit::Committed;
pub use compare::{Compare, Compared, TxnOp};
pub use error::{AbortCause, Aborted, LimitExceeded, TxnError};
pub use row::TxnRow;

/// A transaction under way. It ends with [`Txn::commit`]; dropping it aborts it, and then nothing was sent.
///
/// **What it sees.** Each read is linearisable and sees the transaction's own writes. A key that was read or scanned once
/// is not read again: the transaction sees it as it was then. But two keys are read at two moments, so that what it
/// sees may never have been true at any one of them. Then it cannot be committed: a commit succeeds only if all that was
/// read, absent keys and empty ranges included, is at that instant as it was seen. So act on what was read only when it
/// is committed.
///
/// **Limits.** At most 1,024 keys read, ranges scanned and keys written together; 8 MiB of keys read, bounds of ranges, and
/// keys and values written; 1,000 keys found by scans. What would exceed one is refused ([`LimitExceeded`]) and leaves the
/// transaction as it was. The values read count for no limit, but are kept until its end.
///
/// ```no_run
/// # async fn run(client: kv_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use kv_client::TxnError;
/// use kv_types::{Key, Value};
///
/// let mut txn = client.begin();
/// let order = Key::new("order/7")?;
/// if txn.get(order.clone()).await?.is_none() {
///     txn.put(order, Value::new("new")?)?;
///     txn.incr(Key::new("orders")?, 1).await?;
/// }
/// match txn.commit().await {
///     Ok(_) => println!("ordered"),
///     Err(TxnError::Aborted(_)) => println!("somebody was faster: begin anew"),
///     Err(error) => return Err(error.into()),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "it does nothing unless it is committed"]
pub struct Txn {
    client: Client,
    state: State,
    /// Who gets the state when this is dropped, if somebody does.
    owner: Option<Owner>,
}

/// All that a transaction has come to.
#[derive(Debug, Default)]
struct State {
    content: Content,
    /// Why it cannot be committed any more, if that is known already.
    doomed: Option<Aborted>,
    /// Whether what it has only read is locked, too, although it writes nothing: then nobody can change it before it is
    /// validated.
    locks_reads: bool,
    /// What its keys are reserved by; 0 if they are not.
    reservation: u64,
}

/// Lends a transaction, and has its state when that is dropped.
#[derive(Debug, Clone, Default)]
struct Owner(Arc<Mutex<Option<State>>>);

impl Owner {
    fn put(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// The state; `None` as long as the transaction is not dropped.
    fn take(&self) -> Option<State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Txn {
    fn drop(&mut self) {
        if let Some(owner) = self.owner.take() {
            owner.put(mem::take(&mut self.state));
        }
    }
}

impl Client {
    /// Begins a transaction. Nothing is sent for that.
    ///
    /// It is not tried again by itself if it is aborted; [`Client::transact`] does that.
    pub fn begin(&self) -> Txn {
        Txn::new(self, State::default(), None)
    }
}

impl Txn {
    fn new(client: &Client, state: State, owner: Option<Owner>) -> Self {
        Self { client: client.clone(), state, owner }
    }

    /// Reads a key; `None` if it is absent.
    ///
    /// # Errors
    /// [`TxnError::Failed`] if it could not be read, [`TxnError::Limit`]; [`TxnError::Aborted`] if the transaction cannot
    /// be committed any more.
    pub async fn get(&mut self, key: Key) -> Result<Option<TxnRow>, TxnError> {
        let found = self.multi_get(vec![key]).await?;
        Ok(found.into_iter().next().flatten())
    }

    /// Reads several keys, one call for each shard as far as they fit a reply; the rows are in the order asked for.
    ///
    /// # Errors
    /// As [`Txn::get`]; then none of them counts as read.
    pub async fn multi_get(&mut self, keys: Vec<Key>) -> Result<Vec<Option<TxnRow>>, TxnError> {
        self.check_alive()?;
        let unread: BTreeSet<&Key> =
            keys.iter().filter(|key| self.state.content.look(key).is_none()).collect();
        self.state.content.check_reads(unread.iter().copied())?;
        let unread: Vec<Key> = unread.into_iter().cloned().collect();
        for (key, got) in self.read(unread).await? {
            let at = (got.header.shard, got.header.revision);
            self.state.content.add_read(key, at, got.row);
        }
        Ok(keys.iter().map(|key| self.state.content.look(key).flatten()).collect())
    }

    async fn read(&self, keys: Vec<Key>) -> Result<Vec<(Key, Got)>, TxnError> {
        match <[Key; 1]>::try_from(keys) {
            Ok([key]) => {
                let got = self.client.get(key.clone()).await.map_err(TxnError::Failed)?;
                Ok(vec![(key, got)])
            }
            Err(keys) => {
                let got = self.client.multi_get(keys.clone()).await.map_err(TxnError::Failed)?;
                Ok(keys.into_iter().zip(got.found).collect())
            }
        }
    }

    /// Reads the first `limit` rows of a range, or all, in key order. The rows of one shard are of one revision as far as
    /// they fit a page (1,024 rows, 1 MiB).
    ///
    /// What was looked at is validated: the range, or, if the limit cut it, the range up to the last row returned. So a
    /// key that appears in it later is a conflict, too. A limit keeps the transaction small and its conflicts few. What
    /// an earlier scan has seen is not read again.
    ///
    /// # Errors
    /// As [`Txn::get`]; then nothing counts as scanned. [`LimitExceeded::ScannedKeys`] if more keys are found than a
    /// transaction may scan, those that it has deleted included.
    pub async fn scan(&mut self, range: KeyRange, limit: Option<usize>) -> Result<Vec<TxnRow>, TxnError> {
        self.check_alive()?;
        let found = scan::scan(&self.client, &self.state.content, range, limit).await?;
        if let Some(key) = found.pieces.iter().find_map(|piece| self.state.content.contradicted(piece)) {
            let at = Some(key.bytes().clone());
            self.state.doomed = Some(Aborted { cause: AbortCause::Conflict, at, request: None });
        }
        self.check_alive()?;
        self.state.content.add_pieces(found.pieces)?;
        Ok(found.rows)
    }

    /// Writes a key when the transaction is committed.
    ///
    /// # Errors
    /// [`TxnError::Limit`]
    pub fn put(&mut self, key: Key, value: Value) -> Result<(), TxnError> {
        Ok(self.state.content.add_write(key, Some(value))?)
    }

    /// Deletes a key when the transaction is committed; that it is absent then is no error.
    ///
    /// # Errors
    /// [`TxnError::Limit`]
    pub fn delete(&mut self, key: Key) -> Result<(), TxnError> {
        Ok(self.state.content.add_write(key, None)?)
    }

    /// Reads a number, adds to it, and writes the sum when the transaction is committed; returns the sum. What a number
    /// is [`Client::incr`] says. Unlike there, whoever else changes the key meanwhile is a conflict.
    ///
    /// # Errors
    /// As [`Txn::get`]; [`ApiError::NotANumber`](crate::ApiError::NotANumber) and
    /// [`ApiError::NumberOverflow`](crate::ApiError::NumberOverflow) if it cannot be added: then the key was read, and
    /// nothing is written.
    pub async fn incr(&mut self, key: Key, delta: i64) -> Result<i64, TxnError> {
        let row = self.get(key.clone()).await?;
        let sum = number::add(row.as_ref().map(|row| &row.value), delta);
        let sum = sum.map_err(|error| TxnError::Failed(Error::of_read(error.into())))?;
        let value = Value::new(sum.to_string()).map_err(|error| {
            TxnError::Failed(Error::of_read(Failure::Config(format!("a sum is no value: {error}"))))
        })?;
        self.put(key, value)?;
        Ok(sum)
    }

    /// Reads a key; whether it is as expected. A key that this transaction has written has no revision yet, so that
    /// [`Expect::Revision`] is not met by it.
    ///
    /// # Errors
    /// As [`Txn::get`].
    pub async fn compare(&mut self, key: Key, expect: &Expect) -> Result<bool, TxnError> {
        let row = self.get(key).await?;
        Ok(match expect {
            Expect::Absent => row.is_none(),
            Expect::Value(value) => row.is_some_and(|row| row.value == *value),
            Expect::Revision(revision) => row.is_some_and(|row| row.mod_revision == Some(*revision)),
        })
    }

    /// Commits: everything written takes effect at one instant, at which everything read is as it was seen; or nothing
    /// does. Takes at most [`Config::timeout`](crate::Config::timeout). An attempt whose answer is lost is sent again
    /// under the same number of a session, so that the transaction is decided once.
    ///
    /// A transaction that has read and written nothing is committed without a call. One that has only read writes nothing
    /// anywhere either: each shard is asked whether what was read of it is still so.
    ///
    /// # Errors
    /// [`TxnError`]: aborted, not applied, or unknown.
    pub async fn commit(mut self) -> Result<Committed, TxnError> {
        self.check_alive()?;
        if self.state.content.is_empty() {
            return Ok(Committed { header: None });
        }
        if self.state.content.only_reads() && !self.state.locks_reads {
            let content = mem::take(&mut self.state.content);
            return validate::validate(&self.client.caller, content).await;
        }
        let anchor = match self.state.content.anchor() {
            Some(anchor) => anchor.clone(),
            None => self.read_anchor().await?,
        };
        let content = (mem::take(&mut self.state.content), self.state.reservation);
        let decided = commit::commit(&self.client.caller, content, anchor).await;
        if let Err(TxnError::Aborted(aborted)) = &decided {
            self.state.doomed = Some(aborted.clone());
        }
        decided
    }

    /// Gives the transaction up. Nothing was sent, so that nothing has to be undone; dropping it does the same.
    pub fn abort(mut self) {
        self.state = State::default();
    }

    /// Reads a key for a transaction that has only scanned.
    async fn read_anchor(&mut self) -> Result<Key, TxnError> {
        let key = self.state.content.anchor_to_read();
        if !self.state.content.add_read_of_scan(&key) {
            self.get(key.clone()).await?;
        }
        Ok(key)
    }

    /// Whether it may still be committed.
    fn check_alive(&self) -> Result<(), TxnError> {
        self.state.doomed.clone().map_or(Ok(()), |aborted| Err(aborted.into()))
    }
}
