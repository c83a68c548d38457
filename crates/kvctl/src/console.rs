//! The only way to standard output.

use std::io::{self, IsTerminal, Write};

use comfy_table::Table;
use serde::Serialize;

use crate::args::{Format, Global};
use crate::bytes_text::{Encoding, escape};

/// Where answers go, and in what form.
pub(crate) struct Console {
    pub(crate) format: Format,
    pub(crate) encoding: Encoding,
    /// Whether a person looks at the output, whose terminal must not be steered by a value.
    terminal: bool,
    out: Box<dyn Write>,
}

impl Console {
    pub(crate) fn stdout(global: &Global) -> Self {
        let stdout = io::stdout();
        Self {
            format: global.output,
            encoding: Encoding::of(global),
            terminal: stdout.is_terminal(),
            out: Box::new(io::BufWriter::new(stdout)),
        }
    }

    /// Writes a line; the caller has made it harmless.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")
    }

    /// Writes an object on a line of its own, and flushes.
    pub(crate) fn json(&mut self, object: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.out, object)?;
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    /// Writes bytes as they are.
    pub(crate) fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Writes a value and a newline: its bytes as they are, unless an encoding was asked for or a terminal shows them.
    pub(crate) fn value(&mut self, bytes: &[u8]) -> io::Result<()> {
        match (self.encoding, self.terminal) {
            (Encoding::Text, false) => self.out.write_all(bytes)?,
            (Encoding::Text, true) => self.out.write_all(escape(bytes).as_bytes())?,
            (encoding, _) => self.out.write_all(encoding.write(bytes).as_bytes())?,
        }
        self.out.write_all(b"\n")
    }

    /// Writes rows under a head: as a table, or as columns parted by tabs.
    pub(crate) fn rows(&mut self, head: &[&str], rows: Vec<Vec<String>>) -> io::Result<()> {
        if self.format == Format::Table {
            let mut table = Table::new();
            table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY).set_header(head);
            table.add_rows(rows);
            return writeln!(self.out, "{table}");
        }
        writeln!(self.out, "{}", head.join("\t"))?;
        rows.iter().try_for_each(|row| writeln!(self.out, "{}", row.join("\t")))
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
