//! Changes of the membership, by joint consensus (Raft thesis 4.3).
//!
//! A change of voters takes two entries. The first makes the membership joint: from its append on, elections, commits,
//! reads and leases need a majority of both the old and the new voters. Once it is committed, whoever leads appends the
//! second one, which leaves the old voters out. At no time can the old voters and the new ones decide apart.
//!
//! A change of learners alone takes one plain entry: both memberships have the same voters, so every majority of the
//! one meets every majority of the other.

use std::collections::BTreeSet;

use kv_types::limits::MEMBERS_MAX;
use kv_types::{Body, LogIndex, Membership, NodeId};

use crate::Refused;
use crate::core::Core;
use crate::leader::{Leader, send_append};
use crate::planted::Planted;
use crate::progress::Progress;

/// A wanted membership.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Target {
    /// Those who shall vote.
    pub voters: BTreeSet<NodeId>,
    /// Those who shall receive the log only.
    pub learners: BTreeSet<NodeId>,
}

impl Target {
    /// The membership that leads from `current` to this one: joint if the voters change. A voter that shall become a
    /// learner votes in the old half until then, and is in `learners` already.
    fn entered_from(self, current: &Membership) -> Membership {
        let outgoing = if self.voters == current.voters { BTreeSet::new() } else { current.voters.clone() };
        Membership { voters: self.voters, outgoing, learners: self.learners }
    }
}

impl Leader {
    /// Appends the entry that begins a change.
    pub(crate) fn reconfigure(&mut self, core: &mut Core, target: Target) -> Result<LogIndex, Refused> {
        if let Some(transfer) = &self.transfer {
            return Err(Refused::Transferring { to: transfer.to });
        }
        // What an earlier leader began may be in the log, uncommitted, or in nobody's but its own: only with an entry of
        // one's own term committed is the membership in force the one to start from (the bug in single-server changes
        // that Ongaro reported to raft-dev in 2015).
        if !core.planted(Planted::SecondConfigEarly) {
            self.may_reconfigure(core)?;
        }
        let current = core.membership();
        if target.voters == current.voters && target.learners == current.learners {
            return Err(Refused::NothingToDo);
        }
        let membership = target.entered_from(current);
        membership.check().map_err(Refused::Membership)?;
        if membership.voters.is_empty() {
            return Err(Refused::Membership(kv_types::MembershipError::NoVoter));
        }
        let members = membership.members().len();
        if members > MEMBERS_MAX {
            return Err(Refused::TooManyMembers { members });
        }
        Ok(self.append_config(core, membership))
    }

    fn may_reconfigure(&self, core: &Core) -> Result<(), Refused> {
        if core.commit < self.first {
            return Err(Refused::NoOwnTermCommit);
        }
        let index = core.memberships.since();
        if index > core.commit {
            return Err(Refused::ConfigUncommitted { index });
        }
        if core.membership().is_joint() { Err(Refused::Joint) } else { Ok(()) }
    }

    /// Leaves the joint membership once it is committed, whoever began it. Not while handing over: the target's log
    /// would no longer be ours.
    pub(crate) fn leave_joint(&mut self, core: &mut Core) {
        let own_term = core.commit >= self.first;
        let membership = core.memberships.current();
        if !own_term
            || self.transfer.is_some()
            || !membership.is_joint()
            || core.memberships.since() > core.commit
        {
            return;
        }
        let left = Membership { outgoing: BTreeSet::new(), ..membership.clone() };
        self.append_config(core, left);
    }

    /// Appends a config entry, which is in force at once: what is known of the others follows, and a lease must be
    /// earned from the new quorums.
    fn append_config(&mut self, core: &mut Core, membership: Membership) -> LogIndex {
        let members = membership.members();
        self.append(core, Body::Config(membership));
        let last = core.log.last().index;
        for peer in members.into_iter().filter(|peer| *peer != core.id()) {
            self.peers.entry(peer).or_insert_with(|| Progress::new(last, core.now));
        }
        self.restart_lease(core);
        last
    }

    /// Lets those go that are no members of a committed membership. Until then they are sent the log, with the entry
    /// that leaves them out, so that most of them learn of it and do not campaign for ever.
    pub(crate) fn let_go(&mut self, core: &mut Core) {
        if core.memberships.since() > core.commit {
            return;
        }
        let members = core.memberships.current();
        let gone: Vec<NodeId> = self.peers.keys().copied().filter(|peer| !members.contains(*peer)).collect();
        for node in gone {
            let Some(mut peer) = self.peers.remove(&node) else { continue };
            // At the end of what was sent, though it may not have arrived: this is the last word.
            if let Some(prev) = core.log.id_of(peer.next.prev()) {
                send_append(core, node, &mut peer, prev, prev);
            }
        }
    }

    /// Whether this leader is no voter of a committed membership, so that its office ends. The others hear of the
    /// commit first: they would have to elect somebody to learn of it.
    pub(crate) fn retires(&mut self, core: &mut Core) -> bool {
        let retires = core.commit >= self.first
            && core.memberships.since() <= core.commit
            && !core.membership().is_voter(core.id());
        if retires {
            let peers: Vec<NodeId> = self.peers.keys().copied().collect();
            self.send_empty(core, &peers);
        }
        retires
    }
}
