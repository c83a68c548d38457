//! The write-ahead log of a node, shared by all its shards.

mod bytes_reader;
mod codec;
mod layout;

pub use layout::SegmentNo;
