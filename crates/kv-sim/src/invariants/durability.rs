//! Durability: what is answered is on the disks of a quorum, and what is committed is removed from no log.

use kv_storage::WalOp;
use kv_types::{LogId, NodeId};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Group, Seen, World};

/// Nothing needs to be remembered.
#[derive(Debug)]
pub(super) struct Durability;

/// Whether the disks of a majority of these hold the entry.
fn is_held_by_most<'a>(group: &Group, id: LogId, voters: impl IntoIterator<Item = &'a NodeId>) -> bool {
    let (mut all, mut held) = (0, 0);
    for voter in voters {
        all += 1;
        held += usize::from(group.replica(*voter).is_some_and(|ghost| ghost.disk.holds(id)));
    }
    all == 0 || held > all / 2
}

impl Invariant for Durability {
    fn name(&self) -> &'static str {
        "durability"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Some(group) = world.groups.get(&shard) else { return Ok(()) };
        let Some(ghost) = group.replica(node) else { return Ok(()) };
        match &event.seen {
            Seen::Answered(id) => {
                // A change of the membership may have replaced the quorum that committed it; what is committed under
                // the newest one, or the one before it, is good.
                let newest = ghost.configs.values().rev().take(2);
                let mut quorums = newest.map(|membership| {
                    is_held_by_most(group, *id, &membership.voters)
                        && is_held_by_most(group, *id, &membership.outgoing)
                });
                hold!(
                    quorums.any(|held| held),
                    name,
                    "{shard}: {node} answers {id}, which no quorum of {:?} holds durably",
                    ghost.membership().1
                );
            }
            Seen::Wrote(WalOp::Raft { truncate_from: Some(from), append, .. }, _) => {
                // Whoever slept through a term may follow its leader late, and let go of what only a later term has
                // committed, without him. The leader's term is at least that of what he put in its place.
                let by = append.first().map(|entry| entry.id.term);
                for id in ghost.memory.from(*from) {
                    let in_term = group.committed_in(*id);
                    let committed = in_term.is_some_and(|in_term| by.is_none_or(|by| in_term <= by));
                    hold!(!committed, name, "{node} {shard}: removes {id}, which is committed");
                }
            }
            Seen::Wrote(WalOp::Install { base, keep_tail: false, .. }, _) => {
                for id in ghost.memory.from(base.meta.last.index.next()) {
                    let committed = group.committed_at(id.index) == Some(*id);
                    let last = base.meta.last;
                    hold!(!committed, name, "{node} {shard}: removes {id}, which is committed, with {last}");
                }
            }
            _ => {}
        }
        Ok(())
    }
}
