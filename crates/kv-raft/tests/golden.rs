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
#[path = "golden/show.rs"]
mod show;

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use cluster::Cluster;
use goldenscript::{Argument, Command, Context};
use kv_raft::{Message, Refused, Ticket};
use kv_types::{LogIndex, NodeId, Term};

test_each_file::test_each_path! { for ["script"] in "crates/kv-raft/testscripts" as scripts => script }

fn script([path]: [&Path; 1]) {
    goldenscript::run(&mut Runner { cluster: None }, path).expect("the script runs as written");
}

struct Runner {
    cluster: Option<Cluster>,
}

type Outcome = Result<(), Box<dyn Error>>;

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut out = String::new();
        if command.name == "nodes" {
            self.cluster = Some(build::nodes(&command.args)?);
            return Ok(out);
        }
        let cluster = self.cluster.as_mut().ok_or("`nodes` comes first")?;
        cluster.events.clear();
        run(cluster, command, &mut out)?;
        for event in std::mem::take(&mut cluster.events) {
            show::print(&mut out, &event);
        }
        Ok(out)
    }
}

/// The positional arguments of a command.
struct Values<'a>(Vec<&'a str>);

impl Values<'_> {
    fn node(&self) -> Result<NodeId, Box<dyn Error>> {
        Ok(self.0.first().ok_or("which node?")?.parse()?)
    }

    fn number(&self, at: usize) -> Result<u64, Box<dyn Error>> {
        Ok(self.0.get(at).ok_or("a number?")?.parse()?)
    }

    fn span(&self, at: usize) -> Result<Duration, Box<dyn Error>> {
        Ok(Duration::from_millis(self.number(at)?))
    }

    fn rest(&self) -> &[&str] {
        self.0.get(1..).unwrap_or_default()
    }
}

fn run(cluster: &mut Cluster, command: &Command, out: &mut String) -> Outcome {
    let mut values = Vec::new();
    for arg in &command.args {
        if let Argument::Positional(value) = arg {
            values.push(value.as_str());
        }
    }
    let values = Values(values);
    let known = asked(cluster, command, &values, out)?
        || moved(cluster, command, &values)?
        || shown(cluster, command, &values, out)?;
    if known { Ok(()) } else { Err(format!("unknown command {}", command.name).into()) }
}

/// Requests to a core.
fn asked(
    cluster: &mut Cluster,
    command: &Command,
    values: &Values<'_>,
    out: &mut String,
) -> Result<bool, Box<dyn Error>> {
    match command.name.as_str() {
        "campaign" => say(out, cluster.on(values.node()?, |raft, now| raft.campaign(now)))?,
        "transfer" => {
            let to = NodeId::new(values.number(1)?);
            say(out, cluster.on(values.node()?, |raft, now| raft.transfer(now, to)))?;
        }
        "reconfigure" => {
            let target = build::target(&command.args)?;
            say(out, cluster.on(values.node()?, |raft, now| raft.reconfigure(now, target).map(|_| ())))?;
        }
        "reads" => {
            let lease = values.rest().contains(&"lease").then_some(build::lease(10_000));
            cluster.on(values.node()?, |raft, now| raft.set_lease(now, lease)).ok_or("it is down")??;
        }
        "propose" => say(out, cluster.propose(values.node()?, values.rest()))?,
        "read" => say(out, cluster.read(values.node()?, Ticket::new(values.number(1)?)))?,
        "unreachable" => {
            let peer = NodeId::new(values.number(1)?);
            cluster.on(values.node()?, |raft, _| raft.unreachable(peer));
        }
        "jumped" => {
            cluster.on(values.node()?, |raft, now| raft.clock_jumped(now));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// What happens to disks, network, clocks and nodes.
fn moved(cluster: &mut Cluster, command: &Command, values: &Values<'_>) -> Result<bool, Box<dyn Error>> {
    match command.name.as_str() {
        "crash" => cluster.crash(values.node()?),
        "restart" => cluster.restart(values.node()?),
        "hold" => cluster.nodes.get_mut(&values.node()?).unwrap().disk_held = true,
        "release" => {
            cluster.nodes.get_mut(&values.node()?).unwrap().disk_held = false;
            while cluster.persist(values.node()?) {}
        }
        "persist" => {
            cluster.persist(values.node()?);
        }
        "skew" => cluster.skew(values.node()?, values.rest().first().ok_or("how much?")?.parse()?),
        "lose" => {
            let now = cluster.now;
            cluster.nodes.get_mut(&values.node()?).unwrap().clock.lose(now, values.span(1)?);
        }
        "deliver" | "drop" | "double" => messages(cluster, command)?,
        "stabilize" => cluster.stabilize(),
        "advance" => cluster.advance(values.span(0)?, false),
        "run" => cluster.advance(values.span(0)?, true),
        "cut" => {
            cluster.cut.insert((values.node()?, NodeId::new(values.number(1)?)));
        }
        "isolate" => {
            let id = values.node()?;
            for other in cluster.nodes.keys() {
                cluster.cut.extend([(id, *other), (*other, id)]);
            }
        }
        "heal" => cluster.cut.clear(),
        "compact" => cluster.compact(values.node()?, LogIndex::new(values.number(1)?)),
        "stream" => {
            let (from, job) = cluster.streams.pop_front().ok_or("no stream is under way")?;
            cluster.finish_stream(from, job, values.0 == ["ok"]);
        }
        "fill" => {
            let term = command.consume_args().take_key("term");
            build::fill(cluster, values.node()?, values.rest(), term)?;
        }
        "tell" => {
            let (to, term) = (NodeId::new(values.number(1)?), Term::new(values.number(2)?));
            build::tell(cluster, values.node()?, to, term, &command.args)?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Looks at what is.
fn shown(
    cluster: &Cluster,
    command: &Command,
    values: &Values<'_>,
    out: &mut String,
) -> Result<bool, Box<dyn Error>> {
    match command.name.as_str() {
        "status" => show::status(cluster, &values.0, out)?,
        "leases" => show::leases(cluster, out)?,
        "log" => show::logs(cluster, out)?,
        "network" => {
            for message in &cluster.network {
                writeln!(out, "{}", show::show(message))?;
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn say(out: &mut String, result: Option<Result<(), Refused>>) -> Outcome {
    if let Some(Err(refused)) = result {
        writeln!(out, "refused: {refused:?}")?;
    }
    Ok(())
}

fn messages(cluster: &mut Cluster, command: &Command) -> Outcome {
    let mut args = command.consume_args();
    let key = |args: &mut goldenscript::ArgumentConsumer<'_>, key| -> Result<Option<u64>, Box<dyn Error>> {
        Ok(args.take_key(key).map(str::parse).transpose()?)
    };
    let (from, to) = (key(&mut args, "from")?, key(&mut args, "to")?);
    let count = key(&mut args, "count")?.unwrap_or(u64::MAX);
    let kind = args.take_key("kind");
    args.reject_next()?;
    let fits = |message: &Message| {
        from.is_none_or(|from| message.from.get() == from)
            && to.is_none_or(|to| message.to.get() == to)
            && kind.is_none_or(|kind| show::name(&message.kind) == kind)
    };
    // Only what is under way now: answers wait for the next command.
    let (mut chosen, mut rest) = (Vec::new(), Vec::new());
    for message in cluster.network.drain(..) {
        let take = (chosen.len() as u64) < count && fits(&message);
        if take { chosen.push(message) } else { rest.push(message) }
    }
    cluster.network.extend(rest);
    for message in chosen {
        match command.name.as_str() {
            "deliver" => cluster.deliver(message),
            "double" => cluster.network.extend([message.clone(), message]),
            _ => {}
        }
    }
    Ok(())
}
