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
    /// Who is not met at a key. Whoever is entered here has the turn at it.
    holders: BTreeMap<Bytes, Token>,
    /// The turns of each call that is not over.
    held: BTreeMap<Call, Held>,
    last: Call,
}

/// One call that reserves keys. A transaction makes several: one for each shard, and again if an answer was lost.
type Call = u64;

#[derive(Debug)]
struct Held {
    token: Token,
    turns: Vec<(Bytes, OwnedSemaphorePermit)>,
}

impl Reservations {
    /// Waits until all of these keys, which are in order, are this one's; whether they are by `until`.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        token: Token,
        keys: &BTreeSet<Bytes>,
        until: Instant,
    ) -> bool {
        let call = self.begin(token);
        let unfinished = Unfinished { all: self, call };
        for key in keys {
            let queue = self.queue(key);
            let turn = tokio::time::timeout_at(until.into(), Arc::clone(&queue).acquire_owned()).await;
            drop(queue);
            let Ok(Ok(turn)) = turn else { return false };
            let mut state = self.lock();
            // The transaction may have ended meanwhile.
            let Some(held) = state.held.get_mut(&call) else { return false };
            held.turns.push((key.clone(), turn));
        }
        {
            let mut state = self.lock();
            if !state.held.contains_key(&call) {
                return false;
            }
            // Others are kept off for as long as it takes from here, not for the time that it has waited.
            state.holders.extend(keys.iter().map(|key| (key.clone(), token)));
        }
        // From here on the timer ends it.
        std::mem::forget(unfinished);
        let all = Arc::clone(self);
        tokio::spawn(async move {
            tokio::time::sleep(HOLD_MAX).await;
            all.lock().end(call);
        });
        true
    }

    fn begin(&self, token: Token) -> Call {
        let mut state = self.lock();
        state.last += 1;
        let call = state.last;
        state.held.insert(call, Held { token, turns: Vec::new() });
        call
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

    /// The transaction is over, and with it its turns.
    pub(crate) fn release(&self, token: Token) {
        let mut state = self.lock();
        let calls = state.held.iter().filter(|(_, held)| held.token == token);
        let calls: Vec<Call> = calls.map(|(call, _)| *call).collect();
        calls.into_iter().for_each(|call| state.end(call));
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

impl State {
    fn end(&mut self, call: Call) {
        let Some(held) = self.held.remove(&call) else { return };
        for (key, turn) in held.turns {
            self.holders.remove(&key);
            // Whoever waits is next.
            drop(turn);
            if self.queues.get(&key).is_some_and(|queue| !is_used(queue)) {
                self.queues.remove(&key);
            }
        }
    }
}

/// Turns of one that still waits for others: they are over if it waits no more, because it is too late or its caller has gone.
struct Unfinished<'a> {
    all: &'a Reservations,
    call: Call,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut state = self.all.lock();
        state.end(self.call);
        state.queues.retain(|_, queue| is_used(queue));
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
        while !all.lock().held.values().any(|held| held.token == 2 && held.turns.len() == 1) {
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

    /// Nobody would ever release what it gets then.
    #[tokio::test]
    async fn who_ends_while_another_call_of_it_waits_holds_nothing() {
        let all = Arc::new(Reservations::default());
        let until = Instant::now() + Duration::from_secs(60);
        assert!(all.reserve(1, &keys(&["a"]), until).await);
        assert!(all.reserve(2, &keys(&["c"]), until).await);
        let waiting = Arc::clone(&all);
        let waiting = tokio::spawn(async move { waiting.reserve(1, &keys(&["b", "c"]), until).await });
        while !all.lock().held.values().any(|held| held.turns.iter().any(|(key, _)| key == "b")) {
            tokio::task::yield_now().await;
        }
        all.release(1);
        assert!(!all.is_in_the_way(&part("a"), 0));
        all.release(2);
        assert!(!waiting.await.unwrap());
        assert!(!all.is_in_the_way(&part("b"), 0) && !all.is_in_the_way(&part("c"), 0));
        let state = all.lock();
        assert!(state.queues.is_empty() && state.held.is_empty() && state.holders.is_empty());
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
