//! The task that runs one replica: feeds it what has arrived, hands on what it wants done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_raft::{LeaseConfig, Message, MessageKind, Role};
use kv_shard::{Effects, Replica, ReplicaError, WriteFailure};
use kv_state::cluster::ReadMode;
use kv_storage::wal::LogReader;
use kv_types::{Body, LogId, Nanos, NodeId, ShardId};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admission::Admission;
use crate::background::Background;
use crate::clock::{self, SLEW_MAX, Standstill};
use crate::fatal::Fatal;
use crate::gateway::{Leadership, ShardHandle};
use crate::leader_lease::PublishedLease;
use crate::links::Links;
use crate::log_budget::LogBudget;
use crate::mailbox::{Control, Mail, Mailbox, Request};
use crate::metrics::Metrics;
use crate::pace::{Line, Pace, Turn};
use crate::waiter::Waiter;
use crate::wal_writer::{Durable, WalWriter};

/// Entries applied in one turn, so that heartbeats and votes never wait for a long apply.
const APPLY_ENTRIES_MAX: u64 = 512;

/// Taken off every lease: far more than the clock is coarse, and as much as a pause may last that neither clock shows.
const CLOCK_GRANULARITY: Duration = Duration::from_millis(1).saturating_add(SLEW_MAX);

/// Bytes of entries read for applying in one turn.
const APPLY_BYTES_MAX: u64 = 8 << 20;

/// What the replicas of a node share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) wal: WalWriter,
    pub(crate) links: Arc<Links>,
    pub(crate) background: Background,
    /// For merges that are behind.
    pub(crate) merge_now: Background,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) fatal: Fatal,
    /// The memtables of the node are full.
    pub(crate) memory_full: Arc<AtomicBool>,
    /// Whether merges hurry, and at which rate leaders take writes.
    pub(crate) pace: Arc<Pace>,
    /// What the write-ahead log may take.
    pub(crate) log: Arc<LogBudget>,
    pub(crate) log_reader: Arc<LogReader>,
}

/// A replica and what its task needs.
pub(crate) struct Host {
    replica: Replica<Waiter>,
    handle: ShardHandle,
    shared: Shared,
    /// Who waits for a received snapshot to be installed.
    install: Option<oneshot::Sender<LogId>>,
    /// Rows of another member wait to be installed in the place of damaged ones.
    repairing: bool,
    led: bool,
    admission: Admission,
    /// Writes that wait for their turn.
    line: Line<Request>,
    /// Messages caused by reads that are counted already.
    read_messages: u64,
    standstill: Standstill,
    /// The member whose clock costs this leader its lease.
    clock_off: Option<NodeId>,
}

impl Host {
    /// A task for a replica, and the way to it.
    pub(crate) fn new(replica: Replica<Waiter>, shared: Shared) -> (Self, ShardHandle) {
        let handle = ShardHandle {
            shard: replica.shard(),
            mailbox: Arc::new(Mailbox::new()),
            reader: replica.reader(),
            leadership: Arc::new(Leadership::default()),
            lease: Arc::new(PublishedLease::default()),
            time: Arc::default(),
            locks: replica.locks(),
            deletes: replica.deletes(),
        };
        (
            Self {
                replica,
                handle: handle.clone(),
                shared,
                install: None,
                repairing: false,
                led: false,
                admission: Admission::new(),
                line: Line::default(),
                read_messages: 0,
                standstill: Standstill::default(),
                clock_off: None,
            },
            handle,
        )
    }

    /// Runs until the node stops.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let _guard = self.shared.fatal.on_panic(format!("the replica of {}", self.handle.shard));
        if let Err(cause) = self.turns(&stop).await {
            let shard = self.handle.shard;
            error!(%shard, error = &cause as &dyn std::error::Error, "the replica stops");
            self.shared.fatal.stop(format!("the replica of {shard} stopped: {}", chain(&cause)));
        }
        self.handle.lease.withdraw();
        self.handle.leadership.publish(self.replica.leadership().0, None);
        drop(self.handle.mailbox.close());
        let effects = self.replica.stop();
        answer(effects.written, effects.reads);
    }

    async fn turns(&mut self, stop: &CancellationToken) -> Result<(), ReplicaError> {
        let mut more = false;
        loop {
            if more {
                tokio::task::yield_now().await;
            } else {
                let next = self.replica.next_deadline();
                let wait = self.line.next().map_or(next, |turn| turn.min(next)).since(clock::now());
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return Ok(()),
                    () = self.handle.mailbox.arrived() => {}
                    () = tokio::time::sleep(wait.max(Duration::from_millis(1))) => {}
                }
            }
            if stop.is_cancelled() {
                return Ok(());
            }
            let mail = self.handle.mailbox.take();
            self.feed(mail)?;
            let effects = self.replica.take()?;
            self.hand_on(effects).await;
            let read_messages = self.replica.read_messages();
            self.shared.metrics.read_messages.inc_by(read_messages - self.read_messages);
            self.read_messages = read_messages;
            more = self.may_apply() && self.replica.apply(APPLY_ENTRIES_MAX, APPLY_BYTES_MAX)?;
            let under_way = self.replica.waiting_writes();
            self.admission.applied(self.replica.applied().index, under_way, clock::now());
            self.handle.mailbox.set_writes_max(self.admission.room(under_way + self.line.len()));
            if let Some(time) = self.replica.cluster_time() {
                self.handle.time.publish(time);
            }
            let effects = self.replica.take()?;
            self.hand_on(effects).await;
            self.look_at_clocks();
            if !self.replica.is_installing() {
                self.installed();
            }
        }
    }

    /// Nothing is being installed any more.
    fn installed(&mut self) {
        if let Some(waiting) = self.install.take() {
            // A sender that has gone away asks again.
            let _ = waiting.send(self.replica.applied());
        }
        if std::mem::take(&mut self.repairing) && self.replica.damage().is_none() {
            self.shared.metrics.snapshots_installed.inc();
        }
    }

    /// A leader whose memory is full refuses writes and so ends its own plight; a follower cannot refuse, but it can
    /// wait before it applies. It goes on appending and voting.
    fn may_apply(&self) -> bool {
        self.led || !self.shared.memory_full.load(Ordering::Acquire)
    }

    /// What arrived, in an order that keeps latency low: the disk's news first, then peers, then clients.
    fn feed(&mut self, mail: Mail) -> Result<(), ReplicaError> {
        // The clock is read after the messages came off the socket: a promise given by one of them begins now.
        let now = clock::now();
        if self.standstill.is_seen() {
            self.replica.clock_jumped(now);
            if self.led {
                info!(shard = %self.handle.shard, "a clock jumped; the lease is earned anew");
            }
        }
        if let Some(upto) = mail.persisted {
            self.replica.persisted(now, upto)?;
        }
        // A leader refuses writes while its log is full. A follower cannot, but it can lose what would fill the log
        // further: the leader sends it again, and meanwhile its own limits refuse writes. Heartbeats pass, and what a leader
        // writes for itself, which is little: without its first entry it could not even serve reads.
        let log_full = self.shared.log.puts_off();
        for message in mail.messages {
            if log_full && fills_log(&message) {
                self.shared.metrics.appends_put_off.inc();
            } else {
                self.replica.step(now, message);
            }
        }
        // After the messages: a task that had to wait must not take signs of life in its mailbox for silence.
        self.replica.tick(now);
        let mut writes = self.admitted(mail.requests, now);
        // The cluster's changes and sessions are small, and help to end it.
        if self.shared.log.is_full() && self.handle.shard != ShardId::META {
            // They were let in before it was.
            for (_, waiter) in writes.drain(..) {
                waiter.written(Err(WriteFailure::Busy));
            }
        }
        if !writes.is_empty() {
            self.replica.write(writes);
            if self.led {
                self.admission.proposed(self.replica.last(), now);
            }
        }
        for control in mail.control {
            self.control(control)?;
        }
        Ok(())
    }

    /// The writes that are proposed now; who asks for a read gets into its queue.
    fn admitted(&mut self, requests: Vec<Request>, now: Nanos) -> Vec<(Bytes, Waiter)> {
        let answered_by = self.admission.answered_by(now);
        let mut writes = Vec::with_capacity(requests.len());
        let due = self.line.due(&self.shared.pace, now).into_iter().map(|write| (write, true));
        for (request, waited) in due.chain(requests.into_iter().map(|request| (request, false))) {
            let (command, until, waiter) = match request {
                Request::Read(waiter) => {
                    self.replica.read(now, waiter);
                    continue;
                }
                Request::Write { command, until, waiter } => (command, until, waiter),
            };
            // Work that nobody waits for is not begun.
            if until <= now {
                self.shared.metrics.expired.inc();
                waiter.written(Err(WriteFailure::Expired));
                continue;
            }
            let is_free = waited || self.handle.shard == ShardId::META;
            let turn = match until {
                until if until <= answered_by => Turn::Never,
                _ if is_free => Turn::Now,
                _ => self.shared.pace.turn(command.len(), now),
            };
            match turn {
                Turn::Now => writes.push((command, waiter)),
                Turn::At(at) => self.line.push(at, Request::Write { command, until, waiter }),
                Turn::Never => waiter.written(Err(WriteFailure::Busy)),
            }
        }
        writes
    }

    fn control(&mut self, control: Control) -> Result<(), ReplicaError> {
        let now = clock::now();
        match control {
            // Whoever asked may have gone away.
            Control::Status(reply) => {
                // Maintenance asks often: files go soon after their last reader, and once there is room in the queue.
                if self.shared.background.has_room() {
                    for retired in self.replica.retired() {
                        self.shared.background.remove(retired);
                    }
                }
                drop(reply.send(self.replica.status()));
            }
            Control::Verified(Ok(())) => self.replica.verified(),
            Control::Verified(Err(cause)) => {
                let detail = ReplicaError::from(cause).into_damage()?;
                // A snapshot may have replaced the damaged rows meanwhile.
                let status = self.replica.status();
                if !status.verified {
                    self.replica.damaged(status.base_generation, detail);
                }
            }
            Control::Damaged(generation, detail) => self.replica.damaged(generation, detail),
            Control::CheckpointFailed(detail) => self.replica.checkpoint_failed(now, detail),
            Control::BeginCheckpoint(reply) => drop(reply.send(self.replica.begin_checkpoint())),
            Control::CheckpointDone(done) => {
                self.replica.checkpoint_done(now, done);
                self.shared.metrics.checkpoints.inc();
            }
            Control::CompactToBase => self.replica.compact_to_base(),
            Control::SnapshotSource(reply) => drop(reply.send(self.replica.snapshot_source())),
            Control::RegenerationSource(reply) => {
                let generation = self.replica.status().generation;
                drop(reply.send(self.replica.regeneration_source().map(|source| (source, generation))));
            }
            Control::EndRegeneration(regeneration, reply) => {
                if let Err(unheard) = reply.send(self.replica.end_regeneration(regeneration)) {
                    self.shared.background.free(unheard);
                }
            }
            Control::SnapshotSent(to, result) => self.replica.snapshot_sent(now, to, result),
            Control::SnapshotReceived(from, term, received, reply) => {
                // Rows that wait are put aside for those of the leader, which are counted where they came in.
                self.repairing = false;
                self.replica.snapshot_received(now, from, term, received);
                self.install = Some(reply);
            }
            Control::RepairReceived(received) => {
                // Unless they are put aside at once.
                self.repairing |= self.replica.damage().is_some() && !self.replica.is_installing();
                self.replica.repair_received(received);
            }
            Control::Unreachable(peer) => self.replica.unreachable(peer),
            Control::Settings(settings) => {
                let lease = (settings.read_mode == ReadMode::Lease).then_some(LeaseConfig {
                    drift_ppm: settings.clock_drift_ppm,
                    granularity: CLOCK_GRANULARITY,
                });
                self.replica.set_lease(now, lease)?;
            }
            Control::Reconfigure(target, reply) => drop(reply.send(self.replica.reconfigure(now, target))),
            Control::Transfer(to, reply) => drop(reply.send(self.replica.transfer(now, to))),
            Control::Campaign => self.replica.campaign(now),
        }
        Ok(())
    }

    async fn hand_on(&mut self, effects: Effects<Waiter>) {
        // First of all: once a message has left that tells of a commit, others may answer with what it shows, and who reads
        // here after them must not be shown less.
        self.handle.lease.committed(self.replica.commit());
        // And nothing that ends a lease may leave before readers know that it ended.
        if let Some(lease) = &effects.lease {
            self.handle.lease.publish(lease);
        }
        if let Some(change) = effects.role {
            self.role_changed(change);
        }
        if !effects.messages.is_empty() {
            self.shared.links.send(self.handle.shard, effects.messages);
        }
        for write in effects.writes {
            let durable = match write.id {
                Some(id) => Durable::Replica(Arc::clone(&self.handle.mailbox), id),
                None => Durable::Nobody,
            };
            self.shared.wal.write(write.record, durable).await;
        }
        answer(effects.written, effects.reads);
        for freed in effects.freed {
            self.shared.background.free(freed);
        }
        for job in effects.snapshots {
            self.shared.links.send_snapshot(self.handle.clone(), job.to, job.term);
        }
    }

    /// Tells operators of a clock that costs this leader its lease.
    fn look_at_clocks(&mut self) {
        let (off, shard) = (self.replica.clock_off(), self.handle.shard);
        match (self.clock_off, off) {
            (before, after) if before == after => return,
            (_, Some(node)) => {
                warn!(%shard, %node, "its clock is too fast or too slow: without a lease each read takes a round");
            }
            (_, None) => {
                info!(%shard, "no clock is too fast or too slow any more, or this node leads no more")
            }
        }
        let clocks_off = &self.shared.metrics.clocks_off;
        clocks_off.inc_by(i64::from(off.is_some()) - i64::from(self.clock_off.is_some()));
        self.clock_off = off;
    }

    fn role_changed(&mut self, change: kv_raft::RoleChange) {
        let shard = self.handle.shard;
        self.handle.leadership.publish(change.term, change.leader);
        let leads = change.role == Role::Leader;
        if leads != self.led {
            self.led = leads;
            if leads {
                self.shared.metrics.elections_won.inc();
                self.shared.metrics.leading.inc();
            } else {
                self.shared.metrics.leading.dec();
            }
        }
        let leader = change.leader.map_or_else(|| "none".to_owned(), |leader| leader.to_string());
        info!(%shard, role = %change.role, term = %change.term, leader, "role");
    }
}

/// Whether a message of a peer would make the log longer by what clients write.
fn fills_log(message: &Message) -> bool {
    let MessageKind::Append { entries, .. } = &message.kind else { return false };
    entries.iter().any(|entry| matches!(entry.body, Body::Command(_)))
}

fn answer(
    written: Vec<(Waiter, Result<kv_shard::Written, kv_shard::WriteFailure>)>,
    reads: Vec<(Waiter, Result<(), kv_shard::ReadFailure>)>,
) {
    for (waiter, result) in written {
        waiter.written(result);
    }
    for (waiter, result) in reads {
        waiter.readable(result);
    }
}

/// An error and its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
