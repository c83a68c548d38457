//! Leader completeness: a leader's log holds every entry that was committed in an earlier term.

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Nothing needs to be remembered: what is committed, is in the world.
#[derive(Debug)]
pub(super) struct LeaderCompleteness;

impl Invariant for LeaderCompleteness {
    fn name(&self) -> &'static str {
        "leader-completeness"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Seen::Leads(Some(term)) = event.seen else { return Ok(()) };
        let Some(group) = world.groups.get(&shard) else { return Ok(()) };
        let Some(ghost) = group.replica(node) else { return Ok(()) };
        // With log matching the last one stands for all. A vote that arrives late may make a leader of a term that is
        // past; what later terms committed, it need not hold.
        let Some(committed) = group.last_committed_before(term) else { return Ok(()) };
        let last = ghost.memory.last();
        hold!(
            ghost.memory.holds(committed),
            name,
            "{shard}: {node} leads {term} up to {last}, without {committed}, which is committed"
        );
        Ok(())
    }
}
