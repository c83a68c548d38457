//! WAL, effect log, memtable and sled over a disk seam.

pub mod data_dir;
pub mod disk;
mod notes;
mod shard_log;
pub mod wal;

pub use notes::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
pub use shard_log::{ShardLog, WriteMark};
