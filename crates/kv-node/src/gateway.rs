//! The one typed way into a node: every face (unary calls, pipeline, later others) calls this and nothing below it.
//!
//! It routes a key to its shard's replica, admits or refuses, waits for the answer, and turns what the replica says
//! into the errors of the wire. It knows no transport.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use kv_proto::request::{self, Expect, Request, Scan};
use kv_proto::status::{ApiError, LeaderHint, NotLeader, Overloaded};
use kv_proto::validate::Context;
use kv_raft::Refused;
use kv_shard::{LamportClock, PublishedDeletes, PublishedLocks, ReadFailure, WriteFailure, Written};
use kv_state::cluster::{ClusterCommand, ClusterRefusal};
use kv_state::{Answer, Command, Envelope};
use kv_storage::ShardReader;
use kv_types::{ClusterTime, KeyRange, Nanos, NodeId, ShardId, Term};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::directory::Directory;
use crate::leader_lease::PublishedLease;
use crate::log_budget::LogBudget;
use crate::mailbox::{Control, Mailbox, Refusal, Request as Mail};
use crate::metrics::Metrics;
use crate::pace::Pace;
use crate::shard_map::ShardMap;
use crate::waiter::{Waiter, WriteKind};

/// How long a call without a deadline of its own may take.
pub(crate) const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);

/// When a refused client should try again.
pub(crate) const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A client's Lamport counter further ahead than this is refused and never merged.
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

/// The cluster time of a shard as its replica here knows it; read by handlers without asking it.
#[derive(Debug, Default)]
pub(crate) struct PublishedTime(AtomicU64);

impl PublishedTime {
    pub(crate) fn publish(&self, time: ClusterTime) {
        self.0.store(time.ms(), Ordering::Release);
    }

    /// In milliseconds; 0 until it is known.
    pub(crate) fn ms(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    pub(crate) fn now(&self) -> ClusterTime {
        ClusterTime::from_ms(self.ms()).unwrap_or_default()
    }
}

/// A replica as handlers see it.
#[derive(Clone, Debug)]
pub(crate) struct ShardHandle {
    pub(crate) shard: ShardId,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) reader: Arc<ShardReader>,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) lease: Arc<PublishedLease>,
    pub(crate) time: Arc<PublishedTime>,
    pub(crate) locks: Arc<PublishedLocks>,
    pub(crate) deletes: Arc<PublishedDeletes>,
}

impl ShardHandle {
    /// Whether the rows may be read linearisably at once.
    pub(crate) fn is_readable(&self) -> bool {
        self.lease.covers(&self.reader)
    }
}

/// A page of a range within one shard.
#[derive(Clone, Debug)]
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
    draining: CancellationToken,
    disk_full: AtomicBool,
    memory_full: AtomicBool,
    log: Arc<LogBudget>,
    pace: Arc<Pace>,
}

impl Gateway {
    pub(crate) fn new(
        (cluster, node): (String, NodeId),
        map: ShardMap,
        shards: BTreeMap<ShardId, ShardHandle>,
        (directory, clock): (Arc<Directory>, Arc<LamportClock>),
        metrics: Arc<Metrics>,
        (log, pace): (Arc<LogBudget>, Arc<Pace>),
    ) -> Self {
        Self {
            cluster,
            node,
            map,
            shards,
            directory,
            clock,
            metrics,
            draining: CancellationToken::new(),
            disk_full: AtomicBool::new(false),
            memory_full: AtomicBool::new(false),
            log,
            pace,
        }
    }

    /// Takes no new calls from now on.
    pub(crate) fn drain(&self) {
        self.draining.cancel();
    }

    /// Completes when the node takes no new calls any more.
    pub(crate) async fn drained(&self) {
        self.draining.cancelled().await;
    }

    /// What a call is told that comes too late.
    pub(crate) fn stopping(&self) -> ApiError {
        ApiError::Draining(format!("{} is about to stop", self.node))
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
        if self.draining.is_cancelled() {
            return Err(self.stopping());
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
        // The node stops if this fails.
        self.clock.merge(counter).map_err(|cause| ApiError::Draining(cause.to_string()))
    }

    /// The replica that may take a write of this key: it leads as far as it knows.
    pub(crate) fn route_write(&self, key: &[u8]) -> Result<&ShardHandle, ApiError> {
        let shard = self.route(key)?;
        self.admit_write(shard)?;
        Ok(shard)
    }

    /// Whether this replica may take a write.
    pub(crate) fn admit_write(&self, shard: &ShardHandle) -> Result<(), ApiError> {
        if self.disk_full.load(Ordering::Acquire) {
            return Err(ApiError::Quota(format!(
                "the disk of {} is nearly full; delete or move data",
                self.node
            )));
        }
        if shard.leadership.leader() != Some(self.node) {
            return Err(self.not_leader(shard));
        }
        let full = match () {
            () if self.memory_full.load(Ordering::Acquire) => {
                "the memtables are full until a merge frees memory"
            }
            () if self.log.is_full() => "the write-ahead log is full until a merge frees some of it",
            () if shard.shard != ShardId::META && self.pace.is_used_up(clock::now) => {
                "as many writes wait as merges keep up with"
            }
            () => return Ok(()),
        };
        Err(self.overloaded(full.to_owned()))
    }

    fn overloaded(&self, message: String) -> ApiError {
        self.metrics.refused_overload.inc();
        ApiError::Overloaded(Overloaded { message, retry_after: RETRY_AFTER })
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
        let command = encode(context.request, command)?;
        let written = self.replicate(shard, context.deadline, command).await?;
        Ok((shard.shard, written))
    }

    /// Replicates an encoded command and waits for its answer.
    pub(crate) async fn replicate(
        &self,
        shard: &ShardHandle,
        deadline: Option<Duration>,
        command: Bytes,
    ) -> Result<Written, ApiError> {
        let (mail, written) = self.begin(shard, deadline, command);
        self.mail(shard, mail)?;
        written.await
    }

    /// A command on its way into a shard's log: what is to be mailed, and what becomes of it.
    pub(crate) fn begin<'a>(
        &'a self,
        shard: &'a ShardHandle,
        deadline: Option<Duration>,
        command: Bytes,
    ) -> (Mail, impl Future<Output = Result<Written, ApiError>> + use<'a>) {
        let (answer, answered) = oneshot::channel();
        let mail = Mail::Write { command, until: until(deadline), waiter: Waiter::Write(answer) };
        (mail, self.written(shard, deadline, answered))
    }

    /// What becomes of a command that is on its way.
    pub(crate) async fn written(
        &self,
        shard: &ShardHandle,
        deadline: Option<Duration>,
        answered: oneshot::Receiver<Result<Written, WriteFailure>>,
    ) -> Result<Written, ApiError> {
        match tokio::time::timeout(deadline.unwrap_or(DEADLINE_DEFAULT), answered).await {
            Err(_) => Err(ApiError::Deadline),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Ok(Ok(Err(failure))) => Err(self.write_failure(shard, failure)),
            Ok(Ok(Ok(written))) => Ok(written),
        }
    }

    /// Mails commands of this node, side by side. Who waits for one that finds no room is told so.
    pub(crate) fn mail_all(&self, shard: &ShardHandle, mails: Vec<Mail>) {
        for (refused, refusal) in shard.mailbox.request(mails) {
            // Without a word it counts as stopped.
            if let (Mail::Write { waiter, .. }, Refusal::Full) = (refused, refusal) {
                waiter.written(Err(WriteFailure::Busy));
            }
        }
    }

    /// The replica of the meta group, which every node hosts.
    pub(crate) fn meta(&self) -> Result<&ShardHandle, ApiError> {
        self.shards.get(&ShardId::META).ok_or(ApiError::UnknownShard(ShardId::META))
    }

    /// The replica of the meta group, if it leads.
    pub(crate) fn led_meta(&self) -> Result<&ShardHandle, ApiError> {
        let meta = self.meta()?;
        if self.draining.is_cancelled() {
            return Err(self.stopping());
        }
        if meta.leadership.leader() == Some(self.node) { Ok(meta) } else { Err(self.not_leader(meta)) }
    }

    /// Changes the cluster, if this node leads the meta group. Full memory and logs are no reason to refuse: such changes
    /// are small, rare, and may be what helps.
    pub(crate) async fn change_cluster(&self, command: ClusterCommand) -> Result<(), ApiError> {
        let meta = self.led_meta()?;
        let written = self.replicate(meta, None, Command::Cluster(command).encode()).await?;
        match written.answer {
            Answer::Cluster(Err(refusal)) => Err(refused(&refusal)),
            _ => Ok(()),
        }
    }

    /// Hands the leadership of a shard to another voter.
    pub(crate) async fn transfer(&self, shard: &ShardHandle, to: NodeId) -> Result<(), ApiError> {
        let (asked, answer) = oneshot::channel();
        shard.mailbox.control(Control::Transfer(to, asked));
        match answer.await {
            Err(_) => Err(ApiError::Stopped),
            Ok(Ok(())) => Ok(()),
            Ok(Err(Refused::NotLeader { hint })) => Err(self.hinted(shard.shard, hint)),
            Ok(Err(Refused::NotMember(node))) => {
                Err(ApiError::UnknownMember(format!("{node} is no member of {}", shard.shard)))
            }
            Ok(Err(cause)) => Err(ApiError::Refused(format!("{} stays where it is: {cause}", shard.shard))),
        }
    }

    /// The replica here of the shard that owns a key, for a read.
    pub(crate) fn route_read(&self, _who: Principal, key: &[u8]) -> Result<&ShardHandle, ApiError> {
        self.route(key)
    }

    /// Waits until the rows of this replica may be read linearisably.
    pub(crate) async fn confirm(
        &self,
        shard: &ShardHandle,
        deadline: Option<Duration>,
    ) -> Result<(), ApiError> {
        if shard.is_readable() {
            return Ok(());
        }
        let (answer, answered) = oneshot::channel();
        self.mail(shard, Mail::Read(Waiter::Read(answer)))?;
        match tokio::time::timeout(deadline.unwrap_or(DEADLINE_DEFAULT), answered).await {
            Err(_) => Err(ApiError::Deadline),
            Ok(Err(_)) => Err(ApiError::Stopped),
            Ok(Ok(Err(failure))) => Err(self.read_failure(shard, failure)),
            Ok(Ok(Ok(()))) => Ok(()),
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
            Refusal::Full => self.overloaded(format!("too many requests wait for {}", shard.shard)),
            Refusal::Closed => {
                ApiError::Draining(format!("{} has stopped serving {}", self.node, shard.shard))
            }
        }
    }

    pub(crate) fn write_failure(&self, shard: &ShardHandle, failure: WriteFailure) -> ApiError {
        match failure {
            WriteFailure::NotLeader { hint } => self.hinted(shard.shard, hint),
            WriteFailure::Busy => self.overloaded(format!("{} has too many writes under way", shard.shard)),
            WriteFailure::Expired => ApiError::Expired,
            WriteFailure::Superseded => self.not_leader(shard),
            WriteFailure::Lost => ApiError::LeadershipLost(shard.shard),
        }
    }

    pub(crate) fn read_failure(&self, shard: &ShardHandle, failure: ReadFailure) -> ApiError {
        match failure {
            ReadFailure::NoLeader { hint } => self.hinted(shard.shard, hint),
            ReadFailure::Busy => self.overloaded(format!("too many reads of {} wait", shard.shard)),
        }
    }

    pub(crate) fn not_leader(&self, shard: &ShardHandle) -> ApiError {
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
                let start = range.start().clone();
                (Command::DeleteRange { range }, WriteKind::DeleteRange { start, beyond })
            }
            Request::CompareAndSet(cas) => {
                let expect = match cas.expect {
                    Expect::Value(value) => kv_state::Expect::Value(value),
                    Expect::Revision(revision) => kv_state::Expect::Revision(revision),
                    Expect::Absent => kv_state::Expect::Absent,
                };
                (Command::CompareAndSet { key: cas.key, expect, value: cas.value }, WriteKind::CompareAndSet)
            }
            Request::Increment(increment) => {
                let request::Increment { key, delta } = increment;
                (Command::Increment { key, delta }, WriteKind::Increment)
            }
            Request::Get(_) | Request::MultiGet(_) | Request::ScanPage(_) | Request::Commit(_) => {
                return Ok(None);
            }
        }))
    }
}

/// A client's command for the log, with what makes its retry safe around it.
pub(crate) fn encode(request: Option<kv_types::Request>, command: Command) -> Result<Bytes, ApiError> {
    let Some(request) = request else { return Ok(command.encode()) };
    let envelope = Envelope::once(request, command);
    envelope.map(|envelope| envelope.encode()).map_err(|cause| ApiError::Invalid(cause.to_string()))
}

/// When nobody waits any more.
pub(crate) fn until(deadline: Option<Duration>) -> Nanos {
    clock::now().after(deadline.unwrap_or(DEADLINE_DEFAULT))
}

fn refused(refusal: &ClusterRefusal) -> ApiError {
    let text = refusal.to_string();
    match refusal {
        ClusterRefusal::UnknownMember(_) => ApiError::UnknownMember(text),
        ClusterRefusal::MemberExists(_) | ClusterRefusal::IdUsed(_) => ApiError::MemberExists(text),
        ClusterRefusal::ChangeInProgress | ClusterRefusal::NotFounded => ApiError::ChangeInProgress(text),
        ClusterRefusal::DriftOutOfRange => ApiError::Invalid(text),
        ClusterRefusal::LastVoter(_) | ClusterRefusal::TooManyMembers | ClusterRefusal::NotAsked(_) => {
            ApiError::Refused(text)
        }
    }
}
