//! Thin faces on the gateway: one file a gRPC service.

pub(crate) mod cluster;
pub(crate) mod kv;
pub(crate) mod peer;
pub(crate) mod pipeline;
pub(crate) mod session;
pub(crate) mod txn;
