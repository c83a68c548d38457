//! Whole clusters of real replicas on virtual disks, time and network, driven one event at a time from a seed.
//!
//! [`cluster::Cluster`] does what the daemon does, in the plainest way: it feeds mail, hands effects on, writes the
//! WAL in groups, steps checkpoints and snapshot streams. [`oracle::Oracle`] watches every step.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "clippy.toml allows these in test functions; the parts shared by tests are no test functions"
)]

mod cluster;
mod conditions;
mod house;
mod model;
mod node;
mod oracle;
mod paths;
mod stream;
mod walk;
