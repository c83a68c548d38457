//! Raft as a pure state machine.

mod candidate;
mod config;
mod core;
mod follower;
pub mod invariants;
mod leader;
mod memberships;
mod message;
mod outbox;
mod output;
mod progress;
mod quorum;
mod raft;
mod read;
mod shape;
mod status;

pub use config::{Config, Corrupt, EntryShape, Restored};
pub use message::{Conflict, Message, MessageKind, Round};
pub use output::{
    Fatal, Output, Proposed, ReadRefused, Refused, Reset, Role, RoleChange, SnapshotJob, Ticket, Write,
    WriteId,
};
pub use progress::ProgressState;
pub use raft::Raft;
pub use status::{PeerStatus, Status};
