//! What is left to do once a transaction is decided, and having one decided that is not.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::join_all;
use kv_state::txn::{Known, Prepared, TxnCommand};
use kv_types::{ShardId, TxnId};

use crate::commit::{Fence, internal};
use crate::planted::{Planted, is_planted};
use crate::shards::{Failure, Shards};

/// Has every participant end its part, and then, if the transaction is committed, the anchor's shard forget the record;
/// `participants` are keys of theirs. Whether all of it is done.
pub async fn finish<S: Shards>(
    shards: &S,
    (txn, anchor): (TxnId, ShardId),
    participants: &[Bytes],
    committed: bool,
) -> bool {
    if committed && is_planted(shards, Planted::ForgetsEarly) {
        until_done(shards, anchor, TxnCommand::Forget { txn }).await;
    }
    let owners: BTreeSet<ShardId> = participants.iter().map(|key| shards.owner(key)).collect();
    let resolved = owners.iter().map(|at| until_done(shards, *at, TxnCommand::Resolve { txn, committed }));
    if !join_all(resolved).await.into_iter().all(|done| done) {
        return false;
    }
    !committed || until_done(shards, anchor, TxnCommand::Forget { txn }).await
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
///
/// # Errors
/// [`Failure`]: it is still there; also if the anchor's leader is driving the transaction right now.
pub async fn unblock<S: Shards>(
    shards: &S,
    at: ShardId,
    prepared: &Prepared,
) -> Result<(), Failure<S::Error>> {
    let (txn, anchor) = (prepared.txn, shards.owner(prepared.anchor.as_ref()));
    let committed = match shards.known(anchor, txn).await? {
        Known::Committed => true,
        Known::Aborted => false,
        Known::Absent if is_planted(shards, Planted::PresumesAbort) => false,
        Known::Absent => {
            let fence = Fence { txn, first_incomplete: prepared.first_incomplete };
            // Absent: if its lock is still there, it is aborted.
            fence.ask(shards, anchor).await?.unwrap_or(false)
        }
    };
    internal(shards, at, TxnCommand::Resolve { txn, committed }).await.map(drop)
}
