//! The wire: what clients and nodes say to each other, how it is checked, and what an error is on it.
//!
//! # Terms
//!
//! *Wire* types are the generated ones in [`v1`]: any combination of fields, as received. *Checked* types are those of
//! `kv-types` and of [`request`]: once one exists, it is within its limits. The *detail* is the message that travels
//! with a failed call and says why it failed and whether the write happened.
//!
//! # How it works
//!
//! The files below the top-level `proto/` are compiled by `build.rs` without `protoc`. Byte fields are [`bytes::Bytes`]
//! that share the memory of the buffer they arrived in.
//!
//! A client's call becomes a [`request::Request`] by `TryFrom`, which checks limits and the checksum, and its id a
//! [`kv_types::Request`] by [`request_id::read`]; the answer's rows
//! are checked by [`checksum::check_row`]. What a peer says travels as bytes with their checksum: [`sealed::seal`] makes
//! them, [`sealed::open`] checks them before one of them is used, then [`validate::raft_message`] and [`validate::entry`]
//! read what is inside. A failure is a [`status::ApiError`]; its table gives each reason one gRPC code and one outcome,
//! and the same table reads a status back. A status without our detail is of unknown outcome.
//!
//! # Caller's duties
//!
//! 1. Check the request's context with [`validate::context`]; in a pipeline that of the batch, once.
//! 2. Set the checksum of each row sent ([`checksum::row`]); check that of each row received.
//! 3. Never use anything of a peer's message that [`sealed::open`] refuses; count it and drop the connection.
//! 4. Configure tonic's message size limits from `kv_types::limits`; this crate sees only what was decoded.
//!
//! # What it does not do
//!
//! It opens no connection, knows no Raft core type (`kv-node` maps message kinds to it), and does not decide what is
//! retried: that is `kv-client`'s.

pub mod checksum;
pub mod request;
pub mod request_id;
pub mod sealed;
pub mod status;
pub mod txn;
pub mod v1;
pub mod validate;

/// The encoded descriptors of all proto files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate_v1.bin"));
