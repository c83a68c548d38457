//! The WAL after crashes and damage, against a model that keeps whole logs in memory.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, in its functions too"
)]

#[path = "wal_recovery/crash.rs"]
mod crash;
#[path = "wal_recovery/damage.rs"]
mod damage;
#[path = "wal_recovery/model.rs"]
mod model;
#[path = "wal_recovery/random.rs"]
mod random;
