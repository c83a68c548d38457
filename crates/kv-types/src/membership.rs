//! Who belongs to a Raft group.

use std::collections::BTreeSet;
use std::fmt;

use crate::NodeId;

/// The members of a Raft group; joint while `outgoing` is not empty (Raft thesis §4.3).
///
/// # Invariants
/// Checked by [`Membership::check`], which every codec calls:
/// - a membership with members has at least one voter;
/// - a learner is not in `voters`; one that is in `outgoing` is a voter on its way to become a learner: it votes in
///   the old half until the change is complete.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Membership {
    /// The voters of the new (or only) configuration.
    pub voters: BTreeSet<NodeId>,
    /// The voters of the old configuration while the change is under way; empty otherwise.
    pub outgoing: BTreeSet<NodeId>,
    /// Members that receive the log and do not vote, once the change is complete.
    pub learners: BTreeSet<NodeId>,
}

/// Why a membership cannot stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// It has members but no voter.
    #[error("a membership needs at least one voter")]
    NoVoter,
    /// A node is both a learner and a voter.
    #[error("{0} is both a learner and a voter")]
    LearnerVotes(NodeId),
    /// Node id zero.
    #[error("node id 0 is not a node")]
    ZeroNode,
}

impl Membership {
    /// A plain configuration of these voters.
    pub fn of_voters(voters: impl IntoIterator<Item = NodeId>) -> Self {
        Self { voters: voters.into_iter().collect(), ..Self::default() }
    }

    /// Whether two configurations must agree at the moment.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `node` votes in either half.
    pub fn is_voter(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.outgoing.contains(&node)
    }

    /// Whether `node` is a member of any kind.
    pub fn contains(&self, node: NodeId) -> bool {
        self.is_voter(node) || self.learners.contains(&node)
    }

    /// Every member once, in order.
    pub fn members(&self) -> BTreeSet<NodeId> {
        self.voters.iter().chain(&self.outgoing).chain(&self.learners).copied().collect()
    }

    /// Checks the invariants.
    ///
    /// # Errors
    /// [`MembershipError`] names the first one that does not hold.
    pub fn check(&self) -> Result<(), MembershipError> {
        let members = self.members();
        if members.contains(&NodeId::ZERO) {
            return Err(MembershipError::ZeroNode);
        }
        if !members.is_empty() && self.voters.is_empty() {
            return Err(MembershipError::NoVoter);
        }
        match self.learners.intersection(&self.voters).next() {
            Some(node) => Err(MembershipError::LearnerVotes(*node)),
            None => Ok(()),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, nodes: &BTreeSet<NodeId>) -> fmt::Result {
    for (i, node) in nodes.iter().enumerate() {
        let gap = if i == 0 { "" } else { " " };
        write!(f, "{gap}{}", node.get())?;
    }
    Ok(())
}

impl fmt::Display for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("voters=(")?;
        list(f, &self.voters)?;
        f.write_str(")")?;
        if self.is_joint() {
            f.write_str("&&(")?;
            list(f, &self.outgoing)?;
            f.write_str(")")?;
        }
        if !self.learners.is_empty() {
            f.write_str(" learners=(")?;
            list(f, &self.learners)?;
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Membership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(raw: &[u64]) -> BTreeSet<NodeId> {
        raw.iter().map(|n| NodeId::new(*n)).collect()
    }

    #[test]
    fn prints_both_halves_and_learners() {
        let joint = Membership { voters: nodes(&[1, 2]), outgoing: nodes(&[3]), learners: nodes(&[4]) };
        assert_eq!(joint.to_string(), "voters=(1 2)&&(3) learners=(4)");
        assert!(joint.is_joint() && joint.is_voter(NodeId::new(3)) && !joint.is_voter(NodeId::new(4)));
    }

    #[test]
    fn check_names_what_is_wrong() {
        let both = Membership { voters: nodes(&[1]), learners: nodes(&[1]), ..Membership::default() };
        assert_eq!(both.check(), Err(MembershipError::LearnerVotes(NodeId::new(1))));
        let demoted = Membership { voters: nodes(&[1]), outgoing: nodes(&[1, 2]), learners: nodes(&[2]) };
        assert_eq!(demoted.check(), Ok(()));
        assert!(demoted.is_voter(NodeId::new(2)), "it votes until the change is complete");
        let none = Membership { learners: nodes(&[1]), ..Membership::default() };
        assert_eq!(none.check(), Err(MembershipError::NoVoter));
        assert_eq!(Membership::of_voters([NodeId::ZERO]).check(), Err(MembershipError::ZeroNode));
        assert_eq!(Membership::default().check(), Ok(()));
    }
}
