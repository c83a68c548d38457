//! Reads tables of a file so that whatever is wrong has a place.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Flaw;
use crate::quantity;

/// A value and where it stands.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A table of which all fields are known.
pub(super) struct Reader<'a, 't> {
    table: &'a DeTable<'t>,
    at: usize,
    what: &'static str,
}

impl<'a, 't> Reader<'a, 't> {
    /// A table that may have these fields and no others.
    pub(super) fn new(
        table: &'a DeTable<'t>,
        at: usize,
        what: &'static str,
        fields: &[&str],
    ) -> Result<Self, Flaw> {
        let unknown = table.keys().filter(|key| !fields.contains(&key.get_ref().as_ref()));
        match unknown.min_by_key(|key| key.span().start) {
            Some(key) => {
                let shown = key.get_ref().chars().take(64).flat_map(char::escape_debug).collect::<String>();
                let sentence = format!("{what} has no field `{shown}`; it has {}", listed(fields, "and"));
                Err(Flaw::new(key.span().start, sentence))
            }
            None => Ok(Self { table, at, what }),
        }
    }

    /// A value that is such a table.
    pub(super) fn of(value: &'a Value<'t>, what: &'static str, fields: &[&str]) -> Result<Self, Flaw> {
        let table = value.get_ref().as_table().ok_or_else(|| unlike(value, "a table"))?;
        Self::new(table, value.span().start, what, fields)
    }

    /// Where the table stands.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The value of a field.
    pub(super) fn get(&self, field: &str) -> Option<&'a Value<'t>> {
        self.table.iter().find(|(key, _)| key.get_ref() == field).map(|(_, value)| value)
    }

    /// The value of a field that must be there.
    pub(super) fn need(&self, field: &str) -> Result<&'a Value<'t>, Flaw> {
        self.get(field).ok_or_else(|| Flaw::new(self.at, format!("{} needs `{field}`", self.what)))
    }

    /// The value of a field, read.
    pub(super) fn read<T>(
        &self,
        field: &str,
        read: impl FnOnce(&'a Value<'t>) -> Result<T, Flaw>,
    ) -> Result<Option<T>, Flaw> {
        self.get(field).map(read).transpose()
    }

    /// The one of these fields that is there.
    pub(super) fn one_of(&self, fields: &[&'static str]) -> Result<(&'static str, &'a Value<'t>), Flaw> {
        let mut found: Vec<_> =
            fields.iter().filter_map(|field| self.get(field).map(|value| (*field, value))).collect();
        found.sort_by_key(|(_, value)| value.span().start);
        match found.as_slice() {
            [one] => Ok(*one),
            [] => {
                let sentence = format!("{} needs one of {}", self.what, listed(fields, "or"));
                Err(Flaw::new(self.at, sentence))
            }
            [(first, _), (second, value), ..] => {
                let sentence = format!("{} cannot have both `{first}` and `{second}`", self.what);
                Err(Flaw::new(value.span().start, sentence))
            }
        }
    }

    /// Refuses a field that makes sense beside others only.
    pub(super) fn only_beside(&self, field: &str, is_beside: bool, others: &str) -> Result<(), Flaw> {
        match self.get(field) {
            Some(value) if !is_beside => {
                Err(Flaw::new(value.span().start, format!("`{field}` goes with {others} only")))
            }
            Some(_) | None => Ok(()),
        }
    }
}

fn listed(fields: &[&str], word: &str) -> String {
    match fields {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [most @ .., last] => {
            let most: Vec<_> = most.iter().map(|field| format!("`{field}`")).collect();
            format!("{} {word} `{last}`", most.join(", "))
        }
    }
}

fn unlike(value: &Value<'_>, wanted: &str) -> Flaw {
    let sentence = format!("{wanted} is expected, not {}", kind(value));
    Flaw::new(value.span().start, sentence)
}

fn kind(value: &Value<'_>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with decimals",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A text.
pub(super) fn string<'a>(value: &'a Value<'_>) -> Result<&'a str, Flaw> {
    value.get_ref().as_str().ok_or_else(|| unlike(value, "a text"))
}

/// A text of one line that says something.
pub(super) fn sentence(value: &Value<'_>) -> Result<String, Flaw> {
    let text = string(value)?;
    if text.trim().is_empty() || text.contains(char::is_control) {
        return Err(Flaw::new(value.span().start, "one line of text is expected"));
    }
    Ok(text.to_owned())
}

/// A text that is parsed.
pub(super) fn parsed<T: FromStr<Err: Display>>(value: &Value<'_>) -> Result<T, Flaw> {
    by(value, str::parse)
}

/// A text that is parsed by a function.
pub(super) fn by<T, E: Display>(
    value: &Value<'_>,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, Flaw> {
    parse(string(value)?).map_err(|error| Flaw::new(value.span().start, error.to_string()))
}

/// A time within bounds.
pub(super) fn duration(value: &Value<'_>, bounds: RangeInclusive<Duration>) -> Result<Duration, Flaw> {
    let span = by(value, quantity::duration)?;
    if bounds.contains(&span) {
        return Ok(span);
    }
    let (from, to) = (quantity::ShowDuration(*bounds.start()), quantity::ShowDuration(*bounds.end()));
    Err(Flaw::new(value.span().start, format!("{from} to {to} is expected")))
}

/// A whole number within bounds.
pub(super) fn integer(value: &Value<'_>, bounds: RangeInclusive<u64>) -> Result<u64, Flaw> {
    let integer = value.get_ref().as_integer().ok_or_else(|| unlike(value, "a whole number"))?;
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
    number.filter(|number| bounds.contains(number)).ok_or_else(|| {
        let sentence = match (bounds.start(), *bounds.end()) {
            (from, u64::MAX) => format!("a whole number from {from} is expected"),
            (from, to) => format!("a whole number from {from} to {to} is expected"),
        };
        Flaw::new(value.span().start, sentence)
    })
}

/// The same for numbers of half the size.
pub(super) fn small(value: &Value<'_>, bounds: RangeInclusive<u32>) -> Result<u32, Flaw> {
    let number = integer(value, u64::from(*bounds.start())..=u64::from(*bounds.end()))?;
    Ok(u32::try_from(number).expect("it is within bounds of 32 bits"))
}

/// A number, with or without decimals.
pub(super) fn float(value: &Value<'_>) -> Result<f64, Flaw> {
    let text = match value.get_ref() {
        DeValue::Float(float) => float.as_str(),
        DeValue::Integer(integer) => integer.as_str(),
        DeValue::String(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => return Err(unlike(value, "a number")),
    };
    text.parse().map_err(|_| unlike(value, "a number"))
}

/// True or false.
pub(super) fn boolean(value: &Value<'_>) -> Result<bool, Flaw> {
    value.get_ref().as_bool().ok_or_else(|| unlike(value, "true or false"))
}

/// True: what is not wanted is left out.
pub(super) fn yes(value: &Value<'_>) -> Result<(), Flaw> {
    match boolean(value)? {
        true => Ok(()),
        false => Err(Flaw::new(value.span().start, "true is expected: leave out what is not wanted")),
    }
}

/// A list.
pub(super) fn list<'a, 't>(value: &'a Value<'t>) -> Result<&'a [Value<'t>], Flaw> {
    value.get_ref().as_array().map(|array| &array[..]).ok_or_else(|| unlike(value, "a list"))
}
