//! The end of transactions: when everybody works again, nothing is left of them within a bounded time, and what clients saw
//! has an order.

use std::collections::BTreeSet;

use kv_check::MicroOperation;
use kv_raft::Target;
use kv_state::{Rows, txn};
use kv_types::{Key, Membership, NodeId, RowKey, ShardId};

use super::super::Run;
use super::ledger::Effect;
use super::work::{named, switches};
use crate::invariants::linearisability::{self, Checked};
use crate::invariants::{leftovers, serialisability};
use crate::violation::Violation;
use crate::world::Seen;

impl Run {
    /// When everybody works again.
    pub(in crate::run) fn end_txns(&mut self) {
        let Some(txns) = self.txns.as_mut() else { return };
        txns.is_ending = true;
        self.in_time("the groups do not come to have the same members", Self::reconcile);
        self.in_time("transactions stay without an answer", |run| {
            run.txns.as_ref().is_none_or(|txns| txns.clients.iter().all(|client| client.job.is_none()))
        });
        self.nothing_left();
        self.read_at_rest();
        if let Some(txns) = self.txns.as_mut() {
            txns.is_closing = true;
        }
        self.in_time("sessions of transactions do not end", |run| {
            let is_over = |client: &super::Client| client.session.is_none();
            run.txns.as_ref().is_none_or(|txns| txns.clients.iter().all(is_over))
        });
    }

    /// When everything that was ever sent has arrived once more, nothing is different, and nothing is left again.
    pub(in crate::run) fn end_late_txns(&mut self) {
        if self.txns.is_none() || self.cluster.violation.is_some() {
            return;
        }
        self.deliver_letters();
        self.nothing_left();
        self.read_at_rest();
        let Some(txns) = self.txns.as_mut() else { return };
        let (transactions, registers) = txns.ledger.take();
        let checked = serialisability::holds(transactions);
        self.cluster.report(checked);
        match linearisability::holds(registers) {
            Ok(Checked::Linearisable) => {}
            Ok(Checked::Undecided) => self.clients.is_undecided = true,
            Err(violation) => self.cluster.report(Err(violation)),
        }
    }

    /// Has every group have all nodes that are left for members, as the daemon does: else a node may lead one shard and never
    /// hear who leads another. Whether that is so.
    fn reconcile(&mut self) -> bool {
        let voters: BTreeSet<NodeId> =
            self.cluster.settings.nodes().filter(|node| !self.lost.contains(node)).collect();
        let mut is_done = true;
        for shard in self.cluster.settings.shards() {
            let leader = self.cluster.leader(shard).and_then(|leader| self.cluster.replica(leader, shard));
            let Some(membership) = leader.map(|replica| replica.status().raft.membership) else {
                return false;
            };
            let is_so = membership == Membership::of_voters(voters.iter().copied());
            if !is_so && let Some(leader) = self.cluster.leader(shard) {
                let target = Target { voters: voters.clone(), learners: BTreeSet::new() };
                self.cluster.turn_with(leader, shard, |replica, now| {
                    // A refusal is an answer as well: it is asked again.
                    let _ = replica.reconfigure(now, target);
                    Ok(())
                });
            }
            is_done &= is_so;
        }
        self.settle();
        is_done
    }

    /// No lock, no prepared part and no record are left within the time that they may take.
    fn nothing_left(&mut self) {
        let deadline = self.cluster.now.after(leftovers::PATIENCE);
        let shards: Vec<ShardId> = self.shards_of_users();
        let over = self.try_until(deadline, |run| shards.iter().all(|shard| run.left_on(*shard).is_none()));
        if over || self.cluster.violation.is_some() {
            return;
        }
        let left: Vec<String> = shards.iter().filter_map(|shard| self.left_on(*shard)).collect();
        let checked = leftovers::check(&left, &self.cluster.summary());
        self.cluster.report(checked);
    }

    fn shards_of_users(&self) -> Vec<ShardId> {
        self.cluster.settings.shards().filter(|shard| *shard != ShardId::META).collect()
    }

    /// What its leader still has of transactions.
    fn left_on(&self, shard: ShardId) -> Option<String> {
        let Some(leader) = self.cluster.leader(shard) else { return Some(format!("{shard} has no leader")) };
        let Some((view, _)) = self.cluster.view(leader, shard) else {
            return Some(format!("{shard} cannot be read on {leader}"));
        };
        let parts = txn::prepared_txns(&view, None, 5).unwrap_or_default();
        let records = txn::records(&view, None, 5).unwrap_or_default();
        let is_locked =
            self.cluster.replica(leader, shard).is_some_and(|replica| replica.locks().none().is_none());
        let is_empty = parts.is_empty() && records.is_empty() && !is_locked;
        (!is_empty)
            .then(|| format!("{shard} on {leader}: prepared {parts:?}, {records:?}, locked {is_locked}"))
    }

    /// What is there now must be explained as well.
    fn read_at_rest(&mut self) {
        if self.cluster.violation.is_some() {
            return;
        }
        let Some(node) = self.cluster.leader(ShardId::new(1)) else { return };
        self.cluster.see(node, ShardId::new(1), Seen::AtRest);
        let (keys, shards) =
            (self.txns.as_ref().map_or(0, |txns| txns.plan.keys), self.cluster.settings.shards);
        let mut lists = Vec::new();
        let (mut sum, mut members) = (0, 0);
        for shard in 1..=shards {
            for number in 0..keys {
                let list = self.text_at_rest(&named(shard, 'l', number));
                let list = list.split(',').filter_map(|element| element.parse().ok());
                let name = named(shard, 'l', number).to_string();
                lists.push(MicroOperation::read_as(name.as_str(), list.collect::<Vec<i64>>()));
                sum += self.text_at_rest(&named(shard, 'a', number)).parse::<i64>().unwrap_or(0);
                let counter = named(shard, 'n', number);
                let value = self.text_at_rest(&counter).parse().unwrap_or(0);
                let counted = self.txns.as_ref().map_or(Ok(()), |txns| txns.ledger.counted(&counter, value));
                self.cluster.report(counted);
            }
            members +=
                (0..12).filter(|member| !self.text_at_rest(&named(shard, 'm', *member)).is_empty()).count();
        }
        let both =
            (0..keys).any(|number| switches(number, shards).iter().all(|key| self.text_at_rest(key) == "on"));
        let twins = (0..keys).any(|number| {
            let first = self.text_at_rest(&named(1, 't', number));
            (1..=shards).any(|shard| self.text_at_rest(&named(shard, 't', number)) != first)
        });
        if sum != 0 || members > 1 || both || twins {
            let detail = format!(
                "at rest: the accounts sum up to {sum}, {members} members, both switches on: {both}, twins differ: {twins}"
            );
            self.cluster.report(Err(Violation::new(serialisability::NAME, detail)));
        }
        if let Some(txns) = self.txns.as_mut() {
            let begun = txns.ledger.tick();
            let effect = Effect { lists, ..Effect::default() };
            let noted = txns.ledger.note(&effect, begun, Some(true));
            self.cluster.report(noted);
        }
    }

    fn text_at_rest(&self, key: &Key) -> String {
        let shard = crate::party::owner(key.as_ref());
        let view = self.cluster.leader(shard).and_then(|leader: NodeId| self.cluster.view(leader, shard));
        let row = view.and_then(|(view, _)| view.get(&RowKey::user(key)).ok().flatten());
        row.map(|row| String::from_utf8_lossy(&row.value).into_owned()).unwrap_or_default()
    }
}
