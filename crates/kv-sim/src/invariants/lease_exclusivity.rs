//! Lease exclusivity: while readers of one leader may trust its lease, no other node leads a later term.

use kv_types::{NodeId, Term};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Nothing needs to be remembered.
#[derive(Debug)]
pub(super) struct LeaseExclusivity;

impl Invariant for LeaseExclusivity {
    fn name(&self) -> &'static str {
        "lease-exclusivity"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let (node, shard, name) = (event.node, event.shard, self.name());
        let Some(group) = world.groups.get(&shard) else { return Ok(()) };
        match event.seen {
            Seen::Leads(Some(term)) => {
                for (other, ghost) in group.replicas.iter().filter(|(other, _)| **other != node) {
                    let (lease, clock) = (ghost.lease, world.clock(*other));
                    let good = ghost.up && lease.until > clock && lease.term < term;
                    let left = lease.until.since(clock);
                    hold!(
                        !good,
                        name,
                        "{shard}: {node} leads {term}, {other} reads by {} for {left:?}",
                        lease.term
                    );
                }
            }
            Seen::Lease(lease) if lease.until > world.clock(node) => {
                let later = |(other, ghost): (&NodeId, &crate::world::Ghost)| {
                    ghost.leads.filter(|term| *term > lease.term && *other != node).map(|term| (*other, term))
                };
                let rival: Option<(NodeId, Term)> = group.replicas.iter().find_map(later);
                hold!(
                    rival.is_none(),
                    name,
                    "{shard}: {node} takes a lease of {}, {rival:?} leads",
                    lease.term
                );
            }
            _ => {}
        }
        Ok(())
    }
}
