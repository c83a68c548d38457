//! What a shard store may use.

use std::time::Duration;

use kv_types::limits;

/// Limits of one shard's store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreOptions {
    /// An effect file is ended at this size.
    pub effect_file_bytes: u64,
    /// How long a pin may live.
    pub pin_age_max: Duration,
    /// Bytes of old versions that pins may hold.
    pub pin_bytes_max: usize,
    /// Pins at a time.
    pub pins_max: usize,
    /// Rows a merge writes between two syncs.
    pub step_rows_max: usize,
    /// Bytes a merge writes between two syncs; a longer row is written alone.
    pub step_bytes_max: usize,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            effect_file_bytes: 16 << 20,
            pin_age_max: limits::PIN_AGE_MAX,
            pin_bytes_max: limits::PIN_BYTES_MAX,
            pins_max: 1024,
            step_rows_max: 128,
            step_bytes_max: 1 << 20,
        }
    }
}
