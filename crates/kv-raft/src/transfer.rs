//! A leader that hands its office over (Raft thesis 3.10), because it is told to, because its disk stalls or because its
//! state machine cannot serve.

use std::cmp::Reverse;

use kv_types::{Nanos, NodeId};

use crate::core::Core;
use crate::leader::Leader;
use crate::planted::Planted;
use crate::{MessageKind, Refused};

/// A hand-over under way.
#[derive(Debug)]
pub(crate) struct Transfer {
    pub(crate) to: NodeId,
    /// When it counts as failed.
    deadline: Nanos,
    /// The heartbeat round in which the target was last told to campaign.
    told: Option<u64>,
}

impl Leader {
    /// Begins to hand over to `to`. Until that succeeds or fails no command is taken, so that the target can catch up,
    /// and reads wait for rounds.
    pub(crate) fn transfer(&mut self, core: &Core, to: NodeId) -> Result<(), Refused> {
        if to == core.id() {
            return Ok(());
        }
        if let Some(transfer) = &self.transfer {
            return Err(Refused::Transferring { to: transfer.to });
        }
        let membership = core.membership();
        if !membership.voters.contains(&to) {
            return Err(match membership {
                joint if joint.outgoing.contains(&to) => Refused::Leaving(to),
                plain if plain.learners.contains(&to) => Refused::Learner(to),
                _ => Refused::NotMember(to),
            });
        }
        let span = core.config.election_timeout_min;
        if !self.peers.get(&to).is_some_and(|peer| peer.is_live(core.now, span)) {
            return Err(Refused::Unreachable(to));
        }
        self.begin_transfer(core, to);
        Ok(())
    }

    fn begin_transfer(&mut self, core: &Core, to: NodeId) {
        let deadline = core.now.after(core.config.election_timeout_min);
        self.transfer = Some(Transfer { to, deadline, told: None });
        self.lease.end();
    }

    /// Tells the target to campaign once its log is ours; again with each heartbeat, as the wish may get lost. From
    /// then on this term sees no lease: the wish may be obeyed at any time, and votes for it heed no promise.
    pub(crate) fn drive_transfer(&mut self, core: &mut Core) {
        let Some(transfer) = &mut self.transfer else { return };
        let (to, last) = (transfer.to, core.log.last());
        let equal = self.peers.get(&to).is_some_and(|peer| peer.matched == last.index);
        if equal && transfer.told.is_none_or(|round| round < self.heartbeat_round) {
            transfer.told = Some(self.heartbeat_round);
            self.lease.handed_over = !core.planted(Planted::LeaseAfterTransfer);
            core.send(to, MessageKind::TimeoutNow { last });
        }
    }

    /// Whether this replica keeps leading as far as its own disk, rows and hand-over are concerned. A leader whose disk
    /// does not answer commits nothing alone and may never answer again: it hands over to a voter that has all, or steps
    /// down. One whose rows are damaged hands over to the voter that has most. A hand-over that failed is given up.
    pub(crate) fn keeps_office(&mut self, core: &Core) -> bool {
        let failed = self.transfer.as_ref().is_some_and(|transfer| core.now >= transfer.deadline);
        if failed {
            self.transfer = None;
        }
        if (core.electable && !core.disk_stalls()) || self.transfer.is_some() || !rivals(core) {
            return true;
        }
        match self.successor(core) {
            Some(to) if !failed => {
                self.begin_transfer(core, to);
                true
            }
            Some(_) | None => false,
        }
    }

    /// When [`Leader::keeps_office`] has something to decide next.
    pub(crate) fn office_deadline(&self, core: &Core) -> Nanos {
        match (&self.transfer, core.outbox.oldest_write()) {
            (Some(transfer), _) => transfer.deadline,
            (None, _) if !core.electable && rivals(core) => core.now,
            (None, Some(since)) if rivals(core) => since.after(core.config.election_timeout_min),
            (None, _) => Nanos::new(u64::MAX),
        }
    }

    /// The live voter that has most of our log; all of it, if our disk stalls: entries that it lacks may never get there.
    fn successor(&self, core: &Core) -> Option<NodeId> {
        let (last, span) = (core.log.last().index, core.config.election_timeout_min);
        let voters = &core.membership().voters;
        let live =
            self.peers.iter().filter(|(node, peer)| voters.contains(*node) && peer.is_live(core.now, span));
        let fit = live.filter(|(_, peer)| peer.matched == last || !core.disk_stalls());
        fit.max_by_key(|(node, peer)| (peer.matched, Reverse(**node))).map(|(node, _)| *node)
    }
}

/// Whether anybody else could lead. If not, making way would stop the group for nothing.
fn rivals(core: &Core) -> bool {
    let membership = core.membership();
    membership.members().into_iter().any(|node| node != core.id() && membership.is_voter(node))
}
