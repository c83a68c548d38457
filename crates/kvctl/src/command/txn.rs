//! `txn [--file F]`, `txn list|show|force`.

mod answers;
mod left;
mod parts;
mod run;
mod script;
mod source;

use std::io::{self, IsTerminal as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::timeout;

use super::{Ended, GRACE, connect};
use crate::args::{Global, TxnArgs, TxnVerb};
use crate::console::Console;
use crate::failure::CommandError;
use source::Source;

/// Runs a script, each step of which may take the timeout, or looks at what transactions have left.
pub(super) async fn run(args: TxnArgs, global: &Global, console: &mut Console) -> Ended {
    match args {
        TxnArgs { verb: None, file } => {
            let source = match file {
                Some(path) if path != Path::new("-") => Source::file(&path, console.encoding)?,
                given => Source::Stdin { prompt: given.is_none() && io::stdin().is_terminal(), line: 0 },
            };
            run::run(source, global.timeout, &connect(global, global.timeout)?, console).await
        }
        TxnArgs { verb: Some(verb), file: None } => {
            let is_write = matches!(verb, TxnVerb::Force { .. });
            let running = left(verb, global, console);
            let done = timeout(global.timeout + GRACE, running).await;
            done.unwrap_or_else(|_| Err(CommandError::timed_out(is_write, global.timeout)))
        }
        TxnArgs { verb: Some(_), file: Some(_) } => {
            Err(CommandError::usage("--file is for a script, not for `list`, `show` or `force`"))
        }
    }
}

async fn left(verb: TxnVerb, global: &Global, console: &mut Console) -> Ended {
    match verb {
        TxnVerb::List { in_doubt } => left::list(in_doubt, &connect(global, global.timeout)?, console).await,
        // These ask twice: where a shard does not answer there must be time to ask the others for more.
        TxnVerb::Show { id } => left::show(id, &connect(global, half(global))?, console).await,
        TxnVerb::Force { id } => left::force(id, &connect(global, half(global))?, console).await,
    }
}

fn half(global: &Global) -> Duration {
    global.timeout / 2
}
