//! Steps that nobody waits for.
//!
//! They rest for a moment at their shard's leader, and the next step of the shard takes them along into one write, sync and
//! frame: a client that commits one transaction after another has the end of the last with the beginning of the next.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kv_types::ShardId;

use crate::mailbox::Request as Mail;

/// How long a step rests if no other comes. Its locks stay for as long.
pub(super) const REST: Duration = Duration::from_millis(1);

/// What rests, by shard.
#[derive(Debug, Default)]
pub(super) struct Resting(Mutex<BTreeMap<ShardId, Vec<Mail>>>);

impl Resting {
    /// Leaves a step. Whether it is the first: then it is for its sender to see that it goes on after [`REST`].
    pub(super) fn put(&self, shard: ShardId, mail: Mail) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_shard = all.entry(shard).or_default();
        of_shard.push(mail);
        of_shard.len() == 1
    }

    /// Takes all of a shard's.
    pub(super) fn take(&self, shard: ShardId) -> Vec<Mail> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get_mut(&shard).map(std::mem::take).unwrap_or_default()
    }
}
