//! Membership: one is in force as soon as it is in the log, and a leader begins no second change before the first is
//! committed.

use kv_storage::WalOp;
use kv_types::Body;

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Nothing needs to be remembered.
#[derive(Debug)]
pub(super) struct MembershipInForce;

impl Invariant for MembershipInForce {
    fn name(&self) -> &'static str {
        "membership"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Some(ghost) = world.groups.get(&shard).and_then(|group| group.replica(node)) else {
            return Ok(());
        };
        match &event.seen {
            Seen::InForce(index) => {
                let newest = ghost.membership().0;
                hold!(*index == newest, name, "{node} {shard}: {index} is in force, {newest} is in the log");
            }
            Seen::Wrote(WalOp::Raft { append, .. }, Some(term)) if ghost.leads == Some(*term) => {
                let mut newest = ghost.membership().0;
                for entry in append.iter().filter(|entry| matches!(entry.body, Body::Config(_))) {
                    let (id, commit) = (entry.id, ghost.commit);
                    hold!(
                        newest <= commit,
                        name,
                        "{node} {shard}: {id} changes what {newest} has not yet changed"
                    );
                    newest = id.index;
                }
            }
            _ => {}
        }
        Ok(())
    }
}
