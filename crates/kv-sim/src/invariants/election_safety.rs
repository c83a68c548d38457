//! Election safety: at most one leader a term.

use std::collections::BTreeMap;

use kv_types::{NodeId, ShardId, Term};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Who leads which term.
#[derive(Debug, Default)]
pub(super) struct ElectionSafety {
    leaders: BTreeMap<(ShardId, Term), NodeId>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election-safety"
    }

    fn check(&mut self, event: &Event<'_>, _world: &World) -> Holds {
        if let Seen::Leads(Some(term)) = event.seen {
            let leader = *self.leaders.entry((event.shard, term)).or_insert(event.node);
            let (shard, node) = (event.shard, event.node);
            hold!(leader == node, self.name(), "{shard}: {leader} and {node} both lead {term}");
        }
        Ok(())
    }
}
