//! CRC32C over the content of peer messages, write requests and read replies. The proto files say what each covers.
//!
//! TCP and HTTP/2 checksums miss what goes wrong in buffers on the way; a write that was damaged there would be damaged
//! for good on every replica.

use kv_types::KeyRange;

use crate::request::Expect;
use crate::status::ApiError;
use crate::v1;

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

/// The checksum of an increment.
pub fn increment(key: &[u8], delta: i64) -> u32 {
    Crc::tagged(6).bytes(key).number(delta.cast_unsigned()).0
}

/// The checksum of a transaction, whatever its `crc` field says.
pub fn commit(content: &v1::CommitRequest) -> u32 {
    let optional = |crc: Crc, bytes: Option<&bytes::Bytes>| match bytes {
        None => crc.tag(0),
        Some(bytes) => crc.tag(1).bytes(bytes),
    };
    let mut crc = Crc::tagged(9).bytes(&content.anchor);
    for read in &content.reads {
        crc = crc.tag(0).bytes(&read.key).number(read.seen);
    }
    for scan in &content.scans {
        let range = scan.range.as_ref();
        let start = crc.tag(1).bytes(range.map_or(&[], |range| &range.start));
        crc = optional(start, range.and_then(|range| range.end.as_ref())).bytes(&scan.digest);
    }
    for write in &content.writes {
        crc = optional(crc.tag(2).bytes(&write.key), write.value.as_ref());
    }
    crc.0
}

/// The checksum of a request id, whatever its `crc` field says.
pub fn request_id(id: &v1::RequestId) -> u32 {
    match &id.id {
        None => Crc(0).0,
        Some(v1::request_id::Id::Session(request)) => {
            Crc::tagged(7)
                .number(request.session)
                .number(request.seq)
                .number(request.first_incomplete)
                .number(request.lease_until_ms)
                .0
        }
        Some(v1::request_id::Id::Timed(id)) => Crc::tagged(8).bytes(id).0,
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

#[cfg(test)]
mod tests {
    use super::*;
    use kv_types::{Revision, Value};

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
}
