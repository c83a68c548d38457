//! What a replica stores: rows, changes of rows, and the hash that compares replicas.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use bytes::{Bytes, BytesMut};
use twox_hash::{XxHash3_64, XxHash3_128};

use crate::{Key, Lamport, Revision};

/// Values up to this size are copied out of the buffer they arrived in, so that a small row never pins a large frame.
const DETACH_BYTES_MAX: usize = 64 << 10;

/// Which of a shard's two key spaces a row lives in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Space {
    /// Rows of the system: sessions, locks, the shard map. Users never see them.
    System,
    /// Rows of users.
    User,
}

impl Space {
    const fn tag(self) -> u8 {
        match self {
            Self::System => b's',
            Self::User => b'u',
        }
    }
}

/// Keys up to this size, tag included, stand in a [`RowKey`] itself: whoever compares them follows no pointer.
const INLINE_BYTES_MAX: usize = 31;

/// The key of a row: a tag byte for its [`Space`], then the key. All system rows sort before all user rows.
#[derive(Clone)]
pub struct RowKey(Repr);

#[derive(Clone)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_BYTES_MAX] },
    Shared(Bytes),
}

impl RowKey {
    /// The row of a key in a space; copies the bytes.
    pub fn new(space: Space, key: &[u8]) -> Self {
        let len = key.len() + 1;
        let mut inline = [0; INLINE_BYTES_MAX];
        if let Some([tag, rest @ ..]) = inline.get_mut(..len) {
            *tag = space.tag();
            rest.copy_from_slice(key);
            return Self(Repr::inline(len, inline));
        }
        let mut bytes = BytesMut::with_capacity(len);
        bytes.extend_from_slice(&[space.tag()]);
        bytes.extend_from_slice(key);
        Self(Repr::Shared(bytes.freeze()))
    }

    /// The row of a user's key; copies the bytes.
    pub fn user(key: &Key) -> Self {
        Self::new(Space::User, key.as_ref())
    }

    /// Reads a key that [`RowKey::encoded`] gave; `None` if its tag is unknown. Copies a short key.
    pub fn decode(bytes: Bytes) -> Option<Self> {
        if !matches!(bytes.first(), Some(b's' | b'u')) {
            return None;
        }
        let mut inline = [0; INLINE_BYTES_MAX];
        Some(Self(match inline.get_mut(..bytes.len()) {
            Some(place) => {
                place.copy_from_slice(&bytes);
                Repr::inline(bytes.len(), inline)
            }
            None => Repr::Shared(bytes),
        }))
    }

    /// Tag and key, as stored.
    pub fn encoded(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Repr::Shared(bytes) => bytes,
        }
    }

    /// The space the row lives in.
    pub fn space(&self) -> Space {
        if self.encoded().first() == Some(&Space::System.tag()) { Space::System } else { Space::User }
    }

    /// The key without its tag; shares the memory of a long one.
    pub fn key(&self) -> Bytes {
        match &self.0 {
            Repr::Inline { .. } => Bytes::copy_from_slice(self.encoded().get(1..).unwrap_or_default()),
            Repr::Shared(bytes) => bytes.slice(1.min(bytes.len())..),
        }
    }
}

impl Repr {
    fn inline(len: usize, bytes: [u8; INLINE_BYTES_MAX]) -> Self {
        Self::Inline { len: u8::try_from(len).expect("an inline key is shorter than a byte counts"), bytes }
    }
}

impl PartialEq for RowKey {
    fn eq(&self, other: &Self) -> bool {
        self.encoded() == other.encoded()
    }
}

impl Eq for RowKey {}

impl PartialOrd for RowKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for RowKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.encoded().cmp(other.encoded())
    }
}

impl Hash for RowKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.encoded().hash(state);
    }
}

/// Ordered and hashed as its bytes are: maps can be asked by them.
impl Borrow<[u8]> for RowKey {
    fn borrow(&self) -> &[u8] {
        self.encoded()
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.encoded().escape_ascii())
    }
}

/// All of a row but its value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RowHead {
    /// The revision that created the key (after its last deletion).
    pub created: Revision,
    /// The revision that wrote this value.
    pub modified: Revision,
    /// How many times the key was written since it was created, from 1.
    pub version: u64,
    /// The stamp of the entry that wrote this value.
    pub stamp: Lamport,
    /// Length of the value.
    pub value_bytes: u32,
    /// XXH3-64 of the value: damage is seen without the state hash, and the state hash without the value.
    pub value_hash: u64,
}

/// A row: head and value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Row {
    /// All but the value.
    pub head: RowHead,
    /// The value.
    pub value: Bytes,
}

impl Row {
    /// A row that fits its value: computes length and hash, and copies a small value out of a larger buffer.
    ///
    /// # Panics
    /// If the value is longer than `u32::MAX`, which no limit allows.
    pub fn new(created: Revision, modified: Revision, version: u64, stamp: Lamport, value: &Bytes) -> Self {
        let value =
            if value.len() <= DETACH_BYTES_MAX { Bytes::copy_from_slice(value) } else { value.clone() };
        Self::of_own_value(created, modified, version, stamp, value)
    }

    /// The same of a value that is no part of a larger buffer.
    ///
    /// # Panics
    /// If the value is longer than `u32::MAX`, which no limit allows.
    pub fn of_own_value(
        created: Revision,
        modified: Revision,
        version: u64,
        stamp: Lamport,
        value: Bytes,
    ) -> Self {
        let value_bytes = u32::try_from(value.len()).expect("values are far below 4 GiB");
        let value_hash = XxHash3_64::oneshot(&value);
        Self { head: RowHead { created, modified, version, stamp, value_bytes, value_hash }, value }
    }

    /// Whether the value is the one its head describes.
    pub fn is_sound(&self) -> bool {
        self.value.len() as u64 == u64::from(self.head.value_bytes)
            && XxHash3_64::oneshot(&self.value) == self.head.value_hash
    }
}

/// What an entry did to one row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RowChange {
    /// The row.
    pub key: RowKey,
    /// Its new content; `None` deletes it.
    pub row: Option<Row>,
    /// The revision it replaced; `None` if there was no row.
    pub previous: Option<Revision>,
}

/// A hash of everything a replica has applied: the sum, modulo 2^128, of the fingerprints of all live rows. It does
/// not depend on the order of writes, changes by the rows an entry touches only, and is the same on every replica
/// that has applied the same entries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct StateHash(u128);

impl StateHash {
    /// The hash of no rows.
    pub const EMPTY: Self = Self(0);

    /// Wraps a raw hash that came from a codec.
    pub const fn new(raw: u128) -> Self {
        Self(raw)
    }

    /// The raw hash.
    pub const fn get(self) -> u128 {
        self.0
    }

    /// This hash and one more row.
    #[must_use]
    pub fn with(self, key: &RowKey, head: &RowHead) -> Self {
        self.with_encoded(key.encoded(), head)
    }

    /// This hash and one more row, named by its encoded key.
    #[must_use]
    pub fn with_encoded(self, key: &[u8], head: &RowHead) -> Self {
        Self(self.0.wrapping_add(fingerprint(XxHash3_64::oneshot(key), head)))
    }

    /// This hash with one row less, or one more, or another one under the same key.
    #[must_use]
    pub fn replaced(self, key: &RowKey, old: Option<&RowHead>, new: Option<&RowHead>) -> Self {
        let seed = XxHash3_64::oneshot(key.encoded());
        let of = |head: Option<&RowHead>| head.map_or(0, |head| fingerprint(seed, head));
        Self(self.0.wrapping_sub(of(old)).wrapping_add(of(new)))
    }
}

impl fmt::Display for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for StateHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// XXH3-128 of a row. The key enters as the seed, by its XXH3-64; the value by its hash and length.
fn fingerprint(seed: u64, head: &RowHead) -> u128 {
    let mut fixed = [0_u8; 52];
    let fields = [
        head.created.get(),
        head.modified.get(),
        head.version,
        head.stamp.counter,
        head.stamp.node.get(),
        head.value_hash,
    ];
    for (slot, field) in fixed.chunks_exact_mut(8).zip(fields) {
        slot.copy_from_slice(&field.to_le_bytes());
    }
    if let Some(tail) = fixed.get_mut(48..) {
        tail.copy_from_slice(&head.value_bytes.to_le_bytes());
    }
    XxHash3_128::oneshot_with_seed(seed, &fixed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(revision: u64, value: &'static str) -> Row {
        let revision = Revision::new(revision);
        Row::new(revision, revision, 1, Lamport::ZERO, &Bytes::from_static(value.as_bytes()))
    }

    #[test]
    fn hash_forgets_order_and_undoes() {
        let (a, b) = (RowKey::new(Space::User, b"a"), RowKey::new(Space::User, b"b"));
        let (ra, rb) = (row(1, "x").head, row(2, "y").head);
        let ab = StateHash::EMPTY.with(&a, &ra).with(&b, &rb);
        assert_eq!(ab, StateHash::EMPTY.with(&b, &rb).with(&a, &ra));
        assert_eq!(ab.replaced(&a, Some(&ra), None), StateHash::EMPTY.with(&b, &rb));
        let aa =
            StateHash::EMPTY.with(&a, &ra).replaced(&b, None, Some(&rb)).replaced(&b, Some(&rb), Some(&ra));
        assert_eq!(aa, StateHash::EMPTY.with(&b, &ra).with(&a, &ra));
        assert_ne!(StateHash::EMPTY.with(&a, &ra), StateHash::EMPTY.with(&b, &ra));
    }

    #[test]
    fn keys_sort_system_first_and_round_trip() {
        let (s, u) = (RowKey::new(Space::System, b"z"), RowKey::new(Space::User, b"a"));
        assert!(s < u);
        assert_eq!((s.space(), u.space()), (Space::System, Space::User));
        assert_eq!(RowKey::decode(Bytes::copy_from_slice(u.encoded())), Some(u.clone()));
        assert_eq!(u.key(), "a");
        assert_eq!(RowKey::decode(Bytes::from_static(b"?")), None);
    }

    #[test]
    fn long_keys_are_as_short_ones() {
        let text = |len: usize| vec![b'k'; len];
        let keys: Vec<_> =
            (0..2 * INLINE_BYTES_MAX).map(|len| RowKey::new(Space::User, &text(len))).collect();
        assert!(keys.is_sorted());
        for (len, key) in keys.iter().enumerate() {
            assert_eq!(key.key(), text(len));
            assert_eq!(key.encoded(), [b"u", &text(len)[..]].concat());
            assert_eq!(RowKey::decode(Bytes::copy_from_slice(key.encoded())).as_ref(), Some(key));
        }
    }

    #[test]
    fn a_flipped_byte_is_unsound() {
        let mut bad = row(1, "value");
        assert!(bad.is_sound());
        bad.value = Bytes::from_static(b"valve");
        assert!(!bad.is_sound());
    }
}
