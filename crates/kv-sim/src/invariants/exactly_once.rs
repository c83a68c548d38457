//! Exactly once: a request takes effect at most once in a group, whatever is lost, sent again or arrives late; one that
//! is acknowledged took effect, one that was said not to be applied never does, and every counter is the sum of it all.
//!
//! It looks at the rows of each replica by itself, right after it applied an attempt: whether the attempt wrote the row
//! that it is about. What a gate should have decided is no part of it.

use std::collections::BTreeMap;

use kv_types::{Key, LogIndex, RequestId, ShardId};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Attempt, Event, Fate, Seen, World};

const NAME: &str = "exactly-once";

/// What is known of a request.
#[derive(Debug, Default)]
struct Known {
    /// The entry by which it took effect, and what that added to which counter.
    effect: Option<(LogIndex, Key, i64)>,
    fate: Option<Fate>,
}

/// All requests.
#[derive(Debug, Default)]
pub(super) struct ExactlyOnce {
    requests: BTreeMap<(ShardId, RequestId), Known>,
}

impl ExactlyOnce {
    fn attempted(&mut self, event: &Event<'_>, index: LogIndex, attempt: &Attempt) -> Holds {
        let (node, shard, id) = (event.node, event.shard, attempt.request);
        let Some((key, delta)) = attempt.adds.as_ref().filter(|_| attempt.took_effect) else { return Ok(()) };
        let known = self.requests.entry((shard, id)).or_default();
        if let Some((first, ..)) = &known.effect {
            hold!(*first == index, NAME, "{node} {shard}: {id} takes effect at {first} and again at {index}");
            return Ok(());
        }
        let fate = known.fate;
        hold!(
            fate != Some(Fate::NotApplied),
            NAME,
            "{node} {shard}: {id} takes effect at {index}, after {fate:?}"
        );
        known.effect = Some((index, key.clone(), *delta));
        Ok(())
    }

    fn told(&mut self, event: &Event<'_>, id: RequestId, fate: Fate) -> Holds {
        let (node, shard) = (event.node, event.shard);
        let known = self.requests.entry((shard, id)).or_default();
        let (effect, before) = (known.effect.clone(), known.fate);
        hold!(before.is_none(), NAME, "{node} {shard}: the client of {id} is told {before:?}, then {fate:?}");
        known.fate = Some(fate);
        let is_true = match fate {
            Fate::Applied(revision) => effect.as_ref().is_some_and(|(index, ..)| *index == revision.index()),
            Fate::NotApplied => effect.is_none(),
            Fate::Unknown => true,
        };
        hold!(is_true, NAME, "{node} {shard}: the client of {id} is told {fate:?}, its effect is {effect:?}");
        Ok(())
    }

    /// Acknowledged requests count, and so do those of which the client does not know whether they took effect.
    fn counted(&self, event: &Event<'_>, key: &Key, (value, after): (i64, LogIndex)) -> Holds {
        let (node, shard) = (event.node, event.shard);
        let of_shard = self.requests.iter().filter(|((of, _), _)| *of == shard);
        let (mut acknowledged, mut unknown) = (0, 0);
        for (_, known) in of_shard {
            let of_key = known.effect.as_ref().filter(|(index, of, _)| of == key && *index <= after);
            let Some((_, _, delta)) = of_key else { continue };
            match known.fate {
                Some(Fate::Applied(_)) => acknowledged += delta,
                Some(Fate::Unknown) | None => unknown += delta,
                Some(Fate::NotApplied) => {}
            }
        }
        hold!(
            acknowledged + unknown == value,
            NAME,
            "{node} {shard}: {key:?} is {value} after {after}, {acknowledged} were acknowledged, {unknown} more took effect"
        );
        Ok(())
    }
}

impl Invariant for ExactlyOnce {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&mut self, event: &Event<'_>, _world: &World) -> Holds {
        match &event.seen {
            Seen::Attempted(id, attempt) => self.attempted(event, id.index, attempt),
            Seen::Told(id, fate) => self.told(event, *id, *fate),
            Seen::Counted(key, value, after) => self.counted(event, key, (*value, *after)),
            _ => Ok(()),
        }
    }
}
