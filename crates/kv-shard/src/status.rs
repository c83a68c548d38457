//! What a replica says of itself.

use kv_raft::Status;
use kv_state::StateHash;
use kv_storage::Generation;
use kv_types::{LogId, LogIndex, ShardId};

use crate::replica::Replica;

/// A replica at one instant.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// The shard.
    pub shard: ShardId,
    /// The Raft core.
    pub raft: Status,
    /// Whether the rows have been compared with their hash since the start; before that they serve nobody.
    pub verified: bool,
    /// Why its rows cannot be used, until those of a peer are installed.
    pub damage: Option<String>,
    /// Whether a snapshot has been received and is about to be installed.
    pub installing: bool,
    /// The last entry applied.
    pub applied: LogId,
    /// The state hash after it.
    pub hash: StateHash,
    /// The last entry the base on disk holds.
    pub base: LogIndex,
    /// The entry before the first one the log holds.
    pub log_start: LogIndex,
    /// The life of that base.
    pub base_generation: Generation,
    /// The life of that base, or of the one that a received snapshot is about to put in its place: the next snapshot
    /// is received into the one after it.
    pub generation: Generation,
    /// Bytes of rows in memory.
    pub memtable_bytes: usize,
    /// Bytes of effects above the base.
    pub unmerged_bytes: u64,
}

impl<W> Replica<W> {
    /// The replica at this instant.
    pub fn status(&self) -> ReplicaStatus {
        ReplicaStatus {
            shard: self.shard,
            raft: self.raft.status(),
            verified: self.verified,
            installing: self.installing.is_some(),
            damage: self.store.damage().map(str::to_owned),
            applied: self.applied,
            hash: self.carried.hash(),
            base: self.store.base().meta.last.index,
            log_start: self.log.start().index,
            base_generation: self.store.base().generation,
            generation: self.newest_generation(),
            memtable_bytes: self.store.memtable_bytes(),
            unmerged_bytes: self.store.unmerged_bytes(),
        }
    }

    /// How many writes wait for their answer here.
    pub fn waiting_writes(&self) -> usize {
        self.proposals.len()
    }

    /// The last entry of its log, proposals of this turn included.
    pub fn last(&self) -> LogIndex {
        self.raft.last().index
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.raft.is_leader()
    }

    /// The Raft core's role, term and leader, cheaply.
    pub fn leadership(&self) -> (kv_types::Term, Option<kv_types::NodeId>) {
        (self.raft.term(), self.raft.leader())
    }
}
