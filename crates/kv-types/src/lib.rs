//! Names, limits and plain values that every Quorate crate speaks in.
//!
//! # What is here
//!
//! Newtypes for every number that has a meaning ([`NodeId`], [`Term`], [`LogIndex`], [`Revision`], ...), the byte
//! strings a user stores ([`Key`], [`Value`], [`KeyRange`]), the vocabulary of the replicated log ([`Entry`],
//! [`HardState`], [`Membership`], [`SnapshotMeta`]), the order of events without clocks ([`Lamport`]), the honest
//! answer to *did it happen?* ([`Outcome`]), what makes a retry safe ([`Request`], [`ClusterTime`]), and all limits with the relations between them ([`limits`]).
//!
//! # How it works
//!
//! Every type parses at the edge: once a [`Key`] exists it is within its limits, so nothing inside checks again.
//! Numbers have private fields and named, checked arithmetic; a [`Term`] cannot be added to a [`LogIndex`] by accident.
//! `Display` is short (`n1`, `s3`, `t4`, `i42`, `r42`), because it is read in logs and golden scripts.
//!
//! # What it does not do
//!
//! No I/O, no clock, no encoding: the log on disk is `kv-storage`'s, the wire is `kv-proto`'s, commands are `kv-state`'s.

mod bytestring;
mod clock;
mod ids;
pub mod limits;
mod log;
mod membership;
mod outcome;
mod request;
mod row;

pub use bytestring::{Key, KeyError, KeyRange, RangeError, Value, ValueError};
pub use clock::{ClusterTime, Lamport, Nanos};
pub use ids::{
    ClusterId, Incarnation, LogIndex, NodeId, ParseNodeIdError, Revision, SessionId, ShardId, Term,
};
pub use log::{Body, Entry, HardState, LogId, SnapshotMeta};
pub use membership::{Membership, MembershipError};
pub use outcome::Outcome;
pub use request::{Fingerprint, ParseRequestIdError, Request, RequestId, SessionRequest, TimedId, TxnId};
pub use row::{Row, RowChange, RowHead, RowKey, Space, StateHash};
