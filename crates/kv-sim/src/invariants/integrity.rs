//! Integrity: every replica applies each index once, in order, and each command takes effect once.

use std::collections::BTreeMap;

use bytes::Bytes;
use kv_types::{Body, LogId, ShardId};

use super::Invariant;
use crate::oracle::is_unique;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Where each command was applied.
#[derive(Debug, Default)]
pub(super) struct Integrity {
    applied: BTreeMap<(ShardId, Bytes), LogId>,
}

impl Invariant for Integrity {
    fn name(&self) -> &'static str {
        "integrity"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let Seen::Applied(id, _) = event.seen else { return Ok(()) };
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Some(group) = world.groups.get(&shard) else { return Ok(()) };
        let Some(Body::Command(command)) = group.entries.get(&id).map(|entry| &entry.body) else {
            return Ok(());
        };
        if is_unique(command) {
            let first = *self.applied.entry((shard, command.clone())).or_insert(id);
            hold!(first == id, name, "{node} {shard}: {id} does again what {first} did");
        }
        Ok(())
    }
}
