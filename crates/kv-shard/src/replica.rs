//! The replica: what a turn is made of.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use kv_raft::{
    Config, Corrupt, EntryShape, Fatal, LeaseUpdate, Message, MessageKind, Raft, Refused, Restored,
    RoleChange, SnapshotJob, WriteId,
};
use kv_state::{ApplyError, Carried};
use kv_storage::data_dir::DataDirError;
use kv_storage::wal::{LogReader, RecoveredShard, WalError};
use kv_storage::{
    Freed, ShardLog, ShardReader, ShardStore, StoreError, Verification, WalOp, WalRecord, WriteMark,
};
use kv_types::{ClusterTime, Lamport, LogId, Membership, Nanos, NodeId, ShardId};

use crate::clock::LamportClock;
use crate::cluster_clock::ClusterClock;
use crate::deletes::PublishedDeletes;
use crate::locks::PublishedLocks;
use crate::planted::Planted;
use crate::proposals::{Proposals, WriteFailure, Written, ids};
use crate::reads::{ReadFailure, Reads};
use crate::snapshot::Installing;

/// What a replica is opened from.
#[derive(Debug)]
pub struct Opening {
    /// The shard.
    pub shard: ShardId,
    /// How its Raft core behaves.
    pub raft: Config,
    /// The membership the group was formed with; used while the log holds no other.
    pub genesis: Membership,
    /// What the WAL holds of it.
    pub recovered: RecoveredShard,
    /// Reads older entries back.
    pub reader: Arc<LogReader>,
    /// Bytes of recent entries kept in memory.
    pub log_cache_bytes: u64,
    /// The node's clock.
    pub clock: Arc<LamportClock>,
}

/// Why a replica must stop. It never votes, answers or writes again in this process.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    /// What was recovered cannot be a Raft state.
    #[error("the recovered Raft state is impossible")]
    Corrupt(#[from] Corrupt),
    /// The core no longer trusts itself.
    #[error("the Raft core stopped: {0:?}")]
    Fatal(Fatal),
    /// The log cannot be read.
    #[error("the log cannot be read")]
    Log(#[from] WalError),
    /// The node's clock may not go on.
    #[error("the ceiling of the Lamport clock cannot be raised")]
    Clock(#[from] DataDirError),
    /// The rows cannot be read or changed.
    #[error("the rows cannot be read or written")]
    Store(#[from] StoreError),
    /// A committed entry cannot be applied here.
    #[error(transparent)]
    Apply(#[from] ApplyError<StoreError>),
}

/// One record for the WAL.
#[derive(Debug)]
pub struct ShardWrite {
    /// What to report to [`Replica::persisted`] once it is durable; `None` if nothing waits for it.
    pub id: Option<WriteId>,
    /// The record.
    pub record: WalRecord,
}

/// Everything a turn wants done.
#[derive(Debug)]
pub struct Effects<W> {
    /// Records for the WAL, in order.
    pub writes: Vec<ShardWrite>,
    /// Messages for peers; they may be lost.
    pub messages: Vec<Message>,
    /// Writes that have an answer.
    pub written: Vec<(W, Result<Written, WriteFailure>)>,
    /// Reads that may be served from the rows as they are now, or that no leader confirmed.
    pub reads: Vec<(W, Result<(), ReadFailure>)>,
    /// Peers that need a snapshot.
    pub snapshots: Vec<SnapshotJob>,
    /// Memory no longer needed; dropping it takes long, so drop it where nobody waits.
    pub freed: Vec<Freed>,
    /// The role, if it changed.
    pub role: Option<RoleChange>,
    /// The leader's lease, if it changed: to be published before anything else of this turn leaves.
    pub lease: Option<LeaseUpdate>,
}

impl<W> Effects<W> {
    pub(crate) fn new() -> Self {
        Self {
            writes: Vec::new(),
            messages: Vec::new(),
            written: Vec::new(),
            reads: Vec::new(),
            snapshots: Vec::new(),
            freed: Vec::new(),
            role: None,
            lease: None,
        }
    }
}

/// A write that was handed out and is not durable yet.
#[derive(Debug)]
struct InFlight {
    id: WriteId,
    mark: WriteMark,
}

/// One replica of one shard.
///
/// # Invariants
/// Asserted in `apply` and `persisted`:
/// - applied is at most commit, commit at most the last entry of the log;
/// - stamps rise strictly along the log;
/// - a message that rests on a write leaves only when that write is durable.
#[derive(Debug)]
pub struct Replica<W> {
    pub(crate) shard: ShardId,
    pub(crate) raft: Raft,
    pub(crate) log: ShardLog,
    pub(crate) store: ShardStore,
    clock: Arc<LamportClock>,
    pub(crate) cluster_clock: ClusterClock,
    /// The largest stamp in the log.
    pub(crate) log_stamp: Lamport,
    pub(crate) applied: LogId,
    pub(crate) carried: Carried,
    pub(crate) locks: Arc<PublishedLocks>,
    pub(crate) deletes: Arc<PublishedDeletes>,
    pub(crate) proposals: Proposals<W>,
    pub(crate) reads: Reads<W>,
    in_flight: VecDeque<InFlight>,
    persisted: WriteId,
    held: VecDeque<(WriteId, Message)>,
    pub(crate) installing: Option<Installing>,
    /// Whether the rows found at the start have been compared with their hash.
    pub(crate) verified: bool,
    /// Whether a checkpoint was handed out and has not come back.
    pub(crate) merging: bool,
    pub(crate) effects: Effects<W>,
    /// A bug to run with.
    #[cfg(feature = "planted")]
    pub(crate) planted: Option<Planted>,
    /// The last entry of the snapshot that was installed in this life.
    #[cfg(feature = "planted")]
    pub(crate) snapshot: kv_types::LogIndex,
}

impl<W> Replica<W> {
    /// Joins what the WAL recovered with the rows of the store, which `open_store` opens. Until the rows are
    /// [verified](Replica::verified) the replica votes and acknowledges, and does nothing that rests on them.
    ///
    /// # Errors
    /// [`ReplicaError::Corrupt`] if the two cannot belong together.
    pub fn open(
        opening: Opening,
        now: Nanos,
        open_store: impl FnOnce(&RecoveredShard) -> Result<(ShardStore, kv_storage::Opened), StoreError>,
    ) -> Result<Self, ReplicaError> {
        let Opening { shard, raft, genesis, mut recovered, reader, log_cache_bytes, clock } = opening;
        if recovered.base.meta.last == LogId::ZERO && recovered.base.meta.membership == Membership::default()
        {
            recovered.base.meta.membership = genesis;
        }
        let (store, opened) = open_store(&recovered)?;
        let log_stamp = recovered.entries.last().map_or(opened.stamp, |head| head.stamp.max(opened.stamp));
        clock.merge(log_stamp.counter)?;
        let restored = Restored {
            hard: recovered.hard,
            base: recovered.base.meta.clone(),
            log_start: recovered.log_start,
            entries: recovered
                .entries
                .iter()
                .map(|head| EntryShape { id: head.id, bytes: head.payload_bytes })
                .collect(),
            configs: recovered.configs.clone(),
            commit: opened.applied.index,
            applied: opened.applied.index,
        };
        let cluster_clock = ClusterClock::new(now, raft.election_timeout_min);
        let mut raft = Raft::new(raft, now, restored)?;
        raft.set_electable(false);
        let log = ShardLog::new(shard, reader, &recovered, log_cache_bytes);
        let mut replica = Self {
            shard,
            raft,
            log,
            store,
            clock,
            cluster_clock,
            log_stamp,
            applied: opened.applied,
            carried: Carried::of(opened.hash),
            locks: Arc::default(),
            deletes: Arc::default(),
            proposals: Proposals::new(),
            reads: Reads::new(),
            in_flight: VecDeque::new(),
            persisted: WriteId::ZERO,
            held: VecDeque::new(),
            installing: None,
            verified: false,
            merging: false,
            effects: Effects::new(),
            #[cfg(feature = "planted")]
            planted: None,
            #[cfg(feature = "planted")]
            snapshot: kv_types::LogIndex::ZERO,
        };
        replica.deletes.unknown_to(replica.applied.index);
        if recovered.damaged != Some(recovered.base.generation) {
            replica.note_damage();
        }
        Ok(replica)
    }

    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Whether anything is locked, for readers.
    pub fn locks(&self) -> Arc<PublishedLocks> {
        Arc::clone(&self.locks)
    }

    /// What was deleted when, for readers.
    pub fn deletes(&self) -> Arc<PublishedDeletes> {
        Arc::clone(&self.deletes)
    }

    /// The work of comparing the rows found at the start with their hash, for any thread. Damage stops the replica; the
    /// end is told to [`Replica::verified`].
    pub fn verification(&self) -> Verification {
        self.store.verification()
    }

    /// The rows found at the start are what they should be: the replica applies, serves reads and campaigns from now
    /// on.
    ///
    /// If the store is damaged nothing happens: it is verified by the installation of a snapshot.
    pub fn verified(&mut self) {
        if self.store.damage().is_some() {
            return;
        }
        self.verified = true;
        self.raft.set_electable(true);
        self.release_reads();
    }

    /// The rows, for readers on any thread.
    pub fn reader(&self) -> Arc<ShardReader> {
        self.store.reader()
    }

    /// Proposes commands, stamped with the cluster time of the last [tick](Replica::tick); each waiter comes back in
    /// [`Effects::written`].
    pub fn write(&mut self, batch: Vec<(Bytes, W)>) {
        let (commands, waiters): (Vec<Bytes>, Vec<W>) = batch.into_iter().unzip();
        if self.store.damage().is_some() {
            // It could not answer, even while it still leads.
            return self.fail(waiters, WriteFailure::NotLeader { hint: None });
        }
        let time = self.cluster_clock.stamp();
        let commands = commands.into_iter().map(|command| kv_state::stamp(command, time)).collect();
        match self.raft.propose(commands) {
            Ok(proposed) => {
                let mut lost = Vec::new();
                for (id, waiter) in ids(proposed.term, proposed.first, waiters.len()).zip(waiters) {
                    self.proposals.push(id, waiter, &mut lost);
                }
                self.fail(lost, WriteFailure::Lost);
            }
            Err(Refused::Busy) => self.fail(waiters, WriteFailure::Busy),
            Err(Refused::Transferring { to }) => {
                self.fail(waiters, WriteFailure::NotLeader { hint: Some(to) });
            }
            Err(_) => {
                let hint = self.raft.leader();
                self.fail(waiters, WriteFailure::NotLeader { hint });
            }
        }
    }

    /// Asks for a linearisable read; the waiter comes back in [`Effects::reads`] when the rows may be read.
    pub fn read(&mut self, now: Nanos, waiter: W) {
        if self.store.damage().is_some() {
            let failure = ReadFailure::NoLeader { hint: self.raft.leader() };
            self.effects.reads.push((waiter, Err(failure)));
            return;
        }
        if self.reads.is_full() {
            self.effects.reads.push((waiter, Err(ReadFailure::Busy)));
            return;
        }
        let ticket = self.reads.ask(waiter);
        if self.raft.read(now, ticket).is_err()
            && let Some(waiter) = self.reads.refuse(ticket)
        {
            let hint = self.raft.leader();
            self.effects.reads.push((waiter, Err(ReadFailure::NoLeader { hint })));
        }
    }

    /// A message of a peer has arrived.
    pub fn step(&mut self, now: Nanos, message: Message) {
        self.raft.step(now, message);
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Nanos) {
        self.cluster_clock.tick(now);
        self.raft.tick(now);
    }

    /// The newest cluster time this replica knows of: of a leader what it stamps, of another what it has applied. `None`
    /// until the rows are looked at.
    pub fn cluster_time(&self) -> Option<ClusterTime> {
        self.cluster_clock.time()
    }

    /// When [`Replica::tick`] has something to do next.
    pub fn next_deadline(&self) -> Nanos {
        self.raft.next_deadline()
    }

    /// Starts an election at once.
    pub fn campaign(&mut self, now: Nanos) {
        // A replica that may not campaign now does so in its own time.
        let _refused = self.raft.campaign(now);
    }

    /// A peer cannot be reached at the moment.
    pub fn unreachable(&mut self, peer: NodeId) {
        self.raft.unreachable(peer);
    }

    /// Every record handed out up to this one is durable.
    ///
    /// # Errors
    /// [`ReplicaError`] if a snapshot that became durable cannot be opened.
    pub fn persisted(&mut self, now: Nanos, upto: WriteId) -> Result<(), ReplicaError> {
        if upto <= self.persisted {
            return Ok(());
        }
        self.persisted = upto;
        while self.in_flight.front().is_some_and(|write| write.id <= upto) {
            let write = self.in_flight.pop_front().expect("a front was just seen");
            self.log.persisted(write.mark);
        }
        self.finish_install(upto)?;
        self.raft.persisted(now, upto);
        Ok(())
    }

    /// Everything the events so far want done.
    ///
    /// # Errors
    /// [`ReplicaError::Fatal`] if the core stopped, [`ReplicaError::Log`] if an entry cannot be read,
    /// [`ReplicaError::Clock`] if no entry can be stamped.
    pub fn take(&mut self) -> Result<Effects<W>, ReplicaError> {
        self.offer_repair();
        let output = self.raft.take();
        if let Some(fatal) = output.fatal {
            return Err(ReplicaError::Fatal(fatal));
        }
        if let Some(write) = output.write {
            self.hand_out(write)?;
        }
        for message in output.send {
            self.send(message)?;
        }
        self.held.extend(output.send_after);
        while self.held.front().is_some_and(|(id, _)| *id <= self.persisted) {
            let (_, message) = self.held.pop_front().expect("a front was just seen");
            self.send(message)?;
        }
        for (ticket, result) in output.reads {
            match result {
                Ok(index) => self.reads.confirm(ticket, index),
                Err(_) => {
                    let hint = self.raft.leader();
                    let failure = ReadFailure::NoLeader { hint };
                    self.effects.reads.extend(self.reads.refuse(ticket).map(|waiter| (waiter, Err(failure))));
                }
            }
        }
        self.release_reads();
        self.drop_refused_snapshot();
        self.drop_lost_proposals();
        self.effects.snapshots.extend(output.snapshots);
        self.effects.role = output.role.or(self.effects.role.take());
        self.effects.lease = output.lease.or(self.effects.lease.take());
        Ok(std::mem::replace(&mut self.effects, Effects::new()))
    }

    /// Ends the replica: what is still waited for is unknown.
    pub fn stop(&mut self) -> Effects<W> {
        let waiters = self.proposals.drain();
        self.fail(waiters, WriteFailure::Lost);
        let failure = ReadFailure::NoLeader { hint: None };
        let reads = self.reads.drain();
        self.effects.reads.extend(reads.into_iter().map(|waiter| (waiter, Err(failure))));
        std::mem::replace(&mut self.effects, Effects::new())
    }

    /// Who lost leadership cannot tell what becomes of its proposals; whoever waits is told so at once.
    fn drop_lost_proposals(&mut self) {
        let leading = self.raft.is_leader().then(|| self.raft.term());
        if self.proposals.term().is_some_and(|term| leading != Some(term)) {
            let lost = self.proposals.drain();
            let is_rash = self.is_planted(Planted::LostSaidNotApplied);
            self.fail(lost, if is_rash { WriteFailure::Superseded } else { WriteFailure::Lost });
        }
    }

    pub(crate) fn fail(&mut self, waiters: Vec<W>, failure: WriteFailure) {
        self.effects.written.extend(waiters.into_iter().map(|waiter| (waiter, Err(failure))));
    }

    pub(crate) fn release_reads(&mut self) {
        if !self.verified {
            return;
        }
        let ready = self.reads.release(self.applied.index);
        self.effects.reads.extend(ready.into_iter().map(|waiter| (waiter, Ok(()))));
    }

    /// Stamps what this leader made, puts the entries into the log in memory, and hands out the record.
    fn hand_out(&mut self, mut write: kv_raft::Write) -> Result<(), ReplicaError> {
        if let Some(reset) = write.reset.take() {
            // The reset is a record of its own, which carries the hard state; what follows it is a second one. A crash
            // between the two leaves what two writes in a row would have left.
            let more = !write.append.is_empty() || write.truncate_from.is_some();
            self.hand_out_install(write.id, write.hard.take(), reset, more);
            if !more {
                return Ok(());
            }
        }
        for entry in &mut write.append {
            if entry.stamp == Lamport::ZERO {
                entry.stamp = self.clock.stamp(self.log_stamp)?;
            } else {
                self.clock.merge(entry.stamp.counter)?;
            }
            self.log_stamp = self.log_stamp.max(entry.stamp);
        }
        let mark = self.log.append(write.truncate_from, &write.append);
        self.in_flight.push_back(InFlight { id: write.id, mark });
        let op = WalOp::Raft { hard: write.hard, truncate_from: write.truncate_from, append: write.append };
        self.push_write(Some(write.id), op);
        Ok(())
    }

    pub(crate) fn push_write(&mut self, id: Option<WriteId>, op: WalOp) {
        self.effects.writes.push(ShardWrite { id, record: WalRecord { shard: self.shard, op } });
    }

    /// Fills an append with its entries and lets the message go; an append whose range is gone is dropped, which Raft
    /// tolerates.
    fn send(&mut self, mut message: Message) -> Result<(), ReplicaError> {
        if let MessageKind::Append { prev, last, entries, .. } = &mut message.kind
            && last.index > prev.index
        {
            if self.log.term(last.index) != Some(last.term) || prev.index < self.log.start().index {
                return Ok(());
            }
            *entries = self.log.read(prev.index.next()..=last.index, u64::MAX)?;
        }
        self.effects.messages.push(message);
        Ok(())
    }
}
