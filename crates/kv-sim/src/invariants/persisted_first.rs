//! Persisted first: a vote, the request for one, and the acknowledgement of an entry rest on what is on the disk.

use kv_raft::MessageKind;

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, World};

/// Nothing needs to be remembered.
#[derive(Debug)]
pub(super) struct PersistedFirst;

impl Invariant for PersistedFirst {
    fn name(&self) -> &'static str {
        "persisted-first"
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        let Seen::Sent(message) = event.seen else { return Ok(()) };
        let (node, shard, name) = (event.node, event.shard, self.name());
        let ghost = world.groups.get(&shard).and_then(|group| group.replica(node));
        let Some(disk) = ghost.map(|ghost| &ghost.disk) else { return Ok(()) };
        let (term, hard) = (message.term, disk.hard);
        let voted = |whom| hard.term > term || (hard.term == term && hard.vote == Some(whom));
        match message.kind {
            MessageKind::Vote { pre: false, .. } => {
                hold!(voted(node), name, "{node} {shard}: asks for votes in {term}, its disk has {hard:?}");
            }
            MessageKind::VoteAck { granted: true, pre: false } => {
                let to = message.to;
                hold!(voted(to), name, "{node} {shard}: votes for {to} in {term}, its disk has {hard:?}");
            }
            MessageKind::AppendAck { result: Ok(index), .. } => {
                hold!(
                    hard.term >= term,
                    name,
                    "{node} {shard}: acknowledges in {term}, its disk has {hard:?}"
                );
                let held = hard.term > term || disk.last().index >= index;
                hold!(held, name, "{node} {shard}: acknowledges {index}, its disk ends at {}", disk.last());
            }
            _ => {}
        }
        Ok(())
    }
}
