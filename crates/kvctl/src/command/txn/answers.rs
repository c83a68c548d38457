//! The json objects of a script.

use kv_client::{Header, TxnRow};
use kv_types::{Key, KeyRange, Outcome};
use serde::Serialize;

use crate::bytes_text::to_base64;
use crate::failure::{CommandError, outcome_word};
use crate::json::{HeaderJson, text};

/// What a step came to. What does not apply is left out.
#[derive(Debug, Default, Serialize)]
pub(super) struct StepJson {
    line: usize,
    op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    /// Of a get and a comparison: whether the key is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    found: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mod_revision: Option<u64>,
    /// Of an increment: the sum.
    #[serde(skip_serializing_if = "Option::is_none")]
    sum: Option<i64>,
    /// Of a comparison: whether the key is as expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    range: Option<RangeJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rows: Option<Vec<TxnRowJson>>,
}

/// A range of keys.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct RangeJson {
    start: Option<String>,
    start_base64: String,
    end: Option<String>,
    end_base64: Option<String>,
}

/// A row that a scan found.
#[derive(Debug, Serialize)]
struct TxnRowJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    key_base64: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    value_base64: String,
    /// Null if the transaction itself has written it.
    mod_revision: Option<u64>,
}

/// What the transaction came to.
#[derive(Debug, Serialize)]
pub(super) struct EndJson {
    outcome: &'static str,
    /// Why it is not known to be applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<String>,
    /// The key whose shard decides, if the outcome is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    anchor_base64: Option<String>,
    /// The key that was in the way.
    #[serde(skip_serializing_if = "Option::is_none")]
    at_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    header: Option<HeaderJson>,
}

impl StepJson {
    /// A step about one key.
    pub(super) fn of_key(line: usize, op: &'static str, key: &Key) -> Self {
        let (key, key_base64) = (text(key.as_ref()), Some(to_base64(key.as_ref())));
        Self { line, op, key, key_base64, ..Self::default() }
    }

    /// A step that has looked at a key.
    pub(super) fn looked(self, row: Option<&TxnRow>) -> Self {
        let value = row.map(|row| row.value.as_ref());
        Self {
            found: Some(row.is_some()),
            value: value.and_then(text),
            value_base64: value.map(to_base64),
            mod_revision: row.and_then(|row| row.mod_revision).map(kv_types::Revision::get),
            ..self
        }
    }

    /// An increment.
    pub(super) fn summed(self, sum: i64) -> Self {
        Self { sum: Some(sum), ..self }
    }

    /// A comparison.
    pub(super) fn compared(self, held: bool) -> Self {
        Self { held: Some(held), ..self }
    }

    /// A scan.
    pub(super) fn scanned(line: usize, range: &KeyRange, rows: &[TxnRow]) -> Self {
        let row = |row: &TxnRow| TxnRowJson {
            key: text(row.key.as_ref()),
            key_base64: to_base64(row.key.as_ref()),
            value: text(row.value.as_ref()),
            value_base64: to_base64(row.value.as_ref()),
            mod_revision: row.mod_revision.map(kv_types::Revision::get),
        };
        let range = RangeJson::new(range.start(), range.end().map(AsRef::as_ref));
        let rows = Some(rows.iter().map(row).collect());
        Self { line, op: "scan", range: Some(range), rows, ..Self::default() }
    }
}

impl RangeJson {
    pub(super) fn new(start: &[u8], end: Option<&[u8]>) -> Self {
        Self {
            start: text(start),
            start_base64: to_base64(start),
            end: end.and_then(text),
            end_base64: end.map(to_base64),
        }
    }
}

impl EndJson {
    /// It is committed; without a header nobody was asked.
    pub(super) fn committed(header: Option<&Header>) -> Self {
        Self { outcome: "applied", header: header.map(HeaderJson::from), ..Self::given_up(None) }
    }

    /// It was not sent.
    pub(super) fn given_up(cause: Option<&str>) -> Self {
        Self {
            outcome: outcome_word(Outcome::NotApplied),
            cause: cause.map(str::to_owned),
            request_id: None,
            anchor_base64: None,
            at_base64: None,
            header: None,
        }
    }

    /// It failed; with the key that was in the way, or, if its outcome is unknown, the anchor.
    pub(super) fn failed(error: &CommandError, key: Option<&[u8]>) -> Self {
        let key = key.map(to_base64);
        let (anchor_base64, at_base64) = match error.outcome() {
            Outcome::Unknown => (key, None),
            Outcome::NotApplied => (None, key),
        };
        Self {
            outcome: outcome_word(error.outcome()),
            cause: Some(error.reason().to_owned()),
            request_id: error.request().map(|request| request.to_string()),
            anchor_base64,
            at_base64,
            header: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;
    use kv_types::{Revision, Value};

    fn json(shape: &impl Serialize) -> String {
        serde_json::to_string(shape).unwrap()
    }

    fn row(mod_revision: Option<u64>) -> TxnRow {
        TxnRow {
            key: Key::new("k").unwrap(),
            value: Value::new("v").unwrap(),
            mod_revision: mod_revision.map(Revision::new),
        }
    }

    #[test]
    fn steps_have_their_shape() {
        let key = Key::new("k").unwrap();
        let get = || StepJson::of_key(3, "get", &key);
        assert_eq!(
            json(&get().looked(Some(&row(Some(9))))),
            r#"{"line":3,"op":"get","key":"k","key_base64":"aw==","found":true,"value":"v","value_base64":"dg==","mod_revision":9}"#
        );
        assert_eq!(
            json(&get().looked(None)),
            r#"{"line":3,"op":"get","key":"k","key_base64":"aw==","found":false}"#
        );
        let bytes = Key::new(&b"\xff"[..]).unwrap();
        assert_eq!(
            json(&StepJson::of_key(4, "incr", &bytes).summed(-1)),
            r#"{"line":4,"op":"incr","key_base64":"/w==","sum":-1}"#
        );
        let range = KeyRange::new("a", Some("b".into())).unwrap();
        assert_eq!(
            json(&StepJson::scanned(5, &range, &[row(None)])),
            concat!(
                r#"{"line":5,"op":"scan","range":{"start":"a","start_base64":"YQ==","end":"b","end_base64":"Yg=="},"#,
                r#""rows":[{"key":"k","key_base64":"aw==","value":"v","value_base64":"dg==","mod_revision":null}]}"#
            )
        );
    }

    #[test]
    fn ends_have_their_shape() {
        assert_eq!(json(&EndJson::committed(None)), r#"{"outcome":"applied"}"#);
        assert_eq!(json(&EndJson::given_up(Some("abort"))), r#"{"outcome":"not_applied","cause":"abort"}"#);
        let conflict = CommandError::own(Exit::Aborted, "ABORTED", "conflict", "changed");
        assert_eq!(
            json(&EndJson::failed(&conflict, Some(b"k"))),
            r#"{"outcome":"not_applied","cause":"conflict","at_base64":"aw=="}"#
        );
        let unknown = CommandError::timed_out(true, std::time::Duration::from_secs(5));
        assert_eq!(
            json(&EndJson::failed(&unknown, Some(b"k"))),
            r#"{"outcome":"unknown","cause":"deadline","anchor_base64":"aw=="}"#
        );
    }
}
