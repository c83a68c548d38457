//! Atomicity: a transaction is decided once, told as it was decided, and takes effect as a whole, on each shard once, or not at
//! all.
//!
//! It looks at the rows of each replica by itself, right after it applied a step: whether the step wrote a row that the
//! transaction is to write, and what the shard's rows say of the decision.

use std::collections::{BTreeMap, BTreeSet};

use kv_state::txn::Known;
use kv_types::{LogIndex, ShardId, TxnId};

use super::Invariant;
use crate::violation::{Holds, hold};
use crate::world::{Event, Seen, TxnStep, World};

const NAME: &str = "atomicity";

/// What is known of a transaction.
#[derive(Debug, Default)]
struct Course {
    committed: Option<bool>,
    told: Option<bool>,
    /// The entries by which it took effect, one a shard.
    effects: BTreeMap<ShardId, LogIndex>,
}

/// All transactions.
#[derive(Debug, Default)]
pub(super) struct Atomicity {
    courses: BTreeMap<TxnId, Course>,
}

impl Atomicity {
    fn stepped(&mut self, event: &Event<'_>, index: LogIndex, step: &TxnStep) -> Holds {
        let (node, shard, txn) = (event.node, event.shard, step.txn);
        let course = self.courses.entry(txn).or_default();
        let decided = match step.known {
            Known::Committed => Some(true),
            Known::Aborted => Some(false),
            Known::Absent => None,
        };
        if let Some(decided) = decided {
            let before = *course.committed.get_or_insert(decided);
            hold!(
                before == decided,
                NAME,
                "{node} {shard}: {txn} is decided twice: committed {before}, then {decided} at {index}"
            );
            let told = course.told;
            hold!(
                told.is_none_or(|told| told == decided),
                NAME,
                "{node} {shard}: {txn} was told to be committed {told:?}, and is decided: {decided}"
            );
        }
        if step.took_effect {
            let first = *course.effects.entry(shard).or_insert(index);
            hold!(first == index, NAME, "{node} {shard}: {txn} takes effect at {first} and again at {index}");
            let committed = course.committed;
            hold!(
                committed == Some(true),
                NAME,
                "{node} {shard}: {txn} takes effect at {index}, decided: {committed:?}"
            );
        }
        Ok(())
    }

    fn told(&mut self, event: &Event<'_>, txn: TxnId, committed: bool) -> Holds {
        let (node, shard) = (event.node, event.shard);
        let course = self.courses.entry(txn).or_default();
        let before = *course.told.get_or_insert(committed);
        hold!(
            before == committed,
            NAME,
            "{node} {shard}: {txn} is told committed {before}, then {committed}"
        );
        let is_true = match committed {
            true => course.committed == Some(true),
            false => course.committed != Some(true),
        };
        let decided = course.committed;
        hold!(
            is_true,
            NAME,
            "{node} {shard}: {txn} is told committed {committed}, and is decided: {decided:?}"
        );
        Ok(())
    }

    /// When everything has come to rest, whatever is committed took effect wherever it writes.
    fn at_rest(&self, world: &World) -> Holds {
        for (txn, course) in &self.courses {
            let Some(content) = world.txns.get(txn) else { continue };
            let writes = content.all().writes().iter().filter(|write| write.value.is_some());
            let shards: BTreeSet<ShardId> =
                writes.map(|write| crate::party::owner(write.key.as_ref())).collect();
            let done: BTreeSet<ShardId> = course.effects.keys().copied().collect();
            let should = if course.committed == Some(true) { shards } else { BTreeSet::new() };
            // Whoever is caught up by a snapshot shows no step, but somebody has applied each of them.
            hold!(
                should == done,
                NAME,
                "{txn} is half done: it took effect on {done:?}, and should have on {should:?}"
            );
        }
        Ok(())
    }
}

impl Invariant for Atomicity {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check(&mut self, event: &Event<'_>, world: &World) -> Holds {
        match &event.seen {
            Seen::Stepped(id, step) => self.stepped(event, id.index, step),
            Seen::Outcome(txn, committed) => self.told(event, *txn, *committed),
            Seen::AtRest => self.at_rest(world),
            _ => Ok(()),
        }
    }
}
