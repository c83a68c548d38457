//! Where steps come from: a file that is read as a whole, or standard input, line by line.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::Path;

use kv_types::limits::{KEY_BYTES_MAX, TXN_BYTES_MAX, VALUE_BYTES_MAX};

use super::script::{Step, parse};
use crate::bytes_text::Encoding;
use crate::failure::{CommandError, Exit};

/// A byte that is written as an escape takes this many.
const ESCAPED_BYTES: usize = 4;

/// The longest line: the longest key and value, all of it escapes, and the words around them.
const LINE_BYTES_MAX: usize = ESCAPED_BYTES * (KEY_BYTES_MAX + VALUE_BYTES_MAX) + 1024;

/// The largest file: all that a transaction may hold, as escapes, and as much again for comments and for what is read twice.
const FILE_BYTES_MAX: usize = 2 * ESCAPED_BYTES * TXN_BYTES_MAX;

/// A step and the number of its line.
pub(super) type Numbered = (usize, Step);

/// Where steps come from.
pub(super) enum Source {
    /// A file, all of which makes sense.
    File(VecDeque<Numbered>),
    /// Standard input.
    Stdin {
        /// Whether a person types there, who is asked for each line.
        prompt: bool,
        /// The number of the last line.
        line: usize,
    },
}

impl Source {
    /// Reads a file and makes sure that it makes sense, and that nothing follows its end.
    ///
    /// # Errors
    /// [`CommandError`]
    pub(super) fn file(path: &Path, encoding: Encoding) -> Result<Self, CommandError> {
        let mut bytes = Vec::new();
        let limit = FILE_BYTES_MAX as u64 + 1;
        let read = File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
        read.map_err(|error| {
            CommandError::own(Exit::Error, "NOT_FOUND", "script", format!("{}: {error}", path.display()))
        })?;
        if bytes.len() > FILE_BYTES_MAX {
            return Err(CommandError::usage(format!("the script is larger than {FILE_BYTES_MAX} bytes")));
        }
        steps(&bytes, encoding).map(Self::File)
    }

    /// Whether a person is asked for each step, and may correct it.
    pub(super) fn is_prompt(&self) -> bool {
        matches!(self, Self::Stdin { prompt: true, .. })
    }

    /// The next step; `None` if there is none.
    ///
    /// # Errors
    /// [`CommandError`] if a line makes no sense.
    pub(super) async fn next(&mut self, encoding: Encoding) -> Result<Option<Numbered>, CommandError> {
        let (prompt, number) = match self {
            Self::File(steps) => return Ok(steps.pop_front()),
            Self::Stdin { prompt, line } => (*prompt, line),
        };
        loop {
            if prompt {
                // If standard error is gone the prompt is not missed.
                let _ = write!(io::stderr(), "txn> ").and_then(|()| io::stderr().flush());
            }
            // Beside the runtime, which looks after the connections while a person thinks.
            let read = tokio::task::spawn_blocking(read_line).await;
            let line = read.unwrap_or_else(|cause| Err(io::Error::other(cause)));
            let line = line
                .map_err(|error| CommandError::usage(format!("standard input could not be read: {error}")))?;
            let Some(line) = line else { return Ok(None) };
            *number += 1;
            if let Some(step) = parse(&line, encoding).map_err(|cause| at_line(*number, &cause))? {
                return Ok(Some((*number, step)));
            }
        }
    }
}

/// A line without its end; `None` at the end of input.
fn read_line() -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    io::stdin().lock().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line)?;
    if line.len() > LINE_BYTES_MAX {
        return Err(io::Error::other(format!("a line is longer than {LINE_BYTES_MAX} bytes")));
    }
    Ok((!line.is_empty()).then(|| without_end(&line).to_vec()))
}

fn without_end(line: &[u8]) -> &[u8] {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn steps(text: &[u8], encoding: Encoding) -> Result<VecDeque<Numbered>, CommandError> {
    let mut steps: VecDeque<Numbered> = VecDeque::new();
    for (line, number) in text.split_inclusive(|byte| *byte == b'\n').zip(1..) {
        let step = parse(without_end(line), encoding).map_err(|cause| at_line(number, &cause))?;
        let Some(step) = step else { continue };
        if steps.back().is_some_and(|(_, last)| last.is_end()) {
            return Err(at_line(number, "it follows the end of the transaction; a script has one"));
        }
        steps.push_back((number, step));
    }
    Ok(steps)
}

fn at_line(number: usize, cause: &str) -> CommandError {
    CommandError::usage(format!("line {number}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Vec<usize>, String> {
        let steps = steps(text.as_bytes(), Encoding::Text).map_err(|error| error.message().to_owned())?;
        Ok(steps.into_iter().map(|(line, _)| line).collect())
    }

    #[test]
    fn a_file_is_checked_as_a_whole() {
        assert_eq!(lines("# a\nget a\r\n\nput a b\ncommit\n\n# end"), Ok(vec![2, 4, 5]));
        assert_eq!(lines("get a"), Ok(vec![1]), "the last line needs no end");
        assert_eq!(lines(""), Ok(vec![]));
        assert_eq!(lines("get a\nget\ncommit\n").unwrap_err(), "line 2: expected is `get K`");
        for text in ["commit\nget a\n", "abort\ncommit"] {
            let error = lines(text).unwrap_err();
            assert_eq!(error, "line 2: it follows the end of the transaction; a script has one");
        }
    }

    #[test]
    fn one_end_of_a_line_is_no_part_of_it() {
        assert_eq!(without_end(b"put a b\r\r\n"), b"put a b\r");
        assert_eq!(without_end(b"\n"), b"");
        assert_eq!(without_end(b"a"), b"a");
    }
}
