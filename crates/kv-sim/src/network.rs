//! What is on its way, and which directions are cut.

use std::collections::BTreeMap;

use kv_raft::Message;
use kv_types::{NodeId, ShardId};

/// A message, and the Lamport clock of the node that sent it.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub(crate) shard: ShardId,
    pub(crate) message: Message,
    pub(crate) counter: u64,
}

/// Packets that have been sent and not yet been picked up, and cuts. A direction may be cut several times: each cut is
/// mended by itself.
#[derive(Debug, Default)]
pub(crate) struct Network {
    pub(crate) packets: Vec<Packet>,
    cuts: BTreeMap<(NodeId, NodeId), u32>,
}

impl Network {
    /// Whether nothing passes from one node to the other.
    pub(crate) fn is_cut(&self, from: NodeId, to: NodeId) -> bool {
        self.cuts.contains_key(&(from, to))
    }

    /// Cuts one direction once more.
    pub(crate) fn cut(&mut self, from: NodeId, to: NodeId) {
        *self.cuts.entry((from, to)).or_default() += 1;
    }

    /// Mends one cut.
    pub(crate) fn mend(&mut self, from: NodeId, to: NodeId) {
        if let Some(cuts) = self.cuts.get_mut(&(from, to)) {
            *cuts -= 1;
            if *cuts == 0 {
                self.cuts.remove(&(from, to));
            }
        }
    }

    /// Mends all.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
    }
}
