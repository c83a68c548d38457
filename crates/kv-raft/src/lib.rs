//! Raft as a pure state machine: one replica of one group, without I/O, clock, thread or storage.
//!
//! # Terms
//!
//! A *replica* is follower, (pre-)candidate or leader of a *term*. The log's *shape* is its terms and payload sizes;
//! the core holds no payload. A *write* is one atomic change of the disk, named by a [`WriteId`]. A *round* is one
//! numbered exchange of a leader with its peers. A membership is *joint* while two halves must agree.
//!
//! # How it works
//!
//! Events go in ([`Raft::tick`], [`Raft::step`], [`Raft::persisted`], [`Raft::applied`], ...), requests too
//! ([`Raft::propose`], [`Raft::read`], [`Raft::reconfigure`], ...); one [`Raft::take`] hands all effects out as an [`Output`].
//! There is one mode, asynchronous: a driver that waits for its disk is one that acknowledges at once.
//!
//! **Elections** (Raft paper 5.2). A follower whose timeout runs out asks by pre-vote who would elect it, then enters
//! the next term. Its vote requests wait until its own vote is durable; were it elected before that and crashed, it
//! could win the same term twice. Votes are withheld, and elections not begun, while a leader is live, and for as long
//! as was ever promised to one after a start; a leader that hears from no quorum for one timeout steps down. Neither
//! works without the other. A leader whose disk does not answer for one timeout makes way, too.
//!
//! **Replication** (5.3). A leader sends in parallel with its own disk, pipelined per peer within limits on messages
//! and bytes. Its own copy counts once durable, and so does a follower's. Of a rejected append the answer names an
//! entry that may match, which skips a whole term. An entry of the leader's own term commits all before it.
//!
//! **Reads** (thesis 6.4). A read takes the commit index of its arrival, or the leader's first entry if later, and
//! waits until a quorum has echoed a round begun after it. A follower asks its leader for such an index.
//!
//! **Leases** (6.4.1) save the round. An append asks for a promise of E, the shortest election timeout; who answers it
//! gives and requests no vote for so long. From the start of the newest round that a quorum has answered, the leader
//! serves reads for a little less than E: see [`LeaseConfig`] for the bound on clocks this rests on. The leader watches
//! the rates of its voters' clocks, and serves by rounds while one is certainly out of bound. The longest promise is in
//! the hard state, durable before the answer leaves.
//!
//! **Transfer** (3.10). The leader stops taking commands, waits until the target holds its whole log, and tells it to
//! campaign; votes for it heed no promise. So the lease ends before that, and does not come back in that term.
//!
//! **Snapshots.** A peer that needs dropped entries gets a [`SnapshotJob`]; the driver streams out of band. The
//! receiver's core answers a finished stream by a write with a [`Reset`].
//!
//! **Membership** (4.3). A config entry holds the whole membership and is in force once appended; truncation falls back.
//! A change of voters goes through a joint membership, which whoever leads leaves once it is committed. Learners get
//! the log and do not vote by themselves. But a replica answers vote requests whatever its own membership says: it may
//! not have heard of its promotion.
//!
//! # The caller's duties
//!
//! 1. Carry writes out in order, each whole or not at all, and report by [`Raft::persisted`] only what is durable. A
//!    failed sync is final.
//! 2. Send `send_after` only once the named write is durable; `send` may leave at once. Messages may be lost, doubled
//!    and reordered.
//! 3. Fill the entries `prev.index + 1 ..= last.index` into each append from the own log, including entries of writes
//!    under way; drop the message if the entry at `last.index` is not `last`.
//! 4. Apply what is committed, in order, and report it; drop entries only below that, and report it.
//! 5. Call `tick` at [`Raft::next_deadline`], and `take` after events; it may be skipped, repeated and batched.
//! 6. Report the end of each snapshot stream, also of one that hangs. A stream carries the term of its job.
//! 7. Bound the reads that wait, and stop for good on [`Output::fatal`].
//! 8. Pass readings of one clock that counts suspend and never runs back: for a message, read after it came off the
//!    socket; for a read, after it arrived. Report by [`Raft::clock_jumped`] if another clock says that it stood still.
//! 9. Publish [`Output::commit`] and [`Output::lease`] before anything else of an output: once a message has left, another
//!    member may answer with what is committed. Who reads by the lease loads it, *then* reads the clock, then takes the
//!    commit index, and waits until that is applied.
//!
//! # What it does not do
//!
//! No log, no state machine, no codec, no network, no retry of a client's command. It reads no clock, and cannot tell a
//! wrong one from a right one but by those of its voters.

mod candidate;
mod config;
mod core;
mod follower;
pub mod invariants;
mod leader;
mod lease;
mod memberships;
mod message;
mod outbox;
mod output;
mod planted;
mod progress;
mod quorum;
mod raft;
mod rates;
mod read;
mod reconfigure;
mod requests;
mod roles;
mod shape;
mod status;
mod transfer;
mod votes;

pub use config::{Config, Corrupt, EntryShape, Restored};
pub use lease::{LeaseConfig, LeaseStatus, LeaseUpdate, NoLease};
pub use message::{Conflict, Message, MessageKind, Round};
pub use output::{
    Fatal, Output, Proposed, ReadRefused, Refused, Reset, Role, RoleChange, SnapshotJob, Ticket, Write,
    WriteId,
};
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use progress::ProgressState;
pub use raft::Raft;
pub use rates::ClockRate;
pub use reconfigure::Target;
pub use status::{PeerStatus, Status};
