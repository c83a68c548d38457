//! Reads edn values from one line and knows where it is.

use super::{DEPTH_MAX, Fault, Placed};
use crate::datum::Datum;
use crate::error::Problem;

/// A place in a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(line: &'a str, at: usize) -> Self {
        Self { line, at }
    }

    /// At which byte it stands.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a str {
        self.line.get(self.at..).unwrap_or_default()
    }

    /// The next character, not taken.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// Passes over white space, and commas, which edn counts as such.
    pub(super) fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',').len();
    }

    /// Takes the character if it is next.
    pub(super) fn take(&mut self, wanted: char) -> bool {
        let is_next = self.peek() == Some(wanted);
        if is_next {
            self.at += wanted.len_utf8();
        }
        is_next
    }

    /// Takes everything up to white space or a bracket.
    pub(super) fn token(&mut self) -> Placed<&'a str> {
        let (rest, at) = (self.rest(), self.at);
        let ends = |c: char| c.is_whitespace() || ",()[]{}\"".contains(c);
        let token = rest.get(..rest.find(ends).unwrap_or(rest.len())).unwrap_or_default();
        self.at += token.len();
        (token, at)
    }

    /// Takes a value.
    pub(super) fn datum(&mut self) -> Result<Placed<Datum>, Fault> {
        self.nested(DEPTH_MAX)
    }

    fn nested(&mut self, depth: usize) -> Result<Placed<Datum>, Fault> {
        self.skip_space();
        let at = self.at;
        if depth == 0 {
            return Err(Fault::syntax(at, "values are nested too deep"));
        }
        let datum = match self.peek() {
            None => return Err(Fault::new(at, Problem::Truncated)),
            Some('"') => self.text()?,
            Some('[') => self.items('[', ']', depth)?,
            Some('(') => self.items('(', ')', depth)?,
            Some('{') => {
                // A map is no value that a model takes; it is kept as its text.
                self.items('{', '}', depth)?;
                Datum::text(self.line.get(at..self.at).unwrap_or_default())
            }
            Some('#') => {
                self.at += 1;
                if self.peek() == Some('{') {
                    self.items('{', '}', depth)?
                } else {
                    self.token();
                    return self.nested(depth - 1);
                }
            }
            Some(']' | ')' | '}') => return Err(Fault::syntax(at, "a value is expected")),
            Some(_) => match self.token().0 {
                "nil" => Datum::Nil,
                token => token.parse().map_or_else(|_| Datum::text(token), Datum::Int),
            },
        };
        Ok((datum, at))
    }

    fn items(&mut self, open: char, close: char, depth: usize) -> Result<Datum, Fault> {
        self.take(open);
        let mut items = Vec::new();
        loop {
            self.skip_space();
            if self.take(close) {
                return Ok(Datum::list(items));
            }
            items.push(self.nested(depth - 1)?.0);
        }
    }

    fn text(&mut self) -> Result<Datum, Fault> {
        self.take('"');
        let mut text = String::new();
        loop {
            let rest = self.rest();
            let Some(end) = rest.find(['"', '\\']) else {
                return Err(Fault::new(self.line.len(), Problem::Truncated));
            };
            text.push_str(rest.get(..end).unwrap_or_default());
            self.at += end;
            if self.take('"') {
                return Ok(Datum::text(&text));
            }
            text.push(self.escaped()?);
        }
    }

    /// Takes a backslash and what it stands for.
    fn escaped(&mut self) -> Result<char, Fault> {
        let at = self.at;
        self.take('\\');
        let Some(letter) = self.peek() else { return Err(Fault::new(at, Problem::Truncated)) };
        self.at += letter.len_utf8();
        let plain = match letter {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            '"' | '\\' => letter,
            'u' => {
                let code = self.rest().get(..4).and_then(|digits| u32::from_str_radix(digits, 16).ok());
                self.at += 4;
                return code.and_then(char::from_u32).ok_or_else(|| Fault::syntax(at, "no such escape"));
            }
            _ => return Err(Fault::syntax(at, "no such escape")),
        };
        Ok(plain)
    }
}
