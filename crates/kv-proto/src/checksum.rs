//! CRC32C over the content of frames, write requests and read replies. The proto files say what each covers.
//!
//! TCP and HTTP/2 checksums miss what goes wrong in buffers on the way; a write that was damaged there would be damaged
//! for good on every replica.

use bytes::Bytes;
use kv_types::KeyRange;
use prost::Message as _;

use crate::request::Expect;
use crate::status::ApiError;
use crate::v1;

/// Why the bytes of a peer are not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The checksum does not match.
    #[error("the frame's checksum is {stated:08x}, its content has {computed:08x}")]
    Checksum {
        /// What the frame states.
        stated: u32,
        /// What its content has.
        computed: u32,
    },
    /// The checksum matches, but the content is no batch.
    #[error("the frame is no batch: {0}")]
    Decode(#[from] prost::DecodeError),
}

/// A checksum under way.
struct Crc(u32);

impl Crc {
    fn tagged(tag: u8) -> Self {
        Self(crc32c::crc32c(&[tag]))
    }

    fn tag(self, tag: u8) -> Self {
        Self(crc32c::crc32c_append(self.0, &[tag]))
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.length(bytes).0, bytes))
    }

    fn number(self, number: u64) -> Self {
        Self(crc32c::crc32c_append(self.0, &number.to_le_bytes()))
    }

    fn length(self, bytes: &[u8]) -> Self {
        // No field reaches 4 GiB; one that did would have the same checksum on both sides all the same.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        Self(crc32c::crc32c_append(self.0, &length.to_le_bytes()))
    }
}

/// The checksum of a put.
pub fn put(key: &[u8], value: &[u8]) -> u32 {
    Crc::tagged(1).bytes(key).bytes(value).0
}

/// The checksum of a delete.
pub fn delete(key: &[u8]) -> u32 {
    Crc::tagged(2).bytes(key).0
}

/// The checksum of a delete-range.
pub fn delete_range(range: &KeyRange) -> u32 {
    let start = Crc::tagged(3).bytes(range.start());
    match range.end() {
        None => start.tag(0).0,
        Some(end) => start.tag(1).bytes(end).0,
    }
}

/// The checksum of a compare-and-set.
pub fn compare_and_set(key: &[u8], expect: &Expect, value: &[u8]) -> u32 {
    let content = Crc::tagged(4).bytes(key).bytes(value);
    match expect {
        Expect::Value(expected) => content.tag(0).bytes(expected.as_ref()).0,
        Expect::Revision(expected) => content.tag(1).number(expected.get()).0,
        Expect::Absent => content.tag(2).0,
    }
}

/// The checksum of a row, whatever its `crc` field says.
pub fn row(row: &v1::Row) -> u32 {
    let stamp = row.lamport.unwrap_or_default();
    Crc::tagged(5)
        .bytes(&row.key)
        .bytes(&row.value)
        .number(row.create_revision)
        .number(row.mod_revision)
        .number(row.version)
        .number(stamp.counter)
        .number(stamp.node)
        .number(row.lease)
        .0
}

/// Compares a stated checksum with the content's; one that is absent matches.
///
/// # Errors
/// [`ApiError::Checksum`] if they differ.
pub fn check(what: &str, stated: Option<u32>, computed: u32) -> Result<(), ApiError> {
    match stated {
        Some(stated) if stated != computed => Err(ApiError::Checksum(format!(
            "the checksum of the {what} is {stated:08x}, its content has {computed:08x}"
        ))),
        _ => Ok(()),
    }
}

/// Checks a row that a server sent.
///
/// # Errors
/// [`ApiError::Checksum`] if its content is not what the server summed.
pub fn check_row(received: &v1::Row) -> Result<(), ApiError> {
    match received.crc {
        None => Ok(()),
        stated => check("row", stated, row(received)),
    }
}

/// The checksum of bytes between peers: a frame's body or a snapshot chunk's data. The length goes first, so that a
/// frame all of whose fields were lost does not match.
pub fn body(bytes: &[u8]) -> u32 {
    Crc(0).bytes(bytes).0
}

/// Encodes a batch for a peer.
pub fn seal(batch: &v1::PeerBatch) -> v1::Frame {
    let encoded = Bytes::from(batch.encode_to_vec());
    v1::Frame { crc: body(&encoded), body: encoded }
}

/// Checks and decodes a frame of a peer. The payloads of the batch share the frame's memory.
///
/// # Errors
/// [`FrameError`]; nothing of the frame may be used then.
pub fn open(frame: v1::Frame) -> Result<v1::PeerBatch, FrameError> {
    let computed = body(&frame.body);
    if computed != frame.crc {
        return Err(FrameError::Checksum { stated: frame.crc, computed });
    }
    Ok(v1::PeerBatch::decode(frame.body)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Revision, Value};
    use proptest::prelude::*;

    fn batch(payload: Vec<u8>, lamport: u64) -> v1::PeerBatch {
        let entry = v1::Entry {
            id: Some(v1::LogId { term: 1, index: 2 }),
            stamp: None,
            body: Some(v1::entry::Body::Command(payload.into())),
        };
        let append = v1::Append { entries: vec![entry], commit: 1, ..v1::Append::default() };
        let kind = Some(v1::raft_message::Kind::Append(append));
        let message = v1::RaftMessage { from: 1, to: 2, term: 3, kind };
        v1::PeerBatch { lamport, messages: vec![v1::ShardMessage { shard: 1, message: Some(message) }] }
    }

    #[test]
    fn a_lost_frame_is_not_an_empty_batch() {
        assert!(matches!(open(v1::Frame::default()), Err(FrameError::Checksum { .. })));
        assert_eq!(open(seal(&v1::PeerBatch::default())), Ok(v1::PeerBatch::default()));
    }

    #[test]
    fn fields_do_not_run_into_each_other() {
        assert_ne!(put(b"ab", b"c"), put(b"a", b"bc"));
        assert_ne!(put(b"a", b""), delete(b"a"));
        let (absent, zero) = (Expect::Absent, Expect::Revision(Revision::ZERO));
        let empty = Expect::Value(Value::default());
        let crcs = [&absent, &zero, &empty].map(|expect| compare_and_set(b"k", expect, b"v"));
        assert!(crcs[0] != crcs[1] && crcs[1] != crcs[2] && crcs[0] != crcs[2]);
    }

    #[test]
    fn the_definition_does_not_move() {
        // Other clients compute these; the parts are written out by hand here.
        assert_eq!(put(b"k", b"vv"), crc32c::crc32c(b"\x01\x01\0\0\0k\x02\0\0\0vv"));
        assert_eq!(body(b"abc"), crc32c::crc32c(b"\x03\0\0\0abc"));
        let range = KeyRange::new("a", Some("b".into())).unwrap();
        assert_eq!(delete_range(&range), crc32c::crc32c(b"\x03\x01\0\0\0a\x01\x01\0\0\0b"));
    }

    #[test]
    fn a_damaged_row_is_seen() {
        let mut sent = v1::Row { key: "k".into(), value: "v".into(), mod_revision: 9, ..v1::Row::default() };
        sent.crc = Some(row(&sent));
        assert_eq!(check_row(&sent), Ok(()));
        sent.mod_revision = 8;
        assert!(matches!(check_row(&sent), Err(ApiError::Checksum(_))));
    }

    proptest! {
        #[test]
        fn every_flipped_byte_is_detected(payload in prop::collection::vec(any::<u8>(), 0..48), flip in 1..=255u8) {
            let sent = batch(payload, 7);
            let wire = seal(&sent).encode_to_vec();
            for at in 0..wire.len() {
                let mut damaged = wire.clone();
                damaged[at] ^= flip;
                if let Ok(frame) = v1::Frame::decode(&damaged[..]) {
                    prop_assert!(open(frame).is_err(), "byte {at} of {wire:02x?} flipped by {flip:02x}");
                }
            }
        }

        #[test]
        fn a_cut_frame_is_detected(payload in prop::collection::vec(any::<u8>(), 0..48)) {
            let wire = seal(&batch(payload, 7)).encode_to_vec();
            for len in 0..wire.len() {
                if let Ok(frame) = v1::Frame::decode(&wire[..len]) {
                    prop_assert!(open(frame).is_err(), "{len} of {} bytes", wire.len());
                }
            }
        }

        #[test]
        fn a_frame_round_trips(payload in prop::collection::vec(any::<u8>(), 0..300), lamport in any::<u64>()) {
            let sent = batch(payload, lamport);
            prop_assert_eq!(open(seal(&sent)), Ok(sent));
        }
    }
}
