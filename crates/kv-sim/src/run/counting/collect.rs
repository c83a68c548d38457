//! Who ends sessions whose time is over, and who has shards forget the dead ones.

use std::time::Duration;

use kv_state::sessions::{Dead, SessionBatch, SessionCommand, list};
use kv_state::{Command, gate};
use kv_types::{SessionId, ShardId};
use rand::RngExt;

use super::super::{Happening, Run};
use super::late::Sent;
use super::sessions::timed;
use super::{Deed, Purpose};
use crate::oracle::{Ask, Looked};

/// How often somebody looks for sessions to end or to forget, in milliseconds.
const INTERVAL_MS: u64 = 150;

/// Sessions that one entry is about.
const BATCH: usize = 8;

impl Run {
    fn next_look(&mut self) -> Duration {
        Duration::from_micros(self.dice.counting.random_range(1..=2000 * INTERVAL_MS))
    }

    /// The meta group's leader names sessions that seem to be over; now and then one that does not.
    pub(super) fn expire_sessions(&mut self) {
        let pause = self.next_look();
        self.after(pause, Happening::Count(Deed::Expire));
        let Some(leader) = self.cluster.leader(ShardId::META).filter(|node| self.awake(*node).is_none())
        else {
            return;
        };
        let now = self.cluster.replica(leader, ShardId::META).and_then(kv_shard::Replica::cluster_time);
        let (Some(now), Some((view, _))) = (now, self.cluster.view(leader, ShardId::META)) else { return };
        let sessions = match list(&view, None, BATCH * 4) {
            Ok(sessions) => sessions,
            Err(cause) => return self.cluster.stop(leader, &format!("{cause:?}")),
        };
        let rng = &mut self.dice.counting;
        let over =
            sessions.into_iter().filter(|(_, session)| session.is_over(now) || rng.random_range(0..20) == 0);
        let over: Vec<SessionId> = over.map(|(id, _)| id).take(BATCH).collect();
        if over.is_empty() {
            return;
        }
        let sessions = SessionBatch::new(over).expect("a few fit an entry");
        let command = timed(Command::Session(SessionCommand::Expire { sessions }));
        self.send_command(ShardId::META, command, Purpose::Nothing);
    }

    /// A shard's leader asks the meta group which of the sessions it knows are dead, and now and then trims them, resting or
    /// not.
    pub(super) fn ask_dead(&mut self, shard: ShardId) {
        let pause = self.next_look();
        self.after(pause, Happening::Count(Deed::AskDead(shard)));
        let Some(leader) = self.cluster.leader(shard).filter(|node| self.awake(*node).is_none()) else {
            return;
        };
        let Some((view, _)) = self.cluster.view(leader, shard) else { return };
        match gate::sessions_seen(&view, None, BATCH) {
            Ok(seen) if !seen.is_empty() => {
                let batch = SessionBatch::new(seen).expect("a few fit an entry");
                if self.dice.counting.random_range(0..3) == 0 {
                    let trim = timed(Command::TrimSessions { sessions: batch.clone() });
                    self.send_command(shard, trim, Purpose::Nothing);
                }
                self.send_question(ShardId::META, Ask::Dead(batch), Purpose::Dead(shard));
            }
            Ok(_) => {}
            Err(cause) => self.cluster.stop(leader, &format!("{cause:?}")),
        }
    }

    /// The answer may take its time: much may have happened at the meta group meanwhile, and at the shard.
    pub(super) fn hear_dead(&mut self, shard: ShardId, call: usize) {
        let Some(Looked::Dead(dead)) = self.cluster.oracle.call(call).looked.clone() else { return };
        let Some(counting) = self.counting.as_ref().filter(|_| !dead.sessions.is_empty()) else { return };
        let longest_us = match self.dice.counting.random_range(0..4) {
            0 => counting.plan.collect_ms * 1000,
            _ => 5_000,
        };
        let delay = Duration::from_micros(self.dice.counting.random_range(0..=longest_us));
        self.after(delay, Happening::Count(Deed::Collect(shard, dead)));
    }

    pub(super) fn collect_sessions(&mut self, shard: ShardId, dead: &Dead) {
        let Some(counting) = self.counting.as_mut() else { return };
        counting.tally.collected += dead.sessions.len();
        let command = Command::GcSessions { sessions: dead.sessions.clone(), until: dead.until };
        let bytes = timed(command);
        if self.dice.counting.random_range(0..4) == 0 {
            counting.sent.push(Sent { shard, bytes: bytes.clone() });
        }
        self.send_command(shard, bytes, Purpose::Nothing);
        if self.dice.counting.random_range(0..8) == 0 {
            self.send_command(shard, timed(Command::Tick), Purpose::Nothing);
        }
    }
}
