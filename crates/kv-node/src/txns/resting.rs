//! Parts to be ended that nobody waits for.
//!
//! They rest for a moment at their shard's leader, and the next step of the shard takes them along into one write, sync and
//! frame, and into one entry: a client that commits one transaction after another has the end of the last with the beginning
//! of the next.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kv_shard::{WriteFailure, Written};
use kv_state::txn::{Ending, Transaction, TxnCommand};
use kv_state::{Command, Envelope};
use kv_types::limits::{TXN_BYTES_MAX, TXN_OPERATIONS_MAX};
use kv_types::{Nanos, ShardId, TxnId};
use tokio::sync::oneshot;

use crate::mailbox::Request as Mail;
use crate::waiter::Waiter;

/// How long they rest if no other step comes. Their locks stay for as long.
pub(super) const REST: Duration = Duration::from_millis(1);

/// A transaction with more keys or more bytes does not rest: what ends together takes effect at once.
const RESTING_KEYS_MAX: usize = 8;

/// See [`RESTING_KEYS_MAX`].
const RESTING_BYTES_MAX: usize = 64 << 10;

/// Parts that one entry ends.
const TOGETHER_MAX: usize = 128;

const _: () = {
    assert!(
        TOGETHER_MAX * RESTING_KEYS_MAX <= TXN_OPERATIONS_MAX,
        "they have no more keys than one may have"
    );
    assert!(TOGETHER_MAX * RESTING_BYTES_MAX <= TXN_BYTES_MAX, "nor more bytes");
};

/// Whether the end of a transaction is small enough to rest, wherever it has parts.
pub(super) fn may_rest(txn: &Transaction) -> bool {
    let all = txn.all();
    let keys = all.reads().len() + all.writes().len() + all.scans().len();
    keys <= RESTING_KEYS_MAX && all.bytes() <= RESTING_BYTES_MAX
}

/// What rests, by shard.
#[derive(Debug, Default)]
pub(super) struct Resting(Mutex<BTreeMap<ShardId, Vec<Together>>>);

/// What one entry ends.
#[derive(Debug, Default)]
struct Together {
    endings: BTreeMap<TxnId, Ending>,
    /// Until somebody waits for one of them.
    until: Nanos,
    waiters: Vec<oneshot::Sender<Result<Written, WriteFailure>>>,
}

impl Together {
    /// A transaction's number that stands for two contents is two transactions.
    fn takes(&self, txn: TxnId, ending: Ending) -> bool {
        match self.endings.get(&txn) {
            Some(same) => *same == ending,
            None => self.endings.len() < TOGETHER_MAX,
        }
    }

    fn into_mail(self) -> Mail {
        let resolve = Command::Txn(TxnCommand::Resolve { endings: self.endings });
        let envelope = Envelope::timed(resolve).expect("it needs no request");
        Mail::Write { command: envelope.encode(), until: self.until, waiter: Waiter::Together(self.waiters) }
    }
}

impl Resting {
    /// Leaves a part to be ended, and where to hear of it; whether it is the first: then it is for its sender to see that it
    /// goes on after [`REST`].
    pub(super) fn put(
        &self,
        shard: ShardId,
        (txn, ending): (TxnId, Ending),
        until: Nanos,
    ) -> (bool, oneshot::Receiver<Result<Written, WriteFailure>>) {
        let (waiter, answered) = oneshot::channel();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_shard = all.entry(shard).or_default();
        let is_first = of_shard.is_empty();
        if !of_shard.last().is_some_and(|last| last.takes(txn, ending)) {
            of_shard.push(Together::default());
        }
        if let Some(last) = of_shard.last_mut() {
            last.endings.insert(txn, ending);
            last.until = last.until.max(until);
            last.waiters.push(waiter);
        }
        (is_first, answered)
    }

    /// Takes all of a shard's.
    pub(super) fn take(&self, shard: ShardId) -> Vec<Mail> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rested = all.get_mut(&shard).map(std::mem::take).unwrap_or_default();
        rested.into_iter().map(Together::into_mail).collect()
    }
}

#[cfg(test)]
mod tests {
    use kv_state::Opened;
    use kv_types::{Fingerprint, SessionId};

    use super::*;

    const SHARD: ShardId = ShardId::new(1);
    const NOW: Nanos = Nanos::new(1);

    fn txn(seq: u64) -> TxnId {
        TxnId { session: SessionId::new(1), seq }
    }

    fn ending(content: u128) -> Ending {
        Ending { fingerprint: Fingerprint::from_raw(content), committed: true }
    }

    fn ended(mails: Vec<Mail>) -> Vec<Vec<(u64, u128)>> {
        let of = |mail| match mail {
            Mail::Write { command, .. } => match Opened::decode(command).unwrap().into_command() {
                Command::Txn(TxnCommand::Resolve { endings }) => {
                    endings.into_iter().map(|(txn, ending)| (txn.seq, ending.fingerprint.get())).collect()
                }
                other => panic!("{other:?}"),
            },
            Mail::Read(_) => panic!("a read"),
        };
        mails.into_iter().map(of).collect()
    }

    #[test]
    fn one_entry_ends_what_rests_and_only_the_first_wakes_it() {
        let resting = Resting::default();
        assert!(resting.put(SHARD, (txn(2), ending(20)), NOW).0);
        assert!(!resting.put(SHARD, (txn(1), ending(10)), NOW).0);
        assert!(!resting.put(SHARD, (txn(2), ending(20)), NOW).0, "it was sent twice");
        assert!(resting.put(ShardId::new(2), (txn(3), ending(30)), NOW).0);
        assert_eq!(ended(resting.take(SHARD)), [[(1, 10), (2, 20)]]);
        assert!(resting.take(SHARD).is_empty());
        assert!(resting.put(SHARD, (txn(4), ending(40)), NOW).0);
    }

    #[test]
    fn a_number_of_two_contents_and_too_many_take_another_entry() {
        let resting = Resting::default();
        resting.put(SHARD, (txn(0), ending(1)), NOW);
        resting.put(SHARD, (txn(0), ending(2)), NOW);
        assert_eq!(ended(resting.take(SHARD)), [[(0, 1)], [(0, 2)]]);
        for seq in 0..=TOGETHER_MAX as u64 {
            resting.put(SHARD, (txn(seq), ending(0)), NOW);
        }
        let sizes: Vec<_> = ended(resting.take(SHARD)).iter().map(Vec::len).collect();
        assert_eq!(sizes, [TOGETHER_MAX, 1]);
    }

    #[test]
    fn everybody_hears_of_the_entry_that_they_share() {
        let resting = Resting::default();
        let (_, mut one) = resting.put(SHARD, (txn(1), ending(1)), Nanos::new(1));
        let (_, mut other) = resting.put(SHARD, (txn(2), ending(2)), Nanos::new(5));
        match resting.take(SHARD).pop() {
            Some(Mail::Write { until, waiter, .. }) => {
                assert_eq!(until, Nanos::new(5));
                waiter.written(Err(WriteFailure::Busy));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(one.try_recv(), Ok(Err(WriteFailure::Busy)));
        assert_eq!(other.try_recv(), Ok(Err(WriteFailure::Busy)));
    }
}
