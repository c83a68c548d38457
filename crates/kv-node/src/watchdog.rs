//! Ends a process whose store below has died without a word.
//!
//! A panic in one of sled's own threads makes every later flush of the process wait for ever: checkpoints stop, the log
//! fills, and the node looks alive. If a flush does not end, or such a thread has panicked, the process says so and
//! exits; what is noted as damaged is fetched from another member at the next start, and the rest is compared with its
//! hash then. Time is counted in own turns, so that a process that was paused does not look stuck when it goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_storage::{EngineFactory, Flush, Generation, WalOp, WalRecord, generation_of};
use kv_types::ShardId;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::gateway::Gateway;
use crate::mailbox::Control;
use crate::wal_writer::{Durable, WalWriter};

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// A flush that is seen so often in a row does not end any more.
const LOOKS_MAX: u32 = 30;

/// How long the note may take that the base is damaged.
const NOTE_MAX: Duration = Duration::from_secs(5);

/// What it looks at.
pub(crate) struct Watchdog {
    pub(crate) engines: Arc<dyn EngineFactory>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) wal: WalWriter,
}

/// How often each flush under way was seen.
#[derive(Debug, Default)]
struct Looks {
    seen: BTreeMap<u64, u32>,
}

impl Looks {
    /// Takes another look; the flush that does not end, if there is one.
    fn look(&mut self, running: Vec<Flush>) -> Option<Flush> {
        self.seen.retain(|number, _| running.iter().any(|flush| flush.number == *number));
        running.into_iter().find(|flush| {
            let seen = self.seen.entry(flush.number).or_default();
            *seen += 1;
            *seen >= LOOKS_MAX
        })
    }
}

impl Watchdog {
    /// Runs until the node stops, or ends the process.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut looks = Looks::default();
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            if self.engines.thread_died() {
                exit("a thread of the store below has panicked");
            }
            if let Some(stuck) = looks.look(self.engines.flushes()) {
                if let Some((shard, generation)) = generation_of(&stuck.dir) {
                    // A disk that writes nothing at all takes no note either.
                    let noted = tokio::time::timeout(NOTE_MAX, self.note(shard, generation)).await;
                    error!(%shard, %generation, noted = noted.is_ok(), "a flush does not end");
                }
                exit(&format!("a flush of {} does not end", stuck.dir.display()));
            }
        }
    }

    /// Notes that a base is damaged, if it is the one in use and there are others to fetch it from.
    async fn note(&self, shard: ShardId, generation: Generation) {
        let Some(handle) = self.gateway.shards.get(&shard) else { return };
        let (asked, status) = oneshot::channel();
        handle.mailbox.control(Control::Status(asked));
        let Ok(status) = status.await else { return };
        if status.base_generation != generation || status.raft.membership.members().len() < 2 {
            return;
        }
        let (done, durable) = oneshot::channel();
        let record = WalRecord { shard, op: WalOp::Damaged(generation) };
        self.wal.write(record, Durable::Waiter(done)).await;
        // The log is gone only when the node stops.
        let _ = durable.await;
    }
}

/// Threads that wait for the store below would never end: the process does.
fn exit(why: &str) -> ! {
    error!("{why}: the process ends, and is to be started again");
    std::process::exit(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flush(number: u64) -> Flush {
        Flush { number, dir: format!("shard-1/gen-{number}").into() }
    }

    #[test]
    fn only_one_and_the_same_flush_that_is_seen_again_and_again_is_stuck() {
        let mut looks = Looks::default();
        for number in 0..3 * u64::from(LOOKS_MAX) {
            assert_eq!(looks.look(vec![flush(number)]), None, "one after the other is work");
        }
        let mut looks = Looks::default();
        for _ in 1..LOOKS_MAX {
            assert_eq!(looks.look(vec![flush(7)]), None);
        }
        assert_eq!(looks.look(vec![flush(7), flush(8)]), Some(flush(7)));
    }
}
