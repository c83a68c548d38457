//! Transactions that are tried until they are committed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use kv_types::Key;
use tokio::time::sleep;

use super::content::Content;
use super::reserve::reserve;
use super::{Committed, Owner, State, Txn, TxnError};
use crate::client::Client;
use crate::error::{Error, Failure};

/// A transaction that only reads is validated without locks so often. It is refused if anything that it has read is changed
/// while it reads, which may be always; then it locks.
const READ_TRIES: u32 = 3;

impl Client {
    /// Runs `run` with a transaction and commits it; if it is aborted, runs `run` anew with a new one, after a wait with
    /// full jitter and when it is its turn at the keys of the try before, as often and as long as [`Config::transact`](crate::Config::transact) says. Returns what the `run`
    /// that was committed has returned.
    ///
    /// `run` is called once for each try, so that whatever it does beside the transaction is done again. It does not commit
    /// the transaction itself, and is done with it when it returns. An error of it aborts the transaction and is
    /// returned; unless what it has read is known to have changed already: then it is tried anew. But that is not
    /// validated: an error that follows from what was read may follow from what never was true at one instant ([`Txn`]).
    /// To be sure of it, return it as a value, so that the transaction is committed.
    ///
    /// Each try is a call of its own for the budget of retries.
    ///
    /// ```no_run
    /// # async fn run(client: kv_client::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use kv_client::TxnError;
    /// use kv_types::Key;
    ///
    /// let (from, to) = (&Key::new("account/1")?, &Key::new("account/2")?);
    /// let left = client
    ///     .transact(|mut txn| async move {
    ///         txn.incr(to.clone(), 10).await?;
    ///         let left = txn.incr(from.clone(), -10).await?;
    ///         Ok::<_, TxnError>(left)
    ///     })
    ///     .await?;
    /// println!("{left} are left");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// That of `run`, or [`TxnError`]: aborted, if that is what the last try came to; not applied; or *unknown*, after which
    /// it is never tried anew, as it may be committed.
    pub async fn transact<T, E, F>(&self, run: impl FnMut(Txn) -> F) -> Result<T, E>
    where
        E: From<TxnError>,
        F: Future<Output = Result<T, E>>,
    {
        self.transact_told(run).await.map(|(result, _)| result)
    }

    /// The same, with what the commit came to.
    pub(super) async fn transact_told<T, E, F>(
        &self,
        mut run: impl FnMut(Txn) -> F,
    ) -> Result<(T, Committed), E>
    where
        E: From<TxnError>,
        F: Future<Output = Result<T, E>>,
    {
        let began = Instant::now();
        let (mut tries, mut contended) = (0, BTreeSet::new());
        loop {
            tries += 1;
            // `run` gets the transaction itself: a future that borrowed it could not be known to be `Send`.
            let owner = Owner::default();
            let reservation = match contended.is_empty() {
                true => 0,
                false => reserve(&self.caller, std::mem::take(&mut contended)).await,
            };
            let state = State { locks_reads: tries > READ_TRIES, reservation, ..State::default() };
            let result = run(Txn::new(self, state, Some(owner.clone()))).await;
            let error = match (result, owner.take()) {
                (Ok(result), Some(state)) => {
                    contended = contended_by(&state.content, tries);
                    match Txn::new(self, state, None).commit().await {
                        Ok(committed) => return Ok((result, committed)),
                        Err(error @ TxnError::Aborted(_)) => E::from(error),
                        Err(error) => return Err(error.into()),
                    }
                }
                (Ok(_), None) => return Err(still_in_use().into()),
                (Err(error), Some(State { doomed: Some(_), content, .. })) => {
                    contended = contended_by(&content, tries);
                    error
                }
                (Err(error), _) => return Err(error),
            };
            match self.before_next_try(tries, began) {
                Some(wait) => sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    /// How long to wait after so many tries; `None` if there were enough.
    fn before_next_try(&self, tries: u32, began: Instant) -> Option<Duration> {
        let bounds = self.caller.config.transact;
        let wait = self.caller.pause(tries);
        (tries < bounds.max && began.elapsed() + wait < bounds.within).then_some(wait)
    }
}

/// The keys that the next try shall wait for. One that only reads keeps nobody away, unless it is about to lock.
fn contended_by(content: &Content, tries: u32) -> BTreeSet<Key> {
    if content.only_reads() && tries < READ_TRIES { BTreeSet::new() } else { content.keys() }
}

fn still_in_use() -> TxnError {
    let cause = "the transaction is still in use where its closure has put it";
    TxnError::Failed(Error::of_read(Failure::Config(cause.to_owned())))
}
