//! Parts to be ended rest at their shard's leader for a moment, as in the daemon: one entry ends those that have gathered.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_state::txn::{Ending, TxnCommand};
use kv_state::{Command, Envelope, Opened};
use kv_types::{Key, NodeId, ShardId, TxnId};

use super::{Deed, Origin, Purpose};
use crate::run::{Happening, Run};

/// How long they rest if no other step comes.
const REST: Duration = Duration::from_millis(1);

/// What rests: by node, its life, and the shard.
pub(super) type Resting = BTreeMap<(NodeId, u64, ShardId), Vec<Rested>>;

/// A part to be ended, and who asks for it.
#[derive(Clone, Debug)]
pub(super) struct Rested {
    txn: TxnId,
    ending: Ending,
    origin: Origin,
}

/// The part that a step ends, if that is what it does.
fn ending_of(step: &Bytes) -> Option<(TxnId, Ending)> {
    match Opened::decode(step.clone()) {
        Ok(Opened::Timed { command: Command::Txn(TxnCommand::Resolve { endings }), .. })
            if endings.len() == 1 =>
        {
            endings.into_iter().next()
        }
        _ => None,
    }
}

impl Run {
    /// Leaves a step where it rests, if it is one that may; whether it is.
    pub(super) fn rests(&mut self, node: NodeId, at: ShardId, origin: Origin, step: &Bytes) -> bool {
        let Some((txn, ending)) = ending_of(step) else { return false };
        let life = self.cluster.of(node).lives;
        let Some(txns) = self.txns.as_mut() else { return false };
        let here = txns.resting.entry((node, life, at)).or_default();
        here.push(Rested { txn, ending, origin });
        if here.len() == 1 {
            self.after(REST, Happening::Txn(Deed::Rested(node, life, at)));
        }
        true
    }

    /// What rests at a shard's leader goes on.
    pub(super) fn rested(&mut self, node: NodeId, life: u64, at: ShardId) {
        let here = self.txns.as_mut().and_then(|txns| txns.resting.remove(&(node, life, at)));
        if here.is_none() || self.cluster.of(node).lives != life || !self.cluster.is_up(node) {
            return;
        }
        let mut here: Vec<Rested> = here.into_iter().flatten().collect();
        while !here.is_empty() {
            let (now, later) = self.apart(here);
            self.end_together(node, at, now);
            here = later;
        }
    }

    /// As many as write no key that another of them writes, and the rest: what became of a key tells which of them it was.
    /// (In the daemon they stay together.)
    fn apart(&self, rested: Vec<Rested>) -> (Vec<Rested>, Vec<Rested>) {
        let mut taken: BTreeMap<Key, TxnId> = BTreeMap::new();
        rested.into_iter().partition(|Rested { txn, .. }| {
            let content = self.cluster.world.txns.get(txn);
            let keys = content.iter().flat_map(|content| content.all().writes()).map(|write| &write.key);
            let is_apart = keys.clone().all(|key| taken.get(key).is_none_or(|owner| owner == txn));
            if is_apart {
                taken.extend(keys.map(|key| (key.clone(), *txn)));
            }
            is_apart
        })
    }

    fn end_together(&mut self, node: NodeId, at: ShardId, rested: Vec<Rested>) {
        let (mut endings, mut origins) = (BTreeMap::new(), Vec::new());
        for Rested { txn, ending, origin } in rested {
            // No id is used for two contents here.
            endings.insert(txn, ending);
            origins.push(origin);
        }
        let together = endings.len();
        let resolve = Command::Txn(TxnCommand::Resolve { endings });
        let bytes = Envelope::timed(resolve).expect("it needs no request").encode();
        self.keep_copy(at, &bytes);
        let call = self.cluster.send(node, at, bytes);
        self.wake(node, at, self.cluster.now);
        if let Some(txns) = self.txns.as_mut() {
            if together > 1 {
                txns.tally.together += together;
            }
            txns.calls.insert(call, Purpose::Serve(node, origins));
        }
    }
}
