//! Leader append-only: a leader never overwrites or removes entries of its log, it only appends.

use kv_storage::WalOp;

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Nothing needs to be remembered.
#[derive(Debug)]
pub(super) struct LeaderAppendOnly;

impl Invariant for LeaderAppendOnly {
    fn name(&self) -> &'static str {
        "leader-append-only"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let Seen::Wrote(op, leads) = &event.seen else { return Ok(()) };
        let (node, shard) = (event.node, event.shard);
        let Some(ghost) = world.groups.get(&shard).and_then(|group| group.replica(node)) else {
            return Ok(());
        };
        // A turn in which leadership begins or ends may hold what the follower did.
        if leads.is_none() || ghost.leads != *leads {
            return Ok(());
        }
        let name = self.name();
        match op {
            WalOp::Raft { truncate_from, append, .. } => {
                hold!(truncate_from.is_none(), name, "{shard}: leader {node} cuts from {truncate_from:?}");
                let next = ghost.memory.last().index.next();
                let first = append.first().map(|entry| entry.id.index);
                hold!(
                    first.is_none_or(|first| first == next),
                    name,
                    "{shard}: {node} appends {first:?} at {next}"
                );
            }
            WalOp::Install { base, .. } => {
                hold!(false, name, "{shard}: leader {node} installs {}", base.meta.last);
            }
            WalOp::Compact(_)
            | WalOp::MergeBegin(_)
            | WalOp::BaseAt(_)
            | WalOp::Regenerated(_)
            | WalOp::Damaged(_) => {}
        }
        Ok(())
    }
}
