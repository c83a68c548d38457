//! Uniform agreement: what one replica knows to be committed at an index, no other knows otherwise, even if one of them
//! fails later.

use kv_types::LogIndex;

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Nothing needs to be remembered.
#[derive(Debug)]
pub(super) struct UniformAgreement;

impl Invariant for UniformAgreement {
    fn name(&self) -> &'static str {
        "uniform-agreement"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let Seen::Commit(commit) = event.seen else { return Ok(()) };
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Some(group) = world.groups.get(&shard) else { return Ok(()) };
        let Some(ghost) = group.replica(node) else { return Ok(()) };
        for index in ghost.commit.get() + 1..=commit.get() {
            let index = LogIndex::new(index);
            let (ours, theirs) = (ghost.memory.at(index), group.committed_at(index));
            match (ours, theirs) {
                (Some(ours), Some(theirs)) => {
                    hold!(ours == theirs, name, "{node} {shard}: commits {ours} where {theirs} is committed");
                }
                // What a snapshot covers was known to its sender.
                (None, None) => hold!(false, name, "{node} {shard}: commits an unknown entry at {index}"),
                (Some(_), None) | (None, Some(_)) => {}
            }
        }
        Ok(())
    }
}
