//! The end of the counting: every request has a fate, every session ends and is forgotten, everything that was kept
//! arrives once more, and the counters are what they should be.

use kv_state::{gate, sessions};
use kv_types::{Nanos, ShardId};

use super::super::Run;
use super::Client;
use crate::cluster::calls::key_of;
use crate::invariants::termination;
use crate::oracle::End;
use crate::world::Seen;

/// So many of the times that a working quorum may take for one answer: the rest of all increments, for one.
const PATIENCE: u32 = 20;

/// Copies that arrive once more at the very end.
const LAST_COPIES: usize = 300;

impl Run {
    /// When everybody works again.
    pub(in crate::run) fn end_counting(&mut self) {
        if self.counting.is_none() {
            return;
        }
        self.in_time("not all increments are acknowledged", |run| {
            run.counting.as_ref().is_none_or(super::Counting::is_done)
        });
        if let Some(counting) = self.counting.as_mut() {
            counting.is_ending = true;
        }
        self.in_time("requests stay without an answer", |run| {
            let is_idle = |client: &Client| client.pending.is_empty() && client.reading == 0;
            run.counting.as_ref().is_none_or(|counting| counting.clients.iter().all(is_idle))
        });
        self.read_counters();
        if let Some(counting) = self.counting.as_mut() {
            counting.is_closing = true;
        }
        self.in_time("sessions are not forgotten", |run| {
            let is_over = |client: &Client| client.session.is_none();
            let are_over = run.counting.as_ref().is_none_or(|counting| counting.clients.iter().all(is_over));
            are_over && run.cluster.settings.shards().all(|shard| run.has_forgotten(shard))
        });
        self.deliver_all();
        self.read_counters();
        if let Some(counting) = self.counting.as_mut() {
            counting.is_over = true;
        }
    }

    pub(in crate::run) fn in_time(&mut self, missing: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let patience = termination::patience(self.cluster.settings.election_timeout) * PATIENCE;
        let deadline = self.cluster.now.after(patience);
        if !self.try_until(deadline, |run| done(run)) && self.cluster.violation.is_none() {
            let result = termination::check(&[missing.to_owned()], &self.cluster.summary());
            self.cluster.report(result);
        }
    }

    /// Whether the leader has no row of any session.
    fn has_forgotten(&mut self, shard: ShardId) -> bool {
        let Some(leader) = self.cluster.leader(shard) else { return false };
        let Some((view, _)) = self.cluster.view(leader, shard) else { return false };
        let seen = gate::sessions_seen(&view, None, 1);
        let count = sessions::count(&view);
        matches!((seen, count), (Ok(seen), Ok(0)) if seen.is_empty())
    }

    /// What was kept arrives once more, long after the sessions were forgotten.
    fn deliver_all(&mut self) {
        let Some(counting) = self.counting.as_ref() else { return };
        let step = counting.sent.len().div_ceil(LAST_COPIES).max(1);
        let chosen: Vec<_> = counting.sent.iter().step_by(step).cloned().collect();
        for sent in chosen {
            self.deliver_late_copy(sent);
            let soon = self.cluster.now.after(super::super::APPLY * 20);
            self.run_until(soon, |_| false);
        }
    }

    /// Reads every counter, and holds it against the requests.
    fn read_counters(&mut self) {
        let Some(counters) = self.counting.as_ref().map(|counting| counting.plan.counters) else { return };
        for shard in (1..=self.cluster.settings.shards).map(ShardId::new) {
            for key in (0..counters).map(|number| format!("c{number}")) {
                let deadline =
                    self.cluster.now.after(termination::patience(self.cluster.settings.election_timeout));
                self.read_counter(deadline, shard, &key);
            }
        }
    }

    fn read_counter(&mut self, deadline: Nanos, shard: ShardId, key: &str) {
        self.try_until(deadline, |run| {
            let Some(leader) = run.cluster.leader(shard) else { return false };
            let call = run.cluster.read(leader, shard, key);
            run.wake(leader, shard, run.cluster.now);
            let Some(End::Read(after)) = run.await_call(call) else { return false };
            let row = run.cluster.oracle.call(call).row.as_ref();
            let value = row.map_or(Some(0), |row| std::str::from_utf8(&row.value).ok()?.parse().ok());
            // What is no number is no sum either.
            run.cluster.see(leader, shard, Seen::Counted(&key_of(key), value.unwrap_or(i64::MIN), after));
            true
        });
    }
}
