//! A replica that leads its term.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use kv_types::{Body, Entry, Lamport, LogId, LogIndex, Nanos, NodeId};

use crate::core::Core;
use crate::lease::Lease;
use crate::planted::Planted;
use crate::progress::{Progress, ProgressState};
use crate::quorum::reached;
use crate::read::{ReadQueue, Reader};
use crate::transfer::Transfer;
use crate::{Conflict, MessageKind, NoLease, Proposed, ReadRefused, Refused, Round, SnapshotJob};

/// What an uncommitted entry weighs beside its payload: its place in the log, and whoever waits for it. Without it the
/// limit would let millions of tiny commands pile up.
const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// Election timeouts over which the rate of a peer's clock is measured: long enough that the time a message takes is
/// little beside it.
const RATE_WINDOW: u32 = 10;

/// An answer to an append, as it arrived.
pub(crate) struct Ack {
    pub(crate) round: Round,
    pub(crate) result: Result<LogIndex, Conflict>,
    pub(crate) clock: Nanos,
}

/// What the entries in `(after, upto]` weigh against the limit of uncommitted bytes.
fn weight_between(core: &Core, after: LogIndex, upto: LogIndex) -> u64 {
    let overhead = upto.since(after).saturating_mul(ENTRY_OVERHEAD_BYTES);
    core.log.bytes_between(after, upto).saturating_add(overhead)
}

/// A leader.
#[derive(Debug)]
pub(crate) struct Leader {
    /// The other members, and those that a change under way leaves out.
    pub(crate) peers: BTreeMap<NodeId, Progress>,
    /// Its first entry. Until that is committed it commits nothing and answers no read (Raft paper 5.4.2, 8).
    pub(crate) first: LogIndex,
    pub(crate) lease: Lease,
    /// The hand-over under way.
    pub(crate) transfer: Option<Transfer>,
    /// Payload and overhead of the entries in `(commit, last]`.
    uncommitted_bytes: u64,
    pub(crate) reads: ReadQueue,
    /// The round of the newest heartbeat.
    pub(crate) heartbeat_round: u64,
    heartbeat_due: Nanos,
    /// When it took over: counts as contact with every peer.
    since: Nanos,
}

impl Leader {
    /// Takes over: appends a blank entry, whose commit brings that of all earlier ones.
    pub(crate) fn new(core: &mut Core) -> Self {
        let last = core.log.last().index;
        let mut peers = core.membership().members();
        peers.remove(&core.id());
        let now = core.now;
        let heartbeat_round = core.next_round();
        let mut lease = Lease::default();
        lease.begin(heartbeat_round, now);
        let mut leader = Self {
            lease,
            transfer: None,
            peers: peers.into_iter().map(|peer| (peer, Progress::new(last.next(), now))).collect(),
            first: last.next(),
            uncommitted_bytes: weight_between(core, core.commit, last),
            reads: ReadQueue::default(),
            heartbeat_round,
            heartbeat_due: now.after(core.config.heartbeat),
            since: now,
        };
        core.leader = Some(core.id());
        core.led_by = core.leader;
        leader.append(core, Body::Blank);
        leader
    }

    pub(crate) fn append(&mut self, core: &mut Core, body: Body) {
        let weight = body.payload_bytes().saturating_add(ENTRY_OVERHEAD_BYTES);
        self.uncommitted_bytes = self.uncommitted_bytes.saturating_add(weight);
        let id = LogId::new(core.term(), core.log.last().index.next());
        core.append(Entry { id, stamp: Lamport::ZERO, body });
    }

    /// Appends commands. They are sent by the next flush, one append for all that gathered until then.
    pub(crate) fn propose(&mut self, core: &mut Core, batch: Vec<Bytes>) -> Result<Proposed, Refused> {
        if let Some(transfer) = &self.transfer {
            return Err(Refused::Transferring { to: transfer.to });
        }
        if batch.is_empty() {
            return Err(Refused::Empty);
        }
        let bytes = batch.iter().fold(0_u64, |sum, command| {
            sum.saturating_add(command.len() as u64).saturating_add(ENTRY_OVERHEAD_BYTES)
        });
        let total = self.uncommitted_bytes.saturating_add(bytes);
        if self.uncommitted_bytes > 0 && total > core.config.uncommitted_bytes_max {
            return Err(Refused::Busy);
        }
        let first = core.log.last().index.next();
        for command in batch {
            self.append(core, Body::Command(command));
        }
        Ok(Proposed { term: core.term(), first, last: core.log.last().index })
    }

    /// Takes a read. Its index is what is committed now, or the leader's first entry: only with that committed does
    /// the leader know what earlier leaders committed. A lease answers it at once: it is good now, after the read
    /// arrived, so no later leader has committed anything.
    pub(crate) fn read(&mut self, core: &mut Core, reader: Reader) {
        let index = core.commit.max(self.first);
        if core.now >= self.lease.until() {
            self.renew_lease(core);
        }
        if core.now < self.lease.until() {
            self.grant(core, reader, index);
        } else {
            self.reads.push(reader, index);
        }
    }

    /// Begins a round. Nothing of it is handed out before this returns.
    pub(crate) fn begin_round(&mut self, core: &mut Core) -> u64 {
        let round = core.next_round();
        self.lease.begin(round, core.now);
        round
    }

    /// Ends the lease; only rounds that begin now or later earn another one.
    pub(crate) fn restart_lease(&mut self, core: &mut Core) {
        let round = self.begin_round(core);
        self.lease.restart(round);
    }

    /// Why this leader may have no lease.
    pub(crate) fn no_lease(&self, core: &Core) -> Option<NoLease> {
        let Some(config) = core.config.lease else { return Some(NoLease::Off) };
        if core.applied < self.first {
            return Some(NoLease::NothingApplied);
        }
        if self.transfer.is_some() {
            return Some(NoLease::Transferring);
        }
        if self.lease.handed_over {
            return Some(NoLease::HandedOver);
        }
        let (bound, membership) = (config.rate_bound_ppm(), core.membership());
        let off =
            |(node, peer): &(&NodeId, &Progress)| membership.is_voter(**node) && peer.rate.exceeds(bound);
        self.peers.iter().find(off).map(|(node, _)| NoLease::ClockRate(*node))
    }

    /// Brings the lease up to date with what voters have answered. It is not prolonged while the disk is slow: then this
    /// leader had better make way.
    pub(crate) fn renew_lease(&mut self, core: &Core) {
        let received = core.planted(Planted::LeaseFromAck).then_some(core.now);
        self.lease.confirm(self.confirmed_round(core), received);
        match (core.config.lease, self.no_lease(core)) {
            (Some(config), None) => {
                let promise_ms = core.config.promise_ms();
                if core.planted(Planted::LeaseBeyondBound) {
                    self.lease.extend(Duration::from_millis(u64::from(promise_ms)));
                } else if core.disk_delay() <= core.config.election_timeout_min / 2 {
                    self.lease.extend(config.length(promise_ms));
                }
            }
            (None, _) | (_, Some(_)) => self.lease.end(),
        }
    }

    /// The newest time at which a quorum, this replica included, was in contact.
    fn quorum_contact(&self, core: &Core) -> Nanos {
        let contact = |node| match self.peers.get(&node) {
            Some(peer) => peer.last_contact,
            None => core.now,
        };
        reached(core.membership(), contact).unwrap_or(self.since)
    }

    /// When the leader steps down unless more peers answer (check-quorum).
    fn quorum_deadline(&self, core: &Core) -> Nanos {
        self.quorum_contact(core).after(core.config.election_timeout_min)
    }

    /// Whether a quorum is in contact: if not, this replica leads only until its next tick.
    pub(crate) fn in_contact(&self, core: &Core) -> bool {
        core.now < self.quorum_deadline(core)
    }

    pub(crate) fn next_deadline(&self, core: &Core) -> Nanos {
        let next = self.heartbeat_due.min(self.quorum_deadline(core));
        next.min(self.office_deadline(core))
    }

    /// Sends heartbeats when due. Returns whether the replica still leads: a quorum is in contact, and the disk is.
    pub(crate) fn tick(&mut self, core: &mut Core) -> bool {
        if !self.in_contact(core) || !self.keeps_office(core) {
            return false;
        }
        if core.now >= self.heartbeat_due {
            self.heartbeat_due = core.now.after(core.config.heartbeat);
            self.heartbeat_round = self.begin_round(core);
            self.reads.assign(self.heartbeat_round);
            for peer in self.peers.values_mut() {
                peer.rate.ask(self.heartbeat_round, core.now);
            }
            let peers: Vec<NodeId> = self.peers.keys().copied().collect();
            self.send_empty(core, &peers);
        }
        true
    }

    /// Sends each of `peers` an empty append, which names what is known to match: never a guess.
    pub(crate) fn send_empty(&mut self, core: &mut Core, peers: &[NodeId]) {
        for to in peers {
            let Some(peer) = self.peers.get_mut(to) else { continue };
            // The matched entry may be compacted away; then the zero id asks for nothing but an answer.
            let prev = core.log.id_of(peer.matched).unwrap_or(LogId::ZERO);
            send_append(core, *to, peer, prev, prev);
        }
    }

    /// A peer answered an append.
    pub(crate) fn on_ack(&mut self, core: &mut Core, from: NodeId, ack: Ack) {
        let Ack { round, result, clock } = ack;
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let Some(number) = core.own_round(round) else { return };
        if result.is_ok_and(|index| index > core.log.last().index) {
            return;
        }
        peer.last_contact = core.now;
        peer.answered = true;
        peer.rate.answer(number, core.now, clock, core.config.election_timeout_min * RATE_WINDOW);
        peer.on_round(if core.planted(Planted::ReadTokenReuse) { core.round().number } else { number });
        match result {
            Ok(index) => {
                let news = peer.on_match(index);
                // The peer no longer needs the snapshot that is under way.
                if news && peer.state == ProgressState::Snapshot && core.log.term_of(peer.matched).is_some() {
                    peer.replicate();
                }
            }
            Err(conflict) => {
                peer.on_conflict(conflict.prev, core.log.floor(conflict.hint).next());
            }
        }
        if peer.wants_nudge(self.heartbeat_round) {
            match core.log.id_of(peer.next.prev()) {
                Some(prev) => send_append(core, from, peer, prev, prev),
                None => peer.probe(peer.matched.next()),
            }
        }
        self.advance_commit(core);
        self.answer_reads(core);
    }

    /// Commits what a quorum holds durably, this replica counted by what its own disk holds. Entries of earlier terms
    /// are committed by one of this term only (Raft paper 5.4.2, Figure 8).
    pub(crate) fn advance_commit(&mut self, core: &mut Core) {
        let own = core.id();
        let durable = if core.planted(Planted::SelfAckBeforeDurable) {
            core.log.last().index
        } else {
            core.outbox.durable()
        };
        let matched = |node| match self.peers.get(&node) {
            Some(peer) => peer.matched,
            None if node == own => durable,
            None => LogIndex::ZERO,
        };
        let Some(index) = reached(core.membership(), matched) else { return };
        let own_term = index >= self.first || core.planted(Planted::CommitsOldTerm);
        if own_term && index > core.commit {
            let committed = weight_between(core, core.commit, index);
            self.uncommitted_bytes = self.uncommitted_bytes.saturating_sub(committed);
            core.commit_to(index);
        }
        self.leave_joint(core);
    }

    /// The newest round that a quorum has answered: at some time after it began, no newer leader was.
    fn confirmed_round(&self, core: &Core) -> u64 {
        let own = core.id();
        let acked = |node| match self.peers.get(&node) {
            Some(peer) => peer.acked_round,
            None if node == own => u64::MAX,
            None => 0,
        };
        reached(core.membership(), acked).unwrap_or(0)
    }

    pub(crate) fn answer_reads(&mut self, core: &mut Core) {
        if self.reads.len() == 0 {
            return;
        }
        let confirmed = self.confirmed_round(core);
        while let Some((reader, index)) = self.reads.pop(confirmed, core.commit) {
            self.grant(core, reader, index);
        }
    }

    /// A read may be answered by whoever has applied `index`.
    fn grant(&mut self, core: &mut Core, reader: Reader, index: LogIndex) {
        if let Reader::Peer(node, _) = reader
            && let Some(peer) = self.peers.get_mut(&node)
        {
            peer.commit_awaited = peer.commit_awaited.max(index);
        }
        answer(core, reader, Ok(index));
    }

    /// Sends what may be sent, and begins a round if reads wait for one. Returns whether the replica still leads.
    pub(crate) fn flush(&mut self, core: &mut Core) -> bool {
        // A change of the membership, or an entry applied, may have made do what was missing.
        self.advance_commit(core);
        self.renew_lease(core);
        if self.reads.wants_round(self.confirmed_round(core)) {
            let round = self.begin_round(core);
            self.reads.assign(round);
            let membership = core.membership();
            let voters: Vec<NodeId> =
                self.peers.keys().copied().filter(|peer| membership.is_voter(*peer)).collect();
            core.read_messages += voters.len() as u64;
            self.send_empty(core, &voters);
        }
        self.answer_reads(core);
        for (to, peer) in &mut self.peers {
            replicate(core, *to, peer);
        }
        self.let_go(core);
        self.drive_transfer(core);
        !self.retires(core)
    }

    /// The driver dropped the append path to a peer: what is in flight is lost.
    pub(crate) fn on_unreachable(&mut self, peer: NodeId) {
        if let Some(peer) = self.peers.get_mut(&peer)
            && peer.state == ProgressState::Replicate
        {
            peer.probe(peer.matched.next());
        }
    }

    /// A snapshot stream ended.
    pub(crate) fn on_snapshot_sent(&mut self, core: &Core, to: NodeId, result: Result<LogId, ()>) {
        let Some(peer) = self.peers.get_mut(&to) else { return };
        if peer.state != ProgressState::Snapshot {
            return;
        }
        match result {
            Ok(installed) if installed.index <= core.log.last().index => peer.probe(installed.index.next()),
            Ok(_) | Err(()) => {
                peer.snapshot_not_before = core.now.after(core.config.election_timeout_min);
                peer.probe(peer.matched.next());
            }
        }
    }

    /// Refuses every read that waits: a newer leader may answer them differently.
    pub(crate) fn abdicate(&mut self, core: &mut Core) {
        let refused = ReadRefused::NotLeader { hint: core.leader };
        let readers: Vec<Reader> = self.reads.drain().collect();
        for reader in readers {
            answer(core, reader, Err(refused));
        }
    }

    /// Asserts the invariants.
    pub(crate) fn check(&self, core: &Core) {
        assert_eq!(core.leader, Some(core.id()), "a leader knows itself");
        let first_term = core.log.term_of(self.first);
        assert!(first_term.is_none_or(|term| term == core.term()), "{first_term:?} at {}", self.first);
        let uncommitted = weight_between(core, core.commit, core.log.last().index);
        assert_eq!(self.uncommitted_bytes, uncommitted, "uncommitted bytes");
        let leased = self.lease.until() != Nanos::default();
        assert!(!leased || core.applied >= self.first, "a lease before {} is applied", self.first);
        for (node, peer) in &self.peers {
            peer.check();
            assert!(peer.next <= core.log.last().index.next(), "{node}: next {} is in reach", peer.next);
        }
    }
}

/// Sends one peer all that its state and the limits allow.
fn replicate(core: &mut Core, to: NodeId, peer: &mut Progress) {
    let last = core.log.last().index;
    let (appends_max, bytes_max) = (core.config.in_flight_appends_max, core.config.in_flight_bytes_max);
    while peer.may_send(last, appends_max, bytes_max) {
        let Some(prev) = core.log.id_of(peer.next.prev()) else {
            start_snapshot(core, to, peer);
            return;
        };
        let (end, bytes) =
            core.log.batch(peer.next, core.config.append_bytes_max, core.config.append_entries_max);
        let end = core.log.id_of(end).expect("the batch ends within the log, at prev at least");
        send_append(core, to, peer, prev, end);
        peer.sent(end.index, bytes, core.round().number);
    }
    // A commit travels with the next append or heartbeat: to tell each at once would double the messages of one client
    // that writes after each answer. But a peer with nothing under way whose readers wait for it hears at once.
    let idle = peer.state == ProgressState::Replicate && peer.in_flight_len() == 0;
    if idle && peer.commit_sent < core.commit.min(peer.matched).min(peer.commit_awaited) {
        let prev = core.log.id_of(peer.matched).unwrap_or(LogId::ZERO);
        send_append(core, to, peer, prev, prev);
    }
}

/// Asks for a snapshot, if the peer is there to take it.
fn start_snapshot(core: &mut Core, to: NodeId, peer: &mut Progress) {
    let live = peer.is_live(core.now, core.config.election_timeout_min);
    if live && core.now >= peer.snapshot_not_before {
        peer.await_snapshot();
        core.outbox.start_snapshot(SnapshotJob { to, term: core.term() });
    }
}

pub(crate) fn send_append(core: &mut Core, to: NodeId, peer: &mut Progress, prev: LogId, last: LogId) {
    let commit = core.commit.min(last.index);
    peer.commit_sent = peer.commit_sent.max(commit);
    let round = core.round();
    let promise_ms = core.config.promise_ms();
    core.send(to, MessageKind::Append { prev, last, entries: Vec::new(), commit, round, promise_ms });
}

fn answer(core: &mut Core, reader: Reader, result: Result<LogIndex, ReadRefused>) {
    match reader {
        Reader::Local(ticket) => core.outbox.answer_read(ticket, result),
        Reader::Peer(from, round) => core.send(from, MessageKind::ReadIndexAck { round, result }),
    }
}
