//! `completion SHELL`.

use clap::CommandFactory;

use super::Ended;
use crate::args::{Args, Completion};
use crate::console::Console;
use crate::failure::Exit;

pub(crate) fn run(args: &Completion, console: &mut Console) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Args::command(), "kvctl", &mut script);
    console.raw(&script)?;
    Ok(Exit::Ok)
}
