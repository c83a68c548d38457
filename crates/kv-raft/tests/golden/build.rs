//! What a script builds: groups, logs, messages of leaders that do not exist.

use std::collections::BTreeSet;
use std::error::Error;
use std::time::Duration;

use goldenscript::Argument;
use kv_raft::{LeaseConfig, Message, MessageKind, Target};
use kv_types::{Body, Entry, HardState, Lamport, LogId, LogIndex, Membership, NodeId, Term};

use crate::cluster::{Cluster, Disk, Log, Options};
use crate::runner::{Change, Outcome};

pub(crate) fn lease(drift_ppm: u32) -> LeaseConfig {
    LeaseConfig { drift_ppm, granularity: Duration::ZERO }
}

pub(crate) fn target(args: &[Argument]) -> Result<Target, Box<dyn Error>> {
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

pub(crate) fn list(text: &str) -> Result<BTreeSet<NodeId>, Box<dyn Error>> {
    Ok(text.split('/').map(str::parse).collect::<Result<_, _>>()?)
}

pub(crate) fn nodes(args: &[Argument], change: Option<&Change>) -> Result<Cluster, Box<dyn Error>> {
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
    if let Some(change) = change {
        change(&mut options);
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
pub(crate) fn fill(cluster: &mut Cluster, id: NodeId, terms: &[&str], term: Option<&str>) -> Outcome {
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
pub(crate) fn tell(
    cluster: &mut Cluster,
    from: NodeId,
    to: NodeId,
    term: Term,
    args: &[Argument],
) -> Outcome {
    let log = &cluster.nodes[&to].log;
    let mut prev = log.last();
    let mut membership = Membership::default();
    let mut promise_ms = 0;
    for arg in args {
        let (key, value) = key_value(arg);
        match key {
            Some("promise") => promise_ms = value.parse()?,
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
    let kind = MessageKind::Append { prev, last, entries, commit, round, promise_ms };
    cluster.network.push_back(Message { from, to, term, kind });
    Ok(())
}
