//! Every message, a JSON object a line, for whoever asks for it.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kv_fault::{Fate, Link, Message, Verdict};
use serde::Serialize;
use tracing::error;

/// The log, if there is one.
#[derive(Debug, Default)]
pub(crate) struct MessageLog {
    on: AtomicBool,
    file: Mutex<Option<BufWriter<File>>>,
}

#[derive(Serialize)]
struct Line {
    ms: u64,
    link: String,
    kind: &'static str,
    half: &'static str,
    shard: Option<u32>,
    term: Option<u64>,
    first: Option<u64>,
    last: Option<u64>,
    bytes: u64,
    fate: &'static str,
    delay_us: u64,
    copies: usize,
    reorder: Option<u32>,
    flips: usize,
}

impl MessageLog {
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Appends to a file from now on; without one, ends the log.
    ///
    /// # Errors
    /// The file cannot be opened or written; the log is as it was then.
    pub(crate) fn set(&self, path: Option<&Path>) -> io::Result<()> {
        let new = path.map(|path| OpenOptions::new().append(true).create(true).open(path)).transpose()?;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = file.as_mut() {
            old.flush()?;
        }
        self.on.store(new.is_some(), Ordering::Release);
        *file = new.map(BufWriter::new);
        Ok(())
    }

    /// Notes a message and what happens to it.
    pub(crate) fn write(&self, now: Duration, link: Link, message: &Message, verdict: &Verdict) {
        if !self.is_on() {
            return;
        }
        let line = Line {
            ms: millis(now),
            link: link.to_string(),
            kind: message.kind.name(),
            half: message.half.name(),
            shard: message.shard.map(kv_types::ShardId::get),
            term: message.term.map(kv_types::Term::get),
            first: message.indexes.as_ref().map(|indexes| *indexes.start()),
            last: message.indexes.as_ref().map(|indexes| *indexes.end()),
            bytes: message.bytes,
            fate: match verdict.fate {
                Fate::Deliver => "deliver",
                Fate::Drop => "drop",
                Fate::Hold(_) => "hold",
            },
            delay_us: u64::try_from(verdict.delay.as_micros()).unwrap_or(u64::MAX),
            copies: verdict.copies.len(),
            reorder: verdict.reorder,
            flips: verdict.flips.len(),
        };
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(out) = file.as_mut()
            && let Err(cause) = write_line(out, &line)
        {
            // Traffic goes on: whoever asked for the log finds it short, and why.
            error!(%cause, "the log of messages ends");
            self.on.store(false, Ordering::Release);
            *file = None;
        }
    }
}

fn write_line(out: &mut impl io::Write, line: &Line) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kv_fault::{Half, Kind};
    use kv_types::{ShardId, Term};

    #[test]
    fn a_line_says_what_a_message_was_and_what_became_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("messages.jsonl");
        let log = MessageLog::default();
        let message = Message {
            kind: Kind::Append,
            half: Half::Request,
            shard: Some(ShardId::new(1)),
            term: Some(Term::new(3)),
            indexes: Some(4..=6),
            bytes: 99,
        };
        let link: Link = "n1->n2".parse().unwrap();
        let write = || {
            log.write(
                Duration::from_millis(7),
                link,
                &message,
                &Verdict { fate: Fate::Drop, ..Verdict::PLAIN },
            )
        };
        write();
        log.set(Some(&path)).unwrap();
        write();
        log.set(None).unwrap();
        write();
        let expected = concat!(
            r#"{"ms":7,"link":"n1->n2","kind":"append","half":"request","shard":1,"term":3,"first":4,"last":6,"#,
            r#""bytes":99,"fate":"drop","delay_us":0,"copies":0,"reorder":null,"flips":0}"#,
            "\n"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        assert!(log.set(Some(&folder.path().join("no/such"))).is_err());
    }
}
