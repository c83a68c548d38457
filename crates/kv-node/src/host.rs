//! The task that runs one replica: feeds it what has arrived, hands on what it wants done.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kv_raft::Role;
use kv_shard::{Effects, Replica, ReplicaError};
use kv_types::LogId;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use crate::background::Background;
use crate::clock;
use crate::fatal::Fatal;
use crate::gateway::{Leadership, ShardHandle};
use crate::links::Links;
use crate::mailbox::{Control, Mail, Mailbox, Request};
use crate::metrics::Metrics;
use crate::waiter::Waiter;
use crate::wal_writer::{Durable, WalWriter};

/// Entries applied in one turn, so that heartbeats and votes never wait for a long apply.
const APPLY_ENTRIES_MAX: u64 = 512;

/// Bytes of entries read for applying in one turn.
const APPLY_BYTES_MAX: u64 = 8 << 20;

/// What the replicas of a node share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) wal: WalWriter,
    pub(crate) links: Arc<Links>,
    pub(crate) background: Background,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) fatal: Fatal,
    /// The memtables of the node are full.
    pub(crate) memory_full: Arc<AtomicBool>,
}

/// A replica and what its task needs.
pub(crate) struct Host {
    replica: Replica<Waiter>,
    handle: ShardHandle,
    shared: Shared,
    /// Who waits for a received snapshot to be installed.
    install: Option<oneshot::Sender<LogId>>,
    led: bool,
}

impl Host {
    /// A task for a replica, and the way to it.
    pub(crate) fn new(replica: Replica<Waiter>, shared: Shared) -> (Self, ShardHandle) {
        let handle = ShardHandle {
            shard: replica.shard(),
            mailbox: Arc::new(Mailbox::new()),
            reader: replica.reader(),
            leadership: Arc::new(Leadership::default()),
        };
        (Self { replica, handle: handle.clone(), shared, install: None, led: false }, handle)
    }

    /// Runs until the node stops.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let _guard = self.shared.fatal.on_panic(format!("the replica of {}", self.handle.shard));
        if let Err(cause) = self.turns(&stop).await {
            let shard = self.handle.shard;
            error!(%shard, error = &cause as &dyn std::error::Error, "the replica stops");
            self.shared.fatal.stop(format!("the replica of {shard} stopped: {}", chain(&cause)));
        }
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
                let wait = self.replica.next_deadline().since(clock::now());
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
            more = self.may_apply() && self.replica.apply(APPLY_ENTRIES_MAX, APPLY_BYTES_MAX)?;
            let effects = self.replica.take()?;
            self.hand_on(effects).await;
            if !self.replica.is_installing()
                && let Some(waiting) = self.install.take()
            {
                // A sender that has gone away asks again.
                let _ = waiting.send(self.replica.applied());
            }
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
        if let Some(upto) = mail.persisted {
            self.replica.persisted(now, upto)?;
        }
        for message in mail.messages {
            self.replica.step(now, message);
        }
        // After the messages: a task that had to wait must not take signs of life in its mailbox for silence.
        self.replica.tick(now);
        let mut writes = Vec::with_capacity(mail.requests.len());
        for request in mail.requests {
            match request {
                Request::Write(command, waiter) => writes.push((command, waiter)),
                Request::Read(waiter) => self.replica.read(now, waiter),
            }
        }
        if !writes.is_empty() {
            self.replica.write(writes);
        }
        for control in mail.control {
            self.control(control)?;
        }
        Ok(())
    }

    fn control(&mut self, control: Control) -> Result<(), ReplicaError> {
        let now = clock::now();
        match control {
            // Whoever asked may have gone away.
            Control::Status(reply) => drop(reply.send(self.replica.status())),
            Control::Verified(Ok(())) => self.replica.verified(),
            Control::Verified(Err(cause)) => {
                // A snapshot may have replaced the damaged rows meanwhile.
                if !self.replica.status().verified {
                    return Err(cause.into());
                }
            }
            Control::BeginCheckpoint(reply) => drop(reply.send(self.replica.begin_checkpoint()?)),
            Control::CheckpointDone(done) => {
                self.replica.checkpoint_done(now, done)?;
                self.shared.metrics.checkpoints.inc();
            }
            Control::CompactToBase => self.replica.compact_to_base()?,
            Control::SnapshotSource(reply) => drop(reply.send(self.replica.snapshot_source())),
            Control::SnapshotSent(to, result) => self.replica.snapshot_sent(now, to, result),
            Control::SnapshotReceived(from, term, received, reply) => {
                self.shared.metrics.snapshots_installed.inc();
                self.replica.snapshot_received(now, from, term, received);
                self.install = Some(reply);
            }
            Control::Unreachable(peer) => self.replica.unreachable(peer),
            Control::Campaign => self.replica.campaign(now),
        }
        Ok(())
    }

    async fn hand_on(&mut self, effects: Effects<Waiter>) {
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
