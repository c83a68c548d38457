//! Golden scripts: one behaviour a file. `UPDATE_GOLDENFILES=1` rewrites them; read the difference before you accept it.
//!
//! Commands (times in milliseconds; the election timeout is 100 to 200, the heartbeat 20):
//! `nodes N [outgoing=1/2] [learners=4] [spare=5] [lease=PPM] [appends=] [entries=] [uncommitted=]`, spare nodes being
//! no members; `fill ID TERM..` gives a node that log
//! and the last of these terms, durably, and restarts it; `campaign|crash|restart|hold|release|persist ID`; `propose
//! ID TEXT..`; `read ID TICKET`; `deliver|drop|double [from=] [to=] [kind=] [count=]`; `stabilize`; `advance MS` without
//! and `run MS` with delivery; `cut A B` one way, `isolate ID`, `heal`; `compact ID INDEX`; `stream ok|lost`; `tell FROM
//! TO TERM voters=1/2` puts the append of such a leader on the network, with a config entry
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

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use cluster::{Cluster, Disk, Event, Log, Options};
use goldenscript::{Argument, Command, Context};
use kv_raft::{LeaseConfig, Message, MessageKind, Refused, Target, Ticket};
use kv_types::{Body, Entry, HardState, Lamport, LogId, LogIndex, Membership, Nanos, NodeId, Term};

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
            self.cluster = Some(nodes(&command.args)?);
            return Ok(out);
        }
        let cluster = self.cluster.as_mut().ok_or("`nodes` comes first")?;
        cluster.events.clear();
        run(cluster, command, &mut out)?;
        for event in std::mem::take(&mut cluster.events) {
            print(&mut out, &event);
        }
        Ok(out)
    }
}

fn run(cluster: &mut Cluster, command: &Command, out: &mut String) -> Outcome {
    let values: Vec<&str> = command
        .args
        .iter()
        .filter_map(|arg| if let Argument::Positional(value) = arg { Some(value.as_str()) } else { None })
        .collect();
    let node = || -> Result<NodeId, Box<dyn Error>> { Ok(values.first().ok_or("which node?")?.parse()?) };
    let number =
        |at: usize| -> Result<u64, Box<dyn Error>> { Ok(values.get(at).ok_or("a number?")?.parse()?) };
    match command.name.as_str() {
        "campaign" => {
            say(out, cluster.on(node()?, |raft, now| raft.campaign(now)))?;
        }
        "transfer" => {
            let to = NodeId::new(number(1)?);
            say(out, cluster.on(node()?, |raft, now| raft.transfer(now, to)))?;
        }
        "reconfigure" => {
            let target = target(&command.args)?;
            say(out, cluster.on(node()?, |raft, now| raft.reconfigure(now, target).map(|_| ())))?;
        }
        "reads" => {
            let lease = values.contains(&"lease").then_some(lease(10_000));
            cluster.on(node()?, |raft, now| raft.set_lease(now, lease)).ok_or("it is down")??;
        }
        "skew" => cluster.skew(node()?, values.get(1).ok_or("how much?")?.parse()?),
        "lose" => {
            let (now, span) = (cluster.now, Duration::from_millis(number(1)?));
            cluster.nodes.get_mut(&node()?).ok_or("no such node")?.clock.lose(now, span);
        }
        "jumped" => {
            cluster.on(node()?, |raft, now| raft.clock_jumped(now));
        }
        "crash" => cluster.crash(node()?),
        "restart" => cluster.restart(node()?),
        "hold" => cluster.nodes.get_mut(&node()?).unwrap().disk_held = true,
        "release" => {
            cluster.nodes.get_mut(&node()?).unwrap().disk_held = false;
            while cluster.persist(node()?) {}
        }
        "persist" => {
            cluster.persist(node()?);
        }
        "propose" => {
            say(out, cluster.propose(node()?, &values[1..]))?;
        }
        "read" => {
            let ticket = Ticket::new(number(1)?);
            say(out, cluster.read(node()?, ticket))?;
        }
        "deliver" | "drop" | "double" => messages(cluster, command)?,
        "stabilize" => cluster.stabilize(),
        "advance" => cluster.advance(Duration::from_millis(number(0)?), false),
        "run" => cluster.advance(Duration::from_millis(number(0)?), true),
        "cut" => {
            cluster.cut.insert((node()?, NodeId::new(number(1)?)));
        }
        "isolate" => {
            let id = node()?;
            for other in cluster.nodes.keys() {
                cluster.cut.extend([(id, *other), (*other, id)]);
            }
        }
        "heal" => cluster.cut.clear(),
        "compact" => cluster.compact(node()?, LogIndex::new(number(1)?)),
        "stream" => {
            let (from, job) = cluster.streams.pop_front().ok_or("no stream is under way")?;
            cluster.finish_stream(from, job, values == ["ok"]);
        }
        "unreachable" => {
            let peer = NodeId::new(number(1)?);
            cluster.on(node()?, |raft, _| raft.unreachable(peer));
        }
        "fill" => fill(cluster, node()?, &values[1..], command.consume_args().take_key("term"))?,
        "tell" => tell(cluster, node()?, NodeId::new(number(1)?), Term::new(number(2)?), &command.args)?,
        "status" => status(cluster, &values, out)?,
        "leases" => leases(cluster, out)?,
        "log" => logs(cluster, out)?,
        "network" => {
            for message in &cluster.network {
                writeln!(out, "{}", show(message))?;
            }
        }
        other => return Err(format!("unknown command {other}").into()),
    }
    Ok(())
}

fn say(out: &mut String, result: Option<Result<(), Refused>>) -> Outcome {
    if let Some(Err(refused)) = result {
        writeln!(out, "refused: {refused:?}")?;
    }
    Ok(())
}

fn lease(drift_ppm: u32) -> LeaseConfig {
    LeaseConfig { drift_ppm, granularity: Duration::ZERO }
}

fn target(args: &[Argument]) -> Result<Target, Box<dyn Error>> {
    let mut target = Target::default();
    for arg in args {
        match key_value(arg) {
            (Some("voters"), value) => target.voters = list(value)?,
            (Some("learners"), value) => target.learners = list(value)?,
            _ => {}
        }
    }
    Ok(target)
}

fn list(text: &str) -> Result<BTreeSet<NodeId>, Box<dyn Error>> {
    Ok(text.split('/').map(str::parse).collect::<Result<_, _>>()?)
}

fn nodes(args: &[Argument]) -> Result<Cluster, Box<dyn Error>> {
    let mut options = Options::new(Membership::default());
    let mut spare = BTreeSet::new();
    for arg in args {
        let (key, value) = key_value(arg);
        match key {
            None => {
                let count: u64 = value.parse()?;
                options.membership.voters = (1..=count).map(NodeId::new).collect();
            }
            Some("outgoing") => options.membership.outgoing = list(value)?,
            Some("learners") => options.membership.learners = list(value)?,
            Some("spare") => spare = list(value)?,
            Some("lease") => options.lease = Some(lease(value.parse()?)),
            Some("appends") => options.in_flight_appends_max = value.parse()?,
            Some("bytes") => options.in_flight_bytes_max = value.parse()?,
            Some("entries") => options.append_entries_max = value.parse()?,
            Some("uncommitted") => options.uncommitted_bytes_max = value.parse()?,
            Some(key) => return Err(format!("unknown key {key}").into()),
        }
    }
    let mut cluster = Cluster::new(options);
    for id in spare {
        cluster.install(id, Disk::default());
    }
    Ok(cluster)
}

fn key_value(arg: &Argument) -> (Option<&str>, &str) {
    match arg {
        Argument::KeyValue(key, value) => (Some(key), value),
        Argument::Positional(value) => (None, value),
        _ => panic!("unknown kind of argument {arg}"),
    }
}

/// Gives a node the log whose entries have these terms, from index 2 on.
fn fill(cluster: &mut Cluster, id: NodeId, terms: &[&str], term: Option<&str>) -> Outcome {
    cluster.crash(id);
    let base = cluster.nodes[&id].disk.base.clone();
    let mut log = Log { start: base.meta.last, entries: Vec::new() };
    for (index, term) in (2..).zip(terms) {
        let term = Term::new(term.parse()?);
        let body = Body::Command(format!("{term}").into());
        log.entries.push(Entry { id: LogId::new(term, LogIndex::new(index)), stamp: Lamport::ZERO, body });
    }
    let term = term.map_or(Ok(log.last().term), |term| term.parse().map(Term::new))?;
    let hard = HardState { term, ..HardState::default() };
    cluster.install(id, Disk { hard, base, log });
    Ok(())
}

/// Puts an append with a config entry on the network, at the end of the receiver's log.
fn tell(cluster: &mut Cluster, from: NodeId, to: NodeId, term: Term, args: &[Argument]) -> Outcome {
    let log = &cluster.nodes[&to].log;
    let mut prev = log.last();
    let mut membership = Membership::default();
    for arg in args {
        let (key, value) = key_value(arg);
        match key {
            Some("after") => {
                prev = log.get(LogIndex::new(value.parse()?)).ok_or("no such entry")?.id;
            }
            Some("voters") => membership.voters = list(value)?,
            Some("outgoing") => membership.outgoing = list(value)?,
            Some("learners") => membership.learners = list(value)?,
            _ => {}
        }
    }
    let last = LogId::new(term, prev.index.next());
    let body = if membership.voters.is_empty() { Body::Blank } else { Body::Config(membership) };
    let entry = Entry { id: last, stamp: Lamport::ZERO, body };
    let round = kv_raft::Round::default();
    let (entries, commit) = (vec![entry], LogIndex::ZERO);
    let kind = MessageKind::Append { prev, last, entries, commit, round, promise_ms: 0 };
    cluster.network.push_back(Message { from, to, term, kind });
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
            && kind.is_none_or(|kind| name(&message.kind) == kind)
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

fn name(kind: &MessageKind) -> &'static str {
    match kind {
        MessageKind::Append { .. } => "append",
        MessageKind::AppendAck { .. } => "append-ack",
        MessageKind::Vote { pre: false, .. } => "vote",
        MessageKind::Vote { pre: true, .. } => "pre-vote",
        MessageKind::VoteAck { pre: false, .. } => "vote-ack",
        MessageKind::VoteAck { pre: true, .. } => "pre-vote-ack",
        MessageKind::TimeoutNow { .. } => "timeout-now",
        MessageKind::ReadIndex { .. } => "read-index",
        MessageKind::ReadIndexAck { .. } => "read-index-ack",
    }
}

fn show(message: &Message) -> String {
    let Message { from, to, term, kind } = message;
    let what = match kind {
        MessageKind::Append { prev, last, entries, commit, round, promise_ms } => {
            let (count, round) = (entries.len(), round.number);
            let promise = if *promise_ms > 0 { format!(" promise={promise_ms}") } else { String::new() };
            format!("prev={prev} last={last} entries={count} commit={commit} round={round}{promise}")
        }
        MessageKind::AppendAck { round, result: Ok(index), .. } => {
            format!("match={index} round={}", round.number)
        }
        MessageKind::AppendAck { result: Err(conflict), .. } => {
            format!("conflict={} hint={}", conflict.prev, conflict.hint)
        }
        MessageKind::Vote { last, by_transfer: true, .. } => format!("last={last} by_transfer"),
        MessageKind::Vote { last, .. } | MessageKind::TimeoutNow { last } => format!("last={last}"),
        MessageKind::VoteAck { granted, .. } => format!("granted={granted}"),
        MessageKind::ReadIndex { round } => format!("round={}", round.number),
        MessageKind::ReadIndexAck { round, result } => format!("round={} {result:?}", round.number),
    };
    format!("{from}->{to} {term} {} {what}", name(kind))
}

fn show_entry(entry: &Entry) -> String {
    match &entry.body {
        Body::Blank => format!("{} blank", entry.id),
        Body::Command(command) => format!("{} {}", entry.id, String::from_utf8_lossy(command)),
        Body::Config(membership) => format!("{} {membership}", entry.id),
    }
}

fn print(out: &mut String, event: &Event) {
    let line = match event {
        Event::Sent(message) => show(message),
        Event::Unfilled(message) => format!("not sent: {}", show(message)),
        Event::Wrote(id, write) => {
            let mut line = format!("{id} write {}", write.id);
            if let Some(hard) = write.hard {
                let vote = hard.vote.map_or("none".to_owned(), |vote| vote.to_string());
                write!(line, " hard={}/{vote}", hard.term).unwrap();
                if hard.promise_ms > 0 {
                    write!(line, "/{}ms", hard.promise_ms).unwrap();
                }
            }
            if let Some(reset) = &write.reset {
                write!(line, " reset={} keep_tail={}", reset.meta.last, reset.keep_tail).unwrap();
            }
            if let Some(from) = write.truncate_from {
                write!(line, " truncate_from={from}").unwrap();
            }
            for entry in &write.append {
                write!(line, " [{}]", show_entry(entry)).unwrap();
            }
            line
        }
        Event::Committed(id, commit) => format!("{id} commit {commit}"),
        Event::Role(id, role) => {
            let leader = role.leader.map_or("none".to_owned(), |leader| leader.to_string());
            format!("{id} is {} in {}, leader {leader}", role.role, role.term)
        }
        Event::Read(id, ticket, result) => format!("{id} read {}: {result:?}", ticket.get()),
        Event::Lease(id, lease) if lease.until == Nanos::default() => format!("{id} has no lease"),
        Event::Lease(id, lease) => format!("{id} leads {} until {}", lease.term, millis(lease.until)),
        Event::Snapshot(from, to) => format!("{from} streams a snapshot to {to}"),
        Event::Fatal(id, fatal) => format!("{id} FATAL: {fatal}"),
    };
    writeln!(out, "{line}").unwrap();
}

fn millis(at: Nanos) -> String {
    format!("{}.{:06}ms", at.get() / 1_000_000, at.get() % 1_000_000)
}

/// What each node's readers see, and why a leader has no lease.
fn leases(cluster: &Cluster, out: &mut String) -> Outcome {
    for (id, node) in &cluster.nodes {
        let Some(raft) = &node.raft else { continue };
        let (shown, status) = (node.clock.read(cluster.now), raft.status());
        let good = if shown < node.lease.until { "good" } else { "none" };
        write!(out, "{id} at {}: {good}", millis(shown))?;
        match status.lease.none {
            Some(reason) => writeln!(out, " {reason:?} promised={}", status.lease.promise_ms)?,
            None => writeln!(out, " until {}", millis(status.lease.until))?,
        }
    }
    Ok(())
}

fn status(cluster: &Cluster, values: &[&str], out: &mut String) -> Outcome {
    for (id, node) in &cluster.nodes {
        if values.first().is_some_and(|wanted| id.get().to_string() != *wanted) {
            continue;
        }
        let Some(raft) = &node.raft else {
            writeln!(out, "{id} down")?;
            continue;
        };
        let status = raft.status();
        let (role, term, commit, last) = (status.role, status.term, status.commit, status.last);
        let durable = status.durable;
        writeln!(
            out,
            "{id} {role} {term} commit={commit} last={last} durable={durable} {}",
            status.membership
        )?;
        for (peer, progress) in status.peers {
            let (matched, next, state) = (progress.matched, progress.next, progress.state);
            writeln!(out, "  {peer} match={matched} next={next} {state:?} in_flight={}", progress.in_flight)?;
        }
    }
    Ok(())
}

fn logs(cluster: &Cluster, out: &mut String) -> Outcome {
    for (id, node) in &cluster.nodes {
        let entries: Vec<String> =
            node.log.entries.iter().map(|entry| format!("[{}]", show_entry(entry))).collect();
        let applied = node.machine.meta.last;
        writeln!(out, "{id} after {}: {} applied={applied}", node.log.start, entries.join(" "))?;
    }
    Ok(())
}
