//! Drills: faults on a timeline against a real cluster, clients that are recorded, a verdict and a report.
//!
//! # Terms
//!
//! What a *drill* says is `kv-fault`'s; a *run* plays it once. A *record* is all that is known of a run afterwards; a report shows it.
//! A *probe* is a client that asks one node only, whoever leads. The *minority* of a report is those of its operations that were called
//! while the node was cut off from the majority of nodes: clients of `kv-client` go wherever the leader is, so that none of them is ever in a minority.
//!
//! # How it works
//!
//! [`run()`] starts nodes and a chaos proxy that stands on every link between them ([`Where::Local`]), or joins a cluster that runs. Clients
//! work on what the drill says, each beginning at another node, and go past the proxy unless the drill cuts clients. Every call is noted before it
//! is sent, and every return after it came. Meanwhile the timeline fires steps: [`Chaos`] tells the proxy what to do, and
//! [`ClusterRoles`] says who leads what at this moment, so that `leader-of(1)` becomes a node when a step fires. On every shard there is one more
//! register, which a client writes and which probes ask for at the nodes that are cut off: a deposed leader that still answers is caught by them.
//!
//! In the end everything is mended, whatever the drill says; clients look at all there is once more; replicas are compared;
//! `kv-check` judges the histories, and what was expected is compared with what was measured. A run in which a fault met nothing shows nothing, and says so.
//! [`record`] is what a run leaves behind, and [`report`] shows it to people.
//!
//! # Caller's duties
//!
//! 1. Call [`run()`] within a tokio runtime of several threads, with time and I/O enabled.
//! 2. Leave SIGINT, SIGTERM and SIGHUP to it while it runs: it mends and stops what it has broken and started, then returns.
//!
//! # What it does not do
//!
//! It never ends, pauses or starts processes that are not its own. It reads no clock of the nodes: times are those of its own process.

mod book;
mod catalogue;
mod chaos;
mod checking;
mod error;
mod judge;
mod local;
mod one_node;
pub mod ports;
mod process;
mod programs;
pub mod record;
pub mod report;
mod roles;
mod run;
mod site;
mod timeline;
mod utc;
mod watch;
mod workload;

pub use catalogue::{CatalogueError, Entry, list, template};
pub use chaos::{Chaos, ChaosError};
pub use checking::{Word, check_bank};
pub use error::RunError;
pub use process::Process;
pub use programs::path_of;
pub use roles::ClusterRoles;
pub use run::{Options, run};
pub use site::Where;
