//! Turns at contended keys, so that no transaction is aborted for ever.
//!
//! A transaction that was aborted reserves its keys before it reads them anew. Whoever has reserved a key is not met there by
//! other transactions for a while: their prepares and commits are refused, and those that want to reserve it wait in a queue.
//! All of it is advice in the leader's memory: that a transaction is right never depends on it, and what is reserved is free
//! again after [`HOLD_MAX`], or when the leader changes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_state::txn::Part;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A transaction that takes longer from its reservation to its end loses its turn.
const HOLD_MAX: Duration = Duration::from_millis(200);

/// Names who reserves; drawn by the client. Zero is nobody.
pub(crate) type Token = u64;

/// What is reserved at the shards that this node leads.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The queue of each key that anybody holds or waits for.
    queues: BTreeMap<Bytes, Arc<Semaphore>>,
    holders: BTreeMap<Bytes, Token>,
    held: BTreeMap<Token, Vec<(Bytes, OwnedSemaphorePermit)>>,
}

impl Reservations {
    /// Waits until all of these keys, which are in order, are this one's; whether they are by `until`.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        token: Token,
        keys: &BTreeSet<Bytes>,
        until: Instant,
    ) -> bool {
        let unfinished = Unfinished { all: self, token };
        for key in keys {
            let queue = self.queue(key);
            let turn = tokio::time::timeout_at(until.into(), Arc::clone(&queue).acquire_owned()).await;
            drop(queue);
            let Ok(Ok(turn)) = turn else { return false };
            self.lock().held.entry(token).or_default().push((key.clone(), turn));
        }
        // Others are kept off for as long as it takes from here, not for the time that it has waited.
        self.lock().holders.extend(keys.iter().map(|key| (key.clone(), token)));
        // From here on the timer ends it.
        std::mem::forget(unfinished);
        let all = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD_MAX).await;
            all.release(token);
        });
        true
    }

    /// Whether another has reserved a key of a part.
    pub(crate) fn is_in_the_way(&self, part: &Part, token: Token) -> bool {
        let state = self.lock();
        if state.holders.is_empty() {
            return false;
        }
        let reads = part.reads().iter().map(|read| &read.key);
        let mut keys = reads.chain(part.writes().iter().map(|write| &write.key));
        keys.any(|key| state.holders.get(key.as_ref()).is_some_and(|holder| *holder != token))
    }

    /// The turn is over.
    pub(crate) fn release(&self, token: Token) {
        let mut state = self.lock();
        let Some(held) = state.held.remove(&token) else { return };
        for (key, turn) in held {
            state.holders.remove(&key);
            // Whoever waits is next.
            drop(turn);
            if state.queues.get(&key).is_some_and(|queue| !is_used(queue)) {
                state.queues.remove(&key);
            }
        }
    }

    fn queue(&self, key: &Bytes) -> Arc<Semaphore> {
        let mut state = self.lock();
        let queue = state.queues.entry(key.clone()).or_insert_with(|| Arc::new(Semaphore::new(1)));
        Arc::clone(queue)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns of one that still waits for others: they are over if it waits no more, because it is too late or its caller has gone.
struct Unfinished<'a> {
    all: &'a Reservations,
    token: Token,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.all.release(self.token);
        self.all.lock().queues.retain(|_, queue| is_used(queue));
    }
}

/// Whether anybody holds a turn of it, or waits for one.
fn is_used(queue: &Arc<Semaphore>) -> bool {
    Arc::strong_count(queue) > 1
}

#[cfg(test)]
mod tests {
    use kv_state::txn::Write;
    use kv_types::Key;

    use super::*;

    fn keys(names: &[&'static str]) -> BTreeSet<Bytes> {
        names.iter().map(|name| Bytes::from(*name)).collect()
    }

    fn part(name: &'static str) -> Part {
        Part::new(vec![], vec![], vec![Write { key: Key::new(name).unwrap(), value: None }]).unwrap()
    }

    #[tokio::test]
    async fn turns_come_in_order_and_end() {
        let all = Arc::new(Reservations::default());
        let soon = || Instant::now() + Duration::from_secs(60);
        assert!(all.reserve(1, &keys(&["a", "b"]), soon()).await);
        assert!(all.is_in_the_way(&part("a"), 2) && all.is_in_the_way(&part("b"), 0));
        assert!(!all.is_in_the_way(&part("a"), 1) && !all.is_in_the_way(&part("c"), 2));
        let (second, third) = (Arc::clone(&all), Arc::clone(&all));
        let second = tokio::spawn(async move { second.reserve(2, &keys(&["b"]), soon()).await });
        tokio::task::yield_now().await;
        let third = tokio::spawn(async move { third.reserve(3, &keys(&["b"]), soon()).await });
        tokio::task::yield_now().await;
        assert!(!second.is_finished() && !third.is_finished());
        all.release(1);
        assert!(second.await.unwrap() && !third.is_finished());
        assert!(!all.is_in_the_way(&part("a"), 3) && all.is_in_the_way(&part("b"), 3));
        // Of the second nothing is heard any more.
        assert!(third.await.unwrap());
        all.release(3);
        assert!(!all.is_in_the_way(&part("b"), 0));
        let state = all.lock();
        assert!(state.queues.is_empty() && state.held.is_empty());
    }

    #[tokio::test]
    async fn who_goes_away_while_it_waits_holds_nothing() {
        let all = Arc::new(Reservations::default());
        let until = Instant::now() + Duration::from_secs(60);
        assert!(all.reserve(1, &keys(&["b"]), until).await);
        let waiting = Arc::clone(&all);
        let waiting = tokio::spawn(async move { waiting.reserve(2, &keys(&["a", "b"]), until).await });
        while !all.lock().held.contains_key(&2) {
            tokio::task::yield_now().await;
        }
        assert!(!all.is_in_the_way(&part("a"), 0), "it only waits");
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
        assert!(!all.is_in_the_way(&part("a"), 0));
        all.release(1);
        let state = all.lock();
        assert!(state.queues.is_empty() && state.held.is_empty());
    }

    #[tokio::test]
    async fn who_waits_too_long_holds_nothing() {
        let all = Arc::new(Reservations::default());
        let until = Instant::now() + Duration::from_millis(50);
        assert!(all.reserve(1, &keys(&["b"]), until).await);
        assert!(!all.reserve(2, &keys(&["a", "b"]), until).await);
        assert!(!all.is_in_the_way(&part("a"), 0));
        all.release(1);
        assert!(all.lock().queues.is_empty());
    }
}
