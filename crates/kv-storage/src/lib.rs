//! WAL, effect log, memtable and sled over a disk seam.

mod base;
mod checkpoint;
mod chunks;
pub mod data_dir;
pub mod disk;
mod effect;
mod effect_log;
mod encoding;
mod engine;
mod memtable;
mod notes;
mod options;
mod pins;
mod reader;
mod recovery;
mod row_range;
mod shard_log;
mod snapshot;
mod store;
mod store_error;
mod verify;
mod view;
pub mod wal;

pub use checkpoint::{Checkpoint, CheckpointDone, CheckpointStep};
pub use effect::AppliedEntry;
pub use engine::{Engine, EngineError, EngineFactory, EngineScan, SledFactory, TwinFactory};
pub use notes::{BaseNote, Generation, MergeNote, WalOp, WalRecord};
pub use options::StoreOptions;
pub use reader::{PageLimit, Pin, ScanPage, ShardReader};
pub use row_range::RowRange;
pub use shard_log::{ShardLog, WriteMark};
pub use snapshot::{ReceivedSnapshot, SnapshotError, SnapshotReceiver, SnapshotSource};
pub use store::{Freed, Opened, ShardStore, StoreStart};
pub use store_error::{OpenError, ReadError, StoreError};
pub use verify::{BaseReport, Verification, verify_base};
