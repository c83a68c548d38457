//! WAL, effect log, memtable and sled over a disk seam.

pub mod data_dir;
pub mod disk;
mod notes;
pub mod wal;

pub use notes::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
