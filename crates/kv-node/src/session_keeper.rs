//! Ends sessions that nobody renews, has shards forget those that are dead and trim those that rest, and keeps time going
//! where nothing else does.
//!
//! All of it is the duty of a leader: of the meta group for the sessions, of each shard for what it remembers of them.
//! Every step is an entry that decides at apply, so that a step taken twice, or by one who leads no more, does no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kv_proto::status::ApiError;
use kv_state::sessions::{self, Dead, SessionAnswer, SessionBatch, SessionCommand};
use kv_state::{Answer, Command, Envelope, ReadError, gate};
use kv_types::limits::SESSIONS_PER_ENTRY_MAX;
use kv_types::{ClusterTime, SessionId, ShardId};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::fatal::Fatal;
use crate::gateway::{Gateway, ShardHandle};
use crate::host::chain;
use crate::renewals::change_sessions;
use crate::rows::PinnedRows;

/// How often it looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sessions are looked through for those that are over at least so often, however long their leases run: one may have been
/// opened since.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Without any entry that carries it, the time of a shard is moved on after so long: what it tells a client is then never
/// older, which the ids of requests without a session rest on.
const TICK: Duration = Duration::from_secs(30);

/// After a page of sessions that all live, the next is looked at so many looks later: nobody waits for it.
const COLLECT_AGAIN: u32 = 5;

/// A session that rests is trimmed if a shard keeps more outcomes of it than this.
const RECORDS_KEPT: usize = 32;

const _: () = assert!(
    TICK.as_secs() * 4 < kv_types::limits::REQUEST_AHEAD_MAX.as_secs(),
    "an id drawn by a leader's time is not too early for the next leader, who knows the last entry's"
);

/// What it looks after.
pub(crate) struct SessionKeeper {
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) fatal: Fatal,
}

/// What it remembers between two looks; nothing is lost with it.
#[derive(Debug, Default)]
struct Progress {
    /// The meta group's time at which sessions are looked through next.
    look_at: ClusterTime,
    /// Of each shard, the last session that the meta group was asked about.
    asked: BTreeMap<ShardId, SessionId>,
    /// Of each shard, the looks until its sessions are gone through again.
    collect_in: BTreeMap<ShardId, u32>,
    /// Sessions of which a shard keeps many outcomes, as they were when last looked at: those whose floor has not risen since
    /// rest.
    floors: BTreeMap<(ShardId, SessionId), Kept>,
}

/// What a shard keeps of a session.
#[derive(Debug, Clone, Copy)]
struct Kept {
    floor: u64,
    /// How many rows there were when it was last trimmed at this floor.
    trimmed: Option<usize>,
}

impl SessionKeeper {
    /// Runs until the node stops.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let _guard = self.fatal.on_panic("the keeper of sessions".to_owned());
        let work = async {
            let mut progress = Progress::default();
            loop {
                tokio::time::sleep(INTERVAL).await;
                self.look(&mut progress).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = work => {}
        }
    }

    async fn look(&self, progress: &mut Progress) {
        for handle in self.gateway.shards.values() {
            if handle.leadership.leader() != Some(self.gateway.node) {
                progress.asked.remove(&handle.shard);
                progress.floors.retain(|(shard, _), _| *shard != handle.shard);
                continue;
            }
            let looked = async {
                self.tick(handle).await?;
                if handle.shard == ShardId::META {
                    self.expire(handle, progress).await
                } else {
                    self.collect(handle, progress).await
                }
            };
            if let Err(cause) = looked.await {
                debug!(shard = %handle.shard, %cause, "sessions are not looked after for now");
            }
        }
    }

    /// Moves a shard's time on if no entry has done so for long; with it goes what is due of requests without a session.
    async fn tick(&self, handle: &ShardHandle) -> Result<(), ApiError> {
        let pin = handle.pin()?;
        let stamped = looked(gate::cluster_time(&PinnedRows(&pin)))?;
        // Where the time moves on by itself, only requests without a session would remove what is due of them.
        let is_due =
            handle.time.now() >= stamped.after(TICK) || looked(gate::timed_are_due(&PinnedRows(&pin)))?;
        drop(pin);
        if !is_due {
            return Ok(());
        }
        while let Answer::Ticked { more: true } = self.propose(handle, Command::Tick).await? {}
        Ok(())
    }

    /// Ends the sessions whose leases are over.
    async fn expire(&self, meta: &ShardHandle, progress: &mut Progress) -> Result<(), ApiError> {
        let now = meta.time.now();
        if now < progress.look_at {
            return Ok(());
        }
        let mut next = now.after(LOOK_AGAIN);
        let mut after = None;
        loop {
            let pin = meta.pin()?;
            let page = looked(sessions::list(&PinnedRows(&pin), after, SESSIONS_PER_ENTRY_MAX))?;
            drop(pin);
            let over: Vec<SessionId> =
                page.iter().filter(|(_, session)| session.is_over(now)).map(|(id, _)| *id).collect();
            let soonest = page.iter().map(|(_, session)| session.lease_until).filter(|end| *end > now).min();
            next = soonest.map_or(next, |soonest| next.min(soonest));
            after = page.last().map(|(id, _)| *id);
            let count = page.len();
            if !over.is_empty() {
                let sessions = batch(over);
                let command = SessionCommand::Expire { sessions };
                if let SessionAnswer::Expired(gone) = change_sessions(&self.gateway, None, command).await? {
                    self.gateway.metrics.sessions.expired.inc_by(gone.len() as u64);
                }
            }
            if count < SESSIONS_PER_ENTRY_MAX {
                break;
            }
        }
        progress.look_at = next;
        Ok(())
    }

    /// Asks the meta group which of the next sessions that this shard has rows of are dead, and forgets those.
    async fn collect(&self, handle: &ShardHandle, progress: &mut Progress) -> Result<(), ApiError> {
        if let Some(looks) = progress.collect_in.get_mut(&handle.shard).filter(|looks| **looks > 0) {
            *looks -= 1;
            return Ok(());
        }
        let after = progress.asked.get(&handle.shard).copied();
        let pin = handle.pin()?;
        let rows = looked(gate::session_rows(&PinnedRows(&pin), after, SESSIONS_PER_ENTRY_MAX))?;
        drop(pin);
        let seen: Vec<SessionId> = rows.iter().map(|(session, _)| *session).collect();
        let more = seen.len() == SESSIONS_PER_ENTRY_MAX;
        match seen.last().filter(|_| more) {
            Some(last) => progress.asked.insert(handle.shard, *last),
            None => progress.asked.remove(&handle.shard),
        };
        if seen.is_empty() {
            return Ok(());
        }
        self.trim(handle, &rows, progress).await?;
        let meta = self.gateway.meta()?;
        // Sessions that live are mostly all there are. What this node has applied tells so without a message; that one is
        // dead takes more.
        let seen = batch(seen);
        if dead_by(meta, &seen)?.sessions.is_empty() {
            progress.collect_in.insert(handle.shard, COLLECT_AGAIN);
            return Ok(());
        }
        self.gateway.confirm(meta, None).await?;
        let dead = dead_by(meta, &seen)?;
        for session in dead.sessions.iter() {
            progress.floors.remove(&(handle.shard, session));
        }
        let count = dead.sessions.len() as u64;
        let until = dead.until;
        self.forget(handle, dead.sessions, |sessions| Command::GcSessions { sessions, until }).await?;
        self.gateway.metrics.sessions.collected.inc_by(count);
        Ok(())
    }

    /// Has a shard forget what the sessions that rest have passed; a busy one writes over it by itself.
    async fn trim(
        &self,
        handle: &ShardHandle,
        rows: &[(SessionId, usize)],
        progress: &mut Progress,
    ) -> Result<(), ApiError> {
        let mut resting = Vec::new();
        let pin = handle.pin()?;
        for (session, rows) in rows {
            let name = (handle.shard, *session);
            if *rows <= RECORDS_KEPT {
                progress.floors.remove(&name);
                continue;
            }
            let floor = looked(gate::session_progress(&PinnedRows(&pin), *session, 0))?.floor;
            let before = progress.floors.get(&name).copied();
            let rests = before.is_some_and(|before| before.floor == floor);
            // What a trim has left is needed as long as the floor stands.
            let has_surplus = before.is_none_or(|before| before.trimmed != Some(*rows));
            if rests && has_surplus {
                resting.push(*session);
            }
            progress.floors.insert(name, Kept { floor, trimmed: rests.then_some(*rows) });
        }
        drop(pin);
        let trimmed =
            self.forget(handle, batch(resting.clone()), |sessions| Command::TrimSessions { sessions }).await;
        if trimmed.is_err() {
            for session in resting {
                progress.floors.remove(&(handle.shard, session));
            }
        }
        trimmed
    }

    /// Proposes one entry after the other until nothing is left to be forgotten.
    async fn forget(
        &self,
        handle: &ShardHandle,
        mut sessions: SessionBatch,
        command: impl Fn(SessionBatch) -> Command,
    ) -> Result<(), ApiError> {
        while !sessions.is_empty() {
            let answer = self.propose(handle, command(sessions)).await?;
            let Answer::SessionsCollected { left, .. } = answer else {
                unreachable!("a collection of sessions is answered {answer:?}")
            };
            sessions = batch(left);
        }
        Ok(())
    }

    async fn propose(&self, handle: &ShardHandle, command: Command) -> Result<Answer, ApiError> {
        let envelope = Envelope::timed(command).expect("no settling is put into an envelope here");
        Ok(self.gateway.replicate(handle, None, envelope.encode()).await?.answer)
    }
}

/// Which of the sessions are dead, by the rows of the meta group as this node has applied them.
fn dead_by(meta: &ShardHandle, sessions: &SessionBatch) -> Result<Dead, ApiError> {
    let pin = meta.pin()?;
    looked(sessions::dead(&PinnedRows(&pin), pin.index(), sessions))
}

fn batch(sessions: Vec<SessionId>) -> SessionBatch {
    SessionBatch::new(sessions).expect("a page is no longer than an entry takes")
}

fn looked<T>(result: Result<T, ReadError<kv_storage::ReadError>>) -> Result<T, ApiError> {
    result.map_err(|cause| ApiError::Checksum(chain(&cause)))
}
