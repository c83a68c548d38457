//! The wire: messages, their validation, checksums, and the error table.

pub mod v1;

/// The encoded descriptors of all proto files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/quorate_v1.bin"));
