//! Drives transactions over several shards.
//!
//! What each shard does at apply is `kv_state::txn`; its terms are used here. This crate decides what is asked of which
//! shard in which order, and what may be told because of the answers.
//!
//! # How it works
//!
//! Each function is one party, written down as it acts, and asks through [`Shards`]:
//!
//! - [`commit`] is the manager: prepare at all participants, one entry at the anchor, which decides; or it gives up.
//! - [`finish`] makes a decision known: every participant resolves. Whoever leads the anchor's shard runs it for every record
//!   he finds, and has those that are finished [forgotten](forget).
//! - [`unblock`] ends a part that has waited for a decision for too long: it asks the anchor, and fences if need be. Whoever
//!   leads a participant runs it.
//! - [`past_locks`] is a reader that has met the lock of a writer.
//!
//! None of them keeps anything that the shards do not have: whichever dies, at whatever point, another takes over.
//!
//! They are `async` so that they can be read from top to bottom, and start no task and read no clock: the daemon awaits them
//! on its runtime, the simulator polls them when an answer has arrived.
//!
//! # Caller's duties
//!
//! 1. [`Shards::step`] hands a step to the shard's leader and returns what the entry answered, and nothing else: a refusal is
//!    never turned into an answer.
//! 2. [`Shards::known`], [`Shards::confirm`] and [`Shards::is_prepared`] are linearisable: asked after the call, not before.
//! 3. Run [`finish`] after a [`commit`] that was decided, or leave that to whoever looks after the records.
//!
//! # What it does not do
//!
//! It sends nothing and waits for nothing by itself, and does not choose what is retried by clients.

mod commit;
mod finish;
mod planted;
mod read;
mod shards;

pub use commit::{Aborted, Decision, abort, commit};
pub use finish::{finish, forget, unblock};
#[cfg(feature = "planted")]
pub use planted::Planted;
pub use read::{Looked, Owner, past_locks};
pub use shards::{Failure, Named, Place, Shards, Step, answer_of};
