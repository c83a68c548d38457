//! WAL, effect log, memtable and sled over a disk seam.

mod base;
mod chunks;
pub mod disk;
mod effect;
mod effect_log;
mod encoding;
mod engine;
mod memtable;
mod notes;
mod pins;
mod row_range;
mod store_error;
mod view;

pub use effect::AppliedEntry;
pub use engine::{Engine, EngineError, EngineFactory, EngineScan, SledFactory, TwinFactory};
pub use notes::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
pub use row_range::RowRange;
pub use store_error::{OpenError, ReadError, StoreError};
