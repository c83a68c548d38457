//! Everything a node keeps on its disk: write-ahead log, effect log, memtable, and sled below them, over a seam that a
//! simulator can stand behind.
//!
//! # Terms
//!
//! The *WAL* ([`wal::Wal`]) is shared by all shards of a node and made durable by one fdatasync for all that waits; it
//! holds what was *asked* (Raft entries and hard states) and a few notes. A shard's *effect log* holds what was *done*:
//! for each applied entry every row it changed, and the state hash after it. The *memtable* holds the newest rows; the
//! *base* is a sled database that is written behind, in *checkpoints*. A *generation* is one life of a base.
//!
//! # How it works
//!
//! Like a log-structured store whose last level is sled. A write is durable when [`wal::Wal::write`] returns. When it is
//! committed, [`ShardStore::apply`] touches memory only: the memtable, and a buffer of the effect log. Readers
//! ([`ShardReader`]) stack memtable over base; a [`Pin`] holds a state still for a scan. In the background a
//! [`Checkpoint`] merges a frozen table into the base in small steps, each durable before the next, so that a crash at
//! any point leaves the old base and a prefix of the changes. Recovery opens the base that the WAL names, does the
//! effects after it again, and hands the rest to the replica: committed entries above the effects are applied anew.
//! The effect log serves three purposes: redo for the memtable, history for watches, increment for snapshots
//! ([`SnapshotSource`]).
//!
//! Every byte read back is checked: the WAL's groups, records and entries, each record of the effect log and each row of
//! the base carry a checksum, and all rows together must have the state hash that the effect log names.
//!
//! # Caller's duties
//!
//! 1. One thread writes the WAL; one thread steps checkpoints; a [`ShardStore`] belongs to its replica.
//! 2. A [`CheckpointStep::Wal`] operation is durable before the next step; a checkpoint is stepped only while the own WAL
//!    is durable through its end, and none of a former generation after a snapshot was installed.
//! 3. A failed sync is final: the node stops.
//! 4. Effects are applied on a follower only as far as its own WAL is durable.
//!
//! # What it does not do
//!
//! It starts no thread and reads no clock: it hands out jobs that the host runs. It does not know what a row means, who
//! leads, or when to checkpoint. It calls none of sled's batches, transactions or background flushes: they stop every
//! reader of the process or lose rows on power loss (measured; see the decision record of the own WAL).

mod base;
mod checkpoint;
mod chunks;
pub mod data_dir;
pub mod disk;
mod effect;
mod effect_log;
mod encoding;
mod engine;
mod lamport_ceiling;
mod memtable;
mod notes;
mod options;
mod pins;
mod reader;
mod recovery;
mod regeneration;
mod row_range;
mod shard_log;
mod small_file;
mod snapshot;
mod store;
mod store_error;
mod verify;
mod view;
pub mod wal;

pub use base::generation_of;
pub use checkpoint::{Checkpoint, CheckpointDone, CheckpointStep};
pub use effect::AppliedEntry;
pub use effect_log::{EffectReport, Unsound, verify_effects};
pub use engine::{Engine, EngineError, EngineFactory, EngineScan, Flush, SledFactory, TwinFactory, Visit};
pub use lamport_ceiling::CeilingFile;
pub use notes::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
pub use options::StoreOptions;
pub use reader::{PageLimit, Pin, ScanPage, ShardReader};
pub use regeneration::{BaseSize, LiveBytes, Regeneration, RegenerationError, RegenerationStep};
pub use row_range::RowRange;
pub use shard_log::{ShardLog, WriteMark};
pub use snapshot::{ReceivedSnapshot, SnapshotError, SnapshotReceiver, SnapshotSource};
pub use store::{Freed, Opened, Retired, ShardStore, StoreStart};
pub use store_error::{ReadError, StoreError};
pub use verify::{BaseReport, Verification, verify_base};
