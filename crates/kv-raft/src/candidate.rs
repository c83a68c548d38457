//! A replica that asks for votes.

use std::collections::BTreeMap;

use kv_types::NodeId;

use crate::core::Core;
use crate::planted::Planted;
use crate::quorum::{Tally, tally};
use crate::{MessageKind, WriteId};

/// A candidate, or a pre-candidate.
#[derive(Debug)]
pub(crate) struct Candidate {
    /// Whether it only asks how an election would end; its term has not changed.
    pub(crate) pre: bool,
    votes: BTreeMap<NodeId, bool>,
    /// The write of its own vote, which counts once it is durable. None for a pre-vote, which is no promise.
    own_vote: Option<WriteId>,
}

impl Candidate {
    /// Asks who would give a vote in the next term (Raft thesis 9.6). Changes nothing, so it leaves at once.
    pub(crate) fn pre_campaign(core: &mut Core) -> Self {
        core.leader = None;
        core.draw_election_deadline();
        let last = core.log.last();
        for voter in other_voters(core) {
            core.send(voter, MessageKind::Vote { last, pre: true, by_transfer: false });
        }
        Self { pre: true, votes: BTreeMap::from([(core.id(), true)]), own_vote: None }
    }

    /// Stands for election in the next term. The requests wait until the own vote is durable: elected by the others'
    /// votes alone, a candidate that crashes could come back in the old term, win the same term again and give its
    /// indexes to other entries. `by_transfer`: at the wish of the leader, so voters need not protect it.
    pub(crate) fn campaign(core: &mut Core, by_transfer: bool) -> Self {
        core.enter_term(core.term().next(), Some(core.id()));
        core.draw_election_deadline();
        let own_vote = if core.planted(Planted::VoteRequestBeforeDurable) {
            core.outbox.persisted()
        } else {
            core.outbox.hard_write()
        };
        let last = core.log.last();
        for voter in other_voters(core) {
            let request = core.message(voter, MessageKind::Vote { last, pre: false, by_transfer });
            core.outbox.send_after(own_vote, request);
        }
        let mut candidate = Self { pre: false, votes: BTreeMap::new(), own_vote: Some(own_vote) };
        candidate.on_persisted(core);
        candidate
    }

    /// A write became durable, perhaps that of the own vote.
    pub(crate) fn on_persisted(&mut self, core: &Core) {
        if self.own_vote.is_some_and(|write| write <= core.outbox.persisted()) {
            self.own_vote = None;
            self.votes.insert(core.id(), true);
        }
    }

    /// A voter answered. Its first answer stands.
    pub(crate) fn on_vote(&mut self, from: NodeId, pre: bool, granted: bool) {
        if pre == self.pre {
            self.votes.entry(from).or_insert(granted);
        }
    }

    /// How the election stands. Not won before the own vote is durable.
    pub(crate) fn tally(&self, core: &Core) -> Tally {
        match tally(core.membership(), &self.votes) {
            Tally::Won if self.own_vote.is_some() => Tally::Open,
            tally => tally,
        }
    }
}

fn other_voters(core: &Core) -> Vec<NodeId> {
    let members = core.membership();
    members.members().into_iter().filter(|node| *node != core.id() && members.is_voter(*node)).collect()
}
