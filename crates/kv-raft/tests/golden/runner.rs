//! Runs the commands of a script on a group.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Duration;

use goldenscript::{Argument, Command, Context};
use kv_raft::{Message, Refused, Ticket};
use kv_types::{LogIndex, NodeId, Term};

use crate::cluster::{Cluster, Options};
use crate::{build, show};

/// Changes the settings of a group.
pub(crate) type Change = Box<dyn Fn(&mut Options)>;

/// A script's group, once `nodes` has built it.
#[derive(Default)]
pub(crate) struct Runner {
    pub(crate) cluster: Option<Cluster>,
    /// What else is set when the group is built.
    pub(crate) change: Option<Change>,
}

pub(crate) type Outcome = Result<(), Box<dyn Error>>;

impl goldenscript::Runner for Runner {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        let mut out = String::new();
        if command.name == "nodes" {
            self.cluster = Some(build::nodes(&command.args, self.change.as_ref())?);
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
