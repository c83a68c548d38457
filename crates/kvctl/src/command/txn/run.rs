//! A transaction, step by step.

use std::io::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use kv_client::{Client, Committed, Expect, Txn, TxnError, TxnRow};
use kv_types::{Key, KeyRange};
use tokio::time::timeout;

use super::answers::{EndJson, StepJson};
use super::script::{FORMS, Step};
use super::source::Source;
use crate::args::Format;
use crate::command::{Ended, GRACE};
use crate::console::Console;
use crate::failure::{CommandError, Exit};

/// How long the session of a transaction that is decided is waited for to be closed; it ends by itself otherwise.
const CLOSE_MAX: Duration = Duration::from_millis(500);

/// Why a step was not done.
enum Stop {
    /// The transaction is as it was: a person may go on.
    Refused(Box<CommandError>),
    /// It is over; with the key that was in the way.
    Over(Box<CommandError>, Option<Bytes>),
}

impl From<TxnError> for Stop {
    fn from(error: TxnError) -> Self {
        match error {
            TxnError::Aborted(ref aborted) => {
                let at = aborted.at.clone();
                Self::Over(Box::new(error.into()), at)
            }
            TxnError::Unknown { ref anchor, .. } => {
                let anchor = anchor.bytes().clone();
                Self::Over(Box::new(error.into()), Some(anchor))
            }
            TxnError::Limit(_) | TxnError::Failed(_) => Self::Refused(Box::new(error.into())),
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Over(Box::new(error.into()), None)
    }
}

/// Runs a script up to its end.
pub(super) async fn run(
    mut source: Source,
    patience: Duration,
    client: &Client,
    console: &mut Console,
) -> Ended {
    let prompt = source.is_prompt();
    if prompt {
        help();
    }
    let mut txn = client.begin();
    let stopped = loop {
        let (line, step) = match source.next(console.encoding).await {
            Ok(Some(step)) => step,
            Ok(None) => {
                txn.abort();
                return given_up("end_of_input", console);
            }
            Err(error) if prompt => {
                error.report(console.format);
                continue;
            }
            Err(error) => break Stop::Refused(Box::new(error)),
        };
        match step {
            Step::Commit => match commit(txn, client, console).await {
                Ok(exit) => return Ok(exit),
                Err(stop) => break stop,
            },
            Step::Abort => {
                txn.abort();
                return given_up("abort", console);
            }
            Step::Help => help(),
            step => {
                let done = timeout(patience + GRACE, carry_out(&mut txn, (line, step), console)).await;
                let late = || CommandError::timed_out(false, patience);
                match done.unwrap_or_else(|_| Err(Stop::Refused(Box::new(late())))) {
                    Ok(()) => console.flush()?,
                    Err(Stop::Refused(error)) if prompt => error.report(console.format),
                    Err(stop) => break stop,
                }
            }
        }
    };
    let (error, key) = match stopped {
        Stop::Refused(error) => (error, None),
        Stop::Over(error, key) => (error, key),
    };
    if console.format == Format::Json {
        console.json(&EndJson::failed(&error, key.as_deref()))?;
    }
    Err(*error)
}

/// Says how a transaction that is not to be committed ended.
fn given_up(cause: &str, console: &mut Console) -> Ended {
    match console.format {
        Format::Json => console.json(&EndJson::given_up(Some(cause)))?,
        Format::Plain | Format::Table => console.line("aborted")?,
    }
    console.flush()?;
    if cause == "abort" {
        return Ok(Exit::Error);
    }
    let text = "the transaction is aborted: the input ended without `commit`";
    Err(CommandError::own(Exit::Error, "ABORTED", cause, text))
}

async fn commit(txn: Txn, client: &Client, console: &mut Console) -> Result<Exit, Stop> {
    let decided = txn.commit().await;
    if matches!(decided, Ok(_) | Err(TxnError::Aborted(_))) {
        // Nobody will ask under this session again. If it cannot be closed now it ends by itself.
        let _ = timeout(CLOSE_MAX, client.close()).await;
    }
    let Committed { header } = decided?;
    match (console.format, &header) {
        (Format::Json, header) => console.json(&EndJson::committed(header.as_ref()))?,
        (Format::Plain | Format::Table, Some(header)) => {
            let (shard, revision) = (header.shard.get(), header.revision.get());
            console.line(&format!("committed shard={shard} revision={revision}"))?;
        }
        (Format::Plain | Format::Table, None) => console.line("committed")?,
    }
    Ok(Exit::Ok)
}

async fn carry_out(txn: &mut Txn, (line, step): (usize, Step), console: &mut Console) -> Result<(), Stop> {
    match step {
        Step::Get(key) => {
            let row = txn.get(key.clone()).await?;
            got(line, &key, row.as_ref(), console)
        }
        Step::Put(key, value) => {
            txn.put(key.clone(), value)?;
            done(StepJson::of_key(line, "put", &key), console)
        }
        Step::Delete(key) => {
            txn.delete(key.clone())?;
            done(StepJson::of_key(line, "delete", &key), console)
        }
        Step::Incr(key, delta) => {
            let sum = txn.incr(key.clone(), delta).await?;
            match console.format {
                Format::Json => {
                    console.json(&StepJson::of_key(line, "incr", &key).summed(sum))?;
                }
                Format::Plain | Format::Table => console.line(&sum.to_string())?,
            }
            Ok(())
        }
        Step::Compare(key, expect) => compare(txn, line, (key, expect), console).await,
        Step::Scan(range, limit) => {
            let rows = txn.scan(range.clone(), limit).await?;
            scanned(line, &range, &rows, console)
        }
        Step::Commit | Step::Abort | Step::Help => Ok(()),
    }
}

/// Says that a step which answers nothing is done.
fn done(step: StepJson, console: &mut Console) -> Result<(), Stop> {
    match console.format {
        Format::Json => console.json(&step)?,
        Format::Plain | Format::Table => console.line("ok")?,
    }
    Ok(())
}

fn got(line: usize, key: &Key, row: Option<&TxnRow>, console: &mut Console) -> Result<(), Stop> {
    match (console.format, row) {
        (Format::Json, row) => console.json(&StepJson::of_key(line, "get", key).looked(row))?,
        (Format::Plain | Format::Table, Some(row)) => console.value(row.value.as_ref())?,
        (Format::Plain | Format::Table, None) => {
            console.flush()?;
            let text = format!("the key `{}` is absent", console.encoding.write(key.as_ref()));
            CommandError::own(Exit::Absent, "NOT_FOUND", "absent", text).report(console.format);
        }
    }
    Ok(())
}

fn scanned(line: usize, range: &KeyRange, rows: &[TxnRow], console: &mut Console) -> Result<(), Stop> {
    if console.format == Format::Json {
        return Ok(console.json(&StepJson::scanned(line, range, rows))?);
    }
    let encoding = console.encoding;
    for row in rows {
        let (key, value) = (encoding.write(row.key.as_ref()), encoding.write(row.value.as_ref()));
        console.line(&format!("{key}\t{value}"))?;
    }
    Ok(())
}

async fn compare(
    txn: &mut Txn,
    line: usize,
    (key, expect): (Key, Expect),
    console: &mut Console,
) -> Result<(), Stop> {
    let held = txn.compare(key.clone(), &expect).await?;
    // It was read just now, so that nobody is asked.
    let row = txn.get(key.clone()).await?;
    let step = StepJson::of_key(line, "compare", &key).looked(row.as_ref()).compared(held);
    if held {
        return done(step, console);
    }
    if console.format == Format::Json {
        console.json(&step)?;
    }
    let found = match row.map(|row| row.mod_revision) {
        None => "it is absent".to_owned(),
        Some(None) => "this transaction has written it".to_owned(),
        Some(Some(revision)) => format!("it was last written at revision {}", revision.get()),
    };
    let name = console.encoding.write(key.as_ref());
    let text = format!("line {line}: the key `{name}` is not as expected: {found}");
    let error = CommandError::own(Exit::CompareFailed, "FAILED_PRECONDITION", "compare_failed", text);
    Err(Stop::Over(Box::new(error), Some(key.bytes().clone())))
}

/// Tells a person what may be typed.
fn help() {
    let mut text = String::new();
    for (form, meaning) in FORMS {
        text.push_str(&format!("  {form:<28} {meaning}\n"));
    }
    text.push_str("Words with blanks are put into \"double quotes\"; \\xNN is any byte.\n");
    // If standard error is gone there is nobody to help.
    let _ = io::stderr().write_all(text.as_bytes());
}
