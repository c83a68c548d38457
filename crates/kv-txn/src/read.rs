//! Readers that meet locks.

use kv_state::txn::{Known, TxnCommand};
use kv_types::ShardId;

use crate::commit::internal;
use crate::planted::{Planted, is_planted};
use crate::shards::{Failure, Named, Shards};

/// What a reader has seen: first the locks, then the rows, or both in one view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Looked<T> {
    /// The rows.
    pub found: T,
    /// Whose writes to these rows may be decided already and are not in them.
    pub owners: Vec<Owner>,
}

/// A transaction that has locked a key for writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The transaction.
    pub txn: Named,
    /// The shard that decides it.
    pub anchor: ShardId,
}

impl<T> Looked<T> {
    /// Rows that nobody has locked for writing.
    pub fn free(found: T) -> Self {
        Self { found, owners: Vec::new() }
    }

    /// The same in another shape.
    pub fn map<U>(self, shape: impl FnOnce(T) -> U) -> Looked<U> {
        Looked { found: shape(self.found), owners: self.owners }
    }
}

/// Returns what a reader of a shard may return that has looked once, where `look` looks again.
///
/// A transaction that was undecided *after* the look stands behind the reader: what was seen may be returned. That it was
/// undecided is known if its record is absent and, looked at after that, its lock is still there. If it is committed, its
/// writes are made to take effect, and the reader looks again. So a reader waits for no decision and aborts nobody.
///
/// # Errors
/// [`Failure`]: a shard has not answered; and whatever `look` says.
pub async fn past_locks<S: Shards, T>(
    shards: &S,
    at: ShardId,
    mut looked: Looked<T>,
    mut look: impl FnMut() -> Result<Looked<T>, S::Error> + Send,
) -> Result<T, Failure<S::Error>>
where
    T: Send,
{
    if is_planted(shards, Planted::ReaderSkipsLocks) {
        return Ok(looked.found);
    }
    if is_planted(shards, Planted::ValueBeforeLock) {
        shards.pause(2).await;
        shards.confirm(at).await?;
        looked.owners = look().map_err(Failure::Failed)?.owners;
    }
    let mut rounds = 0;
    while !stand_behind(shards, at, &looked.owners).await? {
        rounds += 1;
        if rounds > 1 {
            // So that readers of a key that is always locked are no load of their own. If no time is left, the next
            // question fails.
            shards.pause(rounds).await;
        }
        shards.confirm(at).await?;
        looked = look().map_err(Failure::Failed)?;
    }
    Ok(looked.found)
}

/// Whether each of these transactions was undecided after the look that has met it, or is aborted.
async fn stand_behind<S: Shards>(
    shards: &S,
    at: ShardId,
    owners: &[Owner],
) -> Result<bool, Failure<S::Error>> {
    for owner in owners {
        match shards.known(owner.anchor, owner.txn).await? {
            Known::Aborted => {}
            Known::Committed => {
                let Named { txn, fingerprint } = owner.txn;
                internal(shards, at, TxnCommand::resolve(txn, fingerprint, true)).await?;
                return Ok(false);
            }
            Known::Absent if is_planted(shards, Planted::NoSecondLook) => {}
            Known::Absent => {
                shards.confirm(at).await?;
                if !shards.is_prepared(at, owner.txn.txn).await? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
