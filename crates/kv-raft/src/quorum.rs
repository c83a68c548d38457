//! Majorities, of both halves while a membership is joint (Raft thesis 4.3).

use std::collections::{BTreeMap, BTreeSet};

use kv_types::{Membership, NodeId};

/// How an election stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tally {
    /// Every half has a majority in favour.
    Won,
    /// Some half can no longer have one.
    Lost,
    /// Neither yet.
    Open,
}

/// The largest value that a quorum has reached: of each half, a majority holds it or a larger one. `None` if there is
/// no voter.
pub(crate) fn reached<T: Ord + Copy>(membership: &Membership, value: impl Fn(NodeId) -> T) -> Option<T> {
    let new = reached_in(&membership.voters, &value)?;
    match reached_in(&membership.outgoing, &value) {
        Some(old) => Some(new.min(old)),
        None => Some(new),
    }
}

fn reached_in<T: Ord + Copy>(voters: &BTreeSet<NodeId>, value: impl Fn(NodeId) -> T) -> Option<T> {
    let mut values: Vec<T> = voters.iter().map(|voter| value(*voter)).collect();
    values.sort_unstable();
    // Of n ascending values, the one at (n - 1) / 2 is held or exceeded by n / 2 + 1 voters.
    values.get(values.len().checked_sub(1)? / 2).copied()
}

/// Counts votes; those of nodes that are no voters do not count.
pub(crate) fn tally(membership: &Membership, votes: &BTreeMap<NodeId, bool>) -> Tally {
    // Ordered so that the smaller of two tallies decides.
    let rank = |voters: &BTreeSet<NodeId>| {
        let majority = voters.len() / 2 + 1;
        let count = |wanted| voters.iter().filter(|voter| votes.get(voter) == Some(&wanted)).count();
        if count(true) >= majority {
            2
        } else if voters.len() - count(false) < majority {
            0
        } else {
            1
        }
    };
    let new = rank(&membership.voters);
    let old = if membership.is_joint() { rank(&membership.outgoing) } else { new };
    match new.min(old) {
        0 => Tally::Lost,
        1 => Tally::Open,
        _ => Tally::Won,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(raw: &[u64]) -> BTreeSet<NodeId> {
        raw.iter().map(|n| NodeId::new(*n)).collect()
    }

    fn joint(voters: &[u64], outgoing: &[u64]) -> Membership {
        Membership { voters: nodes(voters), outgoing: nodes(outgoing), learners: BTreeSet::new() }
    }

    #[test]
    fn a_majority_reaches() {
        let at = |membership| reached(&membership, NodeId::get);
        assert_eq!(at(joint(&[], &[])), None);
        assert_eq!(at(joint(&[7], &[])), Some(7));
        assert_eq!(at(joint(&[1, 2], &[])), Some(1));
        assert_eq!(at(joint(&[1, 2, 3], &[])), Some(2));
        assert_eq!(at(joint(&[1, 2, 3, 4], &[])), Some(2));
        assert_eq!(at(joint(&[1, 2, 3, 4, 5], &[])), Some(3));
    }

    #[test]
    fn both_halves_must_reach() {
        assert_eq!(reached(&joint(&[4, 5, 6], &[1, 2, 3]), NodeId::get), Some(2));
        assert_eq!(reached(&joint(&[1, 2, 3], &[4, 5, 6]), NodeId::get), Some(2));
    }

    #[test]
    fn both_halves_must_vote() {
        let membership = joint(&[1, 2, 3], &[3, 4, 5]);
        let votes = |yes: &[u64], no: &[u64]| {
            let yes = nodes(yes).into_iter().map(|node| (node, true));
            tally(&membership, &yes.chain(nodes(no).into_iter().map(|node| (node, false))).collect())
        };
        assert_eq!(votes(&[1, 2], &[]), Tally::Open);
        assert_eq!(votes(&[1, 2, 4, 5], &[]), Tally::Won);
        assert_eq!(votes(&[1, 2], &[4, 5]), Tally::Lost);
        assert_eq!(votes(&[1, 2, 9, 8], &[]), Tally::Open, "strangers do not count");
    }
}
