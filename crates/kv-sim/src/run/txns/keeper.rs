//! Each leader looks after the records and the prepared parts of its shards, as the daemon's keeper does.

use std::collections::BTreeMap;

use kv_shard::Replica;
use kv_state::txn;
use kv_types::limits::TXN_PREPARED_TTL;
use kv_types::{NodeId, ShardId, Term};

use super::super::Run;
use super::Purpose;
use crate::oracle::Ask;
use crate::party::{About, AtHand, Bounds};

impl Run {
    /// A keeper looks at every shard that its node leads, once it may read there.
    pub(super) fn keep(&mut self, node: NodeId) {
        if !self.cluster.is_up(node) || self.awake(node).is_some() {
            return;
        }
        for shard in self.cluster.settings.shards().filter(|shard| *shard != ShardId::META) {
            let Some(term) = self.leads(node, shard) else { continue };
            let call = self.ask_now(node, shard, Ask::Confirm);
            if let Some(txns) = self.txns.as_mut() {
                txns.calls.insert(call, Purpose::Look(node, shard, term));
            }
        }
    }

    pub(super) fn readers(&self, node: NodeId) -> BTreeMap<ShardId, AtHand> {
        let replicas = self.cluster.of(node).life.iter().flat_map(|life| &life.replicas);
        let at_hand =
            |replica: &Replica<usize>| AtHand { reader: replica.reader(), deletes: replica.deletes() };
        replicas.map(|(shard, replica)| (*shard, at_hand(replica))).collect()
    }

    /// It may: whatever is left is taken up by parties.
    pub(super) fn look_after(&mut self, node: NodeId, shard: ShardId, term: Term, call: usize) {
        if self.cluster.oracle.call(call).looked.is_none() || self.leads(node, shard) != Some(term) {
            return;
        }
        let Some((view, _)) = self.cluster.view(node, shard) else { return };
        let Ok(records) = txn::records(&view, None, usize::MAX) else { return };
        let Ok(parts) = txn::prepared_txns(&view, None, usize::MAX) else { return };
        let now = self.cluster.replica(node, shard).and_then(kv_shard::Replica::cluster_time);
        let Some(now) = now else { return };
        let mut old = Vec::new();
        for id in parts {
            let part = txn::prepared(&view, id).ok().flatten();
            old.extend(part.filter(|part| now >= part.since.after(TXN_PREPARED_TTL)));
        }
        let decide = self.txns.as_ref().map(|txns| txns.plan.decide).unwrap_or_default();
        let bounds = Bounds { until: self.in_time_of(decide), office: Some((shard, term)) };
        let readers = self.readers(node);
        let mut begun = Vec::new();
        let Some(life) = self.cluster.life(node) else { return };
        let parties = &mut life.parties;
        let records = records.into_iter();
        for record in records {
            if parties.is_about(About::Drives(shard, record.txn)) {
                continue;
            }
            let reach = parties.reach(readers.clone(), bounds);
            begun.push((parties.finish(reach, shard, record), true));
        }
        for part in old {
            if parties.is_about(About::Unblocks(shard, part.txn)) {
                continue;
            }
            let reach = parties.reach(readers.clone(), bounds);
            begun.push((parties.unblock(reach, shard, part), false));
        }
        for (party, finishes) in begun {
            if let Some(txns) = self.txns.as_mut() {
                let count = if finishes { &mut txns.tally.finished } else { &mut txns.tally.unblocked };
                *count += 1;
            }
            self.turn_of_party(node, party);
        }
    }
}
