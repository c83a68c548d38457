//! Which membership is in force: the one of the newest config entry in the log (Raft thesis 4.1).

use kv_types::{LogIndex, Membership, NodeId, SnapshotMeta};

/// The memberships that may still be in force after a truncation, newest last.
///
/// # Invariants
/// Never empty; indexes ascend strictly. The first is committed, so no truncation removes it.
#[derive(Debug, Clone)]
pub(crate) struct Memberships {
    base: (LogIndex, Membership),
    above: Vec<(LogIndex, Membership)>,
}

impl Memberships {
    pub(crate) fn new(base: &SnapshotMeta) -> Self {
        Self { base: (base.last.index, base.membership.clone()), above: Vec::new() }
    }

    /// The membership in force.
    pub(crate) fn current(&self) -> &Membership {
        self.above.last().map_or(&self.base.1, |(_, membership)| membership)
    }

    /// The membership of the newest config entry up to `index`; the oldest one known if there is none.
    pub(crate) fn at(&self, index: LogIndex) -> &Membership {
        let known = self.above.iter().rev().find(|(since, _)| *since <= index);
        known.map_or(&self.base.1, |(_, membership)| membership)
    }

    /// Whether `node` votes in any membership that may still be in force after a truncation, or is.
    pub(crate) fn any_votes(&self, node: NodeId) -> bool {
        self.base.1.is_voter(node) && !self.above.is_empty()
            || self.above.iter().any(|(_, membership)| membership.is_voter(node))
    }

    /// The index of the entry that put it in force.
    pub(crate) fn since(&self) -> LogIndex {
        self.above.last().map_or(self.base.0, |(index, _)| *index)
    }

    /// A config entry was appended: its membership is in force at once.
    pub(crate) fn append(&mut self, index: LogIndex, membership: Membership) {
        assert!(index > self.since(), "config entries ascend: {index} after {}", self.since());
        self.above.push((index, membership));
    }

    /// Entries from `from` on are gone.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(from > self.base.0, "the membership of {} is committed, cannot truncate {from}", self.base.0);
        self.above.retain(|(index, _)| *index < from);
    }

    /// Entries up to `commit` cannot be truncated any more: older memberships are forgotten.
    pub(crate) fn committed(&mut self, commit: LogIndex) {
        while self.above.first().is_some_and(|(index, _)| *index <= commit) {
            self.base = self.above.remove(0);
        }
    }

    /// A snapshot became the base: config entries it covers are forgotten, later ones stay if their entries do, those
    /// included that are known to be committed.
    pub(crate) fn reset(&mut self, meta: &SnapshotMeta, keep_tail: bool) {
        if !keep_tail || self.base.0 <= meta.last.index {
            self.base = (meta.last.index, meta.membership.clone());
        }
        self.above.retain(|(index, _)| keep_tail && *index > meta.last.index);
    }
}

#[cfg(test)]
mod tests {
    use kv_types::{LogId, Term};

    use super::*;

    fn of(raw: u64) -> Membership {
        Membership::of_voters([NodeId::new(raw)])
    }

    fn meta(index: u64, raw: u64) -> SnapshotMeta {
        SnapshotMeta { last: LogId::new(Term::new(1), LogIndex::new(index)), membership: of(raw) }
    }

    fn sample() -> Memberships {
        let mut stack = Memberships::new(&meta(1, 1));
        stack.append(LogIndex::new(3), of(3));
        stack.append(LogIndex::new(5), of(5));
        stack
    }

    #[test]
    fn falls_back_on_truncation() {
        let mut stack = sample();
        assert_eq!(stack.current(), &of(5));
        stack.truncate(LogIndex::new(6));
        assert_eq!(stack.current(), &of(5));
        stack.truncate(LogIndex::new(5));
        assert_eq!(stack.current(), &of(3));
        stack.truncate(LogIndex::new(2));
        assert_eq!((stack.current(), stack.since()), (&of(1), LogIndex::new(1)));
    }

    #[test]
    fn rows_that_are_behind_what_is_committed_bring_back_no_older_membership() {
        let mut stack = sample();
        stack.committed(LogIndex::new(3));
        stack.reset(&meta(2, 1), true);
        assert_eq!((stack.current(), stack.since()), (&of(5), LogIndex::new(5)));
        stack.truncate(LogIndex::new(5));
        assert_eq!((stack.current(), stack.since()), (&of(3), LogIndex::new(3)));
        stack.reset(&meta(9, 9), false);
        assert_eq!(stack.current(), &of(9));
    }

    #[test]
    fn who_is_left_out_counts_until_that_is_committed() {
        let mut stack = sample();
        let votes = |stack: &Memberships| [1, 3, 5].map(|raw| stack.any_votes(NodeId::new(raw)));
        assert_eq!(votes(&stack), [true, true, true]);
        stack.committed(LogIndex::new(3));
        assert_eq!(votes(&stack), [false, true, true]);
        stack.committed(LogIndex::new(5));
        assert_eq!(votes(&stack), [false, false, false], "nothing is open: the membership in force tells");
    }

    #[test]
    fn commit_forgets_older_ones() {
        let mut stack = sample();
        stack.committed(LogIndex::new(4));
        stack.truncate(LogIndex::new(5));
        assert_eq!((stack.current(), stack.above.len()), (&of(3), 0));
    }

    #[test]
    fn a_snapshot_covers_what_is_below_it() {
        let mut stack = sample();
        stack.reset(&meta(4, 4), true);
        assert_eq!((stack.current(), &stack.base.1), (&of(5), &of(4)));
        stack.reset(&meta(9, 9), true);
        assert_eq!(stack.current(), &of(9));
        let mut stack = sample();
        stack.reset(&meta(4, 4), false);
        assert_eq!(stack.current(), &of(4));
    }
}
