//! Golden scripts: one behaviour a file. `UPDATE_GOLDENFILES=1` rewrites them; read the difference before you accept it.
//!
//! Commands (times in milliseconds; the election timeout is 100 to 200, the heartbeat 20):
//! `nodes N [outgoing=1/2] [learners=4] [spare=5] [lease=PPM] [appends=] [entries=] [uncommitted=]`, spare nodes being
//! no members; `fill ID TERM..` gives a node that log
//! and the last of these terms, durably, and restarts it; `campaign|crash|restart|hold|release|persist ID`; `propose
//! ID TEXT..`; `read ID TICKET`; `deliver|drop|double [from=] [to=] [kind=] [count=]`; `stabilize`; `advance MS` without
//! and `run MS` with delivery; `cut A B` one way, `isolate ID`, `heal`; `compact ID INDEX`; `stream ok|lost`; `tell FROM
//! TO TERM [voters=1/2] [promise=MS]` puts the append of such a leader on the network, with a config entry
//! or, without voters, a blank one; `transfer ID TO`; `reconfigure ID voters=1/2 [learners=3]`; `reads ID
//! lease|rounds`; `skew ID PPM` sets how much too fast a clock runs, `lose ID MS` stops it for a while, `jumped ID` tells
//! the core so; `status [ID]`, `leases`, `log`, `network`.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    dead_code,
    reason = "a test may panic; the harness is shared"
)]

#[path = "harness/clock.rs"]
mod clock;
#[path = "harness/cluster.rs"]
mod cluster;
#[path = "harness/oracle.rs"]
mod oracle;

#[path = "golden/build.rs"]
mod build;
#[path = "golden/runner.rs"]
mod runner;
#[path = "golden/show.rs"]
mod show;

use std::path::Path;

use runner::Runner;

test_each_file::test_each_path! { for ["script"] in "crates/kv-raft/testscripts" as scripts => script }

fn script([path]: [&Path; 1]) {
    goldenscript::run(&mut Runner::default(), path).expect("the script runs as written");
}
