//! Promise kept: who answered a leader's append gives and requests no vote for as long as it promised, by its own
//! clock, from when it took the append; but at the leader's own wish.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use kv_raft::{Message, MessageKind, Round};
use kv_types::{Nanos, NodeId, ShardId, Term};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Rounds that may still be answered.
const ROUNDS_MAX: usize = 512;

/// What answering an append promises.
#[derive(Clone, Copy, Debug, Default)]
struct Promise {
    /// The leader's term: votes in it, or in earlier ones, are free.
    term: Term,
    /// When the append was taken, in true time.
    taken: Nanos,
    /// The end, by the voter's clock.
    until: Nanos,
}

/// A round, with its leader's term and name.
type NamedRound = (Term, NodeId, Round);

/// Promises under way.
#[derive(Debug, Default)]
pub(super) struct PromiseKept {
    /// What answering an append of a leader's round promises, from the first one taken. Two leaders may name their rounds
    /// alike.
    taken: BTreeMap<(ShardId, NodeId), BTreeMap<NamedRound, Promise>>,
    /// The newest promise given.
    given: BTreeMap<(ShardId, NodeId), Promise>,
    /// Candidates that stand at the wish of a leader.
    wished: BTreeSet<(ShardId, NodeId, Term)>,
}

impl PromiseKept {
    fn took(&mut self, event: &Event<'_>, message: &Message, world: &World) {
        if let MessageKind::Append { promise_ms, round, .. } = message.kind {
            let span = Duration::from_millis(u64::from(promise_ms)).max(world.election_timeout);
            let until = world.clock(event.node).after(span);
            let promise = Promise { term: message.term, taken: world.now, until };
            let taken = self.taken.entry((event.shard, event.node)).or_default();
            taken.entry((message.term, message.from, round)).or_insert(promise);
            if taken.len() > ROUNDS_MAX {
                taken.pop_first();
            }
        }
    }

    fn sent(&mut self, event: &Event<'_>, message: &Message, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let given = self.given.get(&(shard, node)).copied().unwrap_or_default();
        let early = given.until.since(world.clock(node));
        // What was decided earlier in the very turn that gave the promise is free, and so is a vote in the term of the
        // leader itself, which waited for the disk.
        let is_free = |wanted: Term| early.is_zero() || given.taken == world.now || wanted <= given.term;
        match message.kind {
            MessageKind::AppendAck { round, .. } => {
                let named = (message.term, message.to, round);
                let taken = self.taken.get(&(shard, node)).and_then(|taken| taken.get(&named));
                if let Some(taken) = taken.filter(|taken| taken.until >= given.until) {
                    self.given.insert((shard, node), *taken);
                }
            }
            MessageKind::Vote { by_transfer: true, .. } => {
                self.wished.insert((shard, node, message.term));
            }
            MessageKind::Vote { by_transfer: false, pre, .. } => {
                let wanted = if pre { message.term.next() } else { message.term };
                hold!(is_free(wanted), name, "{node} {shard}: requests votes in {wanted} {early:?} early");
            }
            MessageKind::VoteAck { granted: true, pre } => {
                let (to, wanted) = (message.to, if pre { message.term.next() } else { message.term });
                let is_wished = self.wished.contains(&(shard, to, wanted));
                hold!(
                    is_wished || is_free(wanted),
                    name,
                    "{node} {shard}: votes for {to} in {wanted} {early:?} early"
                );
            }
            _ => {}
        }
        Ok(())
    }
}

impl Invariant for PromiseKept {
    fn name(&self) -> &'static str {
        "promise-kept"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        match event.seen {
            Seen::Took(message) => {
                self.took(event, message, world);
                Ok(())
            }
            Seen::Sent(message) => self.sent(event, message, world),
            Seen::Gone => {
                self.taken.remove(&(event.shard, event.node));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
