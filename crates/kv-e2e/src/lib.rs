//! Clusters of real `kvnode` processes for tests: started, hurt, looked at and, in the end, audited.
//!
//! # Terms
//!
//! A *cluster* here is processes on loopback with their data in a temporary directory. A *ledger* is what the clients
//! of a test know: which writes were acknowledged, refused, or left open. An *audit* compares it with what the cluster
//! holds. A *turn* is the right to run processes: one cluster at a time has the machine, so that timings mean something, or
//! two of tests that assert no time, rate or amount of memory ([`Options::beside`]).
//!
//! # How it works
//!
//! [`Cluster::start`] takes the [`Turn`], picks free ports that no other cluster of the process has, starts one [`Process`] a node and waits for the `ready`
//! lines. Tests then kill, pause, stop, wipe and restart nodes while [`Writers`] write unique values and log every answer
//! in a [`Ledger`]. [`Ledger::audit`] scans everything: an acknowledged write is there with its value, a write refused
//! as `not applied` is not. [`Cluster::agree`] waits until all replicas of each shard have the same state hash at the
//! same applied index. [`Cluster::finish`] ends the test well: no node may have panicked. A cluster that is dropped
//! without it keeps its directory and prints the ends of the logs.
//!
//! Where losing processes is not enough, [`unreliable`] stands between clients and nodes: it loses answers and sends
//! requests again. [`counting`] has clients count up, and compares the sum with what they know. [`raw`] sends requests
//! as no client of ours would make them, and [`prepared`] what a node would send that drives a transaction, step by step, and then goes
//! away. [`leaders`] says who leads, and has another node lead.
//!
//! [`examples`] are transactions to be learnt from, which users run on a cluster of their own and a test runs by the hundred.
//!
//! [`binaries`] finds the programs: in `QUORATE_BIN_DIR`, or by a nested `cargo build` in the profile of the running
//! test.
//!
//! # Caller's duties
//!
//! 1. Hold one [`Cluster`] or [`Turn`] at a time in a test: a second waits for the first for ever.
//! 2. Call [`Cluster::finish`] at the end; otherwise the test counts as failed to those who read its output.
//! 3. Wait for conditions with [`wait::until`]; a sleep proves nothing.
//!
//! # What it does not do
//!
//! It cuts no network, and loses nothing between the nodes: that is the chaos proxy's. It does not fail a disk below the file system:
//! that is the simulator's. It runs on Linux only, as it reads `/proc`.

pub mod binaries;
pub mod cluster;
pub mod counting;
pub mod cpu;
pub mod disk;
pub mod examples;
pub mod http;
pub mod kvctl;
pub mod leaders;
pub mod ledger;
pub mod lists;
pub mod memory;
pub mod prepared;
pub mod raw;
mod reserved;
pub mod settings;
pub mod turn;
pub mod unreliable;
pub mod wait;
pub mod writers;

pub use cluster::{Cluster, Options};
pub use kv_drill::{Process, ports};
pub use ledger::Ledger;
pub use turn::Turn;
pub use writers::Writers;
