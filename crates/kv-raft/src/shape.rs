//! The log without its contents: terms in runs, and payload sizes.

use std::collections::VecDeque;

use kv_types::{LogId, LogIndex, Term};

/// The shape of a log.
///
/// # Invariants
/// Asserted by [`LogShape::push`] and [`LogShape::check`]:
/// - runs begin at ascending indexes above `start` and have strictly ascending terms, none below `start.term`;
/// - the first run begins right after `start`; without entries there are no runs.
#[derive(Debug, Clone)]
pub(crate) struct LogShape {
    /// The entry before the first one held.
    start: LogId,
    /// Where each term begins: its first index and the term.
    runs: VecDeque<(LogIndex, Term)>,
    /// Payload bytes of each entry held.
    bytes: VecDeque<u32>,
}

impl LogShape {
    pub(crate) fn new(start: LogId) -> Self {
        Self { start, runs: VecDeque::new(), bytes: VecDeque::new() }
    }

    pub(crate) fn start(&self) -> LogId {
        self.start
    }

    pub(crate) fn last(&self) -> LogId {
        let term = self.runs.back().map_or(self.start.term, |(_, term)| *term);
        LogId::new(term, self.start.index.plus(self.bytes.len() as u64))
    }

    /// The term at `index`; `None` outside of what is known, never zero for a compacted index (etcd-io/raft #31).
    pub(crate) fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index == self.start.index {
            return Some(self.start.term);
        }
        if index < self.start.index || index > self.last().index {
            return None;
        }
        let after = self.runs.partition_point(|(first, _)| *first <= index);
        self.runs.get(after.checked_sub(1)?).map(|(_, term)| *term)
    }

    /// The first entry of each term held.
    pub(crate) fn term_starts(&self) -> Vec<LogId> {
        self.runs.iter().map(|(first, term)| LogId::new(*term, *first)).collect()
    }

    pub(crate) fn id_of(&self, index: LogIndex) -> Option<LogId> {
        self.term_of(index).map(|term| LogId::new(term, index))
    }

    pub(crate) fn holds(&self, id: LogId) -> bool {
        self.term_of(id.index) == Some(id.term)
    }

    /// Adds an entry at the end and returns its name.
    pub(crate) fn push(&mut self, term: Term, bytes: u64) -> LogId {
        let last = self.last();
        assert!(term >= last.term, "terms ascend: {term} after {last}");
        let id = LogId::new(term, last.index.next());
        if self.runs.is_empty() || term > last.term {
            self.runs.push_back((id.index, term));
        }
        // The size only steers flow control; a payload of 4 GiB, which no limit allows, counts as 4 GiB.
        self.bytes.push_back(u32::try_from(bytes).unwrap_or(u32::MAX));
        id
    }

    /// Removes the entries from `from` on.
    pub(crate) fn truncate(&mut self, from: LogIndex) {
        assert!(from > self.start.index, "cannot truncate from {from}: the log begins after {}", self.start);
        let kept = from.prev().since(self.start.index);
        self.bytes.truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        while self.runs.back().is_some_and(|(first, _)| *first >= from) {
            self.runs.pop_back();
        }
    }

    /// Forgets the entries up to `upto`, which the log holds.
    pub(crate) fn compact(&mut self, upto: LogId) {
        assert!(self.holds(upto), "cannot compact to {upto}, the log holds {:?}", self.term_of(upto.index));
        let dropped = usize::try_from(upto.index.since(self.start.index)).unwrap_or(usize::MAX);
        self.bytes.drain(..dropped.min(self.bytes.len()));
        while self.runs.get(1).is_some_and(|(first, _)| *first <= upto.index.next()) {
            self.runs.pop_front();
        }
        match self.runs.front_mut() {
            Some(_) if self.bytes.is_empty() => self.runs.clear(),
            Some((first, _)) => *first = upto.index.next(),
            None => {}
        }
        self.start = upto;
    }

    /// The largest known index at or below `hint.index` whose term is at most `hint.term`; an index below the log's
    /// start if no known one is.
    pub(crate) fn floor(&self, hint: LogId) -> LogIndex {
        let mut limit = hint.index.min(self.last().index);
        for (first, term) in self.runs.iter().rev() {
            if *first > limit {
                continue;
            }
            if *term <= hint.term {
                return limit;
            }
            limit = first.prev();
        }
        if self.start.term <= hint.term { limit.min(self.start.index) } else { self.start.index.prev() }
    }

    /// How far an append that begins at `first` may reach, and its payload bytes: as many entries as both limits
    /// allow, at least one.
    pub(crate) fn batch(&self, first: LogIndex, bytes_max: u64, entries_max: usize) -> (LogIndex, u64) {
        let mut sum = 0_u64;
        let mut last = first.prev();
        for bytes in self.sizes(first).take(entries_max.max(1)) {
            if sum > 0 && sum.saturating_add(bytes) > bytes_max {
                break;
            }
            sum = sum.saturating_add(bytes);
            last = last.next();
        }
        (last, sum)
    }

    /// Payload bytes of the entries in `(after, upto]`.
    pub(crate) fn bytes_between(&self, after: LogIndex, upto: LogIndex) -> u64 {
        let count = usize::try_from(upto.since(after)).unwrap_or(usize::MAX);
        self.sizes(after.next()).take(count).sum()
    }

    fn sizes(&self, first: LogIndex) -> impl Iterator<Item = u64> {
        let skip = first.since(self.start.index.next());
        let skip = usize::try_from(skip).unwrap_or(usize::MAX).min(self.bytes.len());
        self.bytes.range(skip..).map(|bytes| u64::from(*bytes))
    }

    /// Asserts the invariants.
    pub(crate) fn check(&self) {
        assert_eq!(self.runs.is_empty(), self.bytes.is_empty(), "runs and entries of {:?}", self.runs);
        let mut before: Option<(LogIndex, Term)> = None;
        for (first, term) in &self.runs {
            match before {
                None => assert_eq!(*first, self.start.index.next(), "the first run follows {}", self.start),
                Some((index, old)) => {
                    assert!(index < *first && old < *term, "{first} {term} after {index} {old}");
                }
            }
            assert!(*term >= self.start.term, "{term} after {}", self.start);
            before = Some((*first, *term));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(Term::new(term), LogIndex::new(index))
    }

    fn i(raw: u64) -> LogIndex {
        LogIndex::new(raw)
    }

    /// Starts after t1i2, then terms 1 1 3 3 4 at 3..=7; each entry has as many bytes as its index.
    fn sample() -> LogShape {
        let mut log = LogShape::new(id(1, 2));
        for (index, term) in (3..).zip([1, 1, 3, 3, 4]) {
            assert_eq!(log.push(Term::new(term), index), id(term, index));
        }
        log.check();
        log
    }

    #[test]
    fn knows_terms_of_what_it_holds_only() {
        let log = sample();
        let terms: Vec<_> = (1..=8).map(|index| log.term_of(i(index)).map(Term::get)).collect();
        assert_eq!(terms, [None, Some(1), Some(1), Some(1), Some(3), Some(3), Some(4), None]);
    }

    #[test]
    fn cuts_at_both_ends() {
        for from in 3..=8 {
            let mut log = sample();
            log.truncate(i(from));
            log.check();
            assert_eq!(log.last(), sample().id_of(i(from - 1)).unwrap());
        }
        for upto in 2..=7 {
            let mut log = sample();
            log.compact(sample().id_of(i(upto)).unwrap());
            log.check();
            assert_eq!((log.start().index, log.last()), (i(upto), id(4, 7)));
            let known: Vec<_> = (upto..=7).map(|index| log.term_of(i(index))).collect();
            let expected: Vec<_> = (upto..=7).map(|index| sample().term_of(i(index))).collect();
            assert_eq!(known, expected);
        }
    }

    #[test]
    fn floor_skips_whole_terms() {
        let log = sample();
        assert_eq!(log.floor(id(4, 9)), i(7));
        assert_eq!(log.floor(id(3, 9)), i(6));
        assert_eq!(log.floor(id(2, 9)), i(4));
        assert_eq!(log.floor(id(3, 5)), i(5));
        assert_eq!(log.floor(id(0, 9)), i(1), "below the start: only a snapshot is left");
        assert_eq!(log.floor(id(9, 1)), i(1));
    }

    #[test]
    fn batches_hold_their_limits() {
        let log = sample();
        assert_eq!(log.batch(i(3), 7, 9), (i(4), 7));
        assert_eq!(log.batch(i(3), 1, 9), (i(3), 3), "one entry always fits");
        assert_eq!(log.batch(i(3), 99, 2), (i(4), 7));
        assert_eq!(log.batch(i(8), 99, 9), (i(7), 0));
        assert_eq!(log.bytes_between(i(3), i(5)), 9);
    }
}
