//! Whole clusters of real replicas on virtual time, network, disks and clocks, from one seed.
//!
//! # Terms
//!
//! A *run* is everything that follows from one *seed*. *True time* is the run's own; each node has a clock that is a
//! function of it. A *trouble* is something that goes wrong for a while. A *scenario* fixes some of what the seed would
//! draw. An *invariant* is a property of the whole cluster, checked whenever something is seen that could break it.
//!
//! # How it works
//!
//! The replicas are those of the daemon: `kv-shard` with its Raft core, the WAL, the effect log, checkpoints, snapshots
//! and recovery, over the virtual disk of `kv-storage`. Below sled stands its twin, which loses writes as sled does. The
//! driver here does what the daemon does: it feeds mail, hands effects on, writes the WAL in groups, publishes leases,
//! serves reads by them, steps checkpoints and streams.
//!
//! A run is a queue of happenings ordered by true time; time leaps from one to the next, so quiet costs nothing. Numbers
//! are drawn apart for network, disks, clients and troubles. It has three parts. First there is trouble. Then a quorum,
//! as small as it comes, is healed while all others stay cut off: it must elect a leader, and answer new writes and
//! reads within a bounded time. In the end everybody comes back, and all must agree.
//!
//! Everything that a replica hands out is shown to the invariants before it is carried out: records for the disk,
//! messages, leases, commits, applied entries, answers. They see the world as the outside can see it, and no replica's
//! inside. A second state machine, written plainly, answers every call once more; and the history of all clients goes to
//! the checker of `kv-check`.
//!
//! Where a scenario has transactions, each node runs the parties of `kv-txn` as the daemon does: futures that belong to the
//! node's life, and are polled when an answer of theirs has arrived, in the order of the queue.
//!
//! A scenario may be that of a drill ([`Scenario::of_drill`]): then its steps fire on true time, and the rules of `kv-fault` judge
//! every message between nodes.
//!
//! # Caller's duties
//!
//! 1. Take a seed that fails seriously: [`run`] with the same seed and scenario shows it again, with every event if asked.
//! 2. Count a [`Failure::Panic`] as a failure, but not as a bug that was looked for and found.
//!
//! # What it does not do
//!
//! It simulates no thread: a turn of a replica is one instant, so races inside the daemon are out of reach. The daemon's
//! own code (gRPC, peer streams, timers, configuration) is not in it, nor is the real sled. Clocks that leap or stand are
//! drawn only where no lease rests on them, since the model of leases leaves them out.

mod clock;
mod cluster;
mod damage;
mod held;
mod house;
mod invariants;
mod model;
mod network;
mod node;
mod oracle;
mod party;
mod planted;
mod report;
mod run;
mod scenario;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod view;
mod violation;
mod world;
pub use planted::Planted;
#[cfg(feature = "planted")]
pub use report::run_planted;
pub use report::{CountingTally, Exercise, Expected, Failure, Report, Tally, TransactionsTally, run};
pub use scenario::{Counting, Fault, Kind, NotPlayed, Scenario, Transactions};
pub use violation::Violation;
