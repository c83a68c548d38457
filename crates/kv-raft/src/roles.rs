//! How a replica changes its role.

use kv_types::{NodeId, Term};

use crate::Fatal;
use crate::candidate::Candidate;
use crate::follower::Follower;
use crate::leader::Leader;
use crate::planted::Planted;
use crate::quorum::Tally;
use crate::raft::{Raft, State};

impl Raft {
    pub(crate) fn campaign_if_due(&mut self) {
        if self.core.now < self.core.election_deadline {
            return;
        }
        let now = self.core.now;
        // With a disk that does not answer the own vote would never be durable, and the term of a candidacy that nobody
        // hears of would later unseat the leader of the day.
        if self.core.disk_stalls() || self.campaign(now).is_err() {
            self.core.draw_election_deadline();
            self.forget_leader();
        }
    }

    /// Who may not campaign waits for another leader than the one that has fallen silent: reads that it would pass on to
    /// that one are refused, and whoever asks for a leader hears of none.
    fn forget_leader(&mut self) {
        if matches!(self.state, State::Follower(_)) && self.core.leader.take().is_some() {
            self.enter(State::Follower(Follower::default()));
        }
    }

    /// Leaves the old role in good order.
    pub(crate) fn enter(&mut self, state: State) {
        match std::mem::replace(&mut self.state, state) {
            State::Follower(mut follower) => follower.forwards.refuse(&mut self.core),
            State::Candidate(_) => {}
            State::Leader(mut leader) => leader.abdicate(&mut self.core),
        }
    }

    /// Follows, or waits for, whoever `core.leader` says.
    pub(crate) fn become_follower(&mut self) {
        self.core.draw_election_deadline();
        self.enter(State::Follower(Follower::default()));
    }

    /// A message of a newer term arrived.
    pub(crate) fn enter_term(&mut self, term: Term) {
        self.core.enter_term(term, None);
        if matches!(self.state, State::Follower(_)) {
            // Keeps its election deadline: a stranger's term is no sign of life of a leader.
            self.enter(State::Follower(Follower::default()));
        } else {
            self.become_follower();
        }
    }

    /// `leader` speaks for our term, and asks for a promise. Returns whether it may.
    pub(crate) fn follow(&mut self, leader: NodeId, promise_ms: u32) -> bool {
        if let Some(known) = self.core.led_by
            && known != leader
        {
            let term = self.core.term();
            self.core.fatal = Some(Fatal::TwoLeaders { term, first: known, second: leader });
            return false;
        }
        self.core.heard_leader(leader, promise_ms);
        if !matches!(self.state, State::Follower(_)) {
            if self.core.planted(Planted::VoteCleared) {
                self.core.hard.vote = None;
            }
            self.become_follower();
        }
        true
    }

    /// Acts on the votes so far.
    pub(crate) fn count_votes(&mut self) {
        let State::Candidate(candidate) = &self.state else { return };
        let pre = candidate.pre;
        match candidate.tally(&self.core) {
            Tally::Open => {}
            Tally::Lost => self.enter(State::Follower(Follower::default())),
            Tally::Won if pre => {
                let candidate = Candidate::campaign(&mut self.core, false);
                self.enter(State::Candidate(candidate));
            }
            Tally::Won => {
                let leader = Leader::new(&mut self.core);
                self.enter(State::Leader(Box::new(leader)));
            }
        }
    }
}
