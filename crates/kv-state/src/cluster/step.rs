//! What a change does to the cluster.

use kv_types::limits::{CLOCK_DRIFT_PPM_MAX, MEMBERS_MAX};
use kv_types::{Incarnation, Membership, NodeId, Revision, ShardId};

use super::{ClusterCommand, ClusterRefusal, ClusterState, Group, Member, Wanted};

impl ClusterState {
    /// Carries a command out whose entry has this revision. Nothing is changed if it is refused.
    ///
    /// # Errors
    /// [`ClusterRefusal`]
    pub fn apply(&mut self, revision: Revision, command: ClusterCommand) -> Result<(), ClusterRefusal> {
        match command {
            ClusterCommand::Found { members, groups } => {
                if self.change == Revision::ZERO {
                    let group = |shard| {
                        let membership = Membership::of_voters(members.keys().copied());
                        (shard, Group { reached: revision, membership })
                    };
                    self.groups = groups.into_iter().map(group).collect();
                    self.members = members;
                    self.change = revision;
                }
                Ok(())
            }
            ClusterCommand::Add { node, peer_addr, wanted } => self.add(node, peer_addr, wanted),
            ClusterCommand::Join { node, incarnation, peer_addr, client_addr, wanted } => {
                let announced = self.check_join(node, incarnation)?;
                let wanted = announced.unwrap_or(wanted);
                let member = Member { incarnation: Some(incarnation), wanted, peer_addr, client_addr };
                // A node that says it twice may have moved; the groups know it already.
                let known = self.members.insert(node, member).is_some_and(|m| m.incarnation.is_some());
                if !known {
                    self.changed(revision, node);
                }
                Ok(())
            }
            ClusterCommand::Promote { node } => self.promote(revision, node),
            ClusterCommand::Remove { node } => self.remove(revision, node),
            ClusterCommand::Reached { group, change, membership } => self.reached(group, change, membership),
            ClusterCommand::SetReadMode(mode) => {
                self.settings.read_mode = mode;
                Ok(())
            }
            ClusterCommand::SetClockDrift(ppm) => {
                if ppm > CLOCK_DRIFT_PPM_MAX {
                    return Err(ClusterRefusal::DriftOutOfRange);
                }
                self.settings.clock_drift_ppm = ppm;
                Ok(())
            }
        }
    }

    fn changed(&mut self, revision: Revision, subject: NodeId) {
        self.change = revision;
        self.subject = Some(subject);
    }

    fn check_settled(&self) -> Result<(), ClusterRefusal> {
        if self.change == Revision::ZERO {
            return Err(ClusterRefusal::NotFounded);
        }
        if self.is_settled() { Ok(()) } else { Err(ClusterRefusal::ChangeInProgress) }
    }

    fn check_room(&self) -> Result<(), ClusterRefusal> {
        let present = self.members.values().filter(|member| member.wanted != Wanted::Removed).count();
        if present < MEMBERS_MAX { Ok(()) } else { Err(ClusterRefusal::TooManyMembers) }
    }

    fn add(&mut self, node: NodeId, peer_addr: String, wanted: Wanted) -> Result<(), ClusterRefusal> {
        if self.change == Revision::ZERO {
            return Err(ClusterRefusal::NotFounded);
        }
        match self.members.get(&node) {
            Some(member) if member.wanted == Wanted::Removed => return Err(ClusterRefusal::IdUsed(node)),
            Some(_) => return Err(ClusterRefusal::MemberExists(node)),
            None => {}
        }
        self.check_room()?;
        let member = Member { incarnation: None, wanted, peer_addr, client_addr: String::new() };
        self.members.insert(node, member);
        Ok(())
    }

    /// What the node was announced as, or joined as before; `None` if it comes unannounced.
    fn check_join(&self, node: NodeId, incarnation: Incarnation) -> Result<Option<Wanted>, ClusterRefusal> {
        let Some(member) = self.members.get(&node) else {
            self.check_settled()?;
            self.check_room()?;
            return Ok(None);
        };
        match member.incarnation {
            _ if member.wanted == Wanted::Removed => Err(ClusterRefusal::IdUsed(node)),
            Some(known) if known != incarnation => Err(ClusterRefusal::IdUsed(node)),
            Some(_) => Ok(Some(member.wanted)),
            None => self.check_settled().map(|()| Some(member.wanted)),
        }
    }

    /// A member that is none yet, or none any more, is unknown.
    fn present(&self, node: NodeId) -> Result<&Member, ClusterRefusal> {
        let present = self.members.get(&node).filter(|member| member.wanted != Wanted::Removed);
        present.ok_or(ClusterRefusal::UnknownMember(node))
    }

    fn promote(&mut self, revision: Revision, node: NodeId) -> Result<(), ClusterRefusal> {
        let member = self.present(node)?;
        if member.wanted == Wanted::Voter {
            return Err(ClusterRefusal::MemberExists(node));
        }
        let joined = member.incarnation.is_some();
        if joined && self.subject != Some(node) {
            self.check_settled()?;
        }
        self.want(node, Wanted::Voter);
        if joined {
            self.changed(revision, node);
        }
        Ok(())
    }

    fn remove(&mut self, revision: Revision, node: NodeId) -> Result<(), ClusterRefusal> {
        if self.change == Revision::ZERO {
            return Err(ClusterRefusal::NotFounded);
        }
        let joined = self.present(node)?.incarnation.is_some();
        if !joined {
            // Nobody has met it: its id may still be used.
            self.members.remove(&node);
            return Ok(());
        }
        let wanted = self.wanted();
        if wanted.voters.contains(&node) && wanted.voters.len() == 1 {
            return Err(ClusterRefusal::LastVoter(node));
        }
        if self.subject != Some(node) {
            self.check_settled()?;
        }
        self.want(node, Wanted::Removed);
        self.changed(revision, node);
        Ok(())
    }

    fn want(&mut self, node: NodeId, wanted: Wanted) {
        if let Some(member) = self.members.get_mut(&node) {
            member.wanted = wanted;
        }
    }

    fn reached(
        &mut self,
        shard: ShardId,
        change: Revision,
        membership: Membership,
    ) -> Result<(), ClusterRefusal> {
        let newest = self.change;
        let group = self.groups.get_mut(&shard).ok_or(ClusterRefusal::NotAsked(shard))?;
        if change > newest {
            return Err(ClusterRefusal::NotAsked(shard));
        }
        // Reports may come late and twice.
        if change > group.reached {
            *group = Group { reached: change, membership };
        }
        Ok(())
    }
}
