//! What a user stores: keys, values and ranges of keys.

use std::fmt;

use bytes::Bytes;

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

/// A key: 1 to [`KEY_BYTES_MAX`] bytes, any bytes, ordered as unsigned bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

/// A value: 0 to [`VALUE_BYTES_MAX`] bytes, any bytes.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Value(Bytes);

/// Why bytes are no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// No bytes at all.
    #[error("the key is empty; a key has 1 to {KEY_BYTES_MAX} bytes")]
    Empty,
    /// Longer than the limit.
    #[error("the key has {0} bytes; the limit is {KEY_BYTES_MAX}")]
    TooLong(usize),
}

/// Why bytes are no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the value has {0} bytes; the limit is {VALUE_BYTES_MAX}")]
pub struct ValueError(usize);

/// Why two bounds are no range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// A bound is longer than a key may be.
    #[error("a bound of the range has {0} bytes; the limit is {KEY_BYTES_MAX}")]
    BoundTooLong(usize),
    /// The end is not after the start.
    #[error("the range is empty: its end is not after its start")]
    Empty,
}

impl Key {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`KeyError`] if the bytes are none or too many.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, KeyError> {
        let bytes = bytes.into();
        match bytes.len() {
            0 => Err(KeyError::Empty),
            len if len > KEY_BYTES_MAX => Err(KeyError::TooLong(len)),
            _ => Ok(Self(bytes)),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes, without the type.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl Value {
    /// Checks the limit.
    ///
    /// # Errors
    /// [`ValueError`] if the bytes are too many.
    pub fn new(bytes: impl Into<Bytes>) -> Result<Self, ValueError> {
        let bytes = bytes.into();
        if bytes.len() > VALUE_BYTES_MAX { Err(ValueError(bytes.len())) } else { Ok(Self(bytes)) }
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// The bytes, without the type.
    pub fn into_bytes(self) -> Bytes {
        self.0
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Keys in `[start, end)`.
///
/// # Invariants
/// Checked by [`KeyRange::new`]: bounds no longer than a key may be (an end may have one byte more: it is the successor
/// of the longest key) but for a prefix ([`KeyRange::behind`]), and an end after the start.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct KeyRange {
    start: Bytes,
    end: Option<Bytes>,
}

impl KeyRange {
    /// The keys from `start` on, up to and without `end`; no end is the end of all keys.
    ///
    /// # Errors
    /// [`RangeError`] if a bound is too long or the range is empty by its bounds.
    pub fn new(start: impl Into<Bytes>, end: Option<Bytes>) -> Result<Self, RangeError> {
        let start = start.into();
        for bound in std::iter::once(&start).chain(end.as_ref()) {
            if bound.len() > KEY_BYTES_MAX + 1 {
                return Err(RangeError::BoundTooLong(bound.len()));
            }
        }
        match &end {
            Some(end) if *end <= start => Err(RangeError::Empty),
            _ => Ok(Self { start, end }),
        }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: None }
    }

    /// The keys that begin with `prefix`; every key if it is empty.
    ///
    /// # Errors
    /// [`RangeError::BoundTooLong`] if no key can begin with it.
    pub fn prefix(prefix: impl Into<Bytes>) -> Result<Self, RangeError> {
        let prefix = prefix.into();
        let end = successor_of_prefix(&prefix);
        Self::new(prefix, end)
    }

    /// The first key that may belong to the range.
    pub fn start(&self) -> &Bytes {
        &self.start
    }

    /// The first key after the range; `None` at the end of all keys.
    pub fn end(&self) -> Option<&Bytes> {
        self.end.as_ref()
    }

    /// Where these keys lie if each is kept with `prefix` before it. Bounds may be longer by that than a key's.
    #[must_use]
    pub fn behind(&self, prefix: &[u8]) -> Self {
        let with = |bound: &Bytes| Bytes::from([prefix, bound].concat());
        let end = self.end.as_ref().map_or_else(|| successor_of_prefix(prefix), |end| Some(with(end)));
        Self { start: with(&self.start), end }
    }

    /// Whether `key` lies in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..])
    }

    /// The keys in both ranges, if any.
    pub fn intersection(&self, other: &Self) -> Option<Self> {
        let start = self.start.clone().max(other.start.clone());
        let end = match (&self.end, &other.end) {
            (Some(a), Some(b)) => Some(a.clone().min(b.clone())),
            (Some(end), None) | (None, Some(end)) => Some(end.clone()),
            (None, None) => None,
        };
        Self::new(start, end).ok()
    }
}

impl fmt::Display for KeyRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, ", self.start.escape_ascii())?;
        match &self.end {
            Some(end) => write!(f, "{})", end.escape_ascii()),
            None => f.write_str("end)"),
        }
    }
}

/// The smallest byte string after every string that begins with `prefix`; `None` if there is none.
fn successor_of_prefix(prefix: &[u8]) -> Option<Bytes> {
    let kept = prefix.iter().rposition(|byte| *byte != u8::MAX)?;
    let mut end = prefix.get(..=kept)?.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    Some(Bytes::from(end))
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() > 64 {
            write!(f, "({} bytes)", self.0.len())
        } else {
            write!(f, "\"{}\"", self.0.escape_ascii())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hold_their_limits() {
        assert_eq!(Key::new(""), Err(KeyError::Empty));
        assert!(Key::new(vec![0; KEY_BYTES_MAX]).is_ok());
        assert_eq!(Key::new(vec![0; KEY_BYTES_MAX + 1]), Err(KeyError::TooLong(KEY_BYTES_MAX + 1)));
    }

    #[test]
    fn values_hold_their_limits() {
        assert!(Value::new("").is_ok());
        assert!(Value::new(vec![0; VALUE_BYTES_MAX]).is_ok());
        assert_eq!(Value::new(vec![0; VALUE_BYTES_MAX + 1]), Err(ValueError(VALUE_BYTES_MAX + 1)));
    }

    #[test]
    fn prefix_ends_after_its_last_key() {
        let range = KeyRange::prefix("ab").unwrap();
        assert!(range.contains(b"ab") && range.contains(b"ab\xff\xff") && !range.contains(b"ac"));
        assert_eq!(KeyRange::prefix(&b"a\xff"[..]).unwrap().end().unwrap(), "b");
        assert_eq!(KeyRange::prefix(&b"\xff\xff"[..]).unwrap().end(), None);
        assert_eq!(KeyRange::prefix("").unwrap(), KeyRange::all());
    }

    #[test]
    fn ranges_intersect_or_do_not() {
        let af = KeyRange::new("a", Some("f".into())).unwrap();
        let ez = KeyRange::new("e", None).unwrap();
        assert_eq!(af.intersection(&ez), Some(KeyRange::new("e", Some("f".into())).unwrap()));
        assert_eq!(af.intersection(&KeyRange::new("f", None).unwrap()), None);
        assert_eq!(KeyRange::new("b", Some("a".into())), Err(RangeError::Empty));
    }
}
