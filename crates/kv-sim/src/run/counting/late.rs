//! What was sent once and is kept somewhere: it arrives again, at any later time.

use std::time::Duration;

use bytes::Bytes;
use kv_types::ShardId;
use rand::RngExt;

use super::super::txns::Txns;
use super::super::{Happening, Run};
use super::{Deed, Purpose};

/// Something that was sent.
#[derive(Clone, Debug)]
pub(in crate::run) struct Sent {
    pub(in crate::run) shard: ShardId,
    pub(in crate::run) bytes: Bytes,
}

impl Run {
    /// Something arrives that was sent some time ago: of late, or at any time.
    pub(super) fn deliver_something_late(&mut self) {
        let is_ending = self.txns.as_ref().is_some_and(Txns::is_ending);
        let Some(counting) = self.counting.as_mut() else { return };
        let rng = &mut self.dice.counting;
        let pause = Duration::from_micros(rng.random_range(1..=2000 * counting.plan.late_ms));
        let len = counting.sent.len();
        let first = if rng.random_range(0..2) == 0 { len.saturating_sub(20) } else { 0 };
        let chosen = counting.sent.get(rng.random_range(first..len.max(first + 1))).cloned();
        // While sessions end, an opening that comes late would begin another one.
        if let Some(sent) = chosen.filter(|_| !counting.is_closing && !is_ending) {
            self.deliver_late_copy(sent);
        }
        self.after(pause, Happening::Count(Deed::Late));
    }

    pub(super) fn deliver_late_copy(&mut self, Sent { shard, bytes }: Sent) {
        if let Some(counting) = self.counting.as_mut() {
            counting.tally.late += 1;
        }
        self.send_command(shard, bytes, Purpose::Nothing);
    }
}
