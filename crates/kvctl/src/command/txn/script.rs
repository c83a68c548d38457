//! The lines of a script.

use bytes::Bytes;
use kv_client::Expect;
use kv_types::{Key, KeyRange, Revision, Value};

use crate::bytes_text::{Encoding, escape};

/// What a line may be, and what it does.
pub(super) const FORMS: [(&str, &str); 10] = [
    ("get K", "read a key"),
    ("put K V", "write a key"),
    ("delete K", "delete a key"),
    ("incr K [N]", "add N, or 1, to a number"),
    ("compare K value V", "abort unless the key has this value"),
    ("compare K revision N", "abort unless the key was last written at this revision"),
    ("compare K absent", "abort unless the key is absent"),
    ("scan START [END] [limit N]", "read the keys from START, \"\" for the first, to before END"),
    ("commit", "carry the writes out if all that was read still is as it was"),
    ("abort", "give it up"),
];

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    Get(Key),
    Put(Key, Value),
    Delete(Key),
    Incr(Key, i64),
    Compare(Key, Expect),
    Scan(KeyRange, Option<usize>),
    Commit,
    Abort,
    Help,
}

impl Step {
    /// Whether nothing can follow it.
    pub(super) fn is_end(&self) -> bool {
        matches!(self, Self::Commit | Self::Abort)
    }
}

/// Reads a line without its end; `None` if it is blank or a comment.
///
/// # Errors
/// Why it makes no sense.
pub(super) fn parse(line: &[u8], encoding: Encoding) -> Result<Option<Step>, String> {
    if line.trim_ascii_start().starts_with(b"#") {
        return Ok(None);
    }
    let words = words(line)?;
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let Some((verb, rest)) = words.split_first() else { return Ok(None) };
    let key = |word: &[u8]| -> Result<Key, String> {
        Key::new(bytes(word, encoding)?).map_err(|error| error.to_string())
    };
    let value = |word: &[u8]| -> Result<Value, String> {
        Value::new(bytes(word, encoding)?).map_err(|error| error.to_string())
    };
    Ok(Some(match (*verb, rest) {
        (b"get", [k]) => Step::Get(key(k)?),
        (b"put", [k, v]) => Step::Put(key(k)?, value(v)?),
        (b"delete", [k]) => Step::Delete(key(k)?),
        (b"incr", [k]) => Step::Incr(key(k)?, 1),
        (b"incr", [k, n]) => Step::Incr(key(k)?, number(n)?),
        (b"compare", [k, b"value", v]) => Step::Compare(key(k)?, Expect::Value(value(v)?)),
        (b"compare", [k, b"revision", n]) => {
            Step::Compare(key(k)?, Expect::Revision(Revision::new(number(n)?)))
        }
        (b"compare", [k, b"absent"]) => Step::Compare(key(k)?, Expect::Absent),
        (b"scan", [start, bounds @ ..]) => scan(start, bounds, encoding)?,
        (b"commit", []) => Step::Commit,
        (b"abort", []) => Step::Abort,
        (b"help", []) => Step::Help,
        (verb, _) => return Err(no_such_form(verb)),
    }))
}

/// Which forms a line that begins so has.
fn no_such_form(verb: &[u8]) -> String {
    let begins = |form: &&str| form.split(' ').next().is_some_and(|first| first.as_bytes() == verb);
    let forms: Vec<String> =
        FORMS.iter().map(|(form, _)| *form).filter(begins).map(|form| format!("`{form}`")).collect();
    match forms.as_slice() {
        [] => {
            format!("`{}` is no step: get, put, delete, incr, compare, scan, commit, abort", escape(verb))
        }
        forms => format!("expected is {}", forms.join(" or ")),
    }
}

fn scan(start: &[u8], bounds: &[&[u8]], encoding: Encoding) -> Result<Step, String> {
    let (end, limit) = match bounds {
        [] => (None, None),
        [end] => (Some(end), None),
        [b"limit", limit] => (None, Some(limit)),
        [end, b"limit", limit] => (Some(end), Some(limit)),
        _ => return Err(no_such_form(b"scan")),
    };
    let limit = limit.map(|limit| number::<usize>(limit)).transpose()?;
    if limit == Some(0) {
        return Err("a limit is at least 1".to_owned());
    }
    let end = end.map(|end| bytes(end, encoding)).transpose()?.map(Bytes::from);
    let range = KeyRange::new(bytes(start, encoding)?, end).map_err(|error| error.to_string())?;
    Ok(Step::Scan(range, limit))
}

fn number<N: std::str::FromStr>(word: &[u8]) -> Result<N, String> {
    let number = std::str::from_utf8(word).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| format!("`{}` is not a number that is allowed here", escape(word)))
}

/// The bytes that a word names.
fn bytes(word: &[u8], encoding: Encoding) -> Result<Vec<u8>, String> {
    match encoding {
        Encoding::Text => Ok(word.to_vec()),
        Encoding::Hex | Encoding::Base64 => {
            let text = std::str::from_utf8(word).map_err(|_| format!("`{}` is no text", escape(word)))?;
            encoding.read(text)
        }
    }
}

/// Splits a line at blanks. A word in double quotes may have blanks, or nothing, in it. In both kinds `\xNN`, `\\` and `\"`
/// stand for one byte: what this program prints can be read back.
fn words(line: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii_start();
    while let Some(first) = rest.first() {
        let word;
        (word, rest) = match first {
            b'"' => quoted(rest.get(1..).unwrap_or_default())?,
            b'\'' => return Err("words are put into double quotes, not single ones".to_owned()),
            _ => bare(rest)?,
        };
        words.push(word);
        let blanks = rest.trim_ascii_start();
        if !rest.is_empty() && blanks.len() == rest.len() {
            return Err("a blank is missing after a word in quotes".to_owned());
        }
        rest = blanks;
    }
    Ok(words)
}

/// A word up to its closing quote, and what follows that.
fn quoted(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut word = Vec::new();
    loop {
        match rest.split_first() {
            None => return Err("a double quote is not closed".to_owned()),
            Some((b'"', after)) => return Ok((word, after)),
            Some(_) => rest = one(rest, &mut word)?,
        }
    }
}

/// A word up to a blank, and what follows it.
fn bare(mut rest: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let mut word = Vec::new();
    loop {
        match rest.first() {
            None => return Ok((word, rest)),
            Some(byte) if byte.is_ascii_whitespace() => return Ok((word, rest)),
            Some(b'"') => return Err("a double quote within a word is written \\\"".to_owned()),
            Some(_) => rest = one(rest, &mut word)?,
        }
    }
}

/// Reads a byte, which may be written as an escape, and returns what follows it.
fn one<'a>(rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], String> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bad = || "after a backslash come `xNN`, a backslash or a double quote".to_owned();
    let (byte, after) = match rest {
        [b'\\', b'x', high, low, after @ ..] => {
            (digit(high).zip(digit(low)).map(|(high, low)| high << 4 | low).ok_or_else(bad)?, after)
        }
        [b'\\', byte @ (b'\\' | b'"'), after @ ..] => (*byte, after),
        [b'\\', ..] | [] => return Err(bad()),
        [byte, after @ ..] => (*byte, after),
    };
    word.push(byte);
    Ok(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(line: &str) -> Step {
        parse(line.as_bytes(), Encoding::Text).unwrap().unwrap()
    }

    fn refused(line: &str) -> String {
        parse(line.as_bytes(), Encoding::Text).unwrap_err()
    }

    fn key(bytes: &'static [u8]) -> Key {
        Key::new(bytes).unwrap()
    }

    fn value(bytes: &'static [u8]) -> Value {
        Value::new(bytes).unwrap()
    }

    #[test]
    fn each_form_is_read() {
        assert_eq!(step("get a"), Step::Get(key(b"a")));
        assert_eq!(step("  put\ta   b\t"), Step::Put(key(b"a"), value(b"b")));
        assert_eq!(step("delete a"), Step::Delete(key(b"a")));
        assert_eq!(step("incr a"), Step::Incr(key(b"a"), 1));
        assert_eq!(step("incr a -7"), Step::Incr(key(b"a"), -7));
        assert_eq!(step("compare a value x"), Step::Compare(key(b"a"), Expect::Value(value(b"x"))));
        assert_eq!(
            step("compare a revision 9"),
            Step::Compare(key(b"a"), Expect::Revision(Revision::new(9)))
        );
        assert_eq!(step("compare a absent"), Step::Compare(key(b"a"), Expect::Absent));
        assert_eq!(step("commit"), Step::Commit);
        assert_eq!(step("abort"), Step::Abort);
        assert_eq!(step("help"), Step::Help);
        for line in ["", "  ", "# get a", "\t#"] {
            assert_eq!(parse(line.as_bytes(), Encoding::Text), Ok(None), "{line:?}");
        }
    }

    #[test]
    fn a_scan_may_be_bounded() {
        let range = |start: &'static str, end: Option<&'static str>| {
            KeyRange::new(start, end.map(Bytes::from)).unwrap()
        };
        assert_eq!(step("scan a"), Step::Scan(range("a", None), None));
        assert_eq!(step("scan \"\""), Step::Scan(KeyRange::all(), None));
        assert_eq!(step("scan a b"), Step::Scan(range("a", Some("b")), None));
        assert_eq!(step("scan a limit"), Step::Scan(range("a", Some("limit")), None));
        assert_eq!(step("scan a limit 3"), Step::Scan(range("a", None), Some(3)));
        assert_eq!(step("scan a b limit 3"), Step::Scan(range("a", Some("b")), Some(3)));
        for line in ["scan", "scan b a", "scan a a", "scan a b c", "scan a limit 0", "scan a limit -1"] {
            refused(line);
        }
    }

    #[test]
    fn words_are_quoted_and_escaped() {
        assert_eq!(step(r#"put "a b" """#), Step::Put(key(b"a b"), value(b"")));
        assert_eq!(step(r#"put a\x20b\x00 \\\""#), Step::Put(key(b"a b\0"), value(b"\\\"")));
        assert_eq!(step(r#"put "a\"b" "\xff#""#), Step::Put(key(b"a\"b"), value(b"\xff#")));
        assert_eq!(step("put it's #5"), Step::Put(key(b"it's"), value(b"#5")));
        let raw = parse(b"get \xff\xc3", Encoding::Text);
        assert_eq!(raw, Ok(Some(Step::Get(key(b"\xff\xc3")))));
        let all: Vec<u8> = (0..=255).collect();
        let written = format!("get \"{}\"", escape(&all).replace('"', "\\\""));
        assert_eq!(step(&written), Step::Get(Key::new(all).unwrap()), "what is printed is read back");
    }

    #[test]
    fn the_encoding_is_that_of_the_command_line() {
        let parse = |line: &str, encoding| parse(line.as_bytes(), encoding).map(Option::unwrap);
        assert_eq!(parse("put 6b 7600", Encoding::Hex), Ok(Step::Put(key(b"k"), value(b"v\0"))));
        assert_eq!(parse("put aw== \"\"", Encoding::Base64), Ok(Step::Put(key(b"k"), value(b""))));
        assert_eq!(parse("incr 6b 10", Encoding::Hex), Ok(Step::Incr(key(b"k"), 10)));
        assert_eq!(
            parse("scan 61 62 limit 2", Encoding::Hex),
            Ok(Step::Scan(KeyRange::new("a", Some("b".into())).unwrap(), Some(2)))
        );
        assert!(parse("get 0g", Encoding::Hex).is_err());
        assert!(parse("get \\xff\\xff", Encoding::Hex).is_err());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(refused("get"), "expected is `get K`");
        assert_eq!(refused("put a b c"), "expected is `put K V`");
        assert_eq!(
            refused("compare a 5"),
            "expected is `compare K value V` or `compare K revision N` or `compare K absent`"
        );
        assert_eq!(
            refused("\x1bget a"),
            "`\\x1bget` is no step: get, put, delete, incr, compare, scan, commit, abort"
        );
        let bad = [
            "get \"\"",
            "get \"a",
            "get a\"b",
            "get \"a\"b",
            "get 'a'",
            "get \\",
            "get \\x0",
            "get \\xgg",
            "get \\n",
            "incr a 1.5",
            "incr a 9223372036854775808",
            "compare a revision -1",
            "commit now",
            "GET a",
        ];
        for line in bad {
            refused(line);
        }
    }
}
