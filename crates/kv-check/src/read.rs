//! Histories from text: json lines, edn maps, Jepsen's logs.
//!
//! One event a line in all of them, so that an error has a line and a column. The first line that holds anything
//! decides which form it is.

mod cursor;
mod edn;
mod json;
mod log;

use std::borrow::Cow;

use crate::datum::Datum;
use crate::error::{HistoryError, Problem};
use crate::event::{COMPARE_FAILED, Event, EventKind, Function, Place};
use crate::history::{History, Pairing};
use crate::transaction::TransactionHistory;

/// How deep lists may nest in a value. No model takes more than one level; the bound keeps input off the stack.
const DEPTH_MAX: usize = 16;

/// Reads a history.
///
/// # Errors
///
/// If the text is in no known form, or breaks off, or its events do not belong together. The error says where.
pub fn read(text: &str) -> Result<History, HistoryError> {
    pair(text).map(Pairing::finish)
}

/// Reads a history of transactions: the same forms, with `txn` for `f` and lists of micro-operations for values, as in
/// `[["append", "x", 1], ["r", "y", [2, 3]]]`.
///
/// # Errors
///
/// As [`read`]; and if a value is no transaction, or an element is appended twice to a key.
pub fn read_transactions(text: &str) -> Result<TransactionHistory, HistoryError> {
    TransactionHistory::from_pairing(pair(text)?)
}

/// Reads the events of a history as they stand, for a check that is made elsewhere.
///
/// # Errors
///
/// As [`read`].
pub fn read_events(text: &str) -> Result<Vec<Event>, HistoryError> {
    let (mut pairing, mut events) = (Pairing::default(), Vec::new());
    each_event(text, |event| {
        events.push(event.clone());
        pairing.push(event)
    })?;
    Ok(events)
}

/// The operations of a text.
fn pair(text: &str) -> Result<Pairing, HistoryError> {
    let mut pairing = Pairing::default();
    each_event(text, |event| pairing.push(event))?;
    Ok(pairing)
}

fn each_event(
    text: &str,
    mut take: impl FnMut(Event) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let mut index_before = None;
    let Some(form) = Form::of(text)? else { return Ok(()) };
    let ends_within = matches!(form, Form::Log | Form::BareLog) && !text.ends_with('\n');
    let mut lines = (1..).zip(text.split('\n')).peekable();
    while let Some((number, line)) = lines.next() {
        let line = line.strip_suffix('\r').unwrap_or(line);
        if is_empty(line) {
            continue;
        }
        let fields = match form {
            Form::Json => json::fields(line),
            Form::Edn => edn::fields(line),
            Form::Log => log::marked_fields(line),
            Form::BareLog => log::fields(line, 0),
        };
        let fields = fields.map_err(|fault| HistoryError::at(number, fault.column(), fault.problem))?;
        let Some(fields) = fields else { continue };
        if let (Some(before), Some(index)) = (index_before, fields.index)
            && index <= before
        {
            return Err(HistoryError::at(number, 1, Problem::IndexRunsBack { before, index }));
        }
        index_before = fields.index.or(index_before);
        let event = fields.into_event(number)?;
        // Nothing else closes a line of a log: what is left of a longer one would be believed.
        if ends_within && lines.peek().is_none() {
            return Err(HistoryError::at(number, narrow(line.len() + 1), Problem::Truncated));
        }
        take(event)?;
    }
    Ok(())
}

/// Whether the line holds nothing: white space, or a comment behind `# ` or `;`.
fn is_empty(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line == "#" || line.starts_with("# ") || line.starts_with(';')
}

/// Reads a history from bytes, which must be UTF-8.
///
/// # Errors
///
/// As [`read`].
pub fn read_bytes(bytes: &[u8]) -> Result<History, HistoryError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => read(text),
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
            let column = 1 + good.iter().rev().take_while(|byte| **byte != b'\n').count();
            let problem = Problem::Syntax("this is not UTF-8".to_owned());
            Err(HistoryError::at(narrow(line), narrow(column), problem))
        }
    }
}

/// The form of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// A json object a line.
    Json,
    /// An edn map a line.
    Edn,
    /// A log, in which some lines are marked as events.
    Log,
    /// Only the events of a log, without what stands before them: Jepsen's `history.txt`.
    BareLog,
}

impl Form {
    /// The form of the text; none if it is blank.
    fn of(text: &str) -> Result<Option<Self>, HistoryError> {
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| !is_empty(line));
        let Some((number, first)) = lines.next() else { return Ok(None) };
        let first = first.trim_start();
        if let Some(map) = first.strip_prefix('{') {
            let in_edn = map.trim_start().starts_with(':');
            return Ok(Some(if in_edn { Self::Edn } else { Self::Json }));
        }
        if first.starts_with("#jepsen") {
            return Ok(Some(Self::Edn));
        }
        // The mark comes before the bare form: a log may hold lines of both, and only the marked ones count.
        if text.lines().any(log::is_of_log) {
            return Ok(Some(Self::Log));
        }
        if first.starts_with(|c: char| c.is_ascii_digit()) || first.starts_with(":nemesis") {
            return Ok(Some(Self::BareLog));
        }
        Err(HistoryError::at(number, 1, Problem::UnknownFormat))
    }
}

/// What is wrong in a line, and at which byte.
#[derive(Debug)]
struct Fault {
    at: usize,
    problem: Problem,
}

impl Fault {
    fn new(at: usize, problem: Problem) -> Self {
        Self { at, problem }
    }

    fn syntax(at: usize, message: impl Into<String>) -> Self {
        Self::new(at, Problem::Syntax(message.into()))
    }

    fn column(&self) -> u32 {
        narrow(self.at + 1)
    }
}

/// A field and the byte it begins at.
type Placed<T> = (T, usize);

/// The fields of one line, whatever its form.
#[derive(Debug, Default)]
struct Fields<'a> {
    process: Option<Placed<Datum>>,
    kind: Option<Placed<Cow<'a, str>>>,
    function: Option<Placed<Cow<'a, str>>>,
    key: Datum,
    value: Placed<Datum>,
    time: Option<u64>,
    index: Option<u64>,
    revision: Option<u64>,
    token: Option<u64>,
    mismatch: bool,
}

impl Fields<'_> {
    fn into_event(self, line: u32) -> Result<Event, HistoryError> {
        let missing = |name| HistoryError::at(line, 1, Problem::MissingField(name));
        let (process, process_at) = self.process.ok_or_else(|| missing("process"))?;
        let (kind, kind_at) = self.kind.ok_or_else(|| missing("type"))?;
        let (function, function_at) = self.function.ok_or_else(|| missing("f"))?;
        let column = |at: usize| narrow(at + 1);
        let kind = EventKind::of(word(&kind)).ok_or_else(|| {
            HistoryError::at(line, column(kind_at), Problem::UnknownType(word(&kind).to_owned()))
        })?;
        let function = Function::of(word(&function)).ok_or_else(|| {
            HistoryError::at(line, column(function_at), Problem::UnknownFunction(word(&function).to_owned()))
        })?;
        Ok(Event {
            process,
            kind,
            function,
            key: self.key,
            value: self.value.0,
            time: self.time,
            revision: self.revision,
            token: self.token,
            mismatch: self.mismatch,
            place: Place {
                line,
                process: column(process_at),
                function: column(function_at),
                value: column(self.value.1),
            },
        })
    }
}

/// A word with or without the colon of a keyword.
fn word(text: &str) -> &str {
    text.strip_prefix(':').unwrap_or(text)
}

/// Whether the process is no client: what a nemesis did is of no object's history.
fn is_nemesis(process: &Datum) -> bool {
    matches!(process, Datum::Text(text) if word(text) == "nemesis")
}

/// Whether what stands in the field `error` makes the failure of a `cas` an answer.
fn is_mismatch(error: &str) -> bool {
    word(error) == COMPARE_FAILED
}

/// Lines and columns beyond four billion are not worth an error of their own.
fn narrow(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
