//! The one typed way into a node: every face (unary calls, pipeline, later others) calls this and nothing below it.
//!
//! It routes a key to its shard's replica, admits or refuses, waits for the answer, and turns what the replica says
//! into the errors of the wire. It knows no transport.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_proto::request::{Expect, Request, Scan};
use kv_proto::status::{ApiError, LeaderHint, NotLeader, Overloaded};
use kv_proto::validate::Context;
use kv_shard::{LamportClock, ReadFailure, WriteFailure, Written};
use kv_state::Command;
use kv_storage::ShardReader;
use kv_types::{KeyRange, NodeId, ShardId, Term};
use tokio::sync::oneshot;

use crate::directory::Directory;
use crate::log_budget::LogBudget;
use crate::mailbox::{Mailbox, Refusal, Request as Mail};
use crate::metrics::Metrics;
use crate::shard_map::ShardMap;
use crate::waiter::{Waiter, WriteKind};

/// How long a call without a deadline of its own may take.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// When a refused client should try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A client's Lamport counter further ahead than this is refused and never merged (DESIGN §9).
const LAMPORT_AHEAD_MAX: u64 = 1 << 40;

/// Who calls. Everybody is anonymous until there is authentication; the type is part of each call so that no face can
/// forget it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Principal {
    /// Nobody in particular.
    Anonymous,
}

/// Who leads a shard, as its replica here knows; read by handlers without asking it.
#[derive(Debug, Default)]
pub(crate) struct Leadership {
    term: AtomicU64,
    leader: AtomicU64,
}

impl Leadership {
    pub(crate) fn publish(&self, term: Term, leader: Option<NodeId>) {
        self.leader.store(leader.unwrap_or_default().get(), Ordering::Release);
        self.term.store(term.get(), Ordering::Release);
    }

    pub(crate) fn term(&self) -> Term {
        Term::new(self.term.load(Ordering::Acquire))
    }

    pub(crate) fn leader(&self) -> Option<NodeId> {
        match self.leader.load(Ordering::Acquire) {
            0 => None,
            raw => Some(NodeId::new(raw)),
        }
    }
}

/// A replica as handlers see it.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    pub(crate) shard: ShardId,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) reader: Arc<ShardReader>,
    pub(crate) leadership: Arc<Leadership>,
}

/// A page of a range within one shard.
#[derive(Debug)]
pub(crate) struct PageRequest {
    /// The part of the range that lies in the shard.
    pub(crate) range: KeyRange,
    /// Where the rest of the range begins behind the shard, if it reaches there.
    pub(crate) beyond: Option<Bytes>,
    /// Most rows wanted.
    pub(crate) limit: Option<u64>,
    /// Whether values are left out.
    pub(crate) keys_only: bool,
}

/// The node's typed gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) cluster: String,
    pub(crate) node: NodeId,
    pub(crate) map: ShardMap,
    pub(crate) shards: BTreeMap<ShardId, ShardHandle>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) clock: Arc<LamportClock>,
    pub(crate) metrics: Arc<Metrics>,
    draining: AtomicBool,
    disk_full: AtomicBool,
    memory_full: AtomicBool,
    log: Arc<LogBudget>,
}

impl Gateway {
    pub(crate) fn new(
        (cluster, node): (String, NodeId),
        map: ShardMap,
        shards: BTreeMap<ShardId, ShardHandle>,
        (directory, clock): (Arc<Directory>, Arc<LamportClock>),
        (metrics, log): (Arc<Metrics>, Arc<LogBudget>),
    ) -> Self {
        Self {
            cluster,
            node,
            map,
            shards,
            directory,
            clock,
            metrics,
            draining: AtomicBool::new(false),
            disk_full: AtomicBool::new(false),
            memory_full: AtomicBool::new(false),
            log,
        }
    }

    /// Takes no new calls from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Refuses writes while the disk is nearly full; whether it did so before.
    pub(crate) fn set_disk_full(&self, full: bool) -> bool {
        self.disk_full.swap(full, Ordering::AcqRel)
    }

    /// Refuses writes while the memtables are full.
    pub(crate) fn set_memory_full(&self, full: bool) {
        self.memory_full.store(full, Ordering::Release);
    }

    /// The replica that owns a key.
    pub(crate) fn route(&self, key: &[u8]) -> Result<&ShardHandle, ApiError> {
        if self.draining.load(Ordering::Acquire) {
            return Err(ApiError::Draining(format!("{} is about to stop", self.node)));
        }
        let shard = self.map.shard_of(key);
        self.shards.get(&shard).ok_or(ApiError::UnknownShard(shard))
    }

    /// Takes note of what a write says about itself: its stamp shall exceed what its client has seen. Reads never merge.
    pub(crate) fn admit(&self, context: &Context) -> Result<(), ApiError> {
        let Some(counter) = context.lamport else { return Ok(()) };
        let now = self.clock.now();
        if counter > now.saturating_add(LAMPORT_AHEAD_MAX) {
            return Err(ApiError::Invalid(format!(
                "the Lamport counter {counter} is far ahead of this cluster's {now}"
            )));
        }
        self.clock.merge(counter);
        Ok(())
    }

    /// The replica that may take a write of this key: it leads as far as it knows.
    pub(crate) fn route_write(&self, key: &[u8]) -> Result<&ShardHandle, ApiError> {
        let shard = self.route(key)?;
        if self.disk_full.load(Ordering::Acquire) {
            return Err(ApiError::Quota(format!(
                "the disk of {} is nearly full; delete or move data",
                self.node
            )));
        }
        if shard.leadership.leader() != Some(self.node) {
            return Err(self.not_leader(shard));
        }
        if self.memory_full.load(Ordering::Acquire) {
            self.metrics.refused_overload.inc();
            return Err(overloaded("the memtables are full until a merge frees memory"));
        }
        if self.log.is_full() {
            self.metrics.refused_overload.inc();
            return Err(overloaded("the write-ahead log is full until a merge frees some of it"));
        }
        Ok(shard)
    }

    /// Replicates a command and waits for its answer.
    pub(crate) async fn write(
        &self,
        _who: Principal,
        context: &Context,
        key: &[u8],
        command: Command,
    ) -> Result<(ShardId, Written), ApiError> {
        self.admit(context)?;
        let shard = self.route_write(key)?;
        let (answer, answered) = oneshot::channel();
        self.mail(shard, Mail::Write(command.encode(), Waiter::Write(answer)))?;
        match tokio::time::timeout(context.deadline.unwrap_or(DEADLINE_DEFAULT), answered).await {
            Err(_) => Err(ApiError::Deadline),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Ok(Ok(Err(failure))) => Err(self.write_failure(shard, failure)),
            Ok(Ok(Ok(written))) => Ok((shard.shard, written)),
        }
    }

    /// Waits until the rows of a shard may be read linearisably.
    pub(crate) async fn readable(
        &self,
        _who: Principal,
        context: &Context,
        key: &[u8],
    ) -> Result<&ShardHandle, ApiError> {
        let shard = self.route(key)?;
        let (answer, answered) = oneshot::channel();
        self.mail(shard, Mail::Read(Waiter::Read(answer)))?;
        match tokio::time::timeout(context.deadline.unwrap_or(DEADLINE_DEFAULT), answered).await {
            Err(_) => Err(ApiError::Deadline),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Ok(Ok(Err(failure))) => Err(self.read_failure(shard, failure)),
            Ok(Ok(Ok(()))) => Ok(shard),
        }
    }

    fn mail(&self, shard: &ShardHandle, request: Mail) -> Result<(), ApiError> {
        match shard.mailbox.request([request]).pop() {
            None => Ok(()),
            Some((_, refusal)) => Err(self.refusal(shard, refusal)),
        }
    }

    pub(crate) fn refusal(&self, shard: &ShardHandle, refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::Full => {
                self.metrics.refused_overload.inc();
                overloaded(&format!("too many requests wait for {}", shard.shard))
            }
            Refusal::Closed => {
                ApiError::Draining(format!("{} has stopped serving {}", self.node, shard.shard))
            }
        }
    }

    pub(crate) fn write_failure(&self, shard: &ShardHandle, failure: WriteFailure) -> ApiError {
        match failure {
            WriteFailure::NotLeader { hint } => self.hinted(shard.shard, hint),
            WriteFailure::Busy => {
                self.metrics.refused_overload.inc();
                overloaded(&format!("{} has too many uncommitted bytes", shard.shard))
            }
            WriteFailure::Superseded => self.not_leader(shard),
            WriteFailure::Lost => ApiError::LeadershipLost(shard.shard),
        }
    }

    pub(crate) fn read_failure(&self, shard: &ShardHandle, failure: ReadFailure) -> ApiError {
        match failure {
            ReadFailure::NoLeader { hint } => self.hinted(shard.shard, hint),
            ReadFailure::Busy => {
                self.metrics.refused_overload.inc();
                overloaded(&format!("too many reads of {} wait", shard.shard))
            }
        }
    }

    fn not_leader(&self, shard: &ShardHandle) -> ApiError {
        self.hinted(shard.shard, shard.leadership.leader())
    }

    fn hinted(&self, shard: ShardId, hint: Option<NodeId>) -> ApiError {
        match hint.filter(|leader| *leader != self.node) {
            None => ApiError::NoLeader(shard),
            Some(node) => {
                let client_addr = self.directory.client_addr(node).unwrap_or_default();
                ApiError::NotLeader(NotLeader { shard, hint: Some(LeaderHint { node, client_addr }) })
            }
        }
    }

    /// Cuts a range to the shard its start lies in.
    pub(crate) fn within_shard(&self, range: &KeyRange) -> Result<(KeyRange, Option<Bytes>), ApiError> {
        let shard = self.map.shard_of(range.start());
        let owned = self.map.range_of(shard).ok_or(ApiError::UnknownShard(shard))?;
        let cut =
            owned.intersection(range).ok_or_else(|| ApiError::Invalid("the range is empty".to_owned()))?;
        let beyond = if cut.end() == range.end() { None } else { cut.end().cloned() };
        Ok((cut, beyond))
    }

    /// The page a scan asks for first.
    pub(crate) fn page(&self, scan: &Scan) -> Result<PageRequest, ApiError> {
        let (range, beyond) = self.within_shard(&scan.range)?;
        Ok(PageRequest { range, beyond, limit: scan.limit, keys_only: scan.keys_only })
    }

    /// The command of a write and the kind of its answer; `None` if the request is a read.
    pub(crate) fn command(&self, request: Request) -> Result<Option<(Command, WriteKind)>, ApiError> {
        Ok(Some(match request {
            Request::Put(put) => (Command::Put { key: put.key, value: put.value }, WriteKind::Put),
            Request::Delete(delete) => (Command::Delete { key: delete.key }, WriteKind::Delete),
            Request::DeleteRange(delete) => {
                let (range, beyond) = self.within_shard(&delete.range)?;
                (Command::DeleteRange { range }, WriteKind::DeleteRange { beyond })
            }
            Request::CompareAndSet(cas) => {
                let expect = match cas.expect {
                    Expect::Value(value) => kv_state::Expect::Value(value),
                    Expect::Revision(revision) => kv_state::Expect::Revision(revision),
                    Expect::Absent => kv_state::Expect::Absent,
                };
                (Command::CompareAndSet { key: cas.key, expect, value: cas.value }, WriteKind::CompareAndSet)
            }
            Request::Get(_) | Request::MultiGet(_) | Request::ScanPage(_) => return Ok(None),
        }))
    }
}

fn overloaded(message: &str) -> ApiError {
    ApiError::Overloaded(Overloaded { message: message.to_owned(), retry_after: RETRY_AFTER })
}
