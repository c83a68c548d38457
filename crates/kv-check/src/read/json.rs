//! A json object a line: Jepsen's fields as elle-cli writes them.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{DEPTH_MAX, Fault, Fields, Placed, is_mismatch, is_nemesis};
use crate::datum::Datum;

/// A line with its fields as they stand in the text, so that each knows its column. Others are passed over.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    process: Option<&'a RawValue>,
    #[serde(borrow, rename = "type")]
    kind: Option<&'a RawValue>,
    #[serde(borrow)]
    f: Option<&'a RawValue>,
    #[serde(borrow)]
    key: Option<&'a RawValue>,
    #[serde(borrow)]
    value: Option<&'a RawValue>,
    #[serde(borrow)]
    time: Option<&'a RawValue>,
    #[serde(borrow)]
    index: Option<&'a RawValue>,
    #[serde(borrow)]
    revision: Option<&'a RawValue>,
    #[serde(borrow)]
    token: Option<&'a RawValue>,
    #[serde(borrow)]
    error: Option<&'a RawValue>,
}

/// The fields of a line; none if it is not about a client.
pub(super) fn fields(line: &str) -> Result<Option<Fields<'_>>, Fault> {
    // A list would pass for an object without names.
    if !line.trim_start().starts_with('{') {
        return Err(Fault::syntax(line.len() - line.trim_start().len(), "a json object is expected"));
    }
    let raw: Line<'_> = serde_json::from_str(line).map_err(|error| fault(line, &error))?;
    let at = |raw: &RawValue| offset(line, raw.get());
    let placed = |raw: &RawValue| datum(line, raw.get(), DEPTH_MAX).map(|datum| (datum, at(raw)));
    let process = raw.process.map(placed).transpose()?;
    if process.as_ref().is_some_and(|(process, _)| is_nemesis(process)) {
        return Ok(None);
    }
    let text = |raw: &'_ RawValue| -> Result<Placed<Cow<'_, str>>, Fault> {
        let (datum, at) = placed(raw)?;
        match datum {
            Datum::Text(text) => Ok((Cow::Owned(text.as_ref().to_owned()), at)),
            other => Err(Fault::syntax(at, format!("{other} is no word"))),
        }
    };
    let kind = raw.kind.map(text).transpose()?;
    // What an operation without a certain effect gives as its value is often a message: it does not count.
    let counts = kind.as_ref().is_some_and(|(kind, _)| kind == "invoke" || kind == "ok");
    let value = raw.value.filter(|_| counts).map(placed).transpose()?;
    let number = |raw: &RawValue| {
        raw.get().parse::<u64>().map_err(|_| Fault::syntax(at(raw), "a whole number from 0 is expected"))
    };
    Ok(Some(Fields {
        process,
        kind,
        function: raw.f.map(text).transpose()?,
        key: raw.key.map(placed).transpose()?.unwrap_or_default().0,
        value: value.unwrap_or_default(),
        // Time is for people, and some harnesses write fractions.
        time: raw.time.and_then(|time| time.get().parse().ok()),
        index: raw.index.map(number).transpose()?,
        revision: raw.revision.map(number).transpose()?,
        token: raw.token.map(number).transpose()?,
        mismatch: raw.error.is_some_and(|error| is_mismatch(error.get().trim_matches('"'))),
    }))
}

/// What a piece of the line says.
fn datum(line: &str, text: &str, depth: usize) -> Result<Datum, Fault> {
    let at = offset(line, text);
    let unfit = || Fault::syntax(at, format!("{text} is neither null, a whole number, text nor a list"));
    match text.as_bytes().first() {
        Some(b'n') => Ok(Datum::Nil),
        Some(b'"') => match text.get(1..text.len().saturating_sub(1)) {
            Some(plain) if !plain.contains('\\') => Ok(Datum::text(plain)),
            _ => serde_json::from_str::<String>(text).map(|text| Datum::text(&text)).map_err(|_| unfit()),
        },
        Some(b'[') if depth == 0 => Err(Fault::syntax(at, "lists are nested too deep")),
        Some(b'[') => {
            let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|_| unfit())?;
            let items: Result<Vec<_>, _> =
                items.into_iter().map(|item| datum(line, item.get(), depth - 1)).collect();
            items.map(Datum::list)
        }
        _ => text.parse().map(Datum::Int).map_err(|_| unfit()),
    }
}

/// At which byte of the line a piece of it begins. The piece borrows from the line, so the difference is that.
fn offset(line: &str, piece: &str) -> usize {
    (piece.as_ptr() as usize).saturating_sub(line.as_ptr() as usize)
}

fn fault(line: &str, error: &serde_json::Error) -> Fault {
    let at = error.column().saturating_sub(1).min(line.len());
    if error.is_eof() {
        return Fault::new(line.len(), crate::error::Problem::Truncated);
    }
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or_default();
    Fault::syntax(at, format!("not json: {message}"))
}
