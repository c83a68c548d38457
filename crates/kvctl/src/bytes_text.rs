//! Bytes as text and back: escapes, hexadecimal, Base64.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::args::Global;

/// How keys and values are written as arguments and as output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As they are; escaped where a line or a terminal could suffer.
    Text,
    /// Two hexadecimal digits a byte.
    Hex,
    /// Base64 with padding.
    Base64,
}

impl Encoding {
    pub(crate) fn of(global: &Global) -> Self {
        match (global.hex, global.base64) {
            (true, _) => Self::Hex,
            (_, true) => Self::Base64,
            _ => Self::Text,
        }
    }

    /// Reads an argument.
    pub(crate) fn read(self, argument: &str) -> Result<Vec<u8>, String> {
        match self {
            Self::Text => Ok(argument.as_bytes().to_vec()),
            Self::Hex => from_hex(argument).ok_or_else(|| format!("`{argument}` is not hexadecimal")),
            Self::Base64 => STANDARD.decode(argument).map_err(|_| format!("`{argument}` is not Base64")),
        }
    }

    /// Writes bytes so that they stay within one line and one column.
    pub(crate) fn write(self, bytes: &[u8]) -> String {
        match self {
            Self::Text => escape(bytes),
            Self::Hex => bytes.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            }),
            Self::Base64 => to_base64(bytes),
        }
    }
}

/// Bytes outside printable ASCII as `\xNN`; the backslash too, so that the text can be read back.
pub(crate) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\x5c"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => {
                let _ = write!(text, "\\x{byte:02x}");
            }
        }
    }
    text
}

/// Text of a server or an argument on its way to a terminal: no control characters, one line.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// Bytes that a shell takes as one word, as they are.
pub(crate) fn plain_word(bytes: &[u8]) -> Option<&str> {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_./:@%+=,-".contains(byte);
    let plain = bytes.iter().all(is_plain) && bytes.first().is_some_and(|first| *first != b'-');
    if plain { std::str::from_utf8(bytes).ok() } else { None }
}

pub(crate) fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_printable_ascii_goes_out_as_it_is() {
        assert_eq!(escape(b"plain ~"), "plain ~");
        assert_eq!(escape(b"\x1b[31m\t\n\0\x7f"), "\\x1b[31m\\x09\\x0a\\x00\\x7f");
        assert_eq!(escape("\u{e9}".as_bytes()), "\\xc3\\xa9");
        assert_eq!(escape(b"a\\b"), "a\\x5cb");
    }

    #[test]
    fn every_encoding_reads_what_it_writes() {
        let bytes: Vec<u8> = (0..=255).collect();
        for encoding in [Encoding::Hex, Encoding::Base64] {
            assert_eq!(encoding.read(&encoding.write(&bytes)), Ok(bytes.clone()));
        }
        assert_eq!(Encoding::Text.read("k\\x00"), Ok(b"k\\x00".to_vec()), "arguments are taken as they are");
    }

    #[test]
    fn what_is_not_the_encoding_is_refused() {
        for bad in ["0", "0g", "+1", "\u{e9}\u{e9}"] {
            assert!(Encoding::Hex.read(bad).is_err(), "{bad}");
        }
        assert!(Encoding::Base64.read("a").is_err());
    }

    #[test]
    fn messages_cannot_steer_a_terminal() {
        assert_eq!(harmless("a\x1b[2J\nb\u{9b}"), "a\\u{1b}[2J\\nb\\u{9b}");
    }
}
