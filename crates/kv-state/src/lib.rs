//! A shard's replicated state machine: commands in, row changes and answers out; pure and deterministic.
//!
//! # Terms
//!
//! A *command* is what a log entry asks for ([`Command`]). Applying it at its log index gives an [`Applied`]: the
//! *changes* of rows it made, the answer for whoever proposed it ([`Answer`]), and the *state hash* after it. The
//! *revision* of a write is the log index of its entry, so every replica gives it the same one.
//!
//! # How it works
//!
//! The state machine owns no rows. [`apply`] looks rows up through [`Rows`], the newest state of the store, and
//! returns what is to be changed; the caller stores that as one step. Only two things decide the result: the rows and
//! the entry (index, stamp, command bytes; the cluster time is in the command's envelope). There is no clock, no random number and no order of a hash map in here,
//! so replicas that apply the same log hold the same rows and the same [`StateHash`].
//!
//! A failed comparison is an answer, not an error: it is the same on every replica. An [`ApplyError`] is different on
//! each replica or means that this build cannot know what the entry means; the replica stops (toydb's
//! `is_deterministic` rule).
//!
//! # Caller's duties
//!
//! 1. Apply every entry once, in log order, on the state that all earlier entries left.
//! 2. Store all changes of an entry as one step, so that no reader sees half of it.
//! 3. Stop the replica on any [`ApplyError`].
//! 4. What is [`Carried`] belongs to the rows: whoever replaces them begins with a new one.
//!
//! # What it does not do
//!
//! No storage, no reads for clients (they go to the store's views), no log. It keeps the *wanted* members
//! ([`cluster`]) and changes no group's membership. It keeps sessions ([`sessions`]), request ids and cluster time
//! ([`gate`]), and decides neither when to renew a session nor when to collect. It decides transactions ([`txn`]) and drives
//! none. Key leases will live here; they do not exist yet.

mod apply;
pub mod cluster;
mod codec;
mod command;
mod envelope;
pub mod gate;
mod increment;
mod planted;
mod read;
pub mod sessions;
mod step;
mod system_key;
pub mod txn;

pub use apply::{Answer, Applied, ApplyError, Rows, apply};
pub use codec::DecodeError;
pub use command::{Command, Expect};
pub use envelope::{Envelope, NotOfClient, Opened, stamp};
pub use increment::IncrementFailure;
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use read::ReadError;
pub use step::Carried;

pub use kv_types::StateHash;
