//! The generated code: messages, clients and servers of package `quorate.v1`. The comments are those of the proto
//! files.

#![allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    reason = "generated code"
)]

tonic::include_proto!("quorate.v1");
