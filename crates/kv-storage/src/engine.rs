//! The seam to the embedded store: one ordered map of bytes per replica generation.
//!
//! sled stands behind it in the daemon ([`SledFactory`]), its twin in the simulator ([`TwinFactory`]). One thread
//! writes at a time; any thread reads. What a crash leaves is **some prefix of the writes, at least up to the last
//! [`Engine::sync`]**, whichever way the process ended.

mod flushes;
mod lost;
mod sled;
mod twin;

use std::fmt::Debug;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

pub use self::flushes::Flush;
pub(crate) use self::lost::Lost;
pub use self::sled::SledFactory;
pub use self::twin::TwinFactory;

/// Rows of a scan, in key order.
pub type EngineScan<'a> = Box<dyn Iterator<Item = Result<(Bytes, Bytes), EngineError>> + Send + 'a>;

/// What looks at rows where they lie: key and value.
pub type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Why an engine failed. None of these is tried again: the replica stops, or its base is replaced.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// What is stored is not what was written.
    #[error("base damaged: {detail}")]
    Damaged {
        /// What was seen.
        detail: String,
    },
    /// The disk refused.
    #[error("base: {0}")]
    Io(#[from] std::io::Error),
}

/// An ordered map of bytes on disk.
pub trait Engine: Send + Sync + Debug {
    /// The value of a key.
    ///
    /// # Errors
    /// [`EngineError`] if it cannot be read.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Stores a value; gives the one it replaced.
    ///
    /// # Errors
    /// [`EngineError`]; the write may have happened.
    fn insert(&self, key: &[u8], value: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Removes a key; gives the value it had.
    ///
    /// # Errors
    /// [`EngineError`]; the removal may have happened.
    fn remove(&self, key: &[u8]) -> Result<Option<Bytes>, EngineError>;

    /// Rows between two bounds in key order. Writes made meanwhile may be seen or not, row by row.
    fn scan(&self, from: Bound<&[u8]>, to: Bound<&[u8]>) -> EngineScan<'_>;

    /// Shows `visit` the rows from a bound on, in key order and without a copy, until it breaks off. As with a scan,
    /// writes made meanwhile may be seen or not.
    ///
    /// # Errors
    /// [`EngineError`] if a row cannot be read.
    fn visit(&self, from: Bound<&[u8]>, visit: Visit<'_>) -> Result<(), EngineError> {
        for found in self.scan(from, Bound::Unbounded) {
            let (key, value) = found?;
            if visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Makes all writes so far durable.
    ///
    /// # Errors
    /// [`EngineError`]; final.
    fn sync(&self) -> Result<(), EngineError>;

    /// Looks for files that must not exist.
    ///
    /// # Errors
    /// [`EngineError::Damaged`] names them.
    fn check(&self) -> Result<(), EngineError>;

    /// Bytes on disk.
    ///
    /// # Errors
    /// [`EngineError::Io`] of the file system.
    fn disk_bytes(&self) -> Result<u64, EngineError>;
}

/// Opens and removes engines by directory, relative to the data directory.
pub trait EngineFactory: Send + Sync + Debug {
    /// Opens the engine in `dir`. With `create` it is made, durably, if it is not there; without, its absence is
    /// damage.
    ///
    /// # Errors
    /// [`EngineError`]; a store that panics while it opens is damaged.
    fn open(&self, dir: &Path, create: bool) -> Result<Arc<dyn Engine>, EngineError>;

    /// Removes an engine that is not open; nothing happens if there is none.
    ///
    /// # Errors
    /// [`EngineError::Io`] of the file system.
    fn remove(&self, dir: &Path) -> Result<(), EngineError>;

    /// Names in `parent`, among them those of its engines.
    ///
    /// # Errors
    /// [`EngineError::Io`] of the file system.
    fn list(&self, parent: &Path) -> Result<Vec<String>, EngineError>;

    /// Flushes that have begun and not ended. Memory needs none.
    fn flushes(&self) -> Vec<Flush> {
        Vec::new()
    }

    /// Whether a thread that flushes rest on has died: no flush ends any more.
    fn thread_died(&self) -> bool {
        false
    }
}
