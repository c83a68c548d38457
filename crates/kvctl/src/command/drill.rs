//! The verbs of `drill`.

mod check;
mod play;
mod shelf;

use super::Ended;
use crate::args::{DrillVerb, Global};
use crate::console::Console;

pub(crate) fn run(verb: &DrillVerb, global: &Global, console: &mut Console) -> Ended {
    match verb {
        DrillVerb::Run(args) => play::run(args, global, console),
        DrillVerb::List(args) => shelf::list(&args.folder, console),
        DrillVerb::New(args) => shelf::new(&args.name, console),
        DrillVerb::Check(args) => check::check(args, console),
    }
}
