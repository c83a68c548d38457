//! What a replica is apart from its role.

use std::time::Duration;

use kv_types::{HardState, LogId, LogIndex, Membership, Nanos, NodeId, SnapshotMeta, Term};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use crate::memberships::Memberships;
use crate::outbox::Outbox;
use crate::planted::Planted;
use crate::shape::LogShape;
use crate::{Config, Corrupt, Fatal, Message, MessageKind, Restored, Round};

/// The state that every role shares.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) config: Config,
    /// The newest reading of the node's clock. Every message handed out leaves after it was made: as the time at which
    /// a round begins it can only be too early, which shortens a lease and never prolongs it.
    pub(crate) now: Nanos,
    rng: ChaCha8Rng,
    pub(crate) hard: HardState,
    pub(crate) log: LogShape,
    pub(crate) memberships: Memberships,
    pub(crate) commit: LogIndex,
    pub(crate) applied: LogIndex,
    /// The leader of the term, once known.
    pub(crate) leader: Option<NodeId>,
    /// Who was ever seen to lead the term. Unlike `leader` it stays when the leader falls silent: a second one is
    /// recognised even then.
    pub(crate) led_by: Option<NodeId>,
    /// Whether it may campaign, as far as its driver is concerned.
    pub(crate) electable: bool,
    /// No vote is given before this: a leader may be alive.
    pub(crate) withhold_until: Nanos,
    /// When a replica without a leader campaigns.
    pub(crate) election_deadline: Nanos,
    /// Messages sent in this life only because somebody reads.
    pub(crate) read_messages: u64,
    /// The newest round of this life, of heartbeats, reads and forwarded reads alike.
    round: u64,
    pub(crate) outbox: Outbox,
    pub(crate) fatal: Option<Fatal>,
}

impl Core {
    pub(crate) fn new(config: Config, now: Nanos, restored: Restored) -> Result<Self, Corrupt> {
        config.check()?;
        let log = restored_log(&restored)?;
        let memberships = restored_memberships(&restored, &log)?;
        let base = restored.base.last;
        // A group is born as a snapshot of term 1 above an empty hard state: the term counts as seen.
        let hard = if base.term > restored.hard.term {
            HardState { term: base.term, vote: None, ..restored.hard }
        } else {
            restored.hard
        };
        if log.last().term > hard.term {
            return Err(Corrupt::Term { last: log.last(), term: hard.term });
        }
        let applied = restored.applied.max(base.index);
        let last = log.last().index;
        if applied > last {
            return Err(Corrupt::Applied { applied, last });
        }
        // The stored commit index is a hint only (Raft thesis 3.8): one beyond the log is cut, one below what is
        // applied is raised.
        let commit = restored.commit.min(last).max(applied);
        // A replica that never wrote anything has promised nothing; any other may have acknowledged a leader just
        // before it stopped, so it sits that leader's time out.
        let brand_new = restored.hard == HardState::default() && restored.entries.is_empty();
        let promise = Duration::from_millis(u64::from(hard.promise_ms)).max(config.election_timeout_min);
        let withhold_until = if brand_new { now } else { now.after(promise) };
        let mut core = Self {
            rng: ChaCha8Rng::seed_from_u64(
                config.seed.wrapping_add(config.id.get().wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            ),
            config,
            now,
            hard,
            log,
            memberships,
            commit,
            applied,
            leader: None,
            led_by: None,
            electable: true,
            withhold_until,
            election_deadline: now,
            read_messages: 0,
            round: 0,
            outbox: Outbox::new(last),
            fatal: None,
        };
        core.memberships.committed(commit);
        if core.planted(Planted::PromiseForgotten) {
            core.withhold_until = now;
        }
        if core.hard != restored.hard {
            core.outbox.write_hard(hard);
        }
        core.draw_election_deadline();
        Ok(core)
    }

    pub(crate) fn id(&self) -> NodeId {
        self.config.id
    }

    pub(crate) fn term(&self) -> Term {
        self.hard.term
    }

    pub(crate) fn membership(&self) -> &Membership {
        if self.planted(Planted::ConfigAtApply) {
            return self.memberships.at(self.applied);
        }
        self.memberships.current()
    }

    /// Whether this replica votes in the membership in force.
    pub(crate) fn is_voter(&self) -> bool {
        self.membership().is_voter(self.config.id)
    }

    /// Whether this replica may campaign. As long as the membership that leaves it out is not committed it may be the
    /// only one whose log lets it win (Raft thesis 4.2.2); its own vote then counts for nothing.
    pub(crate) fn may_campaign(&self) -> bool {
        self.electable && (self.is_voter() || self.memberships.any_votes(self.config.id))
    }

    pub(crate) fn commit_id(&self) -> LogId {
        self.log.id_of(self.commit).expect("the log reaches from at most applied to at least commit")
    }

    /// Moves the clock. One that runs back would prolong every promise and lease that rests on it.
    pub(crate) fn advance(&mut self, now: Nanos) {
        if now < self.now && self.fatal.is_none() {
            self.fatal = Some(Fatal::ClockRanBack { before: self.now, now });
        }
        self.now = self.now.max(now);
    }

    /// Draws a new election timeout, which begins now (Raft paper 5.2); it outlasts every promise.
    pub(crate) fn draw_election_deadline(&mut self) {
        let shortest = self.config.election_timeout_min;
        let width = u64::try_from(shortest.as_nanos()).unwrap_or(u64::MAX);
        let drawn = Duration::from_nanos(self.rng.random_range(0..width.max(1)));
        self.election_deadline = self.now.after(shortest).max(self.withhold_until).after(drawn);
    }

    /// The leader gave a sign of life and asked for a promise: votes are withheld for so long, at least for one's own
    /// election timeout, and the election timeout begins anew.
    pub(crate) fn heard_leader(&mut self, leader: NodeId, promise_ms: u32) {
        self.leader = Some(leader);
        self.led_by = Some(leader);
        let promise = Duration::from_millis(u64::from(promise_ms)).max(self.config.election_timeout_min);
        self.withhold_until = self.withhold_until.max(self.now.after(promise));
        if promise_ms > self.hard.promise_ms {
            // Durable before the answer leaves, as the answer waits for the hard state.
            self.hard.promise_ms = promise_ms;
            self.outbox.write_hard(self.hard);
        }
        self.draw_election_deadline();
    }

    /// How long the oldest write under way has been waited for.
    pub(crate) fn disk_delay(&self) -> Duration {
        self.outbox.oldest_write().map_or(Duration::ZERO, |since| self.now.since(since))
    }

    /// Whether the disk has not answered for a whole election timeout.
    pub(crate) fn disk_stalls(&self) -> bool {
        self.disk_delay() >= self.config.election_timeout_min
    }

    /// Enters a newer term. The vote is cleared here and nowhere else: it belongs to the term.
    pub(crate) fn enter_term(&mut self, term: Term, vote: Option<NodeId>) {
        assert!(term > self.hard.term, "{term} is newer than {}", self.hard.term);
        self.hard = HardState { term, vote, ..self.hard };
        self.leader = None;
        self.led_by = None;
        self.outbox.write_hard(self.hard);
    }

    /// Gives this term's vote.
    pub(crate) fn vote_for(&mut self, candidate: NodeId) {
        assert!(
            self.hard.vote.is_none_or(|vote| vote == candidate),
            "already voted for {:?}",
            self.hard.vote
        );
        if self.hard.vote.is_none() {
            self.hard.vote = Some(candidate);
            self.outbox.write_hard(self.hard);
        }
    }

    /// Moves the commit index up to `commit`, which the log holds.
    pub(crate) fn commit_to(&mut self, commit: LogIndex) {
        if commit > self.commit {
            assert!(
                commit <= self.log.last().index,
                "{commit} is committed, the log ends at {}",
                self.log.last()
            );
            self.commit = commit;
            self.memberships.committed(commit);
        }
    }

    /// Makes a snapshot the base. `keep_tail`: the log holds its end.
    pub(crate) fn reset(&mut self, meta: SnapshotMeta, keep_tail: bool) {
        self.memberships.reset(&meta, keep_tail);
        if keep_tail {
            self.log.compact(meta.last);
        } else {
            self.log = LogShape::new(meta.last);
        }
        self.commit_to(meta.last.index);
        self.applied = self.applied.max(meta.last.index);
        self.outbox.write_reset(meta, keep_tail);
        if self.planted(Planted::SnapshotOverConflict) {
            self.outbox.leave_tail();
        }
    }

    /// Begins a new round.
    pub(crate) fn next_round(&mut self) -> u64 {
        self.round += 1;
        self.round
    }

    /// The newest round, for an append.
    pub(crate) fn round(&self) -> Round {
        self.named_round(self.round)
    }

    pub(crate) fn named_round(&self, number: u64) -> Round {
        Round { incarnation: self.config.incarnation, number }
    }

    /// The number of a round that a peer has echoed, if this life began it.
    pub(crate) fn own_round(&self, round: Round) -> Option<u64> {
        (round.incarnation == self.config.incarnation && round.number <= self.round).then_some(round.number)
    }

    pub(crate) fn message(&self, to: NodeId, kind: MessageKind) -> Message {
        Message { from: self.config.id, to, term: self.hard.term, kind }
    }

    pub(crate) fn send(&mut self, to: NodeId, kind: MessageKind) {
        let message = self.message(to, kind);
        self.outbox.send(message);
    }
}

/// The shape of a restored log, if log and base join.
fn restored_log(restored: &Restored) -> Result<LogShape, Corrupt> {
    let mut log = LogShape::new(restored.log_start);
    for entry in &restored.entries {
        let before = log.last();
        if entry.id.index != before.index.next() || entry.id.term < before.term || entry.id.term == Term::ZERO
        {
            return Err(Corrupt::Order { entry: entry.id, before });
        }
        log.push(entry.id.term, entry.bytes);
    }
    let base = restored.base.last;
    if !log.holds(base) {
        return Err(Corrupt::Base { log_start: log.start(), log_last: log.last(), base });
    }
    Ok(log)
}

fn restored_memberships(restored: &Restored, log: &LogShape) -> Result<Memberships, Corrupt> {
    let base = restored.base.last.index;
    let check = |index: LogIndex, membership: &Membership| {
        membership.check().map_err(|source| Corrupt::Membership { index, source })
    };
    check(base, &restored.base.membership)?;
    let mut memberships = Memberships::new(&restored.base);
    for (index, membership) in restored.configs.iter().filter(|(index, _)| *index > base) {
        check(*index, membership)?;
        if *index <= memberships.since() || *index > log.last().index {
            return Err(Corrupt::ConfigIndex(*index));
        }
        memberships.append(*index, membership.clone());
    }
    Ok(memberships)
}
