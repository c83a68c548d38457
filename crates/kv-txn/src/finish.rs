//! What is left to do once a transaction is decided, and having one decided that is not.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::join_all;
use kv_state::txn::{Known, Prepared, TxnCommand};
use kv_types::{ShardId, TxnId};

use crate::commit::{fence, internal};
use crate::planted::{Planted, is_planted};
use crate::shards::{Failure, Named, Shards};

/// Has every participant end its part of a transaction that is decided; `participants` are keys of theirs. Whether all have.
/// Then the record of a committed one may go: [`forget`].
pub async fn finish<S: Shards>(
    shards: &S,
    Named { txn, fingerprint }: Named,
    participants: &[Bytes],
    committed: bool,
) -> bool {
    if committed && is_planted(shards, Planted::ForgetsEarly) {
        return true;
    }
    let owners: BTreeSet<ShardId> = participants.iter().map(|key| shards.owner(key)).collect();
    let resolve = TxnCommand::resolve(txn, fingerprint, committed);
    let resolved = owners.iter().map(|at| until_done(shards, *at, resolve.clone()));
    join_all(resolved).await.into_iter().all(|done| done)
}

/// Has an anchor's shard forget records that all participants have acknowledged. Nobody waits for that, so that it is done
/// for many at a time.
///
/// # Errors
/// [`Failure`]: they are still there, or some.
pub async fn forget<S: Shards>(
    shards: &S,
    anchor: ShardId,
    txns: BTreeSet<TxnId>,
) -> Result<(), Failure<S::Error>> {
    internal(shards, anchor, TxnCommand::Forget { txns }).await.map(drop)
}

async fn until_done<S: Shards>(shards: &S, at: ShardId, command: TxnCommand) -> bool {
    let mut failures = 0;
    while internal(shards, at, command.clone()).await.is_err() {
        failures += 1;
        if !shards.pause(failures).await {
            return false;
        }
    }
    true
}

/// Ends a part that was prepared at a shard long ago: by what its anchor's shard says, which decides now if it has not yet.
/// Whether the part's writes took effect.
///
/// # Errors
/// [`Failure`]: it is still there; also if the anchor's leader is driving the transaction right now.
pub async fn unblock<S: Shards>(
    shards: &S,
    at: ShardId,
    prepared: &Prepared,
) -> Result<bool, Failure<S::Error>> {
    let Prepared { txn, fingerprint, .. } = *prepared;
    let (named, anchor) = (Named { txn, fingerprint }, shards.owner(prepared.anchor.as_ref()));
    let committed = match shards.known(anchor, named).await? {
        Known::Committed => true,
        Known::Aborted => false,
        Known::Absent if is_planted(shards, Planted::PresumesAbort) => false,
        Known::Absent => {
            // Absent: if its lock is still there, it is aborted.
            fence(shards, anchor, named, prepared.first_incomplete).await?.unwrap_or(false)
        }
    };
    internal(shards, at, TxnCommand::resolve(txn, fingerprint, committed)).await?;
    Ok(committed)
}
