//! How a script prints what happened.

use std::fmt::Write as _;

use kv_raft::{Message, MessageKind, NoLease};
use kv_types::{Body, Entry, Nanos};

use crate::cluster::{Cluster, Event};
use crate::runner::Outcome;

pub(crate) fn name(kind: &MessageKind) -> &'static str {
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

pub(crate) fn show(message: &Message) -> String {
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

pub(crate) fn print(out: &mut String, event: &Event) {
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
pub(crate) fn leases(cluster: &Cluster, out: &mut String) -> Outcome {
    for (id, node) in &cluster.nodes {
        let Some(raft) = &node.raft else { continue };
        let (shown, status) = (node.clock.read(cluster.now), raft.status());
        let good = if shown < node.lease.until { "good" } else { "none" };
        write!(out, "{id} at {}: {good}", millis(shown))?;
        let off = match status.lease.none {
            Some(NoLease::ClockRate(node)) => Some(node),
            _ => None,
        };
        assert_eq!(raft.clock_off(), off);
        match status.lease.none {
            Some(reason) => writeln!(out, " {reason:?} promised={}", status.lease.promise_ms)?,
            None => writeln!(out, " until {}", millis(status.lease.until))?,
        }
    }
    Ok(())
}

pub(crate) fn status(cluster: &Cluster, values: &[&str], out: &mut String) -> Outcome {
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

pub(crate) fn logs(cluster: &Cluster, out: &mut String) -> Outcome {
    for (id, node) in &cluster.nodes {
        let entries: Vec<String> =
            node.log.entries.iter().map(|entry| format!("[{}]", show_entry(entry))).collect();
        let applied = node.machine.meta.last;
        writeln!(out, "{id} after {}: {} applied={applied}", node.log.start, entries.join(" "))?;
    }
    Ok(())
}
