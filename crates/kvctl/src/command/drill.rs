//! The verbs of `drill`.

mod check;
mod play;
mod shelf;

use super::Ended;
use crate::args::DrillVerb;
use crate::console::Console;

pub(crate) fn run(verb: &DrillVerb, console: &mut Console) -> Ended {
    match verb {
        DrillVerb::Run(args) => play::run(args, console),
        DrillVerb::List(args) => shelf::list(&args.folder, console),
        DrillVerb::New(args) => shelf::new(&args.name, console),
        DrillVerb::Check(args) => check::check(args, console),
    }
}
