//! State machine safety: no two replicas apply different entries at an index, nor come to different states by them.

use std::collections::BTreeMap;

use kv_state::StateHash;
use kv_types::{LogId, LogIndex, ShardId};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// What was applied at each index, and what it came to.
#[derive(Debug, Default)]
pub(super) struct StateMachineSafety {
    applied: BTreeMap<(ShardId, LogIndex), (LogId, StateHash)>,
}

impl Invariant for StateMachineSafety {
    fn name(&self) -> &'static str {
        "state-machine-safety"
    }

    fn check(&mut self, event: &Event<'_>, _world: &World) -> Holds {
        let Seen::Applied(id, hash) = event.seen else { return Ok(()) };
        let (node, shard) = (event.node, event.shard);
        let first = *self.applied.entry((shard, id.index)).or_insert((id, hash));
        hold!(first == (id, hash), self.name(), "{node} {shard}: {id} to {hash:?}, elsewhere {first:?}");
        Ok(())
    }
}
