//! What the caller asks of a replica.

use bytes::Bytes;
use kv_types::{LogIndex, Nanos, NodeId};

use crate::candidate::Candidate;
use crate::raft::{Raft, State};
use crate::read::Reader;
use crate::{Corrupt, LeaseConfig, Proposed, Refused, Target, Ticket};

impl Raft {
    /// Appends commands to the log, if this replica leads.
    ///
    /// # Errors
    /// [`Refused`]; nothing was appended.
    pub fn propose(&mut self, batch: Vec<Bytes>) -> Result<Proposed, Refused> {
        self.running()?;
        match &mut self.state {
            State::Leader(leader) => leader.propose(&mut self.core, batch),
            State::Follower(_) | State::Candidate(_) => Err(Refused::NotLeader { hint: self.core.leader }),
        }
    }

    /// Asks for an index that a linearisable read must wait for; it comes out in `Output.reads`. A follower asks its
    /// leader. The caller bounds how many reads wait.
    ///
    /// # Errors
    /// [`Refused`] if there is no leader to ask.
    pub fn read(&mut self, now: Nanos, ticket: Ticket) -> Result<(), Refused> {
        self.core.advance(now);
        self.running()?;
        match &mut self.state {
            State::Leader(leader) => leader.read(&mut self.core, Reader::Local(ticket)),
            State::Follower(follower) if self.core.leader.is_some() => follower.forwards.push(ticket),
            State::Follower(_) | State::Candidate(_) => return Err(Refused::NotLeader { hint: None }),
        }
        Ok(())
    }

    /// How many messages were sent in this life only because somebody reads: none of a leader that has a lease.
    pub fn read_messages(&self) -> u64 {
        self.core.read_messages
    }

    /// Starts an election at once, with a pre-vote. Nothing happens on a leader.
    ///
    /// # Errors
    /// [`Refused`] if this replica does not vote, is not to lead, or has promised its leader to wait.
    pub fn campaign(&mut self, now: Nanos) -> Result<(), Refused> {
        self.core.advance(now);
        self.running()?;
        if self.is_leader() {
            return Ok(());
        }
        if !self.core.electable {
            return Err(Refused::NotElectable);
        }
        if !self.core.may_campaign() {
            return Err(Refused::NotVoter);
        }
        if self.core.now < self.core.withhold_until {
            return Err(Refused::Withheld { until: self.core.withhold_until });
        }
        let candidate = Candidate::pre_campaign(&mut self.core);
        self.enter(State::Candidate(candidate));
        self.count_votes();
        Ok(())
    }

    /// Whether it may campaign: a replica whose state machine cannot serve votes and acknowledges, and leaves leading to
    /// others, also when its leader wishes otherwise. One that leads already hands over at its next tick, or steps down,
    /// if there is anybody else. A replica may campaign from the start.
    pub fn set_electable(&mut self, electable: bool) {
        self.core.electable = electable;
    }

    /// Hands leadership to `to`, if this replica leads. It takes no command until that succeeds or, after one election
    /// timeout, fails; a failed hand-over changes nothing but that this term sees no lease any more. To hand over to
    /// oneself is to do nothing.
    ///
    /// # Errors
    /// [`Refused`] if `to` cannot lead, does not answer, or another hand-over is under way.
    pub fn transfer(&mut self, now: Nanos, to: NodeId) -> Result<(), Refused> {
        self.core.advance(now);
        self.running()?;
        match &mut self.state {
            State::Leader(leader) => leader.transfer(&self.core, to),
            State::Follower(_) | State::Candidate(_) => Err(Refused::NotLeader { hint: self.core.leader }),
        }
    }

    /// Begins to change the membership to `target`, if this replica leads. A change of voters passes through a joint
    /// membership, which the leader of the day leaves by itself. A leader that is no voter of the new membership leads
    /// to the end of the change and then steps down. Returns the index of the entry that begins the change.
    ///
    /// # Errors
    /// [`Refused`]; nothing was appended.
    pub fn reconfigure(&mut self, now: Nanos, target: Target) -> Result<LogIndex, Refused> {
        self.core.advance(now);
        self.running()?;
        match &mut self.state {
            State::Leader(leader) => leader.reconfigure(&mut self.core, target),
            State::Follower(_) | State::Candidate(_) => Err(Refused::NotLeader { hint: self.core.leader }),
        }
    }

    /// Serves reads by a lease from now on, or by a round each.
    ///
    /// # Errors
    /// [`Corrupt::Setting`] if the bound leaves nothing of a lease.
    pub fn set_lease(&mut self, now: Nanos, lease: Option<LeaseConfig>) -> Result<(), Corrupt> {
        self.core.advance(now);
        if lease.is_some_and(|lease| !lease.is_sound()) {
            return Err(Corrupt::Setting("lease"));
        }
        if lease != self.core.config.lease {
            self.core.config.lease = lease;
            // Answers to appends that asked for no promise, or were counted with another bound, earn nothing.
            if let State::Leader(leader) = &mut self.state {
                leader.restart_lease(&mut self.core);
            }
        }
        Ok(())
    }

    fn running(&self) -> Result<(), Refused> {
        if self.core.fatal.is_some() { Err(Refused::Stopped) } else { Ok(()) }
    }
}
