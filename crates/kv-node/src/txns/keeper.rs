//! Ends what transactions have left: each leader looks after the records and the prepared parts of its shards.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kv_proto::status::ApiError;
use kv_state::txn;
use kv_txn::Named;
use kv_types::limits::TXN_PREPARED_TTL;
use kv_types::{ShardId, Term, TxnId};
use tracing::{debug, info};

use super::{Driven, Txns, reach::Reach};
use crate::gateway::ShardHandle;
use crate::reading::unreadable;
use crate::rows::PinnedRows;

/// How often it looks.
const INTERVAL: Duration = Duration::from_millis(200);

/// Records that one entry forgets.
const FORGET_MAX: usize = 256;

/// Transactions read at once.
const PAGE: usize = 256;

/// How long one attempt at ending something may take; it is taken up again at a later look.
const ATTEMPT_MAX: Duration = Duration::from_secs(5);

/// This part of the time is for giving up what could not be done in the rest.
const GIVE_UP_PART: u32 = 5;

/// What there was to look after.
#[derive(Default)]
struct Left {
    prepared: i64,
    records: i64,
}

impl Left {
    fn add(&mut self, other: Self) {
        self.prepared += other.prepared;
        self.records += other.records;
    }
}

impl Txns {
    /// Looks after what is left, until the node stops.
    pub(crate) async fn keep(self: Arc<Self>) {
        let _guard = self.fatal.on_panic("the keeper of transactions".to_owned());
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            self.forget().await;
            let mut left = Left::default();
            for handle in self.gateway.shards.values().filter(|handle| handle.shard != ShardId::META) {
                let Some(term) = self.leads(handle.shard) else { continue };
                match self.look(handle, term) {
                    Ok(here) => left.add(here),
                    Err(cause) => {
                        debug!(shard = %handle.shard, %cause, "transactions are not looked after for now");
                    }
                }
            }
            self.gateway.metrics.txns_left.in_doubt.set(left.prepared);
            self.gateway.metrics.txns_left.unfinished.set(left.records);
        }
    }

    /// Takes up whatever is left in a shard and is not under way.
    fn look(self: &Arc<Self>, handle: &ShardHandle, term: Term) -> Result<Left, ApiError> {
        // Rows that are old or of another leader's make for a question too many.
        let pin = handle.pin()?;
        let rows = PinnedRows(&pin);
        let mut left = Left::default();
        let records = paged(|after| txn::records(&rows, after, PAGE), |record| record.txn);
        for record in records {
            let record = record.map_err(unreadable)?;
            left.records += 1;
            if self.finished.contains(handle.shard, record.txn) {
                continue;
            }
            let Some(driven) = self.drive(handle.shard, record.txn) else { continue };
            let reach = self.reach(ATTEMPT_MAX, Some((handle.shard, term)));
            let shard = handle.shard;
            self.tasks.spawn(async move {
                let named = Named { txn: record.txn, fingerprint: record.fingerprint };
                if kv_txn::finish(&reach, named, &record.participants, true).await {
                    reach.txns.finished.add(shard, record.txn, true);
                }
                drop(driven);
            });
        }
        if handle.locks.none().is_some() {
            return Ok(left);
        }
        let now = handle.time.now();
        for id in paged(|after| txn::prepared_txns(&rows, after, PAGE), |id| *id) {
            let id = id.map_err(unreadable)?;
            left.prepared += 1;
            let Some(prepared) = txn::prepared(&rows, id).map_err(unreadable)? else { continue };
            if now < prepared.since.after(TXN_PREPARED_TTL) {
                continue;
            }
            let Some(driven) = self.unblock(handle.shard, id) else { continue };
            let reach = self.reach(ATTEMPT_MAX, Some((handle.shard, term)));
            let shard = handle.shard;
            self.tasks.spawn(async move {
                match kv_txn::unblock(&reach, shard, &prepared).await {
                    Ok(_) => {
                        reach.txns.gateway.metrics.txns.unblocked.inc();
                        info!(%shard, txn = %id, "a prepared part was ended that nobody else has ended")
                    }
                    Err(cause) => debug!(%shard, txn = %id, cause = %cause.into_inner(), "a part stays"),
                }
                drop(driven);
            });
        }
        Ok(left)
    }

    /// Has the records forgotten that are finished.
    async fn forget(self: &Arc<Self>) {
        for (shard, txns) in self.finished.take() {
            let Some(term) = self.leads(shard) else { continue };
            let reach = self.reach(ATTEMPT_MAX, Some((shard, term)));
            let txns: Vec<TxnId> = txns.into_iter().collect();
            for some in txns.chunks(FORGET_MAX) {
                if let Err(cause) = kv_txn::forget(&reach, shard, some.iter().copied().collect()).await {
                    debug!(%shard, cause = %cause.into_inner(), "records are kept for now");
                }
            }
        }
    }

    /// The way to the shards for someone who acts as a shard's leader.
    pub(super) fn reach(self: &Arc<Self>, patience: Duration, office: Option<(ShardId, Term)>) -> Reach {
        let (txns, now) = (Arc::clone(self), Instant::now());
        let (until, again_until) = (now + patience, now + patience - patience / GIVE_UP_PART);
        Reach { txns, until, again_until, office, token: 0, rests: false, drives: None }
    }

    /// The unblocking of a part, unless it is under way.
    fn unblock(self: &Arc<Self>, shard: ShardId, txn: TxnId) -> Option<Driven> {
        Driven::begin(Arc::clone(&self.unblocking), (shard, txn))
    }
}

/// All of what is read a page at a time, in the order of transactions. Whoever is first does not keep the others from being looked
/// at: those that cannot be ended now may be many.
fn paged<T, E>(
    mut page: impl FnMut(Option<TxnId>) -> Result<Vec<T>, E>,
    id: impl Fn(&T) -> TxnId,
) -> impl Iterator<Item = Result<T, E>> {
    let mut next = Some(None);
    std::iter::from_fn(move || {
        let read = page(next?);
        next = match &read {
            Ok(rows) if rows.len() == PAGE => rows.last().map(|last| Some(id(last))),
            _ => None,
        };
        Some(match read {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(cause) => vec![Err(cause)],
        })
    })
    .flatten()
}

#[cfg(test)]
mod tests {
    use kv_types::SessionId;

    use super::*;

    #[test]
    fn every_page_is_looked_at() {
        for count in [0, 1, PAGE, PAGE + 1, 3 * PAGE] {
            let all: Vec<TxnId> =
                (0..count as u64).map(|seq| TxnId { session: SessionId::new(1), seq }).collect();
            let page = |after: Option<TxnId>| {
                let rest = all.iter().filter(|id| after.is_none_or(|after| **id > after));
                Ok::<_, ()>(rest.take(PAGE).copied().collect())
            };
            let seen: Result<Vec<TxnId>, ()> = paged(page, |id| *id).collect();
            assert_eq!(seen, Ok(all.clone()));
        }
        let failed: Vec<_> = paged(|_| Err::<Vec<TxnId>, _>("unreadable"), |id| *id).collect();
        assert_eq!(failed, [Err("unreadable")]);
    }
}
