//! The shard store against a model, through crashes at every step, on the twin and on sled itself.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows these in test functions; the parts shared by tests are no test functions"
)]

mod checkpoints;
mod crashes;
mod images;
mod model;
mod node;
mod pace;
mod pins;
mod refusals;
mod regenerations;
mod resumed;
mod snapshots;
mod watched;
