//! Log matching: if two logs hold an entry of the same index and term, they are equal up to it.
//!
//! By induction over appends: an id always names the same contents, and always stands after the same entry.

use std::collections::BTreeMap;

use kv_storage::WalOp;
use kv_types::{Lamport, LogId, ShardId};

use super::Invariant;
use crate::held::Held;
use crate::violation::{Holds, hold};
use crate::world::{Event, Group, Seen, World};

/// Which entry stands before each.
#[derive(Debug, Default)]
pub(super) struct LogMatching {
    before: BTreeMap<(ShardId, LogId), LogId>,
}

impl LogMatching {
    fn follows(&mut self, event: &Event<'_>, before: LogId, id: LogId) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let known = *self.before.entry((shard, id)).or_insert(before);
        hold!(known == before, name, "{node} {shard}: {id} stands after {before}, elsewhere after {known}");
        Ok(())
    }

    fn append(&mut self, event: &Event<'_>, held: &Held, op: &WalOp, group: &Group) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let WalOp::Raft { append, .. } = op else { return Ok(()) };
        let Some(first) = append.first() else { return Ok(()) };
        let mut before = held.at(first.id.index.prev());
        for entry in append {
            let known = group.entries.get(&entry.id);
            hold!(
                known.is_none_or(|known| known == entry),
                name,
                "{node} {shard}: {} names two entries",
                entry.id
            );
            hold!(entry.stamp != Lamport::ZERO, name, "{node} {shard}: {} has no stamp", entry.id);
            let Some(previous) = before else {
                hold!(false, name, "{node} {shard}: {} leaves a hole after {}", entry.id, held.last());
                return Ok(());
            };
            self.follows(event, previous, entry.id)?;
            before = Some(entry.id);
        }
        Ok(())
    }
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log-matching"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let Seen::Wrote(op, _) = &event.seen else { return Ok(()) };
        let Some(group) = world.groups.get(&event.shard) else { return Ok(()) };
        let Some(ghost) = group.replica(event.node) else { return Ok(()) };
        if let WalOp::Install { base, keep_tail: true, .. } = op {
            let (node, shard, last) = (event.node, event.shard, base.meta.last);
            let found = ghost.memory.at(last.index);
            hold!(
                found == Some(last),
                self.name(),
                "{node} {shard}: keeps what follows {found:?} above {last}"
            );
        }
        self.append(event, &ghost.memory, op, group)
    }
}
