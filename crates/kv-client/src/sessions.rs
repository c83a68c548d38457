//! The sessions of this client: opened when first needed, renewed while it lives.
//!
//! Each shard has its own, so that a shard without a leader, whose calls stay open, holds up no other; and a second one
//! when the window of the first is full, up to [`LANES_MAX`]. Transactions have some to themselves: their numbers are
//! seen by several shards.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kv_proto::v1;
use kv_types::limits::SESSIONS_PER_ENTRY_MAX;
use kv_types::{ClusterTime, Request, SessionId, ShardId};
use tokio::sync::{Mutex as Turn, Notify};
use tokio::time::{sleep, timeout_at};

use crate::attempt::Caller;
use crate::error::Failure;
use crate::lane::{Lane, clocks};
use crate::node::to_its_end;

/// Sessions for one shard, and for transactions.
const LANES_MAX: usize = 8;

/// A session is renewed so many times in its time to live.
const RENEWALS_PER_TTL: u32 = 3;

/// A renewal that failed is tried again after this part of the time to the next.
const SOONER: u32 = 4;

/// What a session is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum LaneOf {
    /// The writes of one shard.
    Shard(ShardId),
    /// Transactions, over whatever shards.
    Transactions,
}

/// The sessions for one purpose.
#[derive(Debug, Default)]
struct Lanes {
    open: Mutex<Vec<Arc<Lane>>>,
    /// Who holds it opens another.
    opening: Arc<Turn<()>>,
    /// A number can be given out.
    freed: Notify,
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    ttl: Duration,
    lanes: Mutex<BTreeMap<LaneOf, Arc<Lanes>>>,
    /// Who holds it renews.
    renewing: Arc<Turn<()>>,
    /// Whether a task renews them.
    is_kept: Mutex<bool>,
}

/// The number of one call; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    lane: Arc<Lane>,
    lanes: Arc<Lanes>,
    seq: u64,
}

impl Ticket {
    /// What an attempt says about itself.
    pub(crate) fn request(&self) -> Request {
        Request::Session(self.lane.request(self.seq))
    }

    /// Whether its session is gone for good.
    pub(crate) fn is_gone(&self) -> bool {
        self.lane.is_dead()
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        for _ in 0..self.lane.end(self.seq) {
            self.lanes.freed.notify_one();
        }
    }
}

impl Sessions {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, lanes: Mutex::default(), renewing: Arc::default(), is_kept: Mutex::new(false) }
    }

    /// A number for a call; opens a session or waits for room if need be.
    pub(crate) async fn ticket(
        &self,
        caller: &Arc<Caller>,
        lane_of: LaneOf,
        deadline: Instant,
    ) -> Result<Ticket, Failure> {
        let lanes = {
            let mut all = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(all.entry(lane_of).or_default())
        };
        loop {
            let Some((lane, seq)) = lanes.begin() else {
                match timeout_at(deadline.into(), self.room(caller, &lanes)).await {
                    Ok(done) => done?,
                    Err(_) => return Err(Failure::NotSent("no session was to be had".to_owned())),
                }
                continue;
            };
            let ticket = Ticket { lane, lanes: Arc::clone(&lanes), seq };
            if !ticket.lane.may_be_over(self.ttl) {
                return Ok(ticket);
            }
            // It was not used for long, or could not be renewed. If it is gone, another takes its place.
            self.renew_now(caller, &ticket, deadline).await?;
            if !ticket.lane.is_dead() {
                return Ok(ticket);
            }
        }
    }

    /// Waits until a number can be given out, for which it opens another session if there may be one more.
    async fn room(&self, caller: &Arc<Caller>, lanes: &Arc<Lanes>) -> Result<(), Failure> {
        let mut freed = pin!(lanes.freed.notified());
        // What is freed from now on wakes this call; what was freed before is seen.
        freed.as_mut().enable();
        let (has_room, count) = lanes.room();
        if has_room {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = freed => Ok(()),
            opened = self.open(caller, lanes, count), if count < LANES_MAX => opened,
        }
    }

    /// Opens one more session, unless another caller has done so meanwhile.
    async fn open(&self, caller: &Arc<Caller>, lanes: &Arc<Lanes>, count: usize) -> Result<(), Failure> {
        let turn = Arc::clone(&lanes.opening).lock_owned().await;
        if lanes.count() > count {
            return Ok(());
        }
        let (caller, lanes) = (Arc::clone(caller), Arc::clone(lanes));
        to_its_end(async move {
            let _turn = turn;
            caller.sessions.open_now(&caller, &lanes).await
        })
        .await
    }

    async fn open_now(&self, caller: &Arc<Caller>, lanes: &Lanes) -> Result<(), Failure> {
        let nonce = Bytes::copy_from_slice(&rand::random::<u128>().to_be_bytes());
        let ttl_ms = u64::try_from(self.ttl.as_millis()).unwrap_or(u64::MAX);
        let asked = clocks();
        let opened = caller
            .meta_call(caller.deadline(), |node, context| {
                let request = v1::OpenSessionRequest { context: Some(context), nonce: nonce.clone(), ttl_ms };
                async move { node.sessions().open_session(request).await }
            })
            .await?;
        let lane = Lane::new(SessionId::new(opened.session), time(opened.lease_until_ms), asked);
        lanes.open.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::new(lane));
        self.keep(caller);
        Ok(())
    }

    /// Renews the session of a call whose lease is not what a shard asks for.
    pub(crate) async fn renew_now(
        &self,
        caller: &Arc<Caller>,
        ticket: &Ticket,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let before = ticket.lane.request(ticket.seq).lease_until;
        let renew = async {
            let turn = Arc::clone(&self.renewing).lock_owned().await;
            let after = ticket.lane.request(ticket.seq).lease_until;
            if after > before || ticket.lane.is_dead() {
                return Ok(());
            }
            let (caller, lane) = (Arc::clone(caller), Arc::clone(&ticket.lane));
            to_its_end(async move {
                let _turn = turn;
                renew(&caller, std::slice::from_ref(&lane)).await
            })
            .await
        };
        match timeout_at(deadline.into(), renew).await {
            Ok(done) => done,
            Err(_) => Err(Failure::NotSent("the session was not renewed".to_owned())),
        }
    }

    /// Sees to it that a task renews the sessions as long as somebody holds the client.
    fn keep(&self, caller: &Arc<Caller>) {
        let mut is_kept = self.is_kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut *is_kept, true) {
            tokio::spawn(renew_all(Arc::downgrade(caller), self.ttl / RENEWALS_PER_TTL));
        }
    }

    /// The number below which a session of this client waits for nothing, as an attempt of call `seq` says it; 0 of a session of
    /// others.
    pub(crate) fn first_incomplete(&self, session: SessionId, seq: u64) -> u64 {
        let own = self.alive().into_iter().find(|lane| lane.session == session);
        own.map_or(0, |lane| lane.request(seq).first_incomplete)
    }

    fn alive(&self) -> Vec<Arc<Lane>> {
        let all = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        all.values().flat_map(|lanes| lanes.alive()).collect()
    }

    /// Ends all sessions.
    pub(crate) async fn close(&self, caller: &Arc<Caller>) -> Result<(), Failure> {
        let all = std::mem::take(&mut *self.lanes.lock().unwrap_or_else(PoisonError::into_inner));
        for lane in all.values().flat_map(|lanes| lanes.alive()) {
            lane.renewed(None, clocks());
            let session = lane.session.get();
            caller
                .meta_call(caller.deadline(), |node, context| {
                    let request = v1::CloseSessionRequest { context: Some(context), session };
                    async move { node.sessions().close_session(request).await }
                })
                .await?;
        }
        Ok(())
    }
}

impl Lanes {
    /// A number of the first session that has one.
    fn begin(&self) -> Option<(Arc<Lane>, u64)> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|lane| !lane.is_dead());
        open.iter().find_map(|lane| Some((Arc::clone(lane), lane.begin()?)))
    }

    /// Whether a session has a number, and how many sessions there are.
    fn room(&self) -> (bool, usize) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|lane| !lane.is_dead());
        (open.iter().any(|lane| lane.has_room()), open.len())
    }

    fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn alive(&self) -> Vec<Arc<Lane>> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().filter(|lane| !lane.is_dead()).map(Arc::clone).collect()
    }
}

fn time(ms: u64) -> ClusterTime {
    ClusterTime::from_ms(ms).unwrap_or(ClusterTime::MAX)
}

/// Renews sessions, all in one call if they are not too many.
async fn renew(caller: &Arc<Caller>, lanes: &[Arc<Lane>]) -> Result<(), Failure> {
    for part in lanes.chunks(SESSIONS_PER_ENTRY_MAX) {
        let asked = clocks();
        let sessions: Vec<u64> = part.iter().map(|lane| lane.session.get()).collect();
        let reply = caller
            .meta_call(caller.deadline(), |node, context| {
                let request = v1::RenewSessionsRequest { context: Some(context), sessions: sessions.clone() };
                async move { node.sessions().renew_sessions(request).await }
            })
            .await?;
        for renewed in reply.sessions {
            if let Some(lane) = part.iter().find(|lane| lane.session.get() == renewed.session) {
                lane.renewed(renewed.lease_until_ms.map(time), asked);
            }
        }
    }
    Ok(())
}

/// Runs until the client is gone.
async fn renew_all(caller: Weak<Caller>, interval: Duration) {
    let mut wait = interval;
    loop {
        // Not all clients that started together need the meta group at the same moment.
        sleep(wait.mul_f64(0.9 + 0.2 * rand::random::<f64>())).await;
        let Some(caller) = caller.upgrade() else { return };
        let _turn = caller.sessions.renewing.lock().await;
        wait = match renew(&caller, &caller.sessions.alive()).await {
            Ok(()) => interval,
            Err(cause) => {
                tracing::debug!(%cause, "sessions are not renewed for now");
                interval / SOONER
            }
        };
    }
}
