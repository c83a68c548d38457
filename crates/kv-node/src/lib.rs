//! The daemon: hosts a replica of every shard and serves clients and peers over gRPC.
//!
//! # Terms
//!
//! A *node* is one process (or one of several in `kvnode dev`) with one data directory. It hosts one *replica* of each
//! shard. A *face* is a way in for clients: unary calls, the pipeline. All faces call the *gateway*.
//!
//! # How it works
//!
//! The life of a write: a face ([`service`](self)) validates it and asks the gateway, which routes the key to its
//! shard and puts the command into the replica's *mailbox*; the replica's task (`host`) empties the mailbox whole,
//! feeds the replica (`kv-shard`), hands its one record to the *WAL writer* (a thread: one fdatasync for all that
//! waits) and its messages to the *links* (one outgoing stream a peer, frames batched and checksummed). When disk and
//! peers have answered, the entry is committed and applied, and the waiter gets its answer. A read asks the replica
//! only for permission; the rows are read in the handler.
//!
//! Beside this path: `membership` forms the cluster once and refuses wiped disks, `maintenance` merges memtables into
//! the bases on `background` threads and sets the `pace` of writes while merges are behind, `snapshots` moves whole
//! shards between nodes, `http` shows metrics.
//!
//! # What it does not do
//!
//! No consensus, no state machine, no file formats: those are `kv-raft`, `kv-state` and `kv-storage`. It decides when
//! things run and who talks to whom.

mod admission;
mod answer;
mod background;
mod ceiling;
mod clock;
pub mod config;
mod connections;
pub mod dev;
mod directory;
mod fatal;
mod gateway;
mod handover;
mod host;
mod http;
mod identity;
mod joining;
mod leader_lease;
mod links;
mod listeners;
mod log_budget;
pub mod logging;
mod mailbox;
mod maintenance;
mod membership;
mod meta;
mod metrics;
mod node;
mod node_error;
mod once;
mod opening;
mod pace;
pub mod planted;
mod raft_wire;
mod readiness;
mod reading;
mod reconciler;
mod renewals;
mod repair;
mod rewriting;
mod roster;
mod rows;
mod scrub;
mod service;
mod serving;
mod session_keeper;
mod shard_map;
mod snapshots;
mod step_calls;
mod txns;
pub mod verify;
mod waiter;
mod wal_writer;
mod watchdog;

pub use config::Config;
pub use gateway::Principal;
pub use listeners::Listeners;
pub use node::Node;
pub use node_error::NodeError;
pub use shard_map::{ShardMap, ShardMapError};
