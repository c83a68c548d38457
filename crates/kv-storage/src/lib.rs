//! WAL, effect log, memtable and sled over a disk seam.

pub mod disk;
mod notes;

pub use notes::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
