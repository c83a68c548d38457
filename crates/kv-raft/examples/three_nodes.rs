//! Three replicas in one process, driven by hand: an election, a command, linearisable reads by a round and by a lease, a
//! change of the membership, a hand-over.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::io::{self, Write as _};
use std::time::Duration;

use kv_raft::{Config, LeaseConfig, Message, MessageKind, Raft, Restored, Target, Ticket};
use kv_types::{Entry, LogId, LogIndex, Membership, Nanos, NodeId, SnapshotMeta, Term};

/// A replica and its log; the disk of this example is always done at once.
struct Node {
    raft: Raft,
    log: BTreeMap<LogIndex, Entry>,
}

fn start(id: NodeId, now: Nanos) -> Result<Node, Box<dyn Error>> {
    let config = Config::new(id, 1, 42);
    // A group is born as a snapshot of term 1 that names its members.
    let last = LogId::new(Term::new(1), LogIndex::FIRST);
    let membership = Membership::of_voters((1..=3).map(NodeId::new));
    let restored =
        Restored { base: SnapshotMeta { last, membership }, log_start: last, ..Restored::default() };
    Ok(Node { raft: Raft::new(config, now, restored)?, log: BTreeMap::new() })
}

/// Carries out what one replica asks for.
fn drive(node: &mut Node, now: Nanos, network: &mut VecDeque<Message>) -> io::Result<()> {
    let id = node.raft.status().id;
    let output = node.raft.take();
    if let Some(role) = output.role {
        writeln!(io::stdout(), "{id} is {} in {}", role.role, role.term)?;
    }
    let mut sent = output.send;
    if let Some(write) = output.write {
        if let Some(from) = write.truncate_from {
            node.log.split_off(&from);
        }
        node.log.extend(write.append.into_iter().map(|entry| (entry.id.index, entry)));
        node.raft.persisted(now, write.id);
    }
    sent.extend(output.send_after.into_iter().map(|(_, message)| message));
    for mut message in sent {
        if let MessageKind::Append { prev, last, entries, .. } = &mut message.kind {
            let range = prev.index.next()..last.index.next();
            entries.extend(node.log.range(range).map(|(_, entry)| entry.clone()));
        }
        network.push_back(message);
    }
    if let Some(commit) = output.commit {
        writeln!(io::stdout(), "{id} commits {commit}")?;
        node.raft.applied(commit.index);
    }
    if let Some(lease) = output.lease {
        writeln!(
            io::stdout(),
            "{id} leads {} by a lease until {} ms",
            lease.term,
            lease.until.get() / 1_000_000
        )?;
    }
    for (ticket, result) in output.reads {
        writeln!(io::stdout(), "{id} may serve read {} once it has applied {result:?}", ticket.get())?;
    }
    Ok(())
}

/// Runs the group until nobody has anything to say.
fn settle(nodes: &mut BTreeMap<NodeId, Node>, now: Nanos) -> io::Result<()> {
    let mut network = VecDeque::new();
    loop {
        // Twice: what becomes durable in the first round may have effects of its own.
        for node in nodes.values_mut() {
            drive(node, now, &mut network)?;
            drive(node, now, &mut network)?;
        }
        let Some(message) = network.pop_front() else { return Ok(()) };
        if let Some(node) = nodes.get_mut(&message.to) {
            node.raft.step(now, message);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let now = Nanos::new(0);
    let mut nodes = BTreeMap::new();
    for id in (1..=3).map(NodeId::new) {
        nodes.insert(id, start(id, now)?);
    }
    let (first, second) = (NodeId::new(1), NodeId::new(2));
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.campaign(now)?;
    settle(&mut nodes, now)?;
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.propose(vec!["put a 1".into()])?;
    settle(&mut nodes, now)?;
    nodes.get_mut(&second).ok_or("n2 runs")?.raft.read(now, Ticket::new(7))?;
    settle(&mut nodes, now)?;

    // With a lease, a read needs no message.
    let lease = LeaseConfig { drift_ppm: 10_000, granularity: Duration::from_millis(1) };
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.set_lease(now, Some(lease))?;
    let now = now.after(Duration::from_millis(50));
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.tick(now);
    settle(&mut nodes, now)?;
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.read(now, Ticket::new(8))?;
    settle(&mut nodes, now)?;

    // n3 becomes a learner; n2 takes over.
    let target = Target { voters: [first, second].into(), learners: [NodeId::new(3)].into() };
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.reconfigure(now, target)?;
    settle(&mut nodes, now)?;
    nodes.get_mut(&first).ok_or("n1 runs")?.raft.transfer(now, second)?;
    settle(&mut nodes, now)?;
    for node in nodes.values() {
        let status = node.raft.status();
        writeln!(io::stdout(), "{}: {} in {}, {}", status.id, status.role, status.term, status.membership)?;
    }
    Ok(())
}
