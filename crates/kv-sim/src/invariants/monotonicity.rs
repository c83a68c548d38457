//! Monotonicity: terms never fall, a vote stays for its term, commit and applied only grow.

use std::collections::BTreeMap;

use kv_raft::MessageKind;
use kv_storage::WalOp;
use kv_types::{HardState, NodeId, ShardId, Term};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Ghost, Seen, World};

/// Votes that were seen by others.
#[derive(Debug, Default)]
pub(super) struct Monotonicity {
    votes: BTreeMap<(ShardId, NodeId, Term), NodeId>,
}

impl Monotonicity {
    fn hard(&self, event: &Event<'_>, ghost: &Ghost, next: HardState) -> Holds {
        let (node, shard, name, now) = (event.node, event.shard, self.name(), ghost.memory.hard);
        hold!(next.term >= now.term, name, "{node} {shard}: {next:?} after {now:?}");
        let keeps = next.term > now.term || now.vote.is_none() || next.vote == now.vote;
        hold!(keeps, name, "{node} {shard}: the vote changes from {now:?} to {next:?}");
        hold!(
            next.promise_ms >= now.promise_ms,
            name,
            "{node} {shard}: the promise falls from {now:?} to {next:?}"
        );
        Ok(())
    }

    fn vote(&mut self, event: &Event<'_>, term: Term, whom: NodeId) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let first = *self.votes.entry((shard, node, term)).or_insert(whom);
        hold!(first == whom, name, "{node} {shard}: votes for {first} and for {whom} in {term}");
        Ok(())
    }
}

impl Invariant for Monotonicity {
    fn name(&self) -> &'static str {
        "monotonicity"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Some(ghost) = world.groups.get(&shard).and_then(|group| group.replica(node)) else {
            return Ok(());
        };
        match &event.seen {
            Seen::Wrote(
                WalOp::Raft { hard: Some(next), .. } | WalOp::Install { hard: Some(next), .. },
                _,
            ) => self.hard(event, ghost, *next),
            Seen::Sent(message) => match message.kind {
                MessageKind::VoteAck { granted: true, pre: false } => {
                    self.vote(event, message.term, message.to)
                }
                MessageKind::Vote { pre: false, .. } => self.vote(event, message.term, node),
                _ => Ok(()),
            },
            Seen::Commit(index) => {
                hold!(*index >= ghost.commit, name, "{node} {shard}: commit {index} after {}", ghost.commit);
                hold!(
                    *index <= ghost.memory.last().index,
                    name,
                    "{node} {shard}: commit {index} is past the log"
                );
                Ok(())
            }
            Seen::Applied(id, _) => {
                let (index, before) = (id.index, ghost.applied);
                hold!(index >= before, name, "{node} {shard}: applied {index} after {before}");
                let commit = ghost.commit;
                hold!(index <= commit, name, "{node} {shard}: applied {index}, {commit} is committed");
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
