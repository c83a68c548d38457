//! One replica of one shard: Raft, storage and state machine joined.
//!
//! # Terms
//!
//! A [`Replica`] owns a shard's Raft core (`kv-raft`), its log and rows (`kv-storage`) and applies what is committed
//! (`kv-state`). The *host* owns the replica: the daemon runs it in a task, the simulator as events. A *waiter* (`W`)
//! is whatever the host wants back with an answer; the replica never looks into it.
//!
//! # How it works
//!
//! A turn of the host is: feed what has arrived ([`Replica::write`], [`Replica::read`], [`Replica::step`],
//! [`Replica::tick`], [`Replica::persisted`]), [`Replica::take`] the [`Effects`] once, hand them on, then
//! [`Replica::apply`] a bounded number of committed entries. Batching comes from this shape: all writes fed in one turn
//! become one WAL record and one append to each follower.
//!
//! The life of a write: [`Replica::write`] proposes it to the core and keeps its waiter; [`Replica::take`] stamps the
//! entry, puts it into the log in memory and hands out one WAL record, and at the same time the appends for the
//! followers; when [`Replica::persisted`] and the followers' acknowledgements have moved the commit index,
//! [`Replica::apply`] runs the command, stores what it changed and answers the waiter.
//!
//! A command in an [`Envelope`](kv_state::Envelope) has a place for the cluster time; [`Replica::write`] fills it in with
//! what its leader's clock has counted. Any other command goes into the log as it is.
//!
//! The life of a linearisable read: [`Replica::read`] asks the core for a read index; when a round has confirmed the
//! leader and the replica has applied that far, the waiter comes back, and the host reads the shard's rows through
//! [`Replica::reader`] wherever it likes.
//!
//! Keys may be locked by transactions. A reader looks at the lock first, and need not look at all while
//! [`Replica::locks`] says that there is none.
//!
//! A leader may have a lease ([`Replica::set_lease`]): while its clock shows less than the end that the host last
//! published from [`Effects::lease`], it may serve a read without a round, once what was committed then is applied.
//!
//! After a start the rows are compared with their hash first ([`Replica::verification`]), which takes long for many. The
//! replica votes and acknowledges meanwhile; applying, reads, checkpoints and campaigns wait. They wait, too, while the
//! rows are damaged ([`Replica::damage`]): the host fetches those of a peer and gives them to
//! [`Replica::repair_received`].
//!
//! # Caller's duties
//!
//! 1. Write [`Effects::writes`] to the WAL in the order they came, all of them, and report each
//!    [`WriteId`](kv_raft::WriteId) to [`Replica::persisted`] once durable, in order (reports may be merged).
//! 2. Pass `now` readings of one clock that never runs back, read after the message came off the socket. Tick before
//!    writes are fed: their cluster time is that of the last tick.
//! 3. Run the [`Verification`](kv_storage::Verification) to its end after the start and tell [`Replica::verified`], or
//!    [`Replica::damaged`] unless a snapshot has been installed by then. Damage that a reader or a checkpoint finds is
//!    told, too; the checkpoint is over then ([`Replica::checkpoint_failed`]).
//! 4. Stop the replica on any [`ReplicaError`] that is [no damage](ReplicaError::into_damage): it must not vote, answer or write again.
//! 5. Run a [`Checkpoint`](kv_storage::Checkpoint) to its end on one thread and give the result back; a snapshot that
//!    is received meanwhile waits for it.
//! 6. Publish [`Effects::lease`] before anything else of its turn leaves, [`Replica::commit`] before [`Replica::apply`]
//!    is called, and no lease at all on a [`ReplicaError`]. Who reads by the lease loads its end, *then* reads the
//!    clock, then loads the commit index, and waits until that is applied.
//! 7. Receive a snapshot into the generation after [`ReplicaStatus::generation`], asked for when the stream begins.
//!
//! # What it does not do
//!
//! No thread, no clock, no socket, no tokio: it runs unchanged in daemon and simulator. It does not route keys to
//! shards, and it does not validate what clients send: that has happened at the edge.

mod apply;
mod clock;
mod cluster_clock;
mod damage;
mod deletes;
mod locks;
mod maintain;
mod office;
mod planted;
mod proposals;
mod reads;
mod replica;
mod reread;
mod snapshot;
mod status;

pub use clock::{Ceiling, LamportClock};
pub use deletes::PublishedDeletes;
pub use locks::PublishedLocks;
pub use maintain::COMPACT_KEEP_ENTRIES;
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use proposals::{WriteFailure, Written};
pub use reads::ReadFailure;
pub use replica::{Effects, Opening, Replica, ReplicaError, ShardWrite};
pub use reread::AsRead;
pub use status::ReplicaStatus;
