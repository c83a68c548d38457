//! An edn map a line: `{:process 0, :type :invoke, :f :append, :key "0", :value "x"}`.

use std::borrow::Cow;

use super::cursor::Cursor;
use super::{Fault, Fields, Placed, is_mismatch, is_nemesis};
use crate::datum::Datum;
use crate::error::Problem;

/// The fields of a line; none if it is not about a client.
pub(super) fn fields(line: &str) -> Result<Option<Fields<'_>>, Fault> {
    let mut cursor = Cursor::new(line, 0);
    cursor.skip_space();
    if cursor.peek() == Some('#') {
        // Newer versions tag the map with its type.
        cursor.token();
    }
    if !cursor.take('{') {
        return Err(Fault::syntax(cursor.at(), "a map is expected"));
    }
    let mut fields = Fields::default();
    loop {
        cursor.skip_space();
        if cursor.take('}') {
            break;
        }
        if cursor.peek().is_none() {
            return Err(Fault::new(cursor.at(), Problem::Truncated));
        }
        let (name, at) = cursor.token();
        if !name.starts_with(':') {
            return Err(Fault::syntax(at, "a keyword is expected"));
        }
        set(&mut fields, name, cursor.datum()?)?;
    }
    cursor.skip_space();
    if cursor.peek().is_some() {
        return Err(Fault::syntax(cursor.at(), "nothing is expected after the map"));
    }
    let is_client = !fields.process.as_ref().is_some_and(|(process, _)| is_nemesis(process));
    Ok(is_client.then_some(fields))
}

fn set(fields: &mut Fields<'_>, name: &str, (datum, at): Placed<Datum>) -> Result<(), Fault> {
    let number = |datum: &Datum| {
        let number = datum.as_int().and_then(|number| u64::try_from(number).ok());
        number.map(Some).ok_or_else(|| Fault::syntax(at, "a whole number from 0 is expected"))
    };
    let text = |datum: Datum| match datum {
        Datum::Text(text) => Some((Cow::Owned(text.as_ref().to_owned()), at)),
        Datum::Nil | Datum::Int(_) | Datum::List(_) => None,
    };
    match name {
        ":process" => fields.process = Some((datum, at)),
        ":type" => fields.kind = text(datum),
        ":f" => fields.function = text(datum),
        ":key" => fields.key = datum,
        ":value" => fields.value = (datum, at),
        ":time" => fields.time = datum.as_int().and_then(|time| u64::try_from(time).ok()),
        ":index" => fields.index = number(&datum)?,
        ":revision" => fields.revision = number(&datum)?,
        ":token" => fields.token = number(&datum)?,
        ":error" => fields.mismatch = matches!(&datum, Datum::Text(text) if is_mismatch(text)),
        _ => {}
    }
    Ok(())
}
