//! Validity: every command that takes effect was asked for by a client.

use std::collections::BTreeSet;

use kv_types::{Body, ShardId};

use super::Invariant;
use crate::oracle::as_asked;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// What clients asked for.
#[derive(Debug, Default)]
pub(super) struct Validity {
    asked: BTreeSet<(ShardId, Vec<u8>)>,
}

impl Invariant for Validity {
    fn name(&self) -> &'static str {
        "validity"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        match event.seen {
            Seen::Asked(command) => {
                self.asked.insert((shard, command.to_vec()));
            }
            Seen::Applied(id, _) => {
                let entry = world.groups.get(&shard).and_then(|group| group.entries.get(&id));
                // Only the first replica to apply it need be looked at, but an entry that was in no log never passes.
                hold!(entry.is_some() || id.index.get() == 0, name, "{node} {shard}: {id} was in no log");
                if let Some(Body::Command(command)) = entry.map(|entry| &entry.body) {
                    let asked = self.asked.contains(&(shard, as_asked(command).to_vec()));
                    hold!(asked, name, "{node} {shard}: nobody asked for {id}");
                }
            }
            _ => {}
        }
        Ok(())
    }
}
