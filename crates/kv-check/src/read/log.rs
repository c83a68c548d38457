//! Lines of Jepsen's log: `INFO  jepsen.util - 0 :invoke :write 3`, parted by tabs or spaces.

use std::borrow::Cow;

use super::cursor::Cursor;
use super::{Fault, Fields, Placed, is_nemesis};
use crate::datum::Datum;
use crate::error::Problem;

/// The logger that writes the events of a history; the lines of others are about the test, not of it.
const LOGGER: &str = "jepsen.util";

/// Whether the line is one of Jepsen's log, of whatever logger. A log without events is a history in which nothing
/// happened, as when the servers did not start.
pub(super) fn is_of_log(line: &str) -> bool {
    after_mark(line).is_some() || (line.starts_with("INFO") && line.contains(" jepsen."))
}

/// Behind the logger's name and the dash or colon after it.
fn after_mark(line: &str) -> Option<usize> {
    let name = line.find(LOGGER)? + LOGGER.len();
    let rest = line.get(name..)?.trim_start();
    let rest = rest.strip_prefix(['-', ':'])?;
    line.trim_start().starts_with(|c: char| c.is_ascii_alphanumeric()).then_some(line.len() - rest.len())
}

/// The fields of a line of a whole log; none if it is not an event of a client.
pub(super) fn marked_fields(line: &str) -> Result<Option<Fields<'_>>, Fault> {
    let Some(start) = after_mark(line) else { return Ok(None) };
    let mut cursor = Cursor::new(line, start);
    cursor.skip_space();
    // The logger also says other things; events begin with the number of a process.
    if !cursor.peek().is_some_and(|c| c.is_ascii_digit()) {
        return Ok(None);
    }
    fields(line, start)
}

/// The fields of a line that is an event, from that byte on; none if it is not one of a client.
pub(super) fn fields(line: &str, start: usize) -> Result<Option<Fields<'_>>, Fault> {
    let mut cursor = Cursor::new(line, start);
    let process = cursor.datum()?;
    if is_nemesis(&process.0) {
        return Ok(None);
    }
    let kind = keyword(&mut cursor)?;
    let function = keyword(&mut cursor)?;
    cursor.skip_space();
    let value = match kind.0 {
        // What stands here otherwise is a message, in whatever form.
        ":invoke" | ":ok" => cursor.datum()?,
        _ => (Datum::Nil, cursor.at()),
    };
    Ok(Some(Fields {
        process: Some(process),
        kind: Some((Cow::Borrowed(kind.0), kind.1)),
        function: Some((Cow::Borrowed(function.0), function.1)),
        value,
        ..Fields::default()
    }))
}

fn keyword<'a>(cursor: &mut Cursor<'a>) -> Result<Placed<&'a str>, Fault> {
    cursor.skip_space();
    let (word, at) = cursor.token();
    match word {
        "" if cursor.peek().is_none() => Err(Fault::new(at, Problem::Truncated)),
        _ if word.starts_with(':') => Ok((word, at)),
        _ => Err(Fault::syntax(at, "a keyword such as :invoke or :read is expected")),
    }
}
