//! What may stand behind `drill`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};

use super::duration;

/// Where a drill is played if nobody says otherwise: on a cluster of its own.
pub(super) const LOCAL: &str = "local";

/// Play drills, and look at what clients saw.
#[derive(Debug, ClapArgs)]
pub(crate) struct Drill {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: DrillVerb,
}

/// What can be done with drills.
#[derive(Debug, Subcommand)]
pub(crate) enum DrillVerb {
    /// Play a drill: VALID, or exit 10 VIOLATION, 11 UNKNOWN, 12 NOT EXERCISED; 1 if it could not be played
    Run(DrillRun),
    /// List the drills of a folder
    List(DrillList),
    /// Print a drill to begin with
    New(DrillNew),
    /// Say whether a history is linearisable: VALID, VIOLATION, UNKNOWN or NOT EXERCISED
    Check(DrillCheck),
}

/// Play a drill.
#[derive(Debug, ClapArgs)]
pub(crate) struct DrillRun {
    /// The drill
    pub(crate) file: PathBuf,
    /// Where: `local` starts nodes and a chaos proxy for it, on loopback; `dev` and `compose` are what `kvnode dev --chaos` and
    /// `docker compose up` started, with their usual ports; or client addresses of a running cluster
    #[arg(long, default_value = LOCAL, value_name = "local|dev|compose|ENDPOINTS")]
    pub(crate) cluster: String,
    /// Where the chaos proxy of a running cluster is controlled, HOST:PORT [of dev and compose: 127.0.0.1:7600]
    #[arg(long, value_name = "ADDR")]
    pub(crate) chaos: Option<String>,
    /// The folder for the report and the histories [default: drill-NAME-SEED]
    #[arg(long, value_name = "DIR")]
    pub(crate) report: Option<PathBuf>,
    /// What chance comes from, instead of the drill's seed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Play it so often, each time with the next seed; the worst verdict counts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub(crate) repeat: u64,
}

/// List drills.
#[derive(Debug, ClapArgs)]
pub(crate) struct DrillList {
    /// The folder
    #[arg(default_value = "drills")]
    pub(crate) folder: PathBuf,
}

/// Print a drill to begin with.
#[derive(Debug, ClapArgs)]
pub(crate) struct DrillNew {
    /// Its name: lower-case letters, digits and dashes
    pub(crate) name: String,
}

/// Say whether a history is linearisable, or strictly serialisable.
#[derive(Debug, ClapArgs)]
pub(crate) struct DrillCheck {
    /// The history: json lines, edn maps or a Jepsen log; `-` reads standard input
    pub(crate) history: PathBuf,
    /// What the clients worked on
    #[arg(long, value_enum)]
    pub(crate) model: HistoryModel,
    /// Says UNKNOWN after this long, instead of --timeout
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub(crate) deadline: Duration,
}

/// What the clients of a history worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HistoryModel {
    /// read, write; nil at first
    Register,
    /// read, write, cas; nil at first
    CasRegister,
    /// get, put, delete, cas on keys; absent at first
    Kv,
    /// get, put, append on keys; empty at first
    KvAppend,
    /// add, read; empty at first
    Set,
    /// acquire, release; free at first
    Lock,
    /// add, incr, read; 0 at first
    Counter,
    /// txn: transactions that append to lists and read them; empty at first
    Append,
    /// txn: transfers between accounts of 100 each, and looks at all of them, as drills write them down
    Bank,
}
